// The shape of a source, which may change while it runs: a phone is turned, a shared window is resized. No I/O.

/** @typedef {import("../client/size.js").Size} Size */

/** A window that is being dragged has a new size with every frame; sessions are opened again for its last one. */
export const SETTLED_MS = 400;

export class Shape {
  constructor() {
    /** What was told last. @type {Size | null} */
    this.known = null;
    /** @type {Size | null} */
    this.seen = null;
    this.sinceMs = 0;
  }

  /** Another source. */
  restart() {
    this.known = this.seen = null;
  }

  /** A frame came. Whether its shape is one that was not told yet. @param {Size} size @param {number} nowMs */
  saw(size, nowMs) {
    if (!isSame(this.seen, size)) {
      this.seen = { width: size.width, height: size.height };
      this.sinceMs = nowMs;
    }
    return !isSame(this.known, size);
  }

  /** The shape to be told now: once, when it has stood for a while, also if no frame came meanwhile. @param {number} nowMs */
  settled(nowMs) {
    if (this.seen === null || isSame(this.known, this.seen) || nowMs - this.sinceMs < SETTLED_MS) return null;
    this.known = this.seen;
    return this.known;
  }
}

/**
 * What a running session's refusal of a size leads to. Another session may have more room (`again`); for any other cause
 * it would be refused as well, so all go back to the size that is in force (`back`). All of them at once: a session that is
 * refused the way back is opened again for it, or two that are refused in turns would go back and forth without end.
 * Null: the tile asks for another one by now.
 * @param {Size} wanted what the tile asks for now
 * @param {Size} asked what was refused
 * @param {string} reason
 * @param {Size | null} inForce
 * @param {Size} own that of the source: any other one is a way back
 * @returns {{again: Size} | {back: Size} | null}
 */
export function refusedSize(wanted, asked, reason, inForce, own) {
  if (!isSame(sized(wanted), sized(asked))) return null;
  if (/RESOLUTION/.test(reason) || !isSame(sized(asked), sized(own))) return { again: sized(asked) };
  return inForce === null ? null : { back: sized(inForce) };
}

/** @param {Size} size */
function sized({ width, height }) {
  return { width, height };
}

/** @param {Size | null} a @param {Size | null} b */
function isSame(a, b) {
  return a === b || (a !== null && b !== null && a.width === b.width && a.height === b.height);
}
