// Controllers: MIDI that is learned by touch, and where OSC is heard.
import { html } from "../html.js";
import { forget, startMidi, toggleLearning } from "../midi.js";
import { isTurnable, keyWord, placeOf, targetWord } from "../state/midi.js";
import { manyWord } from "../state/words.js";
import * as store from "../store.js";
import { Button } from "./parts.js";

export function Controllers() {
  const { state, names, why } = store.midi.value;
  const osc = store.info.value?.osc;
  return html`<section class="card" aria-label="Controllers">
    <div class="card-head"><h2>Controllers</h2>${state === "on" && html`<span class="effect">${manyWord(names.length, "controller")}</span>`}</div>
    ${state !== "on" && html`<${Button} icon="bolt" text="Use MIDI" label="Use MIDI" onClick=${startMidi} />`}
    ${why && html`<p class="note is-bad">${why}</p>`}
    ${state === "on" && html`<p class="hint">${names.length > 0 ? names.join(", ") : "None is plugged in. One that comes later is used at once."}</p>
      <${Button} icon="plus" text=${store.learning.value ? "Done" : "Learn"} label=${store.learning.value ? "Done" : "Learn"} pressed=${store.learning.value !== null} onClick=${toggleLearning} />
      <${Mapped} />
      <p class="hint">Knobs turn the tile that is being changed.</p>`}
    <p class="hint">${osc ? html`OSC is heard at <code>${osc}</code>.` : html`For OSC start the studio with <code>--osc 9000</code>.`}</p>
  </section>`;
}

function Mapped() {
  const mapping = Object.entries(store.mapping.value);
  if (mapping.length === 0) return html`<p class="hint">Nothing is mapped yet: press Learn, touch a slider or a preset, and move a knob.</p>`;
  return html`<ul class="parts" aria-label="Mapped">
    ${mapping.map(([key, target]) => html`<li key=${key}><span>${keyWord(key)}</span>
      <b>${targetWord(target)}${placeOf(target) === null && !isTurnable(target, store.model.value) ? ", which this model lacks" : ""}</b>
      <${Button} icon="close" label=${`Forget ${keyWord(key)}`} kind="quiet tiny" onClick=${() => forget(key)} /></li>`)}
  </ul>`;
}

/** On every panel: what is to be done next. */
export function Learning() {
  const learning = store.learning.value;
  if (!learning) return null;
  return html`<div class="note learning" role="status">
    <p>${learning.target ? html`Now move a knob, or press a key, for <b>${targetWord(learning.target)}</b>.` : "Touch a slider, a choice or a preset."}</p>
    <button type="button" class="link" onClick=${toggleLearning}>Done learning</button>
  </div>`;
}
