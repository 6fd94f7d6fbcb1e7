// The WebSocket: connects, says hello, and connects again. Knows nothing of pictures.
import { reconnectAfterMs } from "./pacing.js";

const LOOK_MS = 2000;
const MOST_SILENT_LOOKS = 5;

/**
 * @typedef {{state: "connecting" | "open" | "waiting", attempt: number, retryMs: number}} LinkState
 * @typedef {{
 *   text: (message: any) => void, bytes: (message: ArrayBuffer) => void, changed: (state: LinkState) => void,
 *   isOwed: () => boolean,
 * }} Listener `isOwed`: whether the peer has something to answer
 */

export class Link {
  /** @param {Listener} listener */
  constructor(listener) {
    this.listener = listener;
    /** @type {WebSocket | null} */
    this.socket = null;
    this.attempt = 0;
    /** @type {ReturnType<typeof setTimeout> | undefined} */
    this.timer = undefined;
    /** @type {() => Promise<Record<string, unknown>>} */
    this.hello = async () => ({ type: "hello" });
    this.url = "";
    this.isGreeted = false;
    /** @type {ReturnType<typeof setInterval> | undefined} */
    this.looking = undefined;
    this.silentLooks = 0;
    /** The attempt that is going on. @type {object | null} */
    this.dialling = null;
  }

  /** @param {string} url @param {() => Promise<Record<string, unknown>>} hello what is said first, each time */
  connect(url, hello) {
    this.url = url;
    this.hello = hello;
    this.attempt = 0;
    this.again();
  }

  /** Connect now, whatever the wait. */
  async again() {
    this.close();
    this.listener.changed({ state: "connecting", attempt: this.attempt, retryMs: 0 });
    this.isGreeted = false;
    const dialling = {};
    this.dialling = dialling;
    try {
      // Known before the socket is there, which is not kept waiting.
      const hello = JSON.stringify(await this.hello());
      if (this.dialling === dialling) this.dial(hello);
    } catch {
      if (this.dialling === dialling) this.retry();
    }
  }

  /** @param {string} hello */
  dial(hello) {
    const socket = new WebSocket(this.url);
    socket.binaryType = "arraybuffer";
    socket.onopen = () => socket.send(hello);
    socket.onmessage = ({ data }) => this.heard(data);
    socket.onclose = () => this.lost(socket);
    this.socket = socket;
  }

  /** @param {string | ArrayBuffer} data */
  heard(data) {
    this.silentLooks = 0;
    if (typeof data !== "string") return this.listener.bytes(data);
    const message = JSON.parse(data);
    // A viewer is not welcomed: the program is the first that it hears.
    if (!this.isGreeted && message.type !== "error") {
      this.isGreeted = true;
      this.attempt = 0;
      this.listener.changed({ state: "open", attempt: 0, retryMs: 0 });
    }
    this.listener.text(message);
  }

  /** @param {WebSocket} socket */
  lost(socket) {
    if (socket !== this.socket) return;
    this.socket = null;
    this.retry();
  }

  /**
   * Whether the peer says something all the time: then a connection on which nothing comes any more is lost, though no
   * end of it came. Looks are counted and not time, since nothing is heard in sleep, either.
   * @param {boolean} isTalking
   */
  expect(isTalking) {
    if (isTalking && this.looking !== undefined) return;
    clearInterval(this.looking);
    this.silentLooks = 0;
    this.looking = isTalking ? setInterval(() => this.look(), LOOK_MS) : undefined;
  }

  look() {
    this.silentLooks = this.listener.isOwed() ? this.silentLooks + 1 : 0;
    if (this.silentLooks < MOST_SILENT_LOOKS) return;
    this.close();
    this.retry();
  }

  retry() {
    this.expect(false);
    const retryMs = reconnectAfterMs(this.attempt, Math.random());
    this.attempt += 1;
    this.timer = setTimeout(() => this.again(), retryMs);
    this.listener.changed({ state: "waiting", attempt: this.attempt, retryMs });
  }

  get isOpen() {
    return this.socket !== null && this.socket.readyState === WebSocket.OPEN;
  }

  /** @param {string | ArrayBuffer} message */
  send(message) {
    this.socket?.send(message);
  }

  get unsentBytes() {
    return this.socket?.bufferedAmount ?? 0;
  }

  /** For good, unless it is connected anew. */
  close() {
    clearTimeout(this.timer);
    this.expect(false);
    this.dialling = null;
    const socket = this.socket;
    this.socket = null;
    if (socket) {
      socket.onclose = socket.onmessage = null;
      socket.close();
    }
  }
}
