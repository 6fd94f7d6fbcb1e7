// What a session was refused for, or ended with.

export class RearviewError extends Error {
  /**
   * @param {string} reason a code of `ErrorReason` without its prefix, or UNREACHABLE
   * @param {string} message
   * @param {{retryAfterS?: number, cause?: unknown}} [more]
   */
  constructor(reason, message, { retryAfterS, cause } = {}) {
    super(message, { cause });
    this.name = "RearviewError";
    this.reason = reason;
    this.retryAfterS = retryAfterS;
  }
}

const FINAL = new Set(["TOKEN_INVALID", "TOKEN_EXPIRED", "TOKEN_REVOKED", "TAKEN_OVER"]);

/** Whether coming again with the same token is in vain. @param {string} reason */
export function isFinal(reason) {
  return FINAL.has(reason);
}
