// The binary messages between page and gateway (big-endian), and the names of the JSON ones. No I/O.

/** @typedef {{tile: number, frame: number, capturedMs: number, serverMs: number, serviceMs: number, jpeg: Uint8Array}} Picture */

export const MAX_TILES = 9;
export const FRAME_HEADER_BYTES = 16;
export const PICTURE_HEADER_BYTES = 24;
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
