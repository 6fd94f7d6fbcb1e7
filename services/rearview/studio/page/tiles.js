// The tiles: opened, closed, and changed by controls.
import { order, say } from "./engine.js";
import { freshStyle, lookName } from "./state/prompts.js";
import { ask, nextAsked, ranUnder, reopening } from "./state/tile.js";
import { after, freePlace, indices, misfits, replaced, withTile, withoutTile } from "./state/wall.js";
import * as store from "./store.js";

let nextId = 1;
/** What each control named, until it is answered. @type {Map<number, import("./state/tile.js").Settings>} */
const asked = new Map();

/** `former`: what it goes back to if that is refused. @param {number} index @param {import("./state/tile.js").Options} options @param {import("./state/tile.js").Options | null} [former] */
export function openTile(index, options, former = null) {
  store.wall.value = withTile(store.wall.value, index, options, former);
  order("fit", { width: options.width, height: options.height });
  say({ type: "open", tile: index, options });
  // The first tile goes to program, as it does at the gateway.
  if (store.wall.value.program.to.length === 0) followed({ a: index, b: null, mix: 0, fade_ms: 0 });
}

/** What viewers see from now on. @param {import("./state/program.js").ProgramMessage} program */
export function show(program) {
  say({ type: "program", ...program });
  followed(program);
}

/** @param {import("./state/program.js").ProgramMessage} program */
function followed(program) {
  store.wall.value = after(store.wall.value, { type: "program", ...program }, performance.now());
  order("program", { program });
}

/** Opens a tile beside the others, in a look that none of them has. */
export function addTile() {
  const wall = store.wall.value;
  const place = freePlace(wall, store.info.value?.limits?.tiles ?? 9);
  const like = store.tile.value ?? wall.tiles[indices(wall)[0]];
  if (place === null || !like) return;
  const prompt = freshStyle(store.model.value.styles, store.tiles.value.map((index) => lookName(wall.tiles[index].settings)));
  const { prompts: _, ...settings } = reopening(like).settings;
  openTile(place, { ...reopening(like), settings: { ...settings, prompt } });
  store.focus.value = place;
}

/** @param {number} index */
export function closeTile(index) {
  if (store.tiles.value.length < 2) return;
  say({ type: "close", tile: index });
  store.wall.value = withoutTile(store.wall.value, index);
  if (store.focus.value === index) store.focus.value = store.tiles.value[0];
}

/** Changes settings of the focused tile from the next frame on. @param {import("./state/tile.js").Settings} settings */
export function control(settings, index = store.focus.value) {
  const tile = store.wall.value.tiles[index];
  if (!tile) return;
  const [changed, now] = ask(tile, settings, nextId);
  store.wall.value = replaced(store.wall.value, index, changed);
  if (now) send(index, now);
}

/** @param {number} index */
export function sendNext(index) {
  const tile = store.wall.value.tiles[index];
  if (!tile) return;
  const [changed, now] = nextAsked(tile, nextId);
  store.wall.value = replaced(store.wall.value, index, changed);
  if (now) send(index, now);
}

/** @param {number} index @param {import("./state/tile.js").Settings} settings */
function send(index, settings) {
  say(newControl(index, settings));
}

/** A control to be sent now or later. @param {number} index @param {import("./state/tile.js").Settings} settings */
export function newControl(index, settings) {
  const id = nextId;
  nextId += 1;
  asked.set(id, settings);
  return { type: "control", tile: index, id, settings };
}

/** What a control named, which is answered now. @param {number} id */
export function answered(id) {
  const settings = asked.get(id) ?? null;
  asked.delete(id);
  return settings;
}

/** What only a new session can have: its tile is opened again with its look. @param {Record<string, unknown>} change */
export function reopen(change, index = store.focus.value) {
  const tile = store.wall.value.tiles[index];
  if (!tile) return;
  say({ type: "close", tile: index });
  openTile(index, { ...reopening(tile), ...change }, ranUnder(tile));
}

/**
 * All sessions are of one size. Those that run in another one take it; all others are opened again with their looks.
 * @param {import("./state/layout.js").Size} size
 * @returns {boolean} whether there were any
 */
export function reshape(size) {
  const others = misfits(store.wall.value, size);
  const running = others.filter((index) => store.wall.value.tiles[index].state === "live");
  for (const index of running) {
    const tile = store.wall.value.tiles[index];
    store.wall.value = replaced(store.wall.value, index, { ...tile, options: { ...tile.options, ...size } });
  }
  if (running.length > 0) order("fit", { ...size, said: running.map((index) => newControl(index, { ...size })) });
  for (const index of others) if (!running.includes(index)) openAgain(index, size);
  return others.length > 0;
}

/** In another size, with its look. No frame of that size comes to the session before. @param {number} index @param {import("./state/layout.js").Size} size */
export function openAgain(index, size) {
  const tile = store.wall.value.tiles[index];
  if (!tile) return;
  say({ type: "close", tile: index });
  openTile(index, { ...reopening(tile), ...size });
}

/** A running session stays at a size. So do the frames, and with them all other sessions. @param {number} index @param {import("./state/layout.js").Size} size */
export function takeBack(index, size) {
  const tile = store.wall.value.tiles[index];
  store.wall.value = replaced(store.wall.value, index, { ...tile, options: { ...tile.options, ...size } });
  if (!reshape(size)) order("fit", size);
}

/** @param {{rate?: number, quality?: number}} change */
export function setTaking(change) {
  store.taking.value = { ...store.taking.value, ...change };
  order("fit", change);
}
