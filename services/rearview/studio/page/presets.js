// Presets: saved from a tile, loaded into one, kept in this browser, and carried by a file.
import { tell } from "./announce.js";
import { complain } from "./complain.js";
import * as media from "./media.js";
import { fitted, keptPresets, loading, nameFor, presetOf, presetsText, readPresets, withPreset } from "./state/presets.js";
import { manyWord } from "./state/words.js";
import * as store from "./store.js";
import { control, reopen } from "./tiles.js";

const KEY = "presets";
/** Whether the browser has those that the page shows: else they are in no other page, either. */
let isKept = true;

export function recallPresets() {
  store.presets.value = keptPresets(localStorage.getItem(KEY));
  addEventListener("storage", ({ key }) => {
    if (isKept && (key === KEY || key === null)) store.presets.value = keptPresets(localStorage.getItem(KEY));
  });
}

/** Changes what the browser has by now: another page may have kept some. @param {(presets: import("./state/presets.js").Presets) => import("./state/presets.js").Presets} change */
function keep(change) {
  store.presets.value = change(isKept ? keptPresets(localStorage.getItem(KEY)) : store.presets.value);
  try {
    localStorage.setItem(KEY, presetsText(store.presets.value));
    isKept = true;
  } catch {
    isKept = false;
    complain("presets", "Presets are not kept", "This browser has no room for them: save them as a file.");
  }
}

/** @param {number} place from 0 */
export function savePreset(place) {
  const tile = store.tile.value;
  if (!tile) return;
  store.pad.value = place;
  keep((presets) => withPreset(presets, place, presetOf(tile, store.model.value.name, nameFor(tile, presets[place]))));
  tell(`Preset ${place + 1} is saved`);
}

/** @param {number} place from 0 */
export function loadPreset(place, index = store.focus.value) {
  const tile = store.wall.value.tiles[index];
  const saved = store.presets.value[place];
  const title = `Preset ${place + 1}${saved ? `, ${saved.name}` : ""}`;
  if (!saved) return complain(`preset ${place}`, title, "There is none in this place.");
  if (!tile) return complain(`preset ${place}`, title, `Tile ${index + 1} is not open.`);
  store.pad.value = place;
  const { preset, misfits } = fitted(saved, store.model.value, store.phrases.value);
  const { change, anew } = loading(preset, tile);
  if (change) control(change, index);
  if (anew) reopen(anew, index);
  if (misfits.length > 0) complain(`preset ${place}`, `${title}: not all of it fits`, `${saved.model ? `It was made with ${saved.model}. ` : ""}Here ${misfits.join("; ")}.`);
  return tell(anew ? `${title}: the session begins anew` : change ? `${title} is loaded` : `${title}: the picture is so already`);
}

/** @param {number} place from 0 @param {string} name */
export function namePreset(place, name) {
  if (name.trim()) keep((presets) => withPreset(presets, place, presets[place] && { ...presets[place], name: name.trim() }));
}

/** @param {number} place from 0 */
export function clearPreset(place) {
  keep((presets) => withPreset(presets, place, null));
  tell(`Preset ${place + 1} is cleared`);
}

export function exportPresets() {
  media.download(presetsText(store.presets.value), "presets.json");
}

/** Those in the file take their places; others stay. @param {File} file */
export async function importPresets(file) {
  try {
    const read = readPresets(await file.text());
    keep((presets) => presets.map((preset, place) => read[place] ?? preset));
    tell(`${file.name}: ${manyWord(read.filter(Boolean).length, "preset")}`);
  } catch (error) {
    complain("presets", file.name, `${/** @type {Error} */ (error).message}.`);
  }
}
