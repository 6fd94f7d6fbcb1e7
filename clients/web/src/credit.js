// Who may send what: frames to the gateway, and answers from it. No I/O.

/** Frames that may be sent, and answers that were taken in, since `welcome`. */
export class Credit {
  constructor() {
    this.allowed = 0;
    this.sent = 0;
    this.answers = 0;
    this.acknowledged = 0;
  }

  /** `welcome`: everything counts from here. @param {number} allowed */
  restart(allowed) {
    this.allowed = allowed;
    this.sent = this.answers = this.acknowledged = 0;
  }

  /** `credit`. It never falls, whatever comes late. @param {number} frames */
  grant(frames) {
    this.allowed = Math.max(this.allowed, frames);
  }

  get maySend() {
    return this.sent < this.allowed;
  }

  spend() {
    if (!this.maySend) throw new Error(`frame ${this.sent + 1} of ${this.allowed} allowed`);
    this.sent += 1;
  }

  /** One picture, or one drop, was taken in. */
  take() {
    this.answers += 1;
  }

  /** The number to acknowledge, or null while fewer than `step` are new. @param {number} step */
  due(step = 1) {
    if (this.answers - this.acknowledged < step) return null;
    this.acknowledged = this.answers;
    return this.answers;
  }
}
