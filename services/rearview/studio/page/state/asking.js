// Names and types of what a preset may say, for files that are written by hand: the gateway refuses a message with
// anything else in it. Ranges are the service's. No I/O.

/** @typedef {"text" | "number" | "whole" | "switch"} Simple */
/** @typedef {Simple | string[] | {each: Type} | {parts: Record<string, Type>, needs?: string[]}} Type an array: one of these words */

const WORDS = { text: "text", number: "number", whole: "whole number", switch: "true or false" };

/** @type {Record<string, Type>} */
export const SETTINGS = {
  prompt: "text",
  strength: "number",
  steps: "whole",
  seed: "whole",
  noise_rule: ["fixed", "fresh", "first"],
  guidance: ["none", "self", "initialize", "full"],
  guidance_scale: "number",
  delta: "number",
  negative_prompt: "text",
  prompts: { each: { parts: { prompt: "text", weight: "number" }, needs: ["prompt", "weight"] } },
  blend_frames: "whole",
  adapters: "text",
  jpeg_quality: "whole",
  timestep_indices: { each: "whole" },
  adapter_mix: { each: { parts: { adapters: "text", weight: "number" }, needs: ["adapters"] } },
  controls: { each: { parts: { name: "text", weight: "number" }, needs: ["name"] } },
  reference: { parts: { base64: "text" } },
  reference_scale: "number",
  reference_mask: { parts: { base64: "text" } },
};

/** @type {Type} */
const REWARM = ["keep", "reset", "shadow"];
/** @type {Record<string, Type>} */
export const MOTION = {
  method: "text",
  feature_bank: {
    parts: {
      policy: ["merge", "queue"],
      interval: "whole",
      phase: "whole",
      max_frames: "whole",
      fusion_strength: "number",
      fusion_threshold: "number",
      prompt_change: ["keep", "fade", "clear"],
    },
  },
  temporal_cache: { parts: { prompt_change: REWARM, scene_cut: REWARM, scene_detection: "switch", instant_start: "switch" } },
  similarity_filter: { parts: { threshold: "number", max_skip_frames: "whole" } },
};

/** @type {Record<string, (value: any) => boolean>} */
const SIMPLE = {
  text: (value) => typeof value === "string",
  number: Number.isFinite,
  whole: Number.isInteger,
  switch: (value) => typeof value === "boolean",
};

/**
 * What is wrong with a value, after the name of the first field that is; empty: nothing.
 * @param {any} value
 * @param {Type} type
 * @param {string} name what to call it
 * @returns {string}
 */
export function wrongIn(value, type, name) {
  if (Array.isArray(type)) return type.includes(value) ? "" : `${name} is none of ${type.join(", ")}`;
  if (typeof type === "string") return SIMPLE[type](value) ? "" : `${name} is no ${WORDS[type]}`;
  if ("each" in type) {
    if (!Array.isArray(value)) return `${name} is no list`;
    return first(value.map((one, at) => wrongIn(one, type.each, `${name} ${at + 1}`)));
  }
  if (typeof value !== "object" || value === null || Array.isArray(value)) return `${name} is no object`;
  const missing = (type.needs ?? []).find((one) => !Object.hasOwn(value, one));
  if (missing) return `${name} has no ${missing}`;
  return first(Object.entries(value).map(([one, each]) => (Object.hasOwn(type.parts, one) ? wrongIn(each, type.parts[one], one) : `${name} has no place for \u201c${one}\u201d`)));
}

/** @param {string[]} wrongs */
function first(wrongs) {
  return wrongs.find(Boolean) ?? "";
}
