// One session: opened once, kept over lost connections, each frame answered once.
import { Capture } from "./capture.js";
import { Conversation } from "./conversation.js";
import { RearviewError, isFinal, isOfToken } from "./errors.js";
import { OPTIONS, SETTINGS, checkNames, copied, heard, merged, spoken } from "./names.js";
import { Outgoing } from "./outgoing.js";
import { Pace } from "./pacing.js";
import { packFrame, tooLarge } from "./protocol.js";
import { Screen } from "./screen.js";
import { Search } from "./search.js";
import { sessionSize } from "./size.js";
import { feed, sizeOf } from "./source.js";

const EVENTS = [
  "opened", "queued", "frame", "dropped", "applied", "moved", "resumed", "resized", "drain", "reconnecting", "reconnected", "stats",
  "complaint", "sourceended", "ended",
];

/**
 * @typedef {import("./source.js").Source} Source
 * @typedef {Record<string, any>} Options
 * @typedef {{resolve: (value: any) => void, reject: (error: Error) => void}} Promised
 */

/**
 * Open a session. Rejects with a RearviewError where it is refused, invalid or not reached.
 * @param {Source | null} source null: frames are given by `send`
 * @param {Options} [options]
 */
export async function connect(source, options = {}) {
  const session = new Session(source, options);
  await session.begin();
  return session;
}

export class Session extends EventTarget {
  /** @param {Source | null} source @param {Options} options */
  constructor(source, options) {
    super();
    const { url = location.origin, token = null, settings = {}, canvas, quality = 0.85, queue = true, openTimeoutS = 20, giveUpAfterS = 60, ...rest } = options;
    const callbacks = EVENTS.map((name) => `on${name}`);
    checkNames(settings, SETTINGS, "setting");
    checkNames(rest, [...OPTIONS, ...callbacks], "option");
    for (const name of EVENTS) if (rest[`on${name}`]) this.addEventListener(name, (event) => rest[`on${name}`](/** @type {CustomEvent} */ (event).detail));
    this.url = String(url).replace(/\/$/, "");
    this.token = token;
    sizeOf(source); // Throws for what gives no frames, before anything is dialled.
    // The caller may write over its own: it is said again where the session is opened anew.
    this.asked = copied(settings);
    this.options = copied(Object.fromEntries(Object.entries(rest).filter(([name]) => !callbacks.includes(name))));
    this.how = { queue, openTimeoutS, giveUpAfterS };
    this.source = source;
    /** The session as the service last described it. @type {any} */
    this.opened = null;
    /** The model that paints, as the service describes it. @type {any} */
    this.model = null;
    /** Set once it has ended. @type {RearviewError | null} */
    this.error = null;
    /** Where others may watch it, and change nothing. */
    this.viewerLink = "";
    /** Sockets that were welcomed; 1 if none was lost. */
    this.connections = 0;
    this.screen = new Screen(canvas ?? document.createElement("canvas"), (page) => this.conversation.taken(page));
    this.conversation = new Conversation({
      said: (message, left) => this.said(message, left),
      pictured: (picture, page) => this.pictured(picture, page),
      changed: (state) => this.linked(state),
    });
    this.outgoing = new Outgoing(this.conversation);
    this.capture = new Capture(this.outgoing);
    this.capture.pace = new Pace(this.options.frameRate ?? 30);
    this.capture.quality = quality;
    /** Changes without an answer, by the control's id. @type {Map<number, Promised & {settings: Record<string, any>}>} */
    this.changes = new Map();
    this.numChanges = 0;
    /** Whether this gateway was asked to open it. */
    this.isAsked = false;
    /** @type {Promised | null} */
    this.opening = null;
    /** @type {Set<() => void>} */
    this.finishing = new Set();
    /** @type {Promise<unknown>} */
    this.encoding = Promise.resolve();
    /** Until all changes of the size are answered that were asked for. @type {Promise<unknown>} */
    this.sizing = Promise.resolve();
    this.unfeed = () => {};
    this.search = new Search((name, about) => this.tell(name, about), () => {
      this.end(new RearviewError("UNREACHABLE", `${this.url} does not answer`, { cause: this.tokenError }));
    });
    /** Of the caller's own function. @type {unknown} */
    this.tokenError = undefined;
    /** What that function gave last: a session goes on by its own token alone. @type {string | null} */
    this.keptToken = null;
    /** Whether the studio was told a token that was kept. */
    this.isTokenOld = false;
  }

  // -- what a page asks

  /** What is painted, as a stream: for a video element, a call, a recorder. */
  get stream() {
    return this.screen.stream;
  }

  get canvas() {
    return this.screen.canvas;
  }

  get unansweredFrames() {
    return this.conversation.ledger.frames + this.outgoing.items.filter((item) => "frame" in item).length;
  }

  /** Opens it, once. */
  begin() {
    /** @type {Promise<void>} */
    const begun = new Promise((resolve, reject) => (this.opening = { resolve, reject }));
    this.search.giveUpAfter(this.how.openTimeoutS);
    const socket = `${this.url.replace(/^http/, "ws")}/${this.token === null ? "wall" : "session"}`;
    this.conversation.connect(socket, { token: () => this.currentToken() });
    return begun;
  }

  /**
   * Changes settings from the next frame on; all others stay. Resolves when that is in force, rejects where it is refused.
   * @param {Record<string, any>} settings
   */
  async change(settings) {
    checkNames(settings, SETTINGS, "setting");
    if (this.error) throw this.error;
    const id = this.numChanges;
    const change = copied(settings);
    const control = { type: "control", tile: 0, id, settings: spoken(change) };
    const tooLong = tooLarge(JSON.stringify(control));
    if (tooLong) throw tooLong;
    this.numChanges += 1;
    // Frames that were given before it go before it.
    await this.encoding;
    if (this.error) throw this.error;
    const answered = new Promise((resolve, reject) => this.changes.set(id, { resolve, reject, settings: change }));
    if (isOfSize(change)) this.sizing = Promise.allSettled([this.sizing, answered]);
    this.feedIfSized();
    this.outgoing.add({ control });
    return answered;
  }

  /**
   * Sends a frame where there is no source: JPEG bytes, or what a canvas may draw. Resolves with its number, when it is on its way.
   * @param {Uint8Array | Blob | ImageBitmapSource} image
   */
  async send(image) {
    if (this.source) throw new TypeError("the frames come from the source");
    const capturedMs = performance.now();
    const encoded = this.encoding.then(() => this.encoded(image));
    this.encoding = encoded.catch(() => {});
    const jpeg = await encoded;
    if (this.error) throw this.error;
    const frame = this.capture.frame;
    const message = packFrame(frame, capturedMs, jpeg);
    const tooLong = tooLarge(message);
    if (tooLong) throw tooLong;
    this.capture.frame += 1;
    return new Promise((resolve, reject) => {
      this.outgoing.add({ frame, message, sent: () => resolve(frame), failed: reject });
    });
  }

  /** Resolves when every frame is answered, and ends the session. */
  async finish() {
    this.unfeed();
    await this.encoding;
    if (this.unansweredFrames > 0 && !this.error) await new Promise((resolve) => this.finishing.add(() => resolve(undefined)));
    if (this.error && this.error.reason !== "CLOSED") throw this.error;
    this.close();
  }

  /** Ends the session at once. The source goes on. */
  close() {
    this.end(new RearviewError("CLOSED", "the page has closed the session"), true);
  }

  // -- what comes

  /** @param {any} message @param {import("./ledger.js").Said[]} left */
  said(message, left) {
    const { type, tile: _tile, ...about } = message;
    switch (type) {
      case "welcome":
        return this.welcomed(message, left);
      case "serving":
        this.model = heard(about.model);
        if (!this.isAsked) this.open();
        return undefined;
      case "opened":
        return this.begun(about);
      case "state":
        return this.became(about);
      case "credit":
        return this.pump();
      case "applied":
        return this.applied(about);
      case "dropped":
        this.conversation.taken();
        this.tell("dropped", { frame: about.frame, reason: about.reason });
        return this.settle();
      case "notice":
        this.search.goesOn(about.continuity);
        return this.tell(about.kind, heard(about));
      case "stats":
        return this.tell("stats", heard(about));
      case "error":
        if (this.forgetsToken(about.reason)) return undefined;
        if (this.opening || isFinal(about.reason)) return this.end(new RearviewError(about.reason, about.message));
        return this.tell("complaint", about);
    }
  }

  /** @param {any} message @param {import("./ledger.js").Said[]} left */
  welcomed(message, left) {
    this.connections += 1;
    this.viewerLink = `${this.url}/view/${message.viewer}`;
    if (message.goesOn) {
      this.search.found("exact");
      return this.pump();
    }
    this.outgoing.isLive = this.isAsked = false;
    this.outgoing.repeat(left);
    // Opened by this page before it was loaded again; else `serving` says on what it may be opened.
    for (const tile of message.tiles) this.begun(tile);
    return undefined;
  }

  open() {
    this.isAsked = true;
    const own = sizeOf(this.source);
    const { model, options } = this;
    const isSized = "width" in options || "height" in options || own === null || !model.width;
    const size = isSized ? {} : sessionSize(own, { ...model, multiple: model.motionMultiple || model.multiple });
    const asked = { dropPolicy: "latest", frameRate: 30, ...size, ...options, settings: this.asked };
    const message = { type: "open", tile: 0, options: spoken(asked) };
    const tooLong = tooLarge(JSON.stringify(message));
    if (tooLong) this.end(tooLong, true);
    else this.conversation.say(message);
  }

  /** @param {any} about */
  begun(about) {
    const isAgain = this.opened !== null;
    this.opened = heard(about);
    this.outgoing.isLive = this.isAsked = true;
    this.capture.setSize(about);
    this.feedIfSized();
    this.search.found(isAgain ? "reset" : "exact");
    if (!isAgain && this.source) this.unfeed = feed(this.source, this.options.frameRate ?? 30, this.capture, () => this.tell("sourceended", {}));
    this.tell("opened", this.opened);
    this.opening?.resolve(undefined);
    this.opening = null;
    this.pump();
  }

  /** @param {any} about */
  became({ state, reason, message, retry_ms: retryMs }) {
    const retryAfterS = retryMs === null || retryMs === undefined ? undefined : retryMs / 1000;
    if (state === "queued") {
      if (!this.how.queue) return this.end(new RearviewError(reason, message, { retryAfterS }), true);
      return this.tell("queued", { reason, message, retryAfterS });
    }
    if (state === "reconnecting") return this.search.sought({ where: "service" });
    if (state === "live") this.search.found("exact");
    // A session that ended for want of frames opens again with the next one.
    if (state === "refused" || (state === "ended" && reason !== "IDLE")) return this.end(new RearviewError(reason, message), true);
    return this.pump();
  }

  /** @param {any} about */
  applied({ id, rejected, ...about }) {
    const change = this.changes.get(id);
    if (!change) return;
    this.changes.delete(id);
    this.feedIfSized();
    if (rejected) {
      change.reject(new RearviewError(rejected.reason, rejected.message));
      this.tell("applied", { rejected });
      return this.pump();
    }
    this.asked = merged(this.asked, change.settings);
    const { frame, settings, advice, unknownWords } = heard(about);
    if (change.settings.width || change.settings.height) this.capture.setSize(settings);
    change.resolve({ frame, settings, advice, unknownWords });
    this.tell("applied", { frame, settings, advice, unknownWords });
    this.pump();
  }

  /** @param {import("./protocol.js").Picture} picture @param {number | null} page */
  pictured({ tile: _tile, ...picture }, page) {
    this.screen.show(picture.jpeg, page);
    this.tell("frame", picture);
    this.settle();
  }

  /** @param {import("./link.js").LinkState} link */
  linked({ state, attempt }) {
    if (state === "open") this.search.stop();
    if (state !== "waiting" || this.error) return;
    if (!this.search.isTimed) this.search.giveUpAfter(this.opening ? this.how.openTimeoutS : this.how.giveUpAfterS);
    this.search.sought({ where: "gateway", attempt });
  }

  // -- how

  async currentToken() {
    if (typeof this.token !== "function") return this.token;
    this.isTokenOld = this.keptToken !== null;
    if (this.isTokenOld) return this.keptToken;
    // The studio is not to blame for the time that this takes.
    const leftS = this.search.stop();
    try {
      this.keptToken = await this.token();
      return this.keptToken;
    } catch (error) {
      this.tokenError = error;
      throw error;
    } finally {
      if (!this.error) this.search.giveUpAfter(leftS);
    }
  }

  /** Whether the studio refused a token that was kept: with the next attempt it is told another. @param {string} reason */
  forgetsToken(reason) {
    const isOver = this.isTokenOld && !this.conversation.isWelcomed && isOfToken(reason);
    if (isOver) this.keptToken = null;
    return isOver;
  }

  /** Frames of the source wait while their size is being changed: each one after the change has to have it. */
  feedIfSized() {
    this.capture.isWanted = [...this.changes.values()].every(({ settings }) => !isOfSize(settings));
  }

  pump() {
    this.outgoing.pump();
    this.capture.pump();
  }

  settle() {
    this.pump();
    if (this.unansweredFrames > 0) return;
    for (const done of this.finishing) done();
    this.finishing.clear();
  }

  /** @param {Uint8Array | Blob | ImageBitmapSource} image */
  async encoded(image) {
    if (image instanceof Uint8Array) return image;
    if (image instanceof Blob) return new Uint8Array(await image.arrayBuffer());
    const bitmap = await createImageBitmap(image);
    try {
      await this.sizing;
      const blob = await this.capture.encoded(bitmap);
      return new Uint8Array(await blob.arrayBuffer());
    } finally {
      bitmap.close();
    }
  }

  /** @param {string} name @param {unknown} detail */
  tell(name, detail) {
    this.dispatchEvent(new CustomEvent(name, { detail }));
  }

  /** @param {RearviewError} error @param {boolean} [isOver] the wall ends, too */
  end(error, isOver = false) {
    if (this.error) return;
    this.error = error;
    this.search.stop();
    this.unfeed();
    this.capture.stop();
    this.conversation.close(isOver);
    this.outgoing.fail(error);
    this.screen.stop();
    for (const { reject } of this.changes.values()) reject(error);
    for (const done of this.finishing) done();
    this.opening?.reject(error);
    this.opening = null;
    this.tell("ended", { reason: error.reason, message: error.message });
  }
}

/** @param {Record<string, any>} settings */
function isOfSize(settings) {
  return "width" in settings || "height" in settings;
}
