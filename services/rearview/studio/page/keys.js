// The keyboard: one table for what the keys do and for the sheet that lists them.
import { cut, look, togglePause } from "./actions.js";
import { begin } from "./begin.js";
import { snapshot, toggleRecording, toggleTake } from "./keep.js";
import { loadPreset, savePreset } from "./presets.js";
import * as store from "./store.js";
import { nextTheme } from "./theme.js";
import { addTile } from "./tiles.js";
import { openFeed } from "./ui/mixer.js";

/** @type {import("./state/layout.js").View[]} */
const VIEWS = ["split", "side", "picture", "program", "wall"];
/** @type {("look" | "motion" | "presets" | "mixer" | "take" | "health")[]} */
const PANELS = ["look", "motion", "presets", "mixer", "take", "health"];

export const KEYS = [
  { keys: ["Space"], does: "Pause and go on", code: "Space", run: togglePause },
  { keys: ["/"], does: "Write a prompt", code: "Slash", run: () => focusOn("prompt") },
  { keys: ["1", "…", "9"], does: "Cut that tile to program" },
  { keys: ["Shift", "1", "…", "9"], does: "Fade it to program" },
  { keys: ["Alt", "1", "…", "9"], does: "Edit that tile" },
  { keys: ["1", "…", "9"], does: "With the presets open: load that preset" },
  { keys: ["Shift", "1", "…", "9"], does: "With the presets open: save the look there" },
  { keys: ["N"], does: "Add a look", code: "KeyN", run: addTile },
  { keys: ["V"], does: "Next view", code: "KeyV", run: () => look(VIEWS[(VIEWS.indexOf(store.view.value) + 1) % VIEWS.length]) },
  { keys: ["W"], does: "The wall", code: "KeyW", run: () => look(store.view.value === "wall" ? "split" : "wall") },
  { keys: ["["], does: "Split to the left", code: "BracketLeft", run: () => moveSplit(-0.05) },
  { keys: ["]"], does: "Split to the right", code: "BracketRight", run: () => moveSplit(0.05) },
  { keys: ["F"], does: "Full screen", code: "KeyF", run: toggleFull },
  { keys: ["P"], does: "Clean feed in a window", code: "KeyP", run: openFeed },
  { keys: ["S"], does: "Snapshot", code: "KeyS", run: snapshot },
  { keys: ["R"], does: "Record a video", code: "KeyR", run: toggleRecording },
  { keys: ["T"], does: "Start or end a take", code: "KeyT", run: toggleTake },
  { keys: ["Tab"], does: "Everything, one after the other" },
  { keys: ["C"], does: "Camera", code: "KeyC", run: () => begin("camera") },
  { keys: ["G"], does: "Next panel", code: "KeyG", run: () => (store.panel.value = PANELS[(PANELS.indexOf(store.panel.value) + 1) % PANELS.length]) },
  { keys: ["M"], does: "Models", code: "KeyM", run: () => (store.sheet.value = "models") },
  { keys: ["L"], does: "Light or dark", code: "KeyL", run: nextTheme },
  { keys: ["?"], does: "This sheet", run: () => (store.sheet.value = "help") },
];

/** @param {string} id */
function focusOn(id) {
  store.panel.value = "look";
  setTimeout(() => document.getElementById(id)?.focus());
}

/** @param {number} by */
function moveSplit(by) {
  store.split.value = Math.min(1, Math.max(0, store.split.value + by));
}

export function toggleFull() {
  if (document.fullscreenElement) return document.exitFullscreen();
  return document.querySelector(".stage")?.requestFullscreen();
}

/** @param {KeyboardEvent} event */
export function pressed(event) {
  if (event.ctrlKey || event.metaKey || store.sheet.value) return;
  const target = /** @type {HTMLElement} */ (event.target);
  if (target.closest("textarea, select, input:not([type=range]):not([type=radio]):not([type=checkbox])")) return;
  // Space presses what has the focus.
  if (event.code === "Space" && target.closest("button, input, a, summary, label")) return;
  const run = event.key === "?" ? () => (store.sheet.value = "help") : digit(event) ?? KEYS.find((one) => one.code === event.code && !event.shiftKey && !event.altKey)?.run;
  if (!run) return;
  event.preventDefault();
  run();
}

/** @param {KeyboardEvent} event */
function digit(event) {
  const found = /^Digit([1-9])$/.exec(event.code);
  if (!found) return null;
  const index = Number(found[1]) - 1;
  if (store.panel.value === "presets" && !event.altKey) return () => (event.shiftKey ? savePreset(index) : loadPreset(index));
  if (!store.tiles.value.includes(index)) return () => {};
  if (event.altKey) return () => (store.focus.value = index);
  return () => cut(index, event.shiftKey ? store.fadeMs.value : 0);
}
