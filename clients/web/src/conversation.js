// A page's side of the protocol: who it is, what it may send, what it has taken, and what it says again after a lost
// connection, so that nothing is lost and nothing counts twice. Knows nothing of pixels.
import { Credit } from "./credit.js";
import { Ledger } from "./ledger.js";
import { Link } from "./link.js";
import { packFrame, tooLarge, unpackPicture } from "./protocol.js";

const ACKNOWLEDGE_MS = 50;
const ACKNOWLEDGE_EVERY = 8;
const MOST_UNSENT_BYTES = 2e6;
const MOST_ANSWERED = 64;

/**
 * @typedef {import("./errors.js").RearviewError} RearviewError
 * @typedef {import("./ledger.js").Said} Said
 * @typedef {{
 *   said: (message: any, left: Said[]) => void,
 *   pictured: (picture: import("./protocol.js").Picture, page: number | null) => void,
 *   changed: (state: import("./link.js").LinkState) => void,
 * }} Listener
 * `said`: with `welcome`, `goesOn` says whether the gateway has all that was said; if not, `left` is what has no answer.
 * `pictured`: `page` goes back with `taken`.
 */

export class Conversation {
  /** @param {Listener} listener */
  constructor(listener) {
    this.listener = listener;
    this.credit = new Credit();
    this.ledger = new Ledger();
    this.link = new Link({
      text: (message) => this.heard(message),
      bytes: (bytes) => this.pictured(bytes),
      changed: (state) => this.changed(state),
      isOwed: () => this.ledger.frames > 0,
    });
    /** @type {string | null | (() => Promise<string | null>)} */
    this.token = null;
    /** @type {string | null} */
    this.wall = null;
    /** @type {number | null} */
    this.page = null;
    this.isViewer = false;
    this.isWelcomed = false;
    /** Pictures and drops that have come since `page` began. */
    this.arrived = 0;
    /** Controls that were answered: a gateway may give an answer twice. @type {Set<number>} */
    this.answered = new Set();
    /** @type {ReturnType<typeof setTimeout> | undefined} */
    this.acknowledging = undefined;
  }

  /**
   * @param {string} url of the socket
   * @param {{token?: Conversation["token"], wall?: string | null, isViewer?: boolean}} who
   */
  connect(url, { token = null, wall = null, isViewer = false }) {
    this.token = token;
    this.wall = wall;
    this.isViewer = isViewer;
    this.link.connect(url, () => this.hello());
  }

  /** Connect now, whatever the wait. */
  again() {
    this.link.again();
  }

  async hello() {
    if (this.isViewer) return { type: "hello" };
    const token = typeof this.token === "function" ? await this.token() : this.token;
    const { wall, page, arrived } = this;
    return { type: "hello", token, wall, ...(page !== null && { page, received: arrived }) };
  }

  get isOpen() {
    return this.isWelcomed && this.link.isOpen;
  }

  get maySend() {
    return this.isOpen && this.credit.maySend && this.link.unsentBytes < MOST_UNSENT_BYTES;
  }

  /** Says it, or not at all if there is no connection, or it is too large. @param {Record<string, any>} message */
  say(message) {
    const text = JSON.stringify(message);
    const error = tooLarge(text);
    if (error) return this.refuse(error, message);
    if (!this.isOpen) return false;
    if (message.type === "control") this.ledger.add("control", message.id, text);
    else this.ledger.add("other", 0, text);
    this.link.send(text);
    return true;
  }

  /** A frame, where `maySend`. False: it is too large. @param {number} frame @param {number} capturedMs @param {Uint8Array} jpeg */
  send(frame, capturedMs, jpeg) {
    return this.repeat(frame, packFrame(frame, capturedMs, jpeg));
  }

  /** A frame that was packed before, where `maySend`. False: it is too large. @param {number} frame @param {ArrayBuffer} message */
  repeat(frame, message) {
    const error = tooLarge(message);
    if (error) return this.refuse(error);
    this.credit.spend();
    this.ledger.add("frame", frame, message);
    this.link.send(message);
    return true;
  }

  /** The listener hears what the gateway would say. @param {RearviewError} error @param {Record<string, any>} [message] */
  refuse({ reason, message: text }, { type, tile, id } = {}) {
    const why = { reason, message: text };
    this.listener.said(type === "control" ? { type: "applied", tile, id, rejected: why } : { type: "error", ...why }, []);
    return false;
  }

  /**
   * The page has taken one picture, or one `dropped`, and is ready for another.
   * @param {number | null} [page] the number that it had when that came: with another one nothing of it counts
   */
  taken(page = this.page) {
    if (page !== this.page) return;
    this.credit.take();
    if (this.isViewer) return;
    this.acknowledge(ACKNOWLEDGE_EVERY);
    // The last few answers before a pause are acknowledged, too.
    this.acknowledging ??= setTimeout(() => {
      this.acknowledging = undefined;
      this.acknowledge(1);
    }, ACKNOWLEDGE_MS);
  }

  /** Ends the wall, too, with `isOver`. @param {boolean} isOver */
  close(isOver) {
    clearTimeout(this.acknowledging);
    if (isOver && this.isOpen) this.link.send(JSON.stringify({ type: "bye" }));
    this.link.close();
    this.isWelcomed = false;
  }

  /** @param {number} step */
  acknowledge(step) {
    const answers = this.isOpen ? this.credit.due(step) : null;
    if (answers !== null) this.link.send(JSON.stringify({ type: "received", answers }));
  }

  /** @param {import("./link.js").LinkState} state */
  changed(state) {
    if (state.state !== "open") this.isWelcomed = false;
    this.listener.changed(state);
  }

  /** @param {any} message */
  heard(message) {
    if (message.type === "welcome") return this.welcomed(message);
    // Figures come twice a second while a session is open; while one is being opened, nothing may come for long.
    if (message.type === "stats") this.link.expect(true);
    if (message.type === "state" && message.state !== "live") this.link.expect(false);
    if (message.type === "credit") this.credit.grant(message.frames);
    if (message.type === "dropped") {
      this.arrived += 1;
      this.ledger.answered("frame", message.frame);
    }
    if (message.type === "applied") {
      if (this.answered.has(message.id)) return;
      this.answered.add(message.id);
      if (this.answered.size > MOST_ANSWERED) this.answered.delete(/** @type {number} */ (this.answered.values().next().value));
      this.ledger.answered("control", message.id);
    }
    this.listener.said(message, []);
  }

  /** @param {any} message */
  welcomed(message) {
    const goesOn = message.resumed && message.page !== undefined && message.page === this.page;
    this.wall = message.wall;
    this.page = message.page ?? null;
    this.isWelcomed = true;
    /** @type {Said[]} */
    let left = [];
    if (goesOn) {
      this.credit.grant(message.credit);
      for (const { message: again } of this.ledger.unheard(message.heard)) this.link.send(again);
    } else {
      left = this.ledger.restart();
      this.credit.restart(message.credit ?? 0);
      this.arrived = 0;
      this.answered.clear();
    }
    this.listener.said({ ...message, goesOn }, left);
  }

  /** @param {ArrayBuffer} bytes */
  pictured(bytes) {
    const picture = unpackPicture(bytes);
    if (!picture) return;
    this.arrived += 1;
    this.ledger.answered("frame", picture.frame);
    this.listener.pictured(picture, this.page);
  }
}
