// MIDI controllers: asked for once, learned by touching what they are to turn, and kept in this browser.
import { tell } from "./announce.js";
import { say } from "./engine.js";
import { loadPreset } from "./presets.js";
import { forgotten, heard, isTurnable, keyWord, learned, placeOf, presses, readMapping, targetWord } from "./state/midi.js";
import * as store from "./store.js";

const KEY = "midi";
const WANTED = "midi-wanted";
/** The last place of each key, for what is a button. @type {Map<string, number>} */
const places = new Map();
/** @type {any} */
let access = null;

/** After a reload: a browser that was allowed them before gives them again. */
export function recallMidi() {
  store.mapping.value = readMapping(localStorage.getItem(KEY));
  addEventListener("storage", ({ key }) => {
    if (key === KEY || key === null) store.mapping.value = readMapping(localStorage.getItem(KEY));
  });
  if (localStorage.getItem(WANTED)) startMidi();
}

export async function startMidi() {
  const ask = /** @type {any} */ (navigator).requestMIDIAccess;
  if (!ask) return refused("This browser has no Web MIDI: Chromium, Chrome, Edge and Firefox have it.");
  try {
    access = await ask.call(navigator);
  } catch {
    return refused("MIDI was not allowed: allow it with the sign in the address bar, and press the button again.");
  }
  localStorage.setItem(WANTED, "1");
  access.onstatechange = listenToAll;
  return listenToAll();
}

/** @param {string} why */
function refused(why) {
  store.midi.value = { state: "refused", names: [], why };
  tell(why, true);
}

function listenToAll() {
  const inputs = [...access.inputs.values()].filter((one) => one.state !== "disconnected");
  for (const input of inputs) input.onmidimessage = (/** @type {any} */ event) => turned(event.data);
  store.midi.value = { state: "on", names: inputs.map((one) => one.name ?? "a controller"), why: "" };
}

/** @param {Uint8Array} data */
function turned(data) {
  const now = heard(data);
  if (!now) return;
  const before = places.get(now.key);
  places.set(now.key, now.share);
  const learning = store.learning.value;
  if (learning) {
    if (learning.target) learn(now.key, learning.target);
    return;
  }
  const target = store.mapping.value[now.key];
  if (!target) return;
  const place = placeOf(target);
  if (place !== null) {
    if (presses(now, before)) loadPreset(place);
    return;
  }
  // What another model lacks is turned by nobody, and says so in the list. A link that is down keeps no turns.
  if (store.tile.value && store.link.value.state === "open" && isTurnable(target, store.model.value)) {
    say({ type: "turn", tile: store.focus.value, name: target, share: now.share });
  }
}

/** Changes what the browser has by now: another page may have learned some. @param {(mapping: import("./state/midi.js").Mapping) => import("./state/midi.js").Mapping} change */
function keep(change) {
  store.mapping.value = change(readMapping(localStorage.getItem(KEY)));
  localStorage.setItem(KEY, JSON.stringify(store.mapping.value));
}

/** @param {string} key @param {string} target */
function learn(key, target) {
  keep((mapping) => learned(mapping, key, target));
  store.learning.value = { target: null };
  tell(`${keyWord(key)} turns ${targetWord(target)}`);
}

/** @param {string} key */
export function forget(key) {
  keep((mapping) => forgotten(mapping, key));
}

export function toggleLearning() {
  store.learning.value = store.learning.value ? null : { target: null };
}

/** While learning: what the next knob is to turn. @param {string} target */
export function pick(target) {
  if (store.learning.value) store.learning.value = { target };
}
