// One call to one address: what it writes and reads, and how long it may be silent.

import grpc from "@grpc/grpc-js";
import { RearviewError, faultOf, lossOf, silent } from "./errors.js";
import { timerMs } from "./reconnect.js";
import { TranslationService } from "./wire.js";

/** Seconds of a clock that never goes back. */
export const now = () => performance.now() / 1000;

/** One call, until it ends. */
export class Connection {
  isHalfClosed = false;
  /** When the server said `opened`. */
  begunS;
  #address;
  #client;
  #call;
  #session;
  #opened;
  #isEnded = false;
  #resolve;
  #lose;
  #isFull = false;
  #writtenS = 0;
  #timers = new Map();

  constructor(address, credentials, options, metadata, session) {
    this.#address = address;
    this.#session = session;
    this.#client = new TranslationService(address, credentials, options);
    this.#call = this.#client.translate(metadata);
  }

  /** Run the call; resolves with its loss, undefined after an end that is none. */
  served(first, acceptS, answerS) {
    return new Promise((resolve) => {
      const call = this.#call;
      this.#resolve = resolve;
      const end = (loss) => {
        if (this.#isEnded) return;
        this.leave(loss);
        this.#session.wake();
      };
      this.#lose = () => end(silent(this.#address));
      const settle = (work) => {
        try {
          work();
        } catch (error) {
          this.#session.fail(error instanceof RearviewError ? error : faultOf(error));
          end(undefined);
        }
      };
      this.#timer("accept", acceptS, this.#lose);
      call.on("metadata", () => this.#timer("accept", answerS, this.#lose));
      call.on("data", (response) => {
        if (this.#isEnded) return;
        this.#clear("accept");
        settle(() => {
          if (this.begunS === undefined) {
            this.#opened = this.#session.begin(response);
            this.begunS = this.#writtenS = now();
          } else this.#session.take(response);
        });
        if (!this.#session.hasRoom()) call.pause();
        this.#listen();
        this.#session.wake();
      });
      call.on("end", () => {});
      call.on("error", (failure) => end(lossOf(failure, this.#address)));
      call.on("status", ({ code }) => {
        if (code !== grpc.status.OK || this.#isEnded) return;
        settle(() => this.#session.close());
        end(undefined);
      });
      call.on("drain", () => {
        this.#isFull = false;
        this.#session.wake();
      });
      this.#write(first);
    });
  }

  /** Write what there is to write, and read again if there is room. */
  step() {
    if (this.#isEnded || this.begunS === undefined) return;
    if (this.#session.hasRoom() && this.#call.isPaused()) {
      this.#call.resume();
      this.#listen();
    }
    while (!this.#isFull && !this.isHalfClosed) {
      const item = this.#session.nextItem();
      if (item) this.#write(item.request);
      else if (this.#session.isCreditDue()) this.#write(this.#session.credit());
      else if (this.#session.mayHalfClose()) {
        this.#write(this.#session.lastCredit());
        this.#call.end();
        this.isHalfClosed = true;
      } else break;
    }
    this.#beat();
  }

  /** Let go of the call, for whatever reason. */
  leave(loss) {
    if (this.#isEnded) return;
    this.#isEnded = true;
    for (const name of [...this.#timers.keys()]) this.#clear(name);
    this.#call.on("error", () => {});
    this.#call.cancel();
    this.#client.close();
    this.#resolve?.(loss);
  }

  /** Something is heard in time, or the connection is lost. Nothing is heard while nothing is read. */
  #listen() {
    this.#clear("silence");
    const { silenceS } = this.#opened ?? {};
    if (silenceS && !this.#isEnded && !this.#call.isPaused()) this.#timer("silence", silenceS, this.#lose);
  }

  /** The server would end a stream that is silent; where nothing is owed, silence is the user's own. */
  #beat() {
    const heartbeatS = this.#opened.idleTimeoutS ? Math.max(0.05, this.#opened.idleTimeoutS / 3) : 3;
    if (this.isHalfClosed || this.#session.isIdle()) return this.#clear("beat");
    const leftS = this.#writtenS + heartbeatS - now();
    return this.#timer("beat", Math.max(0, leftS), () => {
      if (!this.#isEnded && !this.isHalfClosed) this.#write(this.#session.credit());
      this.step();
    });
  }

  #write(message) {
    this.#writtenS = now();
    this.#isFull = !this.#call.write(message);
  }

  #timer(name, seconds, then) {
    this.#clear(name);
    this.#timers.set(name, setTimeout(then, timerMs(seconds)));
  }

  #clear(name) {
    clearTimeout(this.#timers.get(name));
    this.#timers.delete(name);
  }
}
