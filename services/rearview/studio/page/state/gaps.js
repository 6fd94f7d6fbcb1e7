// Pauses in the pictures: which are long for this session, and which have a cause to be told with. No clock.

/** @typedef {"killed" | "moved" | "resumed" | "link"} Cause */
/** @typedef {{from: number, to: number, ms: number, lost: number, atMs: number}} Ended a pause, and when it ended */
/** @typedef {Ended & {cause: Cause}} Gap */
/** @typedef {{gaps: Gap[], unexplained: Ended | null, causes: {cause: Cause, atMs: number}[]}} Gaps the newest come last */

const KEPT = 64;
const FEWEST = 8;
const SHORT_MS = 250;
export const PAUSE_MS = 1200;
const UNKNOWN_PAUSE_MS = 10_000;
const REMEMBERED_MS = 60_000;
const NEAR_MS = 3000;
const MOST_GAPS = 20;

/** Sees that answers stopped for longer than is usual in this session, and what that cost. */
export class GapWatch {
  constructor() {
    /** @type {{frame: number, ms: number} | null} */
    this.last = null;
    /** From one answer to the next. @type {number[]} */
    this.recent = [];
    /** Those that stood out, of the last minute. @type {{ms: number, atMs: number}[]} */
    this.long = [];
  }

  /**
   * An answer arrived. Returns the gap that it ends, if there was one.
   * @param {number} frame
   * @param {number} nowMs
   * @returns {{from: number, to: number, ms: number} | null}
   */
  arrived(frame, nowMs) {
    const last = this.last;
    this.last = { frame, ms: nowMs };
    if (!last) return null;
    const ms = nowMs - last.ms;
    const isGap = ms > SHORT_MS && ms > 3 * this.medianMs;
    this.recent.push(ms);
    if (this.recent.length > KEPT) this.recent.shift();
    if (!isGap) return null;
    this.long.push({ ms, atMs: nowMs });
    return { from: last.frame, to: frame, ms };
  }

  /** How long nothing has come, in ms. @param {number} nowMs */
  silentMs(nowMs) {
    return this.last ? nowMs - this.last.ms : 0;
  }

  /** After how much silence the stream pauses: longer than it did in the last minute. @param {number} nowMs */
  pauseAfterMs(nowMs) {
    if (this.recent.length < FEWEST) return UNKNOWN_PAUSE_MS;
    this.long = this.long.filter(({ atMs }) => nowMs - atMs < REMEMBERED_MS);
    const longest = Math.max(0, ...this.long.map(({ ms }) => ms));
    return Math.max(PAUSE_MS, 4 * this.medianMs, 1.5 * longest);
  }

  get medianMs() {
    return [...this.recent].sort((a, b) => a - b)[this.recent.length >> 1] ?? SHORT_MS;
  }

  /** The source was stopped: the next answer ends no gap. */
  forget() {
    this.last = null;
  }
}

/** @returns {Gaps} */
export function noGaps() {
  return { gaps: [], unexplained: null, causes: [] };
}

/** A pause has ended. It is kept once its cause is known. @template {Gaps} T @param {T} tile @param {Ended} gap @returns {T} */
export function withGap(tile, gap) {
  const before = tile.unexplained;
  const isLonger = !before || gap.atMs - before.atMs > NEAR_MS || gap.ms >= before.ms;
  return explained({ ...tile, unexplained: isLonger ? gap : before });
}

/** What may stop pictures has happened. @template {Gaps} T @param {T} tile @param {Cause} cause @param {number} atMs @returns {T} */
export function withCause(tile, cause, atMs) {
  return explained({ ...tile, causes: [...tile.causes, { cause, atMs }].slice(-4) });
}

/** @template {Gaps} T @param {T} tile @returns {T} */
function explained(tile) {
  const gap = tile.unexplained;
  if (!gap) return tile;
  const beganMs = gap.atMs - gap.ms;
  const cause = tile.causes.find(({ atMs }) => atMs > beganMs - NEAR_MS && atMs < gap.atMs + NEAR_MS)?.cause;
  if (!cause) return tile;
  // One cause, one gap: what stutters before and after it is not another one.
  const last = tile.gaps.at(-1);
  const isSame = last !== undefined && beganMs - last.atMs < NEAR_MS;
  const others = isSame ? tile.gaps.slice(0, -1) : tile.gaps;
  const kept = isSame && last.ms >= gap.ms ? last : { ...gap, cause };
  return { ...tile, unexplained: null, gaps: [...others, kept].slice(-MOST_GAPS) };
}

/** Whether pictures are known to stop now, as they were made to. @param {Gaps} tile @param {number} nowMs */
export function isExpected(tile, nowMs) {
  const cause = tile.causes.at(-1);
  return cause !== undefined && nowMs - cause.atMs < UNKNOWN_PAUSE_MS;
}
