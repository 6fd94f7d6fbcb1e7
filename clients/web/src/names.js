// Names: `noiseRule` here is `noise_rule` in the protocol, and "self-guided" is "self_guided". No I/O.

export const SETTINGS = [
  "prompt", "prompts", "negativePrompt", "blendFrames", "strength", "steps", "timestepIndices", "seed", "noiseRule",
  "guidance", "guidanceScale", "delta", "adapters", "adapterMix", "controls", "jpegQuality", "width", "height",
  "reference", "referenceScale", "referenceMask",
];
export const OPTIONS = [
  "width", "height", "dropPolicy", "frameRate", "frameBudgetS", "jpegQuality", "maxSteps", "method", "featureBank",
  "temporalCache", "similarityFilter",
];
/** Their values are names, too. */
const ENUMS = new Set(["dropPolicy", "method", "noiseRule", "guidance", "policy", "promptChange", "sceneCut", "continuity", "kind"]);

/** What names one of a kind, by what lists several of it: the two replace each other. @type {Record<string, string>} */
const SINGLE_OF = { prompts: "prompt", adapterMix: "adapters" };

/** Throws a TypeError for a name that the protocol does not know. @param {object} given @param {string[]} known @param {string} what */
export function checkNames(given, known, what) {
  for (const name of Object.keys(given)) if (!known.includes(name)) throw new TypeError(`there is no ${what} ${name}`);
}

/** As the protocol has it. @param {any} value @param {string} [name] @returns {any} */
export function spoken(value, name = "") {
  if (value instanceof Uint8Array) return { base64: btoa(Array.from(value, (byte) => String.fromCharCode(byte)).join("")) };
  if (Array.isArray(value)) return value.map((one) => spoken(one));
  if (typeof value === "string" && ENUMS.has(name)) return value.replaceAll("-", "_");
  if (value === null || typeof value !== "object") return value;
  const names = Object.entries(said(value));
  return Object.fromEntries(names.map(([key, one]) => [key.replace(/[A-Z]/g, (letter) => `_${letter.toLowerCase()}`), spoken(one, key)]));
}

/** Their keys are no names but values: of `drops` the reasons that `dropped` has. */
const COUNTS = new Set(["drops"]);

/** What the protocol has, as it is called here. @param {any} value @param {string} [name] @returns {any} */
export function heard(value, name = "") {
  if (Array.isArray(value)) return value.map((one) => heard(one));
  if (typeof value === "string" && ENUMS.has(name)) return value.replaceAll("_", "-");
  if (value === null || typeof value !== "object" || COUNTS.has(name)) return value;
  if (typeof value.base64 === "string") return Uint8Array.from(atob(value.base64), (letter) => letter.charCodeAt(0));
  const names = Object.keys(value).map((key) => [key, key.replace(/_([a-z])/g, (_, letter) => letter.toUpperCase())]);
  return Object.fromEntries(names.map(([key, own]) => [own, heard(value[key], own)]));
}

/** What is said at all: a name that is there and undefined says nothing. @param {Record<string, any>} given @returns {Record<string, any>} */
export function said(given) {
  return Object.fromEntries(Object.entries(given).filter(([, one]) => one !== undefined));
}

/** A copy of its own, without what says nothing. `structuredClone` refuses what frameworks wrap settings in. @param {any} value @returns {any} */
export function copied(value) {
  if (value instanceof Uint8Array) return new Uint8Array(value);
  if (Array.isArray(value)) return value.map(copied);
  if (value === null || typeof value !== "object") return value;
  return Object.fromEntries(Object.entries(said(value)).map(([name, one]) => [name, copied(one)]));
}

/** Settings after a change: of a pair that replaces each other the later one stands. @param {Record<string, any>} settings @param {Record<string, any>} change */
export function merged(settings, change) {
  const both = { ...settings };
  const changed = said(change);
  for (const pair of Object.entries(SINGLE_OF)) if (pair.some((name) => name in changed)) for (const name of pair) delete both[name];
  return { ...both, ...changed };
}
