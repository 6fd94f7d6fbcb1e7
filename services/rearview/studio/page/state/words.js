// What the page says: reasons, states, numbers. One place, plain English. No DOM.

/** @type {Record<string, {title: string, help: string}>} */
const REASONS = {
  NO_CAPACITY: { title: "Every place is taken", help: "The studio waits in the queue and starts by itself." },
  TENANT_STREAMS_EXHAUSTED: { title: "You have as many streams as you may", help: "Close a tile, or another tab." },
  TENANT_RATE_EXHAUSTED: { title: "Too much at once", help: "Lower the frame rate or close a tile." },
  CALLS_EXHAUSTED: { title: "Too much at once", help: "The studio tries again shortly." },
  TOKEN_INVALID: { title: "That token is not known here", help: "Ask whoever runs this service for one." },
  TOKEN_EXPIRED: { title: "Your token is over", help: "Ask whoever runs this service for a new one." },
  TOKEN_REVOKED: { title: "Your token was taken back", help: "Ask whoever runs this service." },
  RESOLUTION_UNSUPPORTED: { title: "The model does not take this size", help: "The studio goes on with the model's own size." },
  METHOD_UNSUPPORTED: { title: "This model cannot do that", help: "Choose another way of relating frames under Motion." },
  MODEL_UNKNOWN: { title: "That model is not here", help: "Choose one under Models." },
  SETTING_OUT_OF_RANGE: { title: "That setting is out of range", help: "The picture goes on as it was." },
  PROMPT_TOO_LONG: { title: "That prompt is too long", help: "Shorten it; the picture goes on as it was." },
  PROMPT_EMPTY: { title: "The prompt is empty", help: "Say what you want to see." },
  REFERENCE_UNSUPPORTED: { title: "This model follows no reference picture", help: "The picture goes on as it was." },
  REFERENCE_INVALID: { title: "That picture cannot be read", help: "Choose a JPEG or a PNG." },
  REFERENCE_TOO_LARGE: { title: "That picture is too large", help: "Choose a smaller one." },
  REPLICA_LOST: { title: "The worker that painted this is gone", help: "Another one takes over." },
  DRAINING: { title: "The service is being stopped", help: "Your stream moves elsewhere if there is a place." },
  IDLE: { title: "Ended after a long silence", help: "Press start to go on." },
  CLOSED: { title: "Closed", help: "Open the tile again to go on." },
  TAKEN_OVER: { title: "Taken over by another tab", help: "This session goes on there." },
  DIRECTORY_UNAVAILABLE: { title: "The service lost its directory", help: "The studio tries again shortly." },
  INTERNAL: { title: "Something went wrong in the service", help: "Its log says more; the studio can be used on." },
};

/**
 * @param {string | null} reason
 * @param {string} [message]
 */
export function explain(reason, message = "") {
  const known = REASONS[(reason ?? "").replace(/^ERROR_REASON_/, "")];
  if (known) return known;
  return { title: message || "That did not work", help: reason ? `Reason: ${reason}` : "" };
}

/**
 * What the gateway complains of: its own words say more than a reason does.
 * @param {string | null} reason
 * @param {string} [message]
 */
export function complaint(reason, message = "") {
  const { title, help } = explain(reason);
  return { title, help: message ? `${message[0].toUpperCase()}${message.slice(1)}${/[.!?]$/.test(message) ? "" : "."}` : help };
}

/** @type {Record<string, string>} */
const DROPS = {
  SUPERSEDED: "a newer frame was there",
  LATE: "too old to be worth it",
  UNCHANGED: "looks like the one before",
  FAULT: "lost with a worker",
  IMAGE_EMPTY: "no image in it",
  IMAGE_INVALID: "not readable",
  IMAGE_NOT_BASELINE: "not a baseline JPEG",
  IMAGE_SIZE_MISMATCH: "of another size",
  IMAGE_TOO_LARGE: "too many bytes",
  INDEX_NOT_INCREASING: "out of order",
  RATE_LIMITED: "over the rate",
  CONTROLS_TOO_MANY: "too many pictures for controls",
  CONTROL_UNKNOWN: "for a control that is not there",
  CONTROL_INVALID: "its control's picture is not readable",
  CONTROL_SIZE_MISMATCH: "its control's picture is of another size",
};

/** @param {string} reason */
export function dropWord(reason) {
  return DROPS[reason.toUpperCase().replace(/^DROP_REASON_/, "")] ?? reason.toLowerCase().replaceAll("_", " ");
}

/** @type {Record<string, string>} */
const CONTINUITIES = {
  exact: "nothing was forgotten",
  approximate: "its past was rebuilt from the last frames",
  reset: "its past was lost, it began anew",
};

/** @param {string | null | undefined} continuity */
export function continuityWord(continuity) {
  return CONTINUITIES[(continuity ?? "").toLowerCase().replace(/^continuity_/, "")] ?? "";
}

/** @type {Record<import("./gaps.js").Cause, string>} */
const CAUSES = {
  killed: "after the kill",
  moved: "moved to another replica",
  resumed: "the service's connection was lost",
  link: "this page's connection was lost",
};

/** @param {import("./gaps.js").Cause} cause */
export function causeWord(cause) {
  return CAUSES[cause];
}

/** @type {Record<string, string>} */
const SPANS = { encode: "encode", denoise: "paint", decode: "decode", fused: "paint" };

/** A span's name for people: `denoise-0` is the first painting step. @param {string} name */
export function spanWord(name) {
  const [kind, number] = name.split("-");
  const word = SPANS[kind] ?? kind;
  return number === undefined ? word : `${word} ${Number(number) + 1}`;
}

/** `fused#3`, the fourth that was started -> "replica 3". @param {string} id */
export function replicaWord(id) {
  return `replica ${id.split(/[#-]/).at(-1)}`;
}

/** 2600000000 -> "2.6 GB". @param {number | null | undefined} bytes */
export function bytesWord(bytes) {
  if (!bytes || bytes < 0) return "";
  const units = ["B", "kB", "MB", "GB", "TB"];
  let value = bytes;
  let unit = 0;
  while (value >= 999.5 && unit < units.length - 1) {
    value /= 1000;
    unit += 1;
  }
  return `${value >= 10 || unit === 0 ? Math.round(value) : value.toFixed(1)} ${units[unit]}`;
}

/** 12345 -> "12 345", with a thin space. @param {number} number */
export function countWord(number) {
  return String(Math.round(number)).replace(/\B(?=(\d{3})+$)/g, "\u202f");
}

/** 1, "frame" -> "1 frame". @param {number} number @param {string} noun */
export function manyWord(number, noun) {
  return `${countWord(number)} ${noun}${number === 1 ? "" : "s"}`;
}

/** @param {number | null | undefined} ms */
export function msWord(ms) {
  if (ms === null || ms === undefined || !Number.isFinite(ms)) return "\u2013";
  return ms < 1000 ? `${Math.round(ms)} ms` : `${(ms / 1000).toFixed(1)} s`;
}

/** 75 -> "1:15". @param {number} seconds */
export function clockWord(seconds) {
  const whole = Math.max(0, Math.floor(seconds));
  return `${Math.floor(whole / 60)}:${String(whole % 60).padStart(2, "0")}`;
}

/** A name for a download: `rearview-oil-painting-20260127-101530.png`. */
export function fileName(/** @type {string} */ what, /** @type {Date} */ at, /** @type {string} */ ending) {
  const slug = what.toLowerCase().replace(/[^a-z0-9]+/g, "-").replace(/^-|-$/g, "").slice(0, 40) || "picture";
  const stamp = at.toISOString().replace(/[-:]/g, "").replace("T", "-").slice(0, 15);
  return `rearview-${slug}-${stamp}.${ending}`;
}
