// The binary messages between page and gateway (big-endian), and the names of the JSON ones. No I/O.
import { RearviewError } from "./errors.js";

/** @typedef {{tile: number, frame: number, capturedMs: number, serverMs: number, serviceMs: number, jpeg: Uint8Array}} Picture */

export const MAX_TILES = 9;
export const FRAME_HEADER_BYTES = 16;
export const PICTURE_HEADER_BYTES = 24;
/** Of the JPEG in a frame. */
export const MAX_FRAME_BYTES = 1 << 20;
export const MAX_TEXT_LENGTH = 64 << 10;
const FRAME = 1;
const PICTURE = 2;

/**
 * A frame for the gateway.
 * @param {number} frame its index, an unsigned 32-bit number
 * @param {number} capturedMs on the page's clock
 * @param {Uint8Array} jpeg
 * @returns {ArrayBuffer}
 */
export function packFrame(frame, capturedMs, jpeg) {
  if (!Number.isInteger(frame) || frame < 0 || frame > 0xffffffff) throw new RangeError(`no frame index: ${frame}`);
  const message = new ArrayBuffer(FRAME_HEADER_BYTES + jpeg.length);
  const view = new DataView(message);
  view.setUint8(0, FRAME);
  view.setUint32(4, frame);
  view.setFloat64(8, capturedMs);
  new Uint8Array(message, FRAME_HEADER_BYTES).set(jpeg);
  return message;
}

/**
 * What a gateway says of a message that is larger than it takes; null: it takes it. One of twice that size would close
 * the socket.
 * @param {string | ArrayBuffer} message
 * @returns {RearviewError | null}
 */
export function tooLarge(message) {
  const isText = typeof message === "string";
  if (isText ? message.length <= MAX_TEXT_LENGTH : message.byteLength - FRAME_HEADER_BYTES <= MAX_FRAME_BYTES) return null;
  const text = isText ? `a message of more than ${MAX_TEXT_LENGTH} characters` : `a frame of more than ${MAX_FRAME_BYTES} bytes`;
  return new RearviewError("MESSAGE_TOO_LARGE", text);
}

/**
 * A picture from the gateway; null if the message is none.
 * @param {ArrayBuffer} message
 * @returns {Picture | null}
 */
export function unpackPicture(message) {
  if (message.byteLength <= PICTURE_HEADER_BYTES) return null;
  const view = new DataView(message);
  const tile = view.getUint8(1);
  if (view.getUint8(0) !== PICTURE || tile >= MAX_TILES) return null;
  return {
    tile,
    frame: view.getUint32(4),
    capturedMs: view.getFloat64(8),
    serverMs: view.getFloat32(16),
    serviceMs: view.getFloat32(20),
    jpeg: new Uint8Array(message, PICTURE_HEADER_BYTES),
  };
}
