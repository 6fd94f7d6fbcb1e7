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

const OF_TOKEN = ["TOKEN_INVALID", "TOKEN_EXPIRED", "TOKEN_REVOKED"];
const FINAL = new Set([...OF_TOKEN, "TAKEN_OVER"]);

/** Whether another token may be taken. @param {string} reason */
export function isOfToken(reason) {
  return OF_TOKEN.includes(reason);
}

/** Whether coming again with the same token is in vain. @param {string} reason */
export function isFinal(reason) {
  return FINAL.has(reason);
}
