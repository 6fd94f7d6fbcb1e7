// The look: prompt with marks, chips, a mix, and how strongly it acts.
import { html } from "../html.js";
import { useEffect, useRef, useState } from "../vendor/hooks.js";
import { changeOf as adapterChange, weightsOf } from "../state/adapters.js";
import { heldBy, turned } from "../state/controls.js";
import { changeOf, mark, rowsOf, shares, unknownWords } from "../state/prompts.js";
import { explain, manyWord } from "../state/words.js";
import * as store from "../store.js";
import { control } from "../tiles.js";
import { Dial, Turnable } from "./dial.js";
import { Button, Choice, Effect, Select } from "./parts.js";
import { Reference } from "./reference.js";

/** @typedef {import("../state/prompts.js").Weighted} Weighted */

export function Look() {
  const tile = store.tile.value;
  if (!tile) return html`<p class="empty">Start a source; then everything here changes the picture while it runs.</p>`;
  return html`<div class="stack">
    <${Prompts} key=${store.focus.value} />
    <${Strength} />
    ${store.model.value.takes_reference && html`<${Reference} />`}
    <${Fine} />
  </div>`;
}

function Prompts() {
  const tile = /** @type {import("../state/tile.js").Tile} */ (store.tile.value);
  const settings = store.settings.value;
  const [rows, setRows] = useState(() => rowsOf(settings));
  const [at, setAt] = useState(0);
  const told = JSON.stringify(rowsOf(settings));
  // What the service says replaces what is here, unless it is being typed.
  const [isTyping, setTyping] = useState(false);
  useEffect(() => {
    if (!isTyping) setRows(JSON.parse(told));
  }, [told, isTyping]);

  /** @param {Weighted[]} next */
  const apply = (next) => {
    setTyping(false);
    setRows(next);
    control(changeOf(next));
  };
  const change = (/** @type {number} */ index, /** @type {Partial<Weighted>} */ part) => rows.map((row, number) => (number === index ? { ...row, ...part } : row));
  const percents = shares(rows);
  const current = Math.min(at, rows.length - 1);
  const waits = Boolean((tile.inFlight?.settings ?? tile.waiting ?? {}).prompt ?? (tile.inFlight?.settings ?? {}).prompts);
  return html`<section class="card" aria-label="Prompt">
    <div class="card-head"><h2>Prompt</h2><${Effect} frame=${tile.tookEffect.prompt} waits=${waits} /></div>
    ${rows.map(
      (row, index) => html`<${PromptRow} key=${index} row=${row} index=${index} isMix=${rows.length > 1} percent=${percents[index]}
        onFocus=${() => setAt(index)}
        onText=${(/** @type {string} */ prompt) => {
          setTyping(true);
          setRows(change(index, { prompt }));
        }}
        onDone=${() => apply(rows)}
        onWeight=${(/** @type {number} */ weight) => apply(change(index, { weight }))}
        onRemove=${() => apply(rows.filter((_, number) => number !== index))} />`,
    )}
    <${Chips} chosen=${rows[current]?.prompt ?? ""} onPick=${(/** @type {string} */ prompt) => apply(change(current, { prompt }))} />
    <div class="row between">
      <${Button} icon="plus" text="Mix another in" label="Mix another in" kind="quiet" disabled=${rows.length >= 8}
        onClick=${() => {
          setTyping(true);
          setRows([...rows, { prompt: "", weight: 1 }]);
          setAt(rows.length);
        }} />
      ${isTyping && html`<button type="button" class="button primary" onClick=${() => apply(rows)}>Apply <kbd>↵</kbd></button>`}
    </div>
    <${Unknown} rows=${rows} />
    ${tile.rejected && html`<p class="note is-bad">${explain(tile.rejected.reason, tile.rejected.message).title}. ${tile.rejected.message}</p>`}
    <${Dial} name="blend_frames" label="Blend over" value=${settings.blend_frames ?? 0}
      show=${(/** @type {number} */ frames) => (frames < 2 ? "at once" : manyWord(frames, "frame"))} frame=${tile.tookEffect.blend_frames}
      onInput=${(/** @type {number} */ blend_frames) => control({ blend_frames })} />
  </section>`;
}

/** @param {any} props */
function PromptRow({ row, index, isMix, percent, onFocus, onText, onDone, onWeight, onRemove }) {
  const tile = /** @type {import("../state/tile.js").Tile} */ (store.tile.value);
  const pieces = mark(row.prompt, store.phrases.value, tile.unknownWords);
  const back = useRef(/** @type {HTMLElement | null} */ (null));
  return html`<div class="prompt">
    <div class="prompt-box">
      <div class="prompt-back" ref=${back} aria-hidden="true">${pieces.map((piece) => (piece.unknown ? html`<mark>${piece.text}</mark>` : piece.text))}${"\u200b"}</div>
      <textarea rows="2" value=${row.prompt} aria-label=${isMix ? `Prompt ${index + 1}` : "Prompt"} spellcheck="false" maxlength="500"
        id=${index === 0 ? "prompt" : null} placeholder="Say what you want to see" onFocus=${onFocus}
        onScroll=${(/** @type {any} */ event) => back.current && (back.current.scrollTop = event.currentTarget.scrollTop)}
        onInput=${(/** @type {any} */ event) => onText(event.currentTarget.value)}
        onKeyDown=${(/** @type {KeyboardEvent} */ event) => {
          if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
          event.preventDefault();
          onDone();
        }}></textarea>
      ${isMix && html`<${Button} icon="close" label=${`Remove prompt ${index + 1}`} kind="quiet tiny" onClick=${onRemove} />`}
    </div>
    ${isMix && html`<${Dial} name=${`share/${index + 1}`} label=${`Share of ${row.prompt || "this"}`} value=${row.weight} show=${() => `${percent} %`} onInput=${onWeight} />`}
  </div>`;
}

/** The styles that the model knows. @param {{chosen: string, onPick: (prompt: string) => void}} props */
function Chips({ chosen, onPick }) {
  const styles = store.model.value?.styles ?? [];
  if (styles.length === 0) return null;
  return html`<div class="chips" role="group" aria-label="Styles that the model knows">
    ${styles.map(
      (/** @type {any} */ style) => html`<button type="button" class="chip" key=${style.name} title=${style.prompt}
        aria-pressed=${String(chosen.trim().toLowerCase() === style.prompt)} onClick=${() => onPick(style.prompt)}>${style.name}</button>`,
    )}
  </div>`;
}

/** What the model was never taught, and one that takes it. @param {{rows: Weighted[]}} props */
function Unknown({ rows }) {
  const tile = /** @type {import("../state/tile.js").Tile} */ (store.tile.value);
  const words = rows.flatMap((row) => unknownWords(mark(row.prompt, store.phrases.value, tile.unknownWords)));
  if (words.length === 0) return null;
  const other = store.models.value.find((one) => one.state !== "in_use" && one.id !== store.info.value.model.name);
  const shown = [...new Set(words)].slice(0, 4);
  return html`<div class="note" role="status">
    <p><b>${store.model.value.title ?? store.model.value.name}</b> was never taught <em>${shown.join(", ")}</em>${words.length > 4 ? " and more" : ""}.</p>
    ${other && html`<button type="button" class="link" onClick=${() => (store.sheet.value = "models")}>${other.title} follows any prompt →</button>`}
  </div>`;
}

function Strength() {
  const tile = /** @type {import("../state/tile.js").Tile} */ (store.tile.value);
  const settings = store.settings.value;
  const took = tile.tookEffect;
  const most = tile.options.max_steps || store.model.value.max_steps || 4;
  const steps = Array.from({ length: Math.min(most, 8) }, (_, index) => ({ value: index + 1, name: String(index + 1) }));
  return html`<section class="card" aria-label="How strongly">
    <${Dial} name="strength" label="Strength" value=${settings.strength ?? 0.4} show=${(/** @type {number} */ value) => value.toFixed(2)}
      frame=${took.strength} hint="How far the picture may leave the input." onInput=${(/** @type {number} */ strength) => control({ strength })} />
    <${Turnable} name="steps"><${Choice} label="Steps" value=${settings.steps} options=${steps} frame=${took.steps} onPick=${(/** @type {number} */ next) => control({ steps: next })} /></${Turnable}>
    <${Turnable} name="seed"><div class="field seed">
      <div class="field-head"><label for="seed">Seed</label><${Effect} frame=${took.seed} /></div>
      <div class="row">
        <input id="seed" type="number" min="0" max="9007199254740991" step="1" value=${settings.seed ?? 0}
          onChange=${(/** @type {any} */ event) => control({ seed: Math.max(0, Math.floor(Number(event.currentTarget.value) || 0)) })} />
        <${Button} icon="dice" label="Another seed" onClick=${() => control({ seed: Math.floor(Math.random() * 1e6) })} />
      </div>
    </div></${Turnable}>
  </section>`;
}

const GUIDANCES = [
  { value: "none", name: "None" },
  { value: "self", name: "Self: away from the input" },
  { value: "initialize", name: "Negative prompt, in the first step" },
  { value: "full", name: "Negative prompt, in every step" },
];
const NOISES = [
  { value: "fixed", name: "Fixed", title: "The same for every frame: least flicker" },
  { value: "fresh", name: "Fresh", title: "New for every frame: alive" },
];

function Fine() {
  const tile = /** @type {import("../state/tile.js").Tile} */ (store.tile.value);
  const settings = store.settings.value;
  const took = tile.tookEffect;
  const guidance = settings.guidance ?? "none";
  const merged = /** @type {string[]} */ (store.model.value.merged_adapters ?? []);
  const adapters = (store.model.value.adapters ?? []).filter((/** @type {string} */ name) => !merged.includes(name));
  const weights = weightsOf(settings);
  // A camera's frames bring no pictures for controls.
  const sent = /** @type {string[]} */ (store.model.value.sent_controls ?? []);
  const controls = (store.model.value.controls ?? []).filter((/** @type {string} */ name) => !sent.includes(name));
  const held = heldBy(settings.controls);
  return html`<details class="card">
    <summary><h2>Fine tuning</h2></summary>
    <div class="stack">
      <${Turnable} name="noise_rule"><${Choice} label="Noise" value=${settings.noise_rule ?? "fixed"} options=${NOISES} frame=${took.noise_rule} onPick=${(/** @type {string} */ noise_rule) => control({ noise_rule })} /></${Turnable}>
      <${Turnable} name="guidance"><${Select} label="Guidance" value=${guidance} options=${GUIDANCES} frame=${took.guidance} onPick=${(/** @type {string} */ next) => control({ guidance: next })} /></${Turnable}>
      ${guidance !== "none" && html`<${Dial} name="guidance_scale" label="Guidance scale" value=${settings.guidance_scale ?? 1}
        show=${(/** @type {number} */ value) => value.toFixed(1)} frame=${took.guidance_scale} onInput=${(/** @type {number} */ guidance_scale) => control({ guidance_scale })} />`}
      ${(guidance === "self" || guidance === "initialize") && html`<${Dial} name="delta" label="Delta" value=${settings.delta ?? 1}
        show=${(/** @type {number} */ value) => value.toFixed(2)} frame=${took.delta} hint="Less adds grain, more softens." onInput=${(/** @type {number} */ delta) => control({ delta })} />`}
      ${(guidance === "full" || guidance === "initialize") && html`<div class="field">
        <div class="field-head"><label for="negative">Negative prompt</label><${Effect} frame=${took.negative_prompt} /></div>
        <input id="negative" type="text" value=${settings.negative_prompt ?? ""} onChange=${(/** @type {any} */ event) => control({ negative_prompt: event.currentTarget.value })} />
      </div>`}
      ${merged.length > 0 && html`<${Select} label="Merged adapters" value=${merged.find((name) => weights[name]) ?? ""} frame=${took.adapters}
        onPick=${(/** @type {string} */ next) => control({ adapters: next })} options=${[{ value: "", name: "None" }, ...merged.map((name) => ({ value: name, name }))]} />`}
      ${adapters.map(
        (/** @type {string} */ name) => html`<${Dial} key=${name} name=${`adapter/${name}`} label=${`Adapter ${name}`} value=${weights[name] ?? 0}
        show=${(/** @type {number} */ value) => (value === 0 ? "off" : value.toFixed(2))} frame=${took.adapters}
        onInput=${(/** @type {number} */ weight) => control(adapterChange(settings, name, weight, merged))} />`,
      )}
      ${controls.map(
        (/** @type {string} */ name) => html`<${Dial} key=${name} name=${`control/${name}`} label=${`Hold the shape by ${name}`} value=${held[name] ?? 0}
        show=${(/** @type {number} */ value) => (value === 0 ? "off" : value.toFixed(2))} frame=${took.controls}
        onInput=${(/** @type {number} */ weight) => control({ controls: turned(settings.controls, name, weight) })} />`,
      )}
      <${Dial} name="jpeg_quality" label="Picture quality" value=${settings.jpeg_quality ?? 85} frame=${took.jpeg_quality}
        hint="JPEG on the way back." onInput=${(/** @type {number} */ jpeg_quality) => control({ jpeg_quality })} />
    </div>
  </details>`;
}
