// One tile as the page knows it: a session of the service, its look, and what became of each control. No I/O.

import { noGaps, withCause } from "./gaps.js";

/** @typedef {import("./prompts.js").Weighted} Weighted */
/** @typedef {import("./adapters.js").WeightedSet} WeightedSet */
/** @typedef {import("./controls.js").WeightedControl} WeightedControl */
/** @typedef {import("./reference.js").ImageFile} ImageFile */
/**
 * @typedef {{prompt?: string, prompts?: Weighted[], strength?: number, steps?: number, seed?: number,
 *   noise_rule?: string, guidance?: string, guidance_scale?: number, delta?: number, negative_prompt?: string,
 *   blend_frames?: number, adapters?: string, adapter_mix?: WeightedSet[], jpeg_quality?: number,
 *   controls?: WeightedControl[], reference?: ImageFile, reference_scale?: number, reference_mask?: ImageFile,
 *   width?: number, height?: number}} Settings
 * @typedef {{width: number, height: number, frame_rate: number, drop_policy: string, method: string, max_steps: number,
 *   jpeg_quality?: number, settings: Settings, feature_bank?: Record<string, unknown>,
 *   temporal_cache?: Record<string, unknown>, similarity_filter?: Record<string, unknown>}} Options
 * @typedef {"closed" | "opening" | "queued" | "live" | "reconnecting" | "refused" | "ended"} TileState
 * @typedef {{name: string, queue_ms: number, work_ms: number}} Span
 * @typedef {{fps: number, p50_ms: number | null, p95_ms: number | null, spans: Span[], drops: Record<string, number>}} Stats
 * @typedef {import("./gaps.js").Gaps & {
 *   state: TileState, reason: string | null, message: string, retryMs: number | null,
 *   options: Options, settings: Settings, sessionId: string, method: string, advice: string, unknownWords: string[],
 *   warmUpFrames: number, former: Options | null,
 *   tookEffect: Record<string, number>, sinceFrame: number,
 *   inFlight: {id: number, settings: Settings} | null, waiting: Settings | null,
 *   rejected: {reason: string, message: string, fields: string[]} | null,
 *   dropped: Record<string, number>, stats: Stats | null,
 *   notice: {kind: string, message: string, continuity: string | null, frame: number | null, atMs: number} | null,
 * }} Tile
 */

const NO_STATS = { fps: 0, p50_ms: null, p95_ms: null, spans: [], drops: {} };

/** A tile that is about to be opened. `former`: what it goes back to if that is refused. @param {Options} options @param {Options | null} [former] @returns {Tile} */
export function newTile(options, former = null) {
  return {
    state: "opening",
    reason: null,
    message: "",
    retryMs: null,
    options,
    settings: { ...options.settings },
    sessionId: "",
    method: options.method,
    advice: "",
    unknownWords: [],
    warmUpFrames: 1,
    former,
    tookEffect: {},
    sinceFrame: 0,
    inFlight: null,
    waiting: null,
    rejected: null,
    dropped: {},
    stats: null,
    notice: null,
    ...noGaps(),
  };
}

/**
 * A change that the user asks for. One control is on its way at a time; what is asked meanwhile is merged, the
 * newest value of each field wins. Returns the tile, and the settings to send now, if any.
 * @param {Tile} tile
 * @param {Settings} settings
 * @param {number} id of the control, if it is sent
 * @returns {[Tile, Settings | null]}
 */
export function ask(tile, settings, id) {
  const wanted = merge(tile.waiting ?? {}, settings);
  if (tile.inFlight || tile.state !== "live") return [{ ...tile, waiting: wanted }, null];
  return [{ ...tile, inFlight: { id, settings: wanted }, waiting: null }, wanted];
}

/**
 * What was asked while another control was on its way. Returns the settings to send now, if any.
 * @param {Tile} tile
 * @param {number} id
 * @returns {[Tile, Settings | null]}
 */
export function nextAsked(tile, id) {
  if (!tile.waiting || tile.inFlight || tile.state !== "live") return [tile, null];
  return [{ ...tile, inFlight: { id, settings: tile.waiting }, waiting: null }, tile.waiting];
}

/** What names one of a kind, by what lists several of it: the two replace each other. @type {Record<string, string>} */
const SINGLE_OF = { prompts: "prompt", adapter_mix: "adapters" };

/** The settings as the user means them: in force, on their way, and waiting. @param {Tile} tile @returns {Settings} */
export function meant(tile) {
  return merge(merge(tile.settings, tile.inFlight?.settings ?? {}), tile.waiting ?? {});
}

/** `prompt` and `prompts` replace each other, and so do `adapters` and `adapter_mix`. @param {Settings} settings @param {Settings} change @returns {Settings} */
export function merge(settings, change) {
  const merged = { ...settings, ...change };
  if (change.prompt !== undefined && change.prompts === undefined) delete merged.prompts;
  if (change.prompts !== undefined && change.prompts.length > 0) delete merged.prompt;
  if (change.adapters !== undefined && change.adapter_mix === undefined) delete merged.adapter_mix;
  if (change.adapter_mix !== undefined && change.adapter_mix.length > 0) delete merged.adapters;
  return merged;
}

/** Options that open the tile again as it is meant now. @param {Tile} tile @returns {Options} */
export function reopening(tile) {
  return { ...tile.options, settings: askable(meant(tile)) };
}

/** Options that it ran under last, of a tile that runs or was to begin anew; null: it never ran. @param {Tile} tile @returns {Options | null} */
export function ranUnder(tile) {
  if (tile.former || ["opening", "queued", "refused"].includes(tile.state)) return tile.former;
  return { ...tile.options, settings: askable(tile.settings) };
}

/**
 * Settings in force as what a control or an opening may name: one kind of prompt, and of adapters. The size is said
 * by the options of an opening.
 * @param {Settings} settings @returns {Settings}
 */
export function askable({ prompt, prompts, adapters, adapter_mix, width: _width, height: _height, ...rest }) {
  return {
    ...rest,
    ...(prompts && prompts.length > 0 ? { prompts } : { prompt: prompt ?? "" }),
    ...(adapter_mix && adapter_mix.length > 0 ? { adapter_mix } : adapters === undefined ? {} : { adapters }),
  };
}

/**
 * The tile after one of the gateway's messages.
 * @param {Tile} tile
 * @param {any} message
 * @param {number} nowMs
 * @returns {Tile}
 */
export function tileAfter(tile, message, nowMs) {
  switch (message.type) {
    case "state":
      return {
        ...tile,
        state: message.state,
        reason: message.reason ?? null,
        message: message.message ?? "",
        retryMs: message.retry_ms ?? null,
        inFlight: message.state === "live" ? tile.inFlight : null,
        // A control whose answer will not come is asked again when the tile lives.
        waiting: message.state === "live" ? tile.waiting : unsent(tile),
      };
    case "opened":
      return {
        ...tile,
        state: "live",
        reason: null,
        message: "",
        retryMs: null,
        sessionId: message.session_id ?? "",
        settings: message.settings ?? tile.settings,
        method: message.method || tile.method,
        options: { ...tile.options, width: message.width ?? tile.options.width, height: message.height ?? tile.options.height },
        advice: message.advice ?? "",
        unknownWords: message.unknown_words ?? [],
        warmUpFrames: message.warm_up_frames ?? 1,
        former: null,
        sinceFrame: message.frame ?? 0,
        tookEffect: { ...tile.tookEffect, method: message.frame ?? 0 },
      };
    case "applied":
      return applied(tile, message);
    case "dropped": {
      const reason = String(message.reason);
      return { ...tile, dropped: { ...tile.dropped, [reason]: (tile.dropped[reason] ?? 0) + 1 } };
    }
    case "stats":
      return { ...tile, stats: { ...NO_STATS, ...message } };
    case "notice":
      return {
        ...(message.kind === "moved" || message.kind === "resumed" ? withCause(tile, message.kind, nowMs) : tile),
        notice: {
          kind: message.kind,
          message: message.message ?? "",
          continuity: message.continuity ?? null,
          frame: message.frame ?? null,
          atMs: nowMs,
        },
      };
    default:
      return tile;
  }
}

/**
 * `message.asked`: the fields that the control named, where the page knows better than `inFlight`.
 * @param {Tile} tile @param {any} message @returns {Tile}
 */
function applied(tile, message) {
  const mine = tile.inFlight && tile.inFlight.id === message.id ? tile.inFlight : null;
  const inFlight = mine ? null : tile.inFlight;
  if (message.rejected) {
    const fields = Object.keys(message.asked ?? mine?.settings ?? {});
    return { ...tile, inFlight, rejected: { ...message.rejected, fields } };
  }
  const tookEffect = { ...tile.tookEffect };
  const asked = message.asked ?? mine?.settings ?? {};
  for (const name of Object.keys(asked)) {
    if (message.frame !== null && message.frame !== undefined) tookEffect[SINGLE_OF[name] ?? name] = message.frame;
  }
  return {
    ...tile,
    inFlight,
    rejected: null,
    settings: message.settings ?? merge(tile.settings, asked),
    options: { ...tile.options, width: asked.width ?? tile.options.width, height: asked.height ?? tile.options.height },
    advice: message.advice ?? "",
    unknownWords: message.unknown_words ?? [],
    tookEffect,
  };
}

/** @param {Tile} tile */
function unsent(tile) {
  if (!tile.inFlight) return tile.waiting;
  return merge(tile.inFlight.settings, tile.waiting ?? {});
}
