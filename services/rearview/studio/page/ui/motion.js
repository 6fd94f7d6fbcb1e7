// How frames relate to those before them, and how the source is taken. Changes here open the session anew.
import { html } from "../html.js";
import { begin, source as openSource } from "../begin.js";
import { manyWord } from "../state/words.js";
import * as store from "../store.js";
import { reopen, setTaking } from "../tiles.js";
import { FileInput, SOURCES } from "./overlay.js";
import { Icon } from "./icons.js";
import { Button, Choice, Effect, Select, Slider, Switch } from "./parts.js";

/** @type {Record<string, {name: string, help: string}>} */
const METHODS = {
  per_frame: { name: "Alone", help: "Every frame is painted by itself. Quick, and it may boil." },
  streamv2v: { name: "Bank", help: "StreamV2V: frames borrow from a bank of what was painted before. Steady." },
  live2diff: { name: "Window", help: "Live2Diff: attention over the first and the last frames. Steadiest where motion is slow." },
};

export function Motion() {
  const tile = store.tile.value;
  return html`<div class="stack">
    <${SourceCard} />
    ${tile && html`<${MethodCard} tile=${tile} />`}
    ${tile?.method === "streamv2v" && html`<${BankCard} tile=${tile} />`}
    ${tile?.method === "live2diff" && html`<${CacheCard} tile=${tile} />`}
    ${tile && html`<${SavingCard} tile=${tile} />`}
  </div>`;
}

function SourceCard() {
  const source = store.source.value;
  const { rate, quality } = store.taking.value;
  const cameras = store.cameras.value;
  return html`<section class="card" aria-label="Source">
    <div class="card-head"><h2>Source</h2>${source.state === "live" && html`<span class="effect">${source.width} × ${source.height}</span>`}</div>
    <div class="source-row">
      ${SOURCES.map((one) => {
        const isNow = source.kind === one.kind && source.state === "live";
        if (one.kind === "file") return html`<label class="button stacked" data-now=${isNow || null}><${Icon} name="file" /><span>File</span><${FileInput} /></label>`;
        return html`<button type="button" class="button stacked" data-now=${isNow || null} aria-pressed=${String(isNow)} onClick=${() => begin(one.kind)}>
          <${Icon} name=${one.kind} /><span>${one.name.replace(" clip", "")}</span></button>`;
      })}
    </div>
    ${source.kind === "camera" && cameras.length > 1 && html`<${Select} label="Camera" value=${source.deviceId ?? ""}
      options=${cameras.map(({ id, name }) => ({ value: id, name }))} onPick=${(/** @type {string} */ deviceId) => begin("camera", { deviceId })} />`}
    ${source.state === "live" && html`<p class="hint">${source.name}</p>`}
    ${openSource?.video && source.state === "live" && html`<${Switch} label="Loop" checked=${openSource.video.loop} onToggle=${(/** @type {boolean} */ loop) => openSource?.video && (openSource.video.loop = loop)} />`}
    <${Slider} label="Frames a second" min=${1} max=${60} step=${1} value=${rate} onInput=${(/** @type {number} */ next) => setTaking({ rate: next })} />
    <${Slider} label="Upload quality" min=${0.4} max=${1} step=${0.01} value=${quality} show=${(/** @type {number} */ value) => String(Math.round(100 * value))}
      onInput=${(/** @type {number} */ next) => setTaking({ quality: next })} />
  </section>`;
}

/** @param {{tile: import("../state/tile.js").Tile}} props */
function MethodCard({ tile }) {
  const known = (store.model.value.methods ?? []).filter((/** @type {string} */ one) => METHODS[one]);
  return html`<section class="card" aria-label="Motion">
    <div class="card-head"><h2>Relation of frames</h2><${Effect} frame=${tile.tookEffect.method} waits=${tile.state === "opening"} /></div>
    <${Choice} label="Method" hideLabel value=${tile.method} options=${known.map((/** @type {string} */ one) => ({ value: one, name: METHODS[one].name, title: METHODS[one].help }))}
      onPick=${(/** @type {string} */ method) => reopen({ method })} />
    <p class="hint">${METHODS[tile.method]?.help}</p>
    <p class="fine">A change here starts this tile's session anew, with its look.</p>
  </section>`;
}

const BANKS = [
  { value: "merge", name: "Merge", title: "Old and new features are merged: constant size" },
  { value: "queue", name: "Queue", title: "The last written frames are kept whole" },
];
const CHANGES = [
  { value: "keep", name: "Keep", title: "The new style blends in" },
  { value: "fade", name: "Fade", title: "Fusion returns over some frames" },
  { value: "clear", name: "Clear", title: "The first frame finds an empty bank" },
];

/** @param {{tile: import("../state/tile.js").Tile}} props */
function BankCard({ tile }) {
  const bank = /** @type {any} */ (tile.options.feature_bank ?? {});
  const change = (/** @type {Record<string, unknown>} */ part) => {
    const next = { ...bank, ...part };
    if (next.policy !== "queue") delete next.max_frames;
    reopen({ feature_bank: next });
  };
  return html`<details class="card">
    <summary><h2>Bank</h2></summary>
    <div class="stack">
      <${Choice} label="Kept by" value=${bank.policy ?? "merge"} options=${BANKS} onPick=${(/** @type {string} */ policy) => change({ policy })} />
      <${Choice} label="On a new prompt" value=${bank.prompt_change ?? "keep"} options=${CHANGES} onPick=${(/** @type {string} */ prompt_change) => change({ prompt_change })} />
      <${Committed} label="Written every" min=${1} max=${16} step=${1} value=${bank.interval ?? 4} show=${(/** @type {number} */ value) => manyWord(value, "frame")} onDone=${(/** @type {number} */ interval) => change({ interval })} />
      ${bank.policy === "queue" && html`<${Committed} label="Frames kept" min=${1} max=${8} step=${1} value=${bank.max_frames ?? 1} onDone=${(/** @type {number} */ max_frames) => change({ max_frames })} />`}
      <${Committed} label="Fusion" min=${0} max=${1} step=${0.05} value=${bank.fusion_strength ?? 0.8} show=${(/** @type {number} */ value) => value.toFixed(2)} onDone=${(/** @type {number} */ fusion_strength) => change({ fusion_strength })} />
    </div>
  </details>`;
}

const REWARMS = [
  { value: "shadow", name: "Shadow", title: "A new window warms up beside the old one" },
  { value: "reset", name: "Reset", title: "Frames wait for a new window" },
  { value: "keep", name: "Keep", title: "Nothing: the old first frames stay" },
];

/** @param {{tile: import("../state/tile.js").Tile}} props */
function CacheCard({ tile }) {
  const cache = /** @type {any} */ (tile.options.temporal_cache ?? {});
  const change = (/** @type {Record<string, unknown>} */ part) => reopen({ temporal_cache: { ...cache, ...part } });
  return html`<details class="card">
    <summary><h2>Window</h2></summary>
    <div class="stack">
      <${Choice} label="On a new prompt" value=${cache.prompt_change} options=${REWARMS} onPick=${(/** @type {string} */ prompt_change) => change({ prompt_change })} />
      <${Choice} label="On a new scene" value=${cache.scene_cut} options=${REWARMS} onPick=${(/** @type {string} */ scene_cut) => change({ scene_cut })} />
      <${Switch} label="Look for scene cuts" checked=${cache.scene_detection ?? true} onToggle=${(/** @type {boolean} */ scene_detection) => change({ scene_detection })} />
      <${Switch} label="Start at once" hint="The first frame stands for those that follow." checked=${cache.instant_start ?? false} onToggle=${(/** @type {boolean} */ instant_start) => change({ instant_start })} />
    </div>
  </details>`;
}

/** @param {{tile: import("../state/tile.js").Tile}} props */
function SavingCard({ tile }) {
  const filter = /** @type {any} */ (tile.options.similarity_filter);
  return html`<section class="card" aria-label="Saving work">
    <${Switch} label="Leave out frames that look alike" hint="Saves work while nothing moves." checked=${Boolean(filter)}
      onToggle=${(/** @type {boolean} */ on) => reopen({ similarity_filter: on ? {} : undefined })} />
    <p class="fine">Session ${tile.sessionId ? html`<code>${tile.sessionId.slice(0, 8)}</code>` : "–"} since frame ${tile.sinceFrame}.</p>
    ${store.tiles.value.length > 0 && html`<${Button} icon="bolt" text="Start this tile anew" label="Start this tile anew" kind="quiet" onClick=${() => reopen({})} />`}
  </section>`;
}

/** A slider whose value counts when it is let go. @param {any} props */
function Committed({ onDone, ...props }) {
  let timer = 0;
  return html`<${Slider} ...${props} onInput=${(/** @type {number} */ value) => {
    clearTimeout(timer);
    timer = setTimeout(() => onDone(value), 500);
  }} />`;
}
