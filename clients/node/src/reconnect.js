// When to try again after a lost connection, and when to give up: exponential back-off with jitter.

export const DEFAULTS = {
  firstWaitS: 0.05,
  maxWaitS: 2,
  /** Counted from the loss, and again after every answer. Undefined: the server's grace time. */
  giveUpAfterS: undefined,
  openTimeoutS: 10,
  /** How long a server may take to show that it is there, before the next address is tried. */
  acceptTimeoutS: 1,
};

/** The longest time that a timer takes, in milliseconds: of a longer one it makes none at all. */
const MOST_MS = 2 ** 31 - 1;

/** A timer's milliseconds. */
export const timerMs = (seconds) => Math.min(MOST_MS, 1000 * seconds);

/** The defaults with what is given; throws for what is not known or is no time. */
export function policyOf(given) {
  const policy = { ...DEFAULTS };
  for (const [name, value] of Object.entries(given)) {
    if (!(name in DEFAULTS)) throw new TypeError(`reconnect has no ${name}; there are: ${Object.keys(DEFAULTS).join(", ")}`);
    if (value === undefined) continue;
    if (typeof value !== "number" || !(value >= 0)) throw new RangeError(`${name} is ${value}; it is a number of seconds`);
    policy[name] = value;
  }
  return policy;
}

export class Attempts {
  #policy;
  #count = 0;
  #lostS;

  constructor(policy) {
    this.#policy = policy;
  }

  renew() {
    this.#count = 0;
    this.#lostS = undefined;
  }

  /** A connection is lost after so long: one that outlasted any wait was good. */
  stood(forS) {
    if (forS > this.#policy.maxWaitS) this.renew();
  }

  /** Twice as long after every third attempt that failed: all servers may be slow. */
  get acceptS() {
    const { openTimeoutS, acceptTimeoutS } = this.#policy;
    return Math.min(openTimeoutS, acceptTimeoutS * 2 ** Math.min(Math.floor(this.#count / 3), 30));
  }

  /** How long to wait before the next attempt; undefined: give up. */
  waitS(now, limitS, retryAfterS = 0, random = Math.random) {
    this.#lostS ??= now;
    const cap = Math.min(this.#policy.maxWaitS, this.#policy.firstWaitS * 2 ** Math.min(this.#count, 30));
    const waitS = Math.max(cap * (0.5 + 0.5 * random()), retryAfterS);
    this.#count += 1;
    return now + waitS - this.#lostS <= limitS ? waitS : undefined;
  }
}
