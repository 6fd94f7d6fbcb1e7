// Which frames of a source are taken, and when to try a lost connection again. No clock.

/** Lets through at most `rate` frames a second, evenly, whatever the source's own rate. */
export class Pace {
  /** @param {number} rate frames per second */
  constructor(rate) {
    this.rate = rate;
    this.next = -Infinity;
  }

  /** Whether the frame of `nowMs` is taken. @param {number} nowMs */
  takes(nowMs) {
    const interval = 1000 / this.rate;
    // A source of the same rate jitters: a quarter of an interval early is in time.
    if (nowMs < this.next - interval / 4) return false;
    this.next = nowMs - this.next > interval ? nowMs + interval : this.next + interval;
    return true;
  }
}

const FIRST_MS = 250;
const MOST_MS = 5000;

/** Wait before attempt `attempt` (from 0); `chance` in [0, 1) spreads the tabs of one gateway. */
export function reconnectAfterMs(/** @type {number} */ attempt, chance = 0) {
  return Math.min(MOST_MS, FIRST_MS * 2 ** attempt) * (1 + chance / 4);
}
