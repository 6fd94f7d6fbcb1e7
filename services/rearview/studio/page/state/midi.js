// What MIDI controllers say, and which of them turns what. No I/O.
import { PLACES } from "./presets.js";

/**
 * A key names a control of a controller: `cc 1/74`, `note 10/36`, `bend 1`, `program 1/5`; channels count from 1.
 * A target is a dial (`strength`, `adapter/ink`) or a preset (`preset 3`).
 * @typedef {Record<string, string>} Mapping target by key
 * @typedef {{key: string, share: number}} Heard `share`: its place, 0 to 1
 */

const CHANNEL_MODE = 120;
const PRESET = /^preset ([1-9])$/;

/** A message in bytes; null for what turns nothing: a key that is let go, clocks, modes. @param {ArrayLike<number>} data @returns {Heard | null} */
export function heard(data) {
  const [status, first = 0, second = 0] = Array.from(data);
  const channel = (status & 0x0f) + 1;
  switch (status & 0xf0) {
    case 0x90:
      return second > 0 ? { key: `note ${channel}/${first}`, share: second / 127 } : null;
    case 0xb0:
      return first < CHANNEL_MODE ? { key: `cc ${channel}/${first}`, share: second / 127 } : null;
    case 0xc0:
      return { key: `program ${channel}/${first + 1}`, share: 1 };
    case 0xe0:
      return { key: `bend ${channel}`, share: ((second << 7) | first) / 16_383 };
    default:
      return null;
  }
}

/** A key turns a target, and nothing else turns it. @param {Mapping} mapping @param {string} key @param {string} target @returns {Mapping} */
export function learned(mapping, key, target) {
  const others = Object.entries(mapping).filter(([one, at]) => one !== key && at !== target);
  return Object.fromEntries([...others, [key, target]]);
}

/** @param {Mapping} mapping @param {string} key @returns {Mapping} */
export function forgotten(mapping, key) {
  return Object.fromEntries(Object.entries(mapping).filter(([one]) => one !== key));
}

/** What turns a target. @param {Mapping} mapping @param {string} target */
export function keyOf(mapping, target) {
  return Object.entries(mapping).find(([, one]) => one === target)?.[0] ?? null;
}

/** The place of a preset, from 0; null: the target is a dial. @param {string} target */
export function placeOf(target) {
  const found = PRESET.exec(target);
  return found ? Number(found[1]) - 1 : null;
}

/** @param {number} place from 0 */
export function presetTarget(place) {
  return `preset ${place + 1}`;
}

/**
 * Whether something mapped to a preset is pressed: notes and programs always, a controller as it passes its middle upwards.
 * @param {Heard} now @param {number | undefined} before its place before
 */
export function presses({ key, share }, before = 0) {
  return /^(note|program) /.test(key) || (before < 0.5 && share >= 0.5);
}

/** Whether a model has the dial. @param {string} target @param {any} model as `/api/info` describes it */
export function isTurnable(target, model) {
  const [kind, ...rest] = target.split("/");
  if (kind === "adapter") return (model.adapters ?? []).includes(rest.join("/"));
  if (kind === "control") return (model.controls ?? []).includes(rest.join("/"));
  return kind in (model.dials ?? {}) || kind === "noise_rule" || kind === "guidance";
}

/** Kept text; what is none of ours is an empty mapping. @param {string | null} text @returns {Mapping} */
export function readMapping(text) {
  try {
    const value = JSON.parse(text ?? "{}");
    if (typeof value !== "object" || value === null || Array.isArray(value)) return {};
    return Object.fromEntries(Object.entries(value).filter(([, target]) => typeof target === "string" && (placeOf(target) ?? 0) < PLACES));
  } catch {
    return {};
  }
}

/** `cc 1/74` -> "CC 74", with its channel where that is not the first. @param {string} key */
export function keyWord(key) {
  const [kind, where] = key.split(" ");
  const [channel, number = ""] = where.split("/");
  const word = { cc: "CC", note: "Note", bend: "Pitch bend", program: "Program" }[kind] ?? kind;
  return `${word}${number && ` ${number}`}${channel === "1" ? "" : `, channel ${channel}`}`;
}

/** `adapter/ink` -> "adapter ink". @param {string} target */
export function targetWord(target) {
  return target.replaceAll("_", " ").replace("/", " ");
}
