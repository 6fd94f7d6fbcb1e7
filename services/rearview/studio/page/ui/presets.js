// Presets: nine pads that keep and give looks, and the controllers that press them.
import { html } from "../html.js";
import { pick } from "../midi.js";
import { clearPreset, exportPresets, importPresets, loadPreset, namePreset, savePreset } from "../presets.js";
import { keyOf, keyWord, presetTarget } from "../state/midi.js";
import { lookName } from "../state/prompts.js";
import * as store from "../store.js";
import { Controllers } from "./controllers.js";
import { Icon } from "./icons.js";
import { Button } from "./parts.js";

export function Presets() {
  return html`<div class="stack"><${Pads} /><${Controllers} /></div>`;
}

/** What presses it. @param {number} place from 0 */
function mappedKey(place) {
  const key = keyOf(store.mapping.value, presetTarget(place));
  return key && keyWord(key);
}

/** @param {number} place from 0 */
function press(place) {
  if (store.learning.value) return pick(presetTarget(place));
  if (store.presets.value[place]) return loadPreset(place);
  store.pad.value = place;
  return undefined;
}

function Pads() {
  const presets = store.presets.value;
  const at = store.pad.value;
  const chosen = presets[at];
  return html`<section class="card" aria-label="Presets">
    <div class="card-head"><h2>Presets</h2><span class="effect">keys 1–9 while this panel is open</span></div>
    <div class="bus">
      ${presets.map((preset, place) => html`<button type="button" class="bus-key is-pad" key=${place} data-at=${place === at || null} data-empty=${preset ? null : true}
        title=${preset ? `${preset.name}: ${lookName(preset.settings)} (${place + 1})` : `Save the look here (Shift+${place + 1})`}
        data-picked=${store.learning.value?.target === presetTarget(place) || null} data-key=${mappedKey(place)}
        onClick=${() => press(place)}><b><span class="sr">Preset </span>${place + 1} </b><span>${preset?.name ?? "empty"}</span></button>`)}
    </div>
    <div class="row">
      <${Button} icon="download" text=${`Save in ${at + 1}`} label=${`Save in ${at + 1}`} shortcut=${`Shift+${at + 1}`} kind="primary" disabled=${!store.tile.value} onClick=${() => savePreset(at)} />
      ${chosen && html`<${Button} icon="close" text="Clear" label=${`Clear preset ${at + 1}`} kind="quiet" onClick=${() => clearPreset(at)} />`}
    </div>
    ${chosen && html`<div class="field">
      <div class="field-head"><label for="preset-name">Name of preset ${at + 1}</label></div>
      <input id="preset-name" type="text" maxlength="60" key=${at} value=${chosen.name} onChange=${(/** @type {any} */ event) => namePreset(at, event.currentTarget.value)} />
    </div>`}
    <p class="hint">A preset has everything under Look, and how frames are related. It is loaded at the next frame; where frames are to be related otherwise, the session begins anew.</p>
    <div class="row">
      <${Button} icon="download" text="Save as a file" label="Save as a file" disabled=${presets.every((one) => one === null)} onClick=${exportPresets} />
      <label class="button"><${Icon} name="upload" /><span>Load a file</span>
        <input class="sr" type="file" accept=".json,application/json" aria-label="Load presets" onChange=${(/** @type {any} */ event) => {
          const [file] = event.currentTarget.files;
          if (file) importPresets(file);
          event.currentTarget.value = "";
        }} /></label>
    </div>
  </section>`;
}
