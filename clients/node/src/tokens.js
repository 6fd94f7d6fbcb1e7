// The bearer token of a session: one for ever, or what a function says when it is asked.

import grpc from "@grpc/grpc-js";
import { timerMs } from "./reconnect.js";

export class Tokens {
  #token;
  /** What was shown last. */
  #shown = new grpc.Metadata();

  /** @param {string | (() => string | Promise<string>) | undefined} token */
  constructor(token) {
    this.#token = token;
  }

  /** For the next call. Rejects with whatever the function throws. */
  async metadata() {
    const token = typeof this.#token === "function" ? await this.#token() : this.#token;
    const metadata = new grpc.Metadata();
    if (token) metadata.set("authorization", `Bearer ${token}`);
    this.#shown = metadata;
    return metadata;
  }

  /** The same, or what was shown last where the function throws or takes longer. */
  async metadataWithin(seconds) {
    let timer;
    const late = new Promise((resolve) => (timer = setTimeout(resolve, timerMs(seconds))));
    const metadata = await Promise.race([this.metadata().catch(() => {}), late]);
    clearTimeout(timer);
    return metadata ?? this.#shown;
  }

  /** The loss of a connection that showed `shown`: with another token the session may go on. */
  async judge(loss, shown) {
    if (!loss?.error.isOfToken || typeof this.#token !== "function") return loss;
    const isNew = (await this.metadata()).get("authorization")[0] !== shown.get("authorization")[0];
    return { ...loss, isTransient: loss.isTransient || isNew };
  }
}
