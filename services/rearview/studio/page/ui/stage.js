// The large picture with its split handle, what is said over it, and the tiles below.
import { html } from "../html.js";
import { useEffect, useRef, useState } from "../vendor/hooks.js";
import { lend, order } from "../engine.js";
import { places } from "../state/layout.js";
import { lookName } from "../state/prompts.js";
import { sharesAt } from "../state/program.js";
import { columns } from "../state/layout.js";
import { countWord } from "../state/words.js";
import { cut, look } from "../actions.js";
import * as store from "../store.js";
import { addTile, closeTile } from "../tiles.js";
import { Button, Choice } from "./parts.js";
import { Icon } from "./icons.js";
import { Overlay, Welcome } from "./overlay.js";

const VIEWS = [
  { value: "split", name: "Split", title: "Input and output in one picture" },
  { value: "side", name: "Side by side", title: "Input beside output" },
  { value: "picture", name: "Picture", title: "The output alone" },
  { value: "program", name: "Program", title: "What viewers see" },
  { value: "wall", name: "Wall", title: "All tiles" },
];

export function Stage() {
  const view = store.view.value;
  const isBare = store.isBare.value;
  return html`<main class="main" data-view=${view} id="stage" tabindex="-1">
    <div class="stage" data-empty=${isBare || null}>
      <${Canvas} />
      ${isBare ? html`<${Welcome} />` : html`<${Overlay} />`}
    </div>
    ${!isBare && html`<div class="under">
      <${Choice} label="View" hideLabel value=${view} options=${VIEWS} onPick=${look} />
      <${Figures} />
    </div>`}
    <${Strip} />
  </main>`;
}

function Canvas() {
  const ref = useRef(/** @type {HTMLCanvasElement | null} */ (null));
  const [box, setBox] = useState({ width: 0, height: 0 });
  const view = store.view.value;
  const split = store.split.value;
  const focus = store.focus.value;
  useEffect(() => {
    const canvas = /** @type {HTMLCanvasElement} */ (ref.current);
    const unlend = lend(canvas, "stage");
    const watch = new ResizeObserver(([entry]) => setBox({ width: entry.contentRect.width, height: entry.contentRect.height }));
    watch.observe(canvas);
    return () => {
      unlend();
      watch.disconnect();
    };
  }, []);
  useEffect(() => order("look", { view, split, tile: focus }), [view, split, focus]);
  const options = store.tile.value?.options;
  const at = options && box.width > 0 ? places(view, options, box) : null;
  const name = store.tile.value ? lookName(store.settings.value) : "nothing yet";
  return html`<canvas ref=${ref} role="img" aria-label=${view === "program" ? "The program" : `Tile ${focus + 1}: ${name}`}></canvas>
    ${at?.input && view === "split" && html`<${Split} at=${at.input} />`}
    ${at?.input && view === "side" && html`
      <span class="caption" style=${{ left: `${at.input.x + 10}px`, top: `${at.input.y + 10}px` }}>Input</span>
      <span class="caption" style=${{ left: `${at.output.x + 10}px`, top: `${at.output.y + 10}px` }}>Output</span>`}`;
}

/** Dragged anywhere on the picture; a slider for keyboards. @param {{at: import("../state/layout.js").Rect}} props */
function Split({ at }) {
  const split = store.split.value;
  const style = { left: `${at.x}px`, top: `${at.y}px`, width: `${at.width}px`, height: `${at.height}px`, "--split": `${100 * split}%` };
  return html`<div class="split" style=${style}>
    <input type="range" min="0" max="1" step="0.01" value=${split} aria-label="Split between input and output"
      aria-valuetext=${`${Math.round(100 * split)} % input`}
      onInput=${(/** @type {any} */ event) => (store.split.value = Number(event.currentTarget.value))} />
    <span class="split-line" aria-hidden="true"><span></span></span>
    <span class="caption split-left" data-gone=${split < 0.12 || null}>Input</span>
    <span class="caption split-right" data-gone=${split > 0.88 || null}>Output</span>
  </div>`;
}

function Figures() {
  const beat = store.beat.value;
  const mine = beat?.tiles[store.focus.value];
  const tile = store.tile.value;
  if (!tile) return html`<div class="figures"></div>`;
  return html`<dl class="figures">
    <div><dt>frame</dt><dd>${mine?.frame === null || mine?.frame === undefined ? "–" : countWord(mine.frame)}</dd></div>
    <div><dt>fps</dt><dd>${mine ? mine.fps.toFixed(mine.fps < 10 ? 1 : 0) : "–"}</dd></div>
    <div><dt>delay</dt><dd>${mine?.glassMs ? `${Math.round(mine.glassMs)} ms` : "–"}</dd></div>
    <div class="wide-only"><dt>size</dt><dd>${tile.options.width} × ${tile.options.height}</dd></div>
  </dl>`;
}

/** The tiles. In the wall they fill the stage; the canvases stay the same. */
function Strip() {
  const tiles = store.tiles.value;
  const most = store.info.value?.limits?.tiles ?? 9;
  const count = tiles.length + (tiles.length < most ? 1 : 0);
  if (tiles.length === 0) return null;
  return html`<section class="strip" aria-label="Tiles" style=${{ "--columns": columns(Math.max(count, 1)) }}>
    ${tiles.map((index) => html`<${TileCard} key=${index} index=${index} />`)}
    ${tiles.length < most && html`<button type="button" class="tile-add" onClick=${addTile} title="Another look of the same source (N)">
      <${Icon} name="plus" /><span>Add a look</span></button>`}
  </section>`;
}

/** @param {{index: number}} props */
function TileCard({ index }) {
  const ref = useRef(/** @type {HTMLCanvasElement | null} */ (null));
  useEffect(() => lend(/** @type {HTMLCanvasElement} */ (ref.current), `tile-${index}`), []);
  const isFocused = store.focus.value === index;
  useEffect(() => {
    if (isFocused) ref.current?.closest(".tile")?.scrollIntoView({ block: "nearest", inline: "nearest" });
  }, [isFocused]);
  const tile = store.wall.value.tiles[index];
  const share = sharesAt(store.wall.value.program, performance.now()).find((one) => one.tile === index)?.weight ?? 0;
  const beat = store.beat.value?.tiles[index];
  const name = lookName(tile.settings);
  return html`<article class="tile" data-focused=${isFocused || null} data-program=${share > 0 || null} aria-label=${`Tile ${index + 1}: ${name}`}
    style=${{ "--aspect": `${tile.options.width} / ${tile.options.height}` }}>
    <canvas ref=${ref} aria-hidden="true"></canvas>
    <button type="button" class="tile-pick" aria-pressed=${String(isFocused)} onClick=${() => (store.focus.value = index)}
      onDblClick=${() => cut(index)} aria-label=${`Edit tile ${index + 1}: ${name}`}></button>
    ${tile.state !== "live" && html`<span class="tile-state">${tile.state}</span>`}
    ${share > 0 && html`<span class="on-air" title="on program"><span class="sr">on </span>PGM${share < 1 ? ` ${Math.round(100 * share)}` : ""}</span>`}
    <div class="tile-foot">
      <span class="tile-name"><b>${index + 1}</b> ${name}</span>
      <span class="tile-rate">${beat ? `${Math.round(beat.fps)} fps` : ""}</span>
    </div>
    <div class="tile-tools">
      <button type="button" class="mini" onClick=${() => cut(index)} title="Cut to program (${index + 1})">Cut</button>
      <button type="button" class="mini" onClick=${() => cut(index, store.fadeMs.value)} title="Fade to program (Shift+${index + 1})">Fade</button>
      ${store.tiles.value.length > 1 && html`<${Button} icon="close" kind="quiet tiny" label=${`Close tile ${index + 1}`} onClick=${() => closeTile(index)} />`}
    </div>
  </article>`;
}
