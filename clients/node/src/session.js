// One session: opened once, kept over lost connections, each frame answered once and in order.

import grpc from "@grpc/grpc-js";
import { addressesOf } from "./addresses.js";
import { Connection, now } from "./connection.js";
import { RearviewError, faultOf, isElsewhere, isFinal, notResumed } from "./errors.js";
import { Inbox } from "./inbox.js";
import { Ledger, RESTORE_ID, input } from "./ledger.js";
import { Attempts, policyOf, timerMs } from "./reconnect.js";
import { Tokens } from "./tokens.js";
import { SessionService, answerFrom, appliedFrom, frameOf, openOf, openedFrom, settingsOf } from "./wire.js";

const CHANNEL = {
  "grpc.max_receive_message_length": 8 << 20,
  "grpc.use_local_subchannel_pool": 1,
  "grpc.enable_http_proxy": 0,
};

/**
 * Open a session. Rejects with a RearviewError where it is refused, invalid or not reached.
 * @param {string | string[]} address host:port, several with commas between them
 */
export async function connect(address, options = {}) {
  const session = new Session(address, options);
  await session.begin();
  return session;
}

export class Session {
  #addresses;
  #at = 0;
  #open;
  #tokens;
  #credentials;
  #channelOptions;
  #policy;
  #ledger = new Ledger();
  #inbox;
  #attempts;
  #opened;
  #lastIndex = -1;
  #controlId = 0;
  #connections = 0;
  #isFinishing = false;
  #isOver = false;
  #isKept = false;
  #error;
  /** @type {Connection | undefined} */ #connection;
  #wakeups = new Set();
  #running;

  constructor(address, { token, tls, reconnect = {}, answerWindow = 32, ...options }) {
    this.#addresses = addressesOf(address);
    this.#open = openOf(options); // Throws for what is not known, before anything is dialled.
    this.#tokens = new Tokens(token);
    this.#credentials = credentialsOf(tls);
    this.#channelOptions = tls?.serverName ? { ...CHANNEL, "grpc.ssl_target_name_override": tls.serverName } : CHANNEL;
    this.#policy = policyOf(reconnect);
    this.#inbox = new Inbox(answerWindow);
    this.#attempts = new Attempts(this.#policy);
  }

  /** The session as the server last described it. */
  get opened() {
    return this.#opened;
  }

  /** How many connections were opened for it; 1 if none was lost. */
  get connections() {
    return this.#connections;
  }

  /** Frames that were given to `send` and of which no answer has come. */
  get unansweredFrames() {
    return this.#ledger.unansweredFrames;
  }

  async begin() {
    this.#running = this.#run();
    await this.#until(() => this.#isOver || this.#opened !== undefined);
    if (this.#error) throw this.#error;
  }

  /**
   * Send a frame; resolves with its index once it has gone out, which waits for credit.
   * @param {Uint8Array} image of the session's size, in `format`: `jpeg`, `rgb` or `opaque`
   */
  async send(image, { index = this.#lastIndex + 1, ...how } = {}) {
    this.#check();
    if (!Number.isSafeInteger(index) || index < 0) throw new RangeError(`no frame index: ${index}`);
    if (index <= this.#lastIndex) throw new RangeError(`frame index ${index} is not greater than ${this.#lastIndex}`);
    const item = input({ frame: frameOf(image, { index, ...how }) }, index, true);
    this.#lastIndex = index;
    return this.#sent(item);
  }

  /** Change settings from the next frame on; resolves with the id that its answer carries. */
  async control(changes) {
    this.#check();
    const settings = settingsOf(changes);
    this.#controlId += 1;
    return this.#sent(input({ control: { controlId: this.#controlId, settings } }, this.#controlId, false));
  }

  /** Nothing more will be sent. The iteration goes on to the last answer, then ends. */
  async finish() {
    this.#check();
    this.#isFinishing = true;
    this.#wake();
    await this.#until(() => this.#isOver || this.#connection?.isHalfClosed);
    if (this.#error) throw this.#error;
  }

  /** End at once. A session that the server would keep for its grace time is closed there, too. */
  async close() {
    const isKept = this.#opened !== undefined && (!this.#isOver || this.#isKept);
    this.#end(new RearviewError("CLOSED", "the session was left"));
    await this.#running;
    if (isKept) await this.#closeThere();
  }

  async *[Symbol.asyncIterator]() {
    while (true) {
      const answer = await this.#next();
      if (answer === undefined) return;
      yield answer;
    }
  }

  /** The next answer; undefined after the last one. Rejects with what has ended the session. */
  async #next() {
    await this.#until(() => this.#inbox.length > 0 || this.#isOver);
    const answer = this.#inbox.take();
    if (answer === undefined && this.#error) throw this.#error;
    this.#wake();
    return answer;
  }

  // -- what happens

  #wake() {
    this.#connection?.step();
    for (const wakeup of [...this.#wakeups]) wakeup();
  }

  #until(condition) {
    return new Promise((resolve) => {
      const look = () => {
        if (!condition()) return;
        this.#wakeups.delete(look);
        resolve();
      };
      this.#wakeups.add(look);
      look();
    });
  }

  #check() {
    if (this.#error) throw this.#error;
    if (this.#isOver || this.#isFinishing) {
      throw new RearviewError("CLOSED", "the session is finished: open another one");
    }
  }

  async #sent(item) {
    this.#ledger.submit(item);
    this.#wake();
    await this.#until(() => item.isTaken || this.#isOver);
    if (!item.isTaken) throw this.#error ?? new RearviewError("CLOSED", "the session was left");
    return item.number;
  }

  #end(error, { isKept = false } = {}) {
    if (this.#isOver) return;
    this.#isOver = true;
    this.#isKept = isKept;
    this.#error = error;
    this.#connection?.leave();
    this.#wake();
  }

  /** Connect as long as the session is not over. */
  async #run() {
    while (!this.#isOver) {
      let loss;
      const address = this.#addresses[this.#at];
      try {
        const metadata = await this.#unlessOver(this.#tokens.metadata());
        if (this.#isOver) return;
        this.#connection = new Connection(address, this.#credentials, this.#channelOptions, metadata, this.#parts());
        loss = await this.#connection.served(this.#first(), this.#attempts.acceptS, this.#policy.openTimeoutS);
        loss = await this.#unlessOver(this.#tokens.judge(loss, metadata));
      } catch (error) {
        this.#end(error instanceof RearviewError ? error : faultOf(error), { isKept: true });
        return;
      }
      if (loss) await this.#lost(loss);
    }
  }

  #first() {
    const receivedAnswers = this.#ledger.receivedAnswers;
    const answerCredit = this.#inbox.tellCredit(receivedAnswers);
    if (!this.#opened) return { open: { ...this.#open, answerCredit } };
    const { sessionId, resumeToken } = this.#opened;
    const unansweredFrameIndices = this.#ledger.sentIndices;
    return { resume: { sessionId, resumeToken, receivedAnswers, answerCredit, unansweredFrameIndices } };
  }

  async #lost(loss) {
    const connection = this.#connection;
    const hasBegun = connection.begunS !== undefined;
    const isOpen = this.#opened !== undefined;
    if (isElsewhere(loss)) this.#at = (this.#at + 1) % this.#addresses.length;
    const givenUp = isOpen ? notResumed(loss.error, this.unansweredFrames) : loss.error;
    if (isOpen && loss.error.kind === "not-found") {
      const isDone = connection.isHalfClosed && this.#ledger.isEmpty; // Only the final OK was lost.
      this.#end(isDone ? undefined : givenUp);
      return;
    }
    if (isFinal(loss, { isOpen, hasBegun })) {
      this.#end(loss.error);
      return;
    }
    this.#attempts.stood(hasBegun ? now() - connection.begunS : 0);
    const limitS = isOpen ? (this.#policy.giveUpAfterS ?? this.#opened.resumeGraceS) : this.#policy.openTimeoutS;
    const waitS = this.#attempts.waitS(now(), limitS, loss.error.retryAfterS);
    if (waitS === undefined) {
      this.#end(givenUp, { isKept: isOpen });
      return;
    }
    let isDue = false; // The clock would not do: timers run up to 2 ms early.
    const timer = setTimeout(() => {
      isDue = true;
      this.#wake();
    }, timerMs(waitS));
    await this.#until(() => this.#isOver || isDue);
    clearTimeout(timer);
  }

  /** What a connection asks of its session. */
  #parts() {
    return {
      begin: (response) => this.#begun(response),
      take: (response) => this.#taken(response),
      close: () => this.#closed(),
      fail: (error) => this.#end(error, { isKept: true }),
      nextItem: () => this.#ledger.take(),
      isCreditDue: () => this.#inbox.isCreditDue(this.#ledger.receivedAnswers),
      credit: () => {
        const receivedAnswers = this.#ledger.receivedAnswers;
        return { credit: { answerCredit: this.#inbox.tellCredit(receivedAnswers), receivedAnswers } };
      },
      lastCredit: () => {
        const { sentFrames, receivedAnswers } = this.#ledger;
        return { credit: { answerCredit: sentFrames, receivedAnswers } };
      },
      mayHalfClose: () => this.#isFinishing && !this.#ledger.hasOutgoing,
      isIdle: () => this.#ledger.isEmpty && this.#inbox.length === 0,
      hasRoom: () => this.#inbox.hasRoom,
      wake: () => this.#wake(),
    };
  }

  #begun(response) {
    if (response.message !== "opened") throw new Error("the server did not begin with `opened`");
    const opened = openedFrom(response.opened);
    const frameCredit = response.frameCredit ?? 0;
    if (!this.#opened) {
      this.#ledger.frameCredit = frameCredit;
      this.#ledger.settings = bare(response.opened.settings);
    } else {
      this.#ledger.resume(response.opened.receivedFrames ?? 0, frameCredit, bare(response.opened.settings));
      this.#inbox.put({ kind: "notice", notice: "resumed", graceS: 0, continuity: opened.continuity, gapFrames: 0 });
      opened.resumeToken ||= this.#opened.resumeToken;
    }
    this.#opened = opened;
    this.#connections += 1;
    return opened;
  }

  #taken(response) {
    this.#ledger.frameCredit = Math.max(this.#ledger.frameCredit, response.frameCredit ?? 0);
    const { message } = response;
    let answer;
    if (message === "frame" || message === "dropped") {
      this.#ledger.answered(response[message].frameIndex ?? 0);
      this.#attempts.renew();
      answer = answerFrom(response, this.#opened);
    } else if (message === "controlApplied") {
      answer = this.#applied(response.controlApplied);
    } else {
      answer = answerFrom(response, this.#opened);
    }
    if (answer) this.#inbox.put(answer);
  }

  #applied(message) {
    const told = appliedFrom(message, 0);
    if (told.controlId === RESTORE_ID && told.rejectedReason) {
      const text = `after a reconnection the session's former settings were refused: ${told.advice}`;
      throw new RearviewError(told.rejectedReason, text);
    }
    const item = this.#ledger.controlAnswered(told.controlId, bare(message.settings));
    return item && { ...told, receivedFrames: item.framesBefore };
  }

  #closed() {
    if (!this.#ledger.isEmpty) throw new Error(`ended with ${this.unansweredFrames} frames unanswered`);
    this.#end(this.#isFinishing ? undefined : new RearviewError("CLOSED", "the server has ended the stream"));
  }

  /** What a caller's function comes to. Undefined if the session is over before: it may take for ever. */
  async #unlessOver(asked) {
    let found;
    const settled = (how) => (found = how) && this.#wake();
    asked.then((value) => settled({ value }), (error) => settled({ error }));
    await this.#until(() => found || this.#isOver);
    if (found && "error" in found) throw found.error;
    return found?.value;
  }

  async #closeThere() {
    const client = new SessionService(this.#addresses[this.#at], this.#credentials, this.#channelOptions);
    const { acceptTimeoutS } = this.#policy;
    const metadata = await this.#tokens.metadataWithin(acceptTimeoutS);
    const deadline = Date.now() + timerMs(acceptTimeoutS);
    await new Promise((resolve) => {
      client.closeSession({ sessionId: this.#opened.sessionId }, metadata, { deadline }, resolve);
    });
    client.close();
  }
}

/** A message without the names of its optional fields' presence. */
const bare = (message = {}) => Object.fromEntries(Object.entries(message ?? {}).filter(([name]) => !name.startsWith("_")));

function credentialsOf(tls) {
  if (!tls) return grpc.credentials.createInsecure();
  const [ca, key, cert] = ["ca", "key", "cert"].map((name) => (tls[name] ? Buffer.from(tls[name]) : null));
  return grpc.credentials.createSsl(ca, key, cert);
}
