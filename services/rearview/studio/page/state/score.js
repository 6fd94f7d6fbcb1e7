// A take: every control with the frame at which it took effect. Frames count from the take's first. No I/O.
import { SAMPLE } from "./sources.js";
import { askable, merge } from "./tile.js";

/** @typedef {import("./tile.js").Settings} Settings */
/** @typedef {{frame: number, settings: Settings}} Event */
/** @typedef {{format: "rearview-score", version: 1, frame_rate: number, source: string | null, open: Record<string, any>, events: Event[]}} Score */
/** @typedef {{first: number, last: number, score: Score}} Take */

const FORMAT = "rearview-score";
const VERSION = 1;

/**
 * A take that begins with frame `first` of the page.
 * @param {number} first
 * @param {{frameRate: number, source: string | null, options: Record<string, any>, settings: Settings}} about
 * @returns {Take}
 */
export function beginTake(first, { frameRate, source, options, settings }) {
  const open = { ...options, settings: askable(settings) };
  return { first, last: first, score: { format: FORMAT, version: VERSION, frame_rate: frameRate, source, open, events: [] } };
}

/**
 * A control took effect at frame `frame` of the page. One before the take belongs to how it opens.
 * @param {Take} take
 * @param {number} frame
 * @param {Settings} settings the fields that were changed
 * @returns {Take}
 */
export function recorded(take, frame, settings) {
  const at = Math.max(0, frame - take.first);
  const before = take.score.events;
  const same = before.find((event) => event.frame === at);
  const events = same
    ? before.map((event) => (event === same ? { frame: at, settings: merge(event.settings, settings) } : event))
    : [...before, { frame: at, settings: { ...settings } }].sort((a, b) => a.frame - b.frame);
  return { ...take, last: Math.max(take.last, frame), score: { ...take.score, events } };
}

/** The take has come as far as frame `frame` of the page. @param {Take} take @param {number} frame */
export function reached(take, frame) {
  return frame > take.last ? { ...take, last: frame } : take;
}

/** The rate that the take really had: frame n was at n / rate seconds. @param {Score} score @param {number} frames @param {number} ms */
export function atRate(score, frames, ms) {
  if (frames < 1 || ms <= 0) return score;
  return { ...score, frame_rate: Math.min(240, Math.max(0.01, Math.round((100_000 * frames) / ms) / 100)) };
}

/** @param {Score} score */
export function scoreText(score) {
  return `${JSON.stringify(score, null, 2)}\n`;
}

/**
 * A score that was saved. Throws an Error that says what is wrong with it.
 * @param {string} text
 * @returns {Score}
 */
export function readScore(text) {
  let value;
  try {
    value = JSON.parse(text);
  } catch {
    throw new Error("this is no JSON file");
  }
  if (value?.format !== FORMAT) throw new Error("this is no rearview score: its format is not \u201crearview-score\u201d");
  if (value.version !== VERSION) throw new Error(`this score is of version ${value.version}; the studio reads version ${VERSION}`);
  if (!(value.frame_rate > 0)) throw new Error("frame_rate must be above 0");
  if (!Array.isArray(value.events)) throw new Error("it has no events");
  let last = 0;
  for (const [number, event] of value.events.entries()) {
    if (!Number.isInteger(event?.frame) || event.frame < 0) throw new Error(`event ${number + 1} names no frame`);
    if (event.frame < last) throw new Error(`event ${number + 1} is before the one ahead of it`);
    if (typeof event.settings !== "object" || event.settings === null || Array.isArray(event.settings)) {
      throw new Error(`event ${number + 1} changes nothing`);
    }
    last = event.frame;
  }
  return { ...value, source: value.source ?? null, open: value.open ?? {} };
}

/**
 * The controls that replay a score from frame `first` of the page on, in order; how it opens comes first.
 * @param {Score} score
 * @param {number} first
 * @returns {Event[]}
 */
export function replay(score, first) {
  const opening = score.open?.settings;
  const events = score.events.map((event) => ({ frame: first + event.frame, settings: event.settings }));
  return opening && Object.keys(opening).length > 0 ? [{ frame: first, settings: askable(opening) }, ...events] : events;
}

/** How long a take is, in frames. @param {Score} score */
export function lastFrame(score) {
  return score.events.length > 0 ? score.events[score.events.length - 1].frame : 0;
}

/**
 * What renders it offline, and what has to be done before.
 * @param {string} file
 * @param {string | null} source
 * @param {string | null} samplePath where the bundled clip is on the machine of the page; null: it is elsewhere
 * @returns {{command: string, before: "save" | "sample" | "video"}}
 */
export function rendering(file, source, samplePath) {
  const command = (/** @type {string} */ input) => `rearview translate --score ${quoted(file)} ${quoted(input)} OUT.mp4`;
  if (source === SAMPLE) return { command: command(samplePath ?? SAMPLE), before: samplePath ? "save" : "sample" };
  if (source && /\.\w+$/.test(source)) return { command: command(source), before: "save" };
  return { command: command("IN.mp4"), before: "video" };
}

/**
 * A render ends with the clip; a take of one that was played in a loop goes on. Null if all of it is rendered.
 * @param {Score} score
 * @param {number} frames of the take
 * @param {number} clipS
 * @returns {{times: number, numLost: number} | null} how often the clip was played, and how many changes a render has no frame for
 */
export function beyond(score, frames, clipS) {
  const times = frames / score.frame_rate / clipS;
  if (!(times > 1)) return null;
  return { times, numLost: score.events.filter(({ frame }) => frame / score.frame_rate >= clipS).length };
}

/** @param {string} word */
function quoted(word) {
  return /^[\w.\/-]+$/.test(word) ? word : `'${word.replaceAll("'", "'\\''")}'`;
}

/** A control in a few words, for the list. @param {Settings} settings */
export function eventWords(settings) {
  return Object.entries(settings)
    .map(([name, value]) => {
      if (name === "prompt") return `\u201c${value}\u201d`;
      if (name === "prompts") return /** @type {any[]} */ (value).map((one) => `${one.prompt} ${Number(one.weight).toFixed(2)}`).join(" + ");
      if (name === "adapter_mix") return /** @type {any[]} */ (value).map((one) => `${one.adapters} ${Number(one.weight).toFixed(2)}`).join(" + ");
      if (name === "controls") return /** @type {any[]} */ (value).map((one) => `${one.name} ${Number(one.weight).toFixed(2)}`).join(" + ") || "no controls";
      if (name === "reference") return /** @type {any} */ (value).base64 ? "a reference" : "no reference";
      if (name === "reference_mask") return /** @type {any} */ (value).base64 ? "masked" : "no mask";
      return `${name.replaceAll("_", " ")} ${typeof value === "number" && !Number.isInteger(value) ? value.toFixed(2) : value}`;
    })
    .join(", ");
}
