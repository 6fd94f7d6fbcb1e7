// A connection that is sought: when to give up, and what is told of it. `reconnected` follows every `reconnecting`, unless the session ends.

/** A timer of more fires at once. */
const MOST_TIMER_MS = 2 ** 31 - 1;

export class Search {
  /** @param {(name: string, about: unknown) => void} tell @param {() => void} giveUp called once the time is over */
  constructor(tell, giveUp) {
    this.tell = tell;
    this.giveUp = giveUp;
    this.isTold = false;
    /** @type {ReturnType<typeof setTimeout> | undefined} */
    this.timer = undefined;
    this.giveUpAtMs = 0;
  }

  get isTimed() {
    return this.timer !== undefined;
  }

  /** @param {number} seconds */
  giveUpAfter(seconds) {
    clearTimeout(this.timer);
    this.giveUpAtMs = performance.now() + 1000 * seconds;
    this.timer = setTimeout(this.giveUp, Math.min(MOST_TIMER_MS, 1000 * seconds));
  }

  /** It gives up no more; returns the seconds that were left. */
  stop() {
    clearTimeout(this.timer);
    this.timer = undefined;
    return (this.giveUpAtMs - performance.now()) / 1000;
  }

  /** The connection is lost, or not there yet. @param {{ where: "gateway" | "service", attempt?: number }} about */
  sought(about) {
    this.isTold = true;
    this.tell("reconnecting", about);
  }

  /** What was sought is there. A session that begins anew is told of without a search, too. @param {"exact" | "reset"} continuity */
  found(continuity) {
    if (this.isTold || continuity === "reset") this.tell("reconnected", { continuity });
    this.isTold = false;
  }
}
