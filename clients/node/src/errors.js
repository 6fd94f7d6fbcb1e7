// From a failed call to an error with a reason code, and whether its session may still be there.

import { fileURLToPath } from "node:url";
import grpc from "@grpc/grpc-js";
import protobuf from "protobufjs";

const DOMAIN = "rearview.v1";
const root = protobuf.loadSync(fileURLToPath(new URL("status.proto", import.meta.url)));
const [Status, ErrorInfo, RetryInfo] = ["Status", "ErrorInfo", "RetryInfo"].map((name) =>
  root.lookupType(`google.rpc.${name}`),
);
const KINDS = {
  UNAUTHENTICATED: "invalid", PERMISSION_DENIED: "invalid", INVALID_ARGUMENT: "invalid",
  FAILED_PRECONDITION: "invalid", RESOURCE_EXHAUSTED: "refused", UNAVAILABLE: "refused", NOT_FOUND: "not-found",
  DEADLINE_EXCEEDED: "ended", ABORTED: "ended", CANCELLED: "ended", INTERNAL: "fault",
};
const TRANSIENT_CODES = new Set(["UNAVAILABLE", "INTERNAL", "CANCELLED", "UNKNOWN"]);
const TRANSIENT_REASONS = new Set(["REPLICA_LOST", "DRAINING", "DIRECTORY_UNAVAILABLE", "INTERNAL"]);
const TOKEN_REASONS = new Set(["TOKEN_INVALID", "TOKEN_EXPIRED", "TOKEN_REVOKED"]);

export class RearviewError extends Error {
  /**
   * @param {string} reason a code of `ErrorReason` without its prefix, or UNREACHABLE
   * @param {string} kind `invalid`, `refused` (try again after `retryAfterS`), `not-found`, `ended`, `fault`
   */
  constructor(reason, message, { kind = "ended", retryAfterS, metadata = {}, cause } = {}) {
    super(message, { cause });
    this.name = "RearviewError";
    this.reason = reason;
    this.kind = kind;
    this.retryAfterS = retryAfterS;
    this.metadata = metadata;
  }

  get isOfToken() {
    return TOKEN_REASONS.has(this.reason);
  }
}

/** Nothing answered, or the connection was lost and not found again. */
export const unreachable = (message, more) => new RearviewError("UNREACHABLE", message, { kind: "refused", ...more });

/** Something that should not happen; also what somebody else's function threw, whatever that is. */
export const faultOf = (error) =>
  new RearviewError("INTERNAL", error instanceof Error ? error.message : String(error), { kind: "fault", cause: error });

/**
 * What a failed call means: the error, and whether resuming is worth a try.
 * @param {grpc.ServiceError} failure
 */
export function lossOf(failure, address) {
  const code = grpc.status[failure.code] ?? "UNKNOWN";
  const { info, retryAfterS } = details(failure);
  const text = failure.details || code;
  if (info?.domain === DOMAIN) {
    const reason = info.reason.replace(/^ERROR_REASON_/, "");
    const how = { kind: KINDS[code] ?? "fault", retryAfterS, metadata: { ...info.metadata }, cause: failure };
    const isTransient = TRANSIENT_CODES.has(code) && TRANSIENT_REASONS.has(reason);
    return { error: new RearviewError(reason, text, how), isTransient };
  }
  if (code === "UNIMPLEMENTED") {
    return { error: unreachable(`${address} does not speak rearview.v1`, { cause: failure }), isTransient: false };
  }
  if (TRANSIENT_CODES.has(code) || code === "DEADLINE_EXCEEDED") {
    const error = unreachable(`no connection to ${address}: ${text}`, { retryAfterS, cause: failure });
    return { error, isTransient: code !== "DEADLINE_EXCEEDED" };
  }
  const how = { kind: KINDS[code] ?? "fault", retryAfterS, cause: failure };
  return { error: new RearviewError("INTERNAL", `${code}: ${text}`, how), isTransient: false };
}

/** The loss of a connection on which nothing came in time. */
export const silent = (address) => ({ error: unreachable(`${address} does not answer`), isTransient: true });

/** Whether another process of the service is more likely to help than the one that was asked. */
export const isElsewhere = ({ error, isTransient }) =>
  isTransient && ["UNREACHABLE", "DRAINING", "REPLICA_LOST"].includes(error.reason);

/** Whether another attempt cannot help. `hasBegun`: the lost connection had said `opened`. */
export function isFinal({ error, isTransient }, { isOpen, hasBegun }) {
  const isOfAttempt = error.retryAfterS !== undefined || error.reason === "TAKEN_OVER";
  if (isOpen && !hasBegun && isOfAttempt) return false;
  return !isTransient || (!isOpen && error.kind === "fault");
}

/** The error of an open session that is not resumed after `error`. */
export function notResumed(error, unanswered) {
  const { reason, retryAfterS, metadata } = error;
  const kind = error.kind === "not-found" ? "not-found" : "ended";
  const text = `the session is lost, ${unanswered} frames are unanswered: ${error.message}`;
  return new RearviewError(reason, text, { kind, retryAfterS, metadata, cause: error });
}

/** What the service says beside the code. From elsewhere it may be anything: then there is nothing. */
function details(failure) {
  const [bytes] = failure.metadata?.get("grpc-status-details-bin") ?? [];
  if (!bytes) return {};
  try {
    return Object.assign({}, ...Status.decode(bytes).details.map(detail));
  } catch {
    return {};
  }
}

function detail({ typeUrl, value }) {
  if (typeUrl.endsWith("/google.rpc.ErrorInfo")) return { info: ErrorInfo.decode(value) };
  if (!typeUrl.endsWith("/google.rpc.RetryInfo")) return {};
  const { seconds = 0, nanos = 0 } = RetryInfo.decode(value).retryDelay ?? {};
  return { retryAfterS: Number(seconds) + nanos / 1e9 };
}
