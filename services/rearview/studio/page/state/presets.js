// Presets: looks kept in nine places, saved as a file, and what of one fits another model. No I/O.
import { MOTION, SETTINGS, wrongIn } from "./asking.js";
import { lookName, mark, unknownWords } from "./prompts.js";
import { askable, meant, merge, reopening } from "./tile.js";
import { manyWord } from "./words.js";

/** @typedef {import("./tile.js").Settings} Settings */
/** @typedef {{method: string, feature_bank?: Record<string, unknown>, temporal_cache?: Record<string, unknown>, similarity_filter?: Record<string, unknown>}} Motion */
/** @typedef {{name: string, model: string, settings: Settings, motion: Motion}} Preset */
/** @typedef {(Preset | null)[]} Presets one for each of the keys 1 to 9; null: the place is empty */

const FORMAT = "rearview-presets";
const VERSION = 1;
export const PLACES = 9;

/** @returns {Presets} */
export function noPresets() {
  return Array(PLACES).fill(null);
}

/** The look of a tile as it is meant now. @param {import("./tile.js").Tile} tile @param {string} model @param {string} name @returns {Preset} */
export function presetOf(tile, model, name) {
  return { name, model, settings: reopening(tile).settings, motion: motionOf(tile) };
}

/** The name that somebody gave to the place, else that of the look. @param {import("./tile.js").Tile} tile @param {Preset | null} before in its place */
export function nameFor(tile, before) {
  return before && before.name !== lookName(before.settings) ? before.name : lookName(meant(tile));
}

/** @param {import("./tile.js").Tile} tile @returns {Motion} */
function motionOf({ method, options: { feature_bank, temporal_cache, similarity_filter } }) {
  return /** @type {Motion} */ (JSON.parse(JSON.stringify({ method, feature_bank, temporal_cache, similarity_filter })));
}

/** @param {Presets} presets @param {number} place from 0 @param {Preset | null} preset @returns {Presets} */
export function withPreset(presets, place, preset) {
  return presets.map((one, at) => (at === place ? preset : one));
}

/**
 * What loading a preset asks of a tile: a change of settings, or a session that begins anew where the frames are to be
 * related otherwise. Both null: the tile is so already.
 * @param {Preset} preset
 * @param {import("./tile.js").Tile} tile
 * @returns {{change: Settings | null, anew: (Motion & {settings: Settings}) | null}}
 */
export function loading({ settings, motion }, tile) {
  if (JSON.stringify(sorted(motion)) !== JSON.stringify(sorted(motionOf(tile)))) {
    // Named all three, so that what the preset lacks goes from the tile.
    const cleared = { feature_bank: undefined, temporal_cache: undefined, similarity_filter: undefined };
    return { change: null, anew: { ...cleared, ...motion, settings: askable(merge(askable(meant(tile)), settings)) } };
  }
  const now = /** @type {Record<string, unknown>} */ (askable(meant(tile)));
  const differing = Object.entries(settings).filter(([name, value]) => JSON.stringify(value) !== JSON.stringify(now[name]));
  return { change: differing.length > 0 ? Object.fromEntries(differing) : null, anew: null };
}

/**
 * A preset as a model takes it, and in words what of it does not fit.
 * @param {Preset} preset
 * @param {any} model as `/api/info` describes it
 * @param {string[]} phrases that the model was taught; none: it takes any
 * @returns {{preset: Preset, misfits: string[]}}
 */
export function fitted(preset, model, phrases) {
  const settings = { ...preset.settings };
  const motion = { ...preset.motion };
  /** @type {string[]} */
  const misfits = [];
  const kept = (/** @type {any[]} */ each, /** @type {(one: any) => string} */ nameOf, /** @type {string[]} */ known, /** @type {string} */ what) =>
    each.filter((one) => known.includes(nameOf(one)) || (misfits.push(`there is no ${what} \u201c${nameOf(one)}\u201d`), false));
  if (settings.adapters) settings.adapters = kept([settings.adapters], (one) => one, model.adapters ?? [], "adapter")[0] ?? "";
  if (settings.adapter_mix) {
    const found = kept(settings.adapter_mix, (one) => one.adapters, model.adapters ?? [], "adapter");
    const mix = alone(found, model.merged_adapters ?? []);
    if (mix !== found) misfits.push(`the adapter \u201c${mix[0].adapters}\u201d is taken alone and at weight 1`);
    delete settings.adapter_mix;
    Object.assign(settings, mix.length > 0 ? { adapter_mix: mix } : { adapters: "" });
  }
  if (settings.controls) settings.controls = kept(settings.controls, (one) => one.name, model.controls ?? [], "control");
  if (settings.reference?.base64 && !model.takes_reference) {
    misfits.push("the model follows no reference picture");
    for (const name of /** @type {const} */ (["reference", "reference_scale", "reference_mask"])) delete settings[name];
  }
  if (settings.steps !== undefined && settings.steps > model.max_steps) {
    misfits.push(`${manyWord(settings.steps, "step")} are cut to ${model.max_steps}`);
    settings.steps = model.max_steps;
  }
  if (model.methods && !model.methods.includes(motion.method)) {
    misfits.push(`frames are not related by ${motion.method}`);
    for (const name of /** @type {const} */ (["feature_bank", "temporal_cache"])) delete motion[name];
    motion.method = model.default_method;
  }
  const words = unknown(settings, phrases);
  if (words.length > 0) misfits.push(`the model was never taught ${words.join(", ")}`);
  return { preset: { ...preset, settings, motion }, misfits };
}

/** A set that is merged into weights goes with no other, and at weight 1: the first of them stays. @param {import("./adapters.js").WeightedSet[]} mix @param {string[]} merged */
function alone(mix, merged) {
  const acting = mix.filter(({ weight = 1 }) => weight !== 0);
  const one = acting.find(({ adapters }) => merged.includes(adapters));
  return !one || (acting.length === 1 && (one.weight ?? 1) === 1) ? mix : [{ adapters: one.adapters, weight: 1 }];
}

/** @param {Settings} settings @param {string[]} phrases */
function unknown({ prompt, prompts }, phrases) {
  const said = prompts?.map((one) => one.prompt) ?? [prompt ?? ""];
  return phrases.length === 0 ? [] : [...new Set(said.flatMap((one) => unknownWords(mark(one, phrases))))];
}

/** @param {Presets} presets */
export function presetsText(presets) {
  const kept = presets.flatMap((preset, at) => (preset ? [{ place: at + 1, ...preset }] : []));
  return `${JSON.stringify({ format: FORMAT, version: VERSION, presets: kept }, null, 2)}\n`;
}

/**
 * Presets that were saved. Throws an Error that says what is wrong with them.
 * @param {string} text
 * @returns {Presets}
 */
export function readPresets(text) {
  const presets = noPresets();
  for (const [number, one] of listed(text).entries()) {
    const wrong = wrongWith(one) || (presets[one.place - 1] ? `has the place of another one, ${one.place}` : "");
    if (wrong) throw new Error(`preset ${number + 1} ${wrong}`);
    presets[one.place - 1] = read(one);
  }
  return presets;
}

/** Those of this browser: what cannot be read any more leaves its place empty. @param {string | null} text @returns {Presets} */
export function keptPresets(text) {
  const presets = noPresets();
  try {
    for (const one of listed(text ?? "")) if (!wrongWith(one)) presets[one.place - 1] = read(one);
  } catch {
    // Nothing was kept, or not by us.
  }
  return presets;
}

/** @param {string} text @returns {any[]} */
function listed(text) {
  let value;
  try {
    value = JSON.parse(text);
  } catch {
    throw new Error("this is no JSON file");
  }
  if (value?.format !== FORMAT) throw new Error("these are no rearview presets: the format is not \u201crearview-presets\u201d");
  if (value.version !== VERSION) throw new Error(`these presets are of version ${value.version}; the studio reads version ${VERSION}`);
  if (!Array.isArray(value.presets)) throw new Error("there are no presets in it");
  return value.presets;
}

/** Empty: nothing. @param {any} one */
function wrongWith(one) {
  if (!Number.isInteger(one?.place) || one.place < 1 || one.place > PLACES) return `has no place from 1 to ${PLACES}`;
  if (typeof one.name !== "string" || !one.name.trim()) return "has no name";
  if (!isObject(one.settings)) return "has no settings";
  if (!isObject(one.motion) || typeof one.motion.method !== "string") return "does not say how frames are related";
  const wrong = wrongIn(one.settings, { parts: SETTINGS }, "settings") || wrongIn(one.motion, { parts: MOTION }, "motion");
  return wrong && `cannot be read: ${wrong}`;
}

/** @param {any} one @returns {Preset} */
function read({ name, model, settings, motion }) {
  return { name, model: String(model ?? ""), settings, motion };
}

/** @param {unknown} value */
function isObject(value) {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

/** The same, with the names in one order at every depth. @param {any} value @returns {any} */
function sorted(value) {
  if (!isObject(value)) return value;
  return Object.fromEntries(Object.keys(value).sort().map((name) => [name, sorted(value[name])]));
}
