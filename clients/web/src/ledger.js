// What a page has said and is not done with, so that it can be said again after a lost connection. No I/O.

/**
 * @typedef {{kind: "frame" | "control" | "other", key: number, message: string | ArrayBuffer, index: number}} Said
 * `key`: the frame's number, or the control's id. `index`: how many messages were said before it.
 */

export class Ledger {
  constructor() {
    /** @type {Said[]} */
    this.items = [];
    this.said = 0;
  }

  /** @param {Said["kind"]} kind @param {number} key @param {string | ArrayBuffer} message */
  add(kind, key, message) {
    this.items.push({ kind, key, message, index: this.said });
    this.said += 1;
  }

  /** An answer came: everything up to what it answers was heard. @param {"frame" | "control"} kind @param {number} key */
  answered(kind, key) {
    const answered = this.items.find((one) => one.kind === kind && one.key === key);
    if (!answered) return;
    this.items = this.items.filter((one) => one !== answered && (one.kind !== "other" || one.index > answered.index));
  }

  /** What is to be said again to a peer that has heard so many. @param {number} heard */
  unheard(heard) {
    return this.items.filter(({ index }) => index >= heard);
  }

  /** Frames and controls without an answer, in their order. */
  get unanswered() {
    return this.items.filter(({ kind }) => kind !== "other");
  }

  /** Frames without an answer. */
  get frames() {
    return this.items.reduce((count, { kind }) => count + Number(kind === "frame"), 0);
  }

  /** Another peer, which has heard nothing. Returns what the one before has not answered. */
  restart() {
    const left = this.unanswered;
    this.items = [];
    this.said = 0;
    return left;
  }
}
