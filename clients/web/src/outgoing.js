// What waits to be sent, in order: frames for credit, and everything for a connection with an open session.

/**
 * @typedef {{frame: number, message: ArrayBuffer, sent: () => void, failed: (error: Error) => void}} Frame
 * @typedef {{control: Record<string, unknown>}} Control
 */

export class Outgoing {
  /** @param {import("./conversation.js").Conversation} conversation */
  constructor(conversation) {
    this.conversation = conversation;
    /** @type {(Frame | Control)[]} */
    this.items = [];
    /** Whether the session is open. */
    this.isLive = false;
  }

  get maySend() {
    return this.isLive && this.items.length === 0 && this.conversation.maySend;
  }

  /** A frame that may be sent now: for `Capture`. @param {number} frame @param {number} capturedMs @param {Uint8Array} jpeg */
  send(frame, capturedMs, jpeg) {
    return this.conversation.send(frame, capturedMs, jpeg);
  }

  /** @param {Record<string, unknown>} message */
  say(message) {
    return this.conversation.say(message);
  }

  /** @param {Frame | Control} item */
  add(item) {
    this.items.push(item);
    this.pump();
  }

  /** Goes before all that waits: what another gateway has not answered. @param {import("./ledger.js").Said[]} left */
  repeat(left) {
    const again = left.map(({ kind, key, message }) =>
      kind === "control"
        ? { control: JSON.parse(/** @type {string} */ (message)) }
        : { frame: key, message: /** @type {ArrayBuffer} */ (message), sent: () => {}, failed: () => {} },
    );
    this.items.unshift(...again);
  }

  pump() {
    while (this.isLive && this.items.length > 0) {
      const [item] = this.items;
      if ("control" in item) {
        if (!this.conversation.say(item.control)) return;
      } else {
        if (!this.conversation.maySend) return;
        this.conversation.repeat(item.frame, item.message);
        item.sent();
      }
      this.items.shift();
    }
  }

  /** Nothing is sent any more. @param {Error} error */
  fail(error) {
    this.isLive = false;
    for (const item of this.items.splice(0)) if ("failed" in item) item.failed(error);
  }
}
