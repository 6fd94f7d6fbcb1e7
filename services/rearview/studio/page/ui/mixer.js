// The vision mixer: which tile viewers see, fades by hand, and the link for viewers.
import { html } from "../html.js";
import { useState } from "../vendor/hooks.js";
import { cut, mixTiles } from "../actions.js";
import { lookName } from "../state/prompts.js";
import { sharesAt } from "../state/program.js";
import * as store from "../store.js";
import { addTile } from "../tiles.js";
import { Button, Slider } from "./parts.js";

export function Mixer() {
  const tiles = store.tiles.value;
  if (tiles.length === 0) return html`<p class="empty">Start a source. Then give it up to nine looks at once, and cut between them.</p>`;
  return html`<div class="stack">
    <${Bus} />
    ${tiles.length > 1 ? html`<${Bar} />` : html`<section class="card"><p class="hint">One source, up to nine looks in one batch. Add a second one to cut and fade.</p>
      <${Button} icon="plus" text="Add a look" label="Add a look" kind="primary" onClick=${addTile} /></section>`}
    <${Viewers} />
  </div>`;
}

function Bus() {
  const wall = store.wall.value;
  const shares = sharesAt(wall.program, performance.now());
  return html`<section class="card" aria-label="Program">
    <div class="card-head"><h2>Program</h2><span class="on-air is-inline">on air</span></div>
    <div class="bus">
      ${store.tiles.value.map((index) => {
        const isOn = shares.some((share) => share.tile === index);
        return html`<button type="button" class="bus-key" key=${index} aria-pressed=${String(isOn)} onClick=${() => cut(index)}
          title=${`Cut to ${lookName(wall.tiles[index].settings)} (${index + 1})`}><b>${index + 1}</b><span>${lookName(wall.tiles[index].settings)}</span></button>`;
      })}
    </div>
    <${Slider} label="Fade takes" min=${100} max=${3000} step=${100} value=${store.fadeMs.value} show=${(/** @type {number} */ ms) => `${(ms / 1000).toFixed(1)} s`}
      onInput=${(/** @type {number} */ ms) => (store.fadeMs.value = ms)} />
    <div class="row">${store.tiles.value.map((index) => html`<button type="button" class="button small" key=${index} onClick=${() => cut(index, store.fadeMs.value)}>Fade to ${index + 1}</button>`)}</div>
  </section>`;
}

/** Two tiles mixed by hand. */
function Bar() {
  const tiles = store.tiles.value;
  const [pair, setPair] = useState([tiles[0], tiles[1]]);
  const [mix, setMix] = useState(0);
  const [a, b] = pair.map((one, at) => (tiles.includes(one) ? one : tiles[at]));
  const pick = (/** @type {number} */ at) => (/** @type {any} */ event) => setPair(at === 0 ? [Number(event.currentTarget.value), b] : [a, Number(event.currentTarget.value)]);
  const options = (/** @type {number} */ chosen) => tiles.map((index) => html`<option value=${index} selected=${index === chosen}>${index + 1} ${lookName(store.wall.value.tiles[index].settings)}</option>`);
  return html`<section class="card" aria-label="Mix by hand">
    <div class="card-head"><h2>Mix by hand</h2></div>
    <div class="pair"><select aria-label="From" onChange=${pick(0)}>${options(a)}</select><select aria-label="To" onChange=${pick(1)}>${options(b)}</select></div>
    <${Slider} label="Mix" min=${0} max=${1} step=${0.01} value=${mix} show=${(/** @type {number} */ value) => `${Math.round(100 * value)} %`}
      onInput=${(/** @type {number} */ value) => {
        setMix(value);
        mixTiles(a, b, value);
      }} />
  </section>`;
}

/** Where viewers find the program. */
export function viewerUrl() {
  const key = store.wall.value.viewer;
  // Others reach the studio by its address on the network, if it has one.
  return key ? new URL(`/view/${key}`, store.info.value?.lan ?? location.href).href : null;
}

function Viewers() {
  const url = viewerUrl();
  if (!url) return null;
  return html`<section class="card" aria-label="Viewers">
    <div class="card-head"><h2>Viewers</h2></div>
    <p class="hint">Whoever has the link sees the program, and can change nothing.</p>
    <div class="row">
      <${Button} icon="share" text="Link and QR code" label="Link and QR code" onClick=${() => (store.sheet.value = "share")} />
      <${Button} icon="window" text="Clean feed" label="Clean feed in a window of its own" shortcut="P" onClick=${openFeed} />
    </div>
  </section>`;
}

/** The program alone, for a projector. */
export function openFeed() {
  const key = store.wall.value.viewer;
  if (key) window.open(`view/${key}`, "rearview-feed", "popup,width=960,height=720");
}
