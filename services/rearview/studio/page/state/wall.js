// The wall: everything that the gateway has told. `after` takes one message; nothing else changes it. No I/O.
import { complaintsAfter, withoutTileComplaints } from "./complaints.js";
import { withCause } from "./gaps.js";
import { cutTo, noTile } from "./program.js";
import { newTile, tileAfter } from "./tile.js";

/** @typedef {import("./tile.js").Tile} Tile */
/**
 * @typedef {{id: string, state: string, sessions: number, tiles: number[]}} Replica
 * @typedef {{name: string, replicas: Replica[]}} LaneSpan
 * @typedef {{id: string, title: string, licence: string, bytes: number | null, state: string, note: string,
 *   bytesDone: number, bytesTotal: number | null, message: string}} Model
 * @typedef {{
 *   key: string | null, viewer: string | null, resumed: boolean, tiles: Record<number, Tile>,
 *   program: import("./program.js").Program, models: Model[], lanes: LaneSpan[],
 *   service: {state: "starting" | "ready" | "unreachable" | "failed", message: string},
 *   complaints: import("./complaints.js").Complaint[],
 *   going: {id: string, refused: string} | null,
 * }} Wall
 */

const READY = /** @type {const} */ ({ state: "ready", message: "" });

/** @returns {Wall} */
export function newWall() {
  return { key: null, viewer: null, resumed: false, tiles: {}, program: noTile(), models: [], lanes: [], service: READY, complaints: [], going: null };
}

/** What `/api/info` says of the models. @param {any[]} models @returns {Model[]} */
export function modelsOf(models) {
  return models.map((one) => ({
    id: one.id,
    title: one.title ?? one.id,
    licence: one.licence ?? "",
    bytes: one.bytes ?? null,
    state: one.state ?? "absent",
    note: one.note ?? "",
    bytesDone: 0,
    bytesTotal: one.bytes ?? null,
    message: "",
  }));
}

/**
 * The wall after a message of the gateway. An unknown one changes nothing.
 * @param {Wall} wall
 * @param {any} message
 * @param {number} nowMs
 * @returns {Wall}
 */
export function after(wall, message, nowMs) {
  const complaints = complaintsAfter(wall.complaints, message);
  const next = changed(wall, message, nowMs);
  return next.complaints === complaints ? next : { ...next, complaints };
}

/** @param {Wall} wall @param {any} message @param {number} nowMs @returns {Wall} */
function changed(wall, message, nowMs) {
  switch (message.type) {
    case "welcome":
      return welcomed(wall, message, nowMs);
    case "program":
      return { ...wall, program: cutTo(wall.program, message, nowMs) };
    case "lanes":
      return { ...wall, lanes: message.spans ?? [] };
    case "model":
      return {
        ...wall,
        models: wall.models.map((one) => (one.id === message.id ? modelAfter(one, message) : one)),
        going: wall.going?.id === message.id && message.state !== "ready" ? null : wall.going,
      };
    case "serving":
      return { ...wall, going: null };
    case "service":
      return { ...wall, service: { state: message.state, message: message.message ?? "" } };
    case "error":
      return {
        ...wall,
        going: wall.going && { ...wall.going, refused: wall.going.refused || message.message || message.reason },
      };
    default: {
      const tile = wall.tiles[message.tile];
      if (!tile) return wall;
      return { ...wall, tiles: { ...wall.tiles, [message.tile]: tileAfter(tile, message, nowMs) } };
    }
  }
}

/** @param {Wall} wall @param {any} message @param {number} nowMs @returns {Wall} */
function welcomed(wall, message, nowMs) {
  /** @type {Record<number, Tile>} */
  const tiles = {};
  for (const one of message.tiles ?? []) {
    const known = wall.tiles[one.tile];
    tiles[one.tile] = tileAfter(known ?? newTile(optionsOf(one)), { ...one, type: "opened" }, nowMs);
  }
  // A new wall knows none of the tiles that this page has: they are opened again.
  if (!message.resumed) {
    for (const [index, tile] of Object.entries(wall.tiles)) tiles[Number(index)] ??= { ...tile, state: "opening", inFlight: null };
  }
  const program = message.program ? cutTo(wall.program, { ...message.program, fade_ms: 0 }, nowMs) : wall.program;
  return { ...wall, key: message.wall, viewer: message.viewer, resumed: Boolean(message.resumed), tiles, program };
}

/** @param {any} opened @returns {import("./tile.js").Options} */
function optionsOf(opened) {
  return {
    frame_rate: 30,
    drop_policy: "latest",
    max_steps: opened.max_steps ?? 0,
    ...opened.options,
    width: opened.width,
    height: opened.height,
    method: opened.method,
    settings: opened.settings ?? {},
  };
}

/** The wall is asked to go over to a model. @param {Wall} wall @param {string} id @returns {Wall} */
export function goingTo(wall, id) {
  return { ...wall, going: { id, refused: "" } };
}

/** @param {Model} model @param {any} message @returns {Model} */
function modelAfter(model, message) {
  return {
    ...model,
    state: message.state ?? model.state,
    licence: message.licence ?? model.licence,
    bytesDone: message.bytes_done ?? model.bytesDone,
    bytesTotal: message.bytes_total ?? model.bytesTotal,
    message: message.message ?? "",
  };
}

/** A tile is opened, or opened again with other options. @param {Wall} wall @param {number} index @param {import("./tile.js").Options} options @param {import("./tile.js").Options | null} [former] */
export function withTile(wall, index, options, former = null) {
  const before = wall.tiles[index];
  const tile = { ...newTile(options, former), tookEffect: before?.tookEffect ?? {}, gaps: before?.gaps ?? [] };
  return { ...wall, tiles: { ...wall.tiles, [index]: tile }, complaints: withoutTileComplaints(wall.complaints, index) };
}

/** @param {Wall} wall @param {number} index */
export function withoutTile(wall, index) {
  const tiles = { ...wall.tiles };
  delete tiles[index];
  return { ...wall, tiles, complaints: withoutTileComplaints(wall.complaints, index) };
}

/** @param {Wall} wall @param {number} index @param {Tile} tile */
export function replaced(wall, index, tile) {
  return { ...wall, tiles: { ...wall.tiles, [index]: tile } };
}

/** Indices of the tiles, in order. @param {Wall} wall */
export function indices(wall) {
  return Object.keys(wall.tiles).map(Number).sort((a, b) => a - b);
}

/** What may stop the pictures of every tile. @param {Wall} wall @param {import("./gaps.js").Cause} cause @param {number} atMs @returns {Wall} */
export function interrupted(wall, cause, atMs) {
  const tiles = Object.entries(wall.tiles).map(([index, tile]) => [index, withCause(tile, cause, atMs)]);
  return { ...wall, tiles: Object.fromEntries(tiles) };
}

/** Whether replicas hold sessions that are not this wall's. @param {LaneSpan[]} spans */
export function hasOthers(spans) {
  return spans.some(({ replicas }) => replicas.some(({ sessions, tiles }) => sessions > tiles.length));
}

/** Tiles of another size than this one. @param {Wall} wall @param {import("./layout.js").Size} size */
export function misfits(wall, { width, height }) {
  return indices(wall).filter((index) => wall.tiles[index].options.width !== width || wall.tiles[index].options.height !== height);
}

/** The lowest place without a tile; null if the wall is full. @param {Wall} wall @param {number} most */
export function freePlace(wall, most) {
  for (let index = 0; index < most; index += 1) if (!wall.tiles[index]) return index;
  return null;
}

/**
 * All models that the wall may be on: the one that the gateway stands before comes first.
 * @param {Wall} wall
 * @param {{id: string, title: string}} own
 * @param {string} serving the id of the one in use, or empty
 * @returns {Model[]}
 */
export function allModels(wall, own, serving) {
  const [first] = modelsOf([{ ...own, state: serving === "" ? "in_use" : "ready", note: "The studio was started with it." }]);
  // The gateway lists its own, too. Another wall may have a model in use that this one can take.
  const others = wall.models.filter((one) => one.id !== own.id).map((one) => (one.state === "in_use" && one.id !== serving ? { ...one, state: "ready" } : one));
  return [first, ...others];
}
