// A connection that is sought: when to give up, and what is told of it. `reconnected` follows every `reconnecting`, unless the session ends.

/** A timer of more fires at once. */
const MOST_TIMER_MS = 2 ** 31 - 1;

/** From best to worst. @typedef {"exact" | "approximate" | "reset"} Continuity @type {Continuity[]} */
const CONTINUITIES = ["exact", "approximate", "reset"];

export class Search {
  /** @param {(name: string, about: unknown) => void} tell @param {() => void} giveUp called once the time is over */
  constructor(tell, giveUp) {
    this.tell = tell;
    this.giveUp = giveUp;
    this.isTold = false;
    /** What has become of the past since the search began. @type {Continuity} */
    this.continuity = "exact";
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

  /** A notice of the service tells how its session goes on; it may come before what is sought is there. @param {Continuity | null} continuity */
  goesOn(continuity) {
    if (this.isTold && continuity) this.continuity = worse(this.continuity, continuity);
  }

  /** What was sought is there. A session that begins anew is told of without a search, too. @param {Continuity} continuity */
  found(continuity) {
    if (this.isTold || continuity === "reset") this.tell("reconnected", { continuity: worse(this.continuity, continuity) });
    this.isTold = false;
    this.continuity = "exact";
  }
}

/** @param {Continuity} one @param {Continuity} other */
function worse(one, other) {
  return CONTINUITIES.indexOf(one) < CONTINUITIES.indexOf(other) ? other : one;
}
