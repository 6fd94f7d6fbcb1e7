import assert from "node:assert/strict";
import { test } from "node:test";
import { FRAME_HEADER_BYTES, PICTURE_HEADER_BYTES, packFrame, unpackPicture } from "../src/protocol.js";

/** A picture as the gateway writes it. */
function picture({ kind = 2, tile = 3, frame = 70_000, capturedMs = 12.5, serverMs = 30.25, serviceMs = 20.5, jpeg = [1, 2, 3] }) {
  const bytes = new ArrayBuffer(PICTURE_HEADER_BYTES + jpeg.length);
  const view = new DataView(bytes);
  view.setUint8(0, kind);
  view.setUint8(1, tile);
  view.setUint32(4, frame);
  view.setFloat64(8, capturedMs);
  view.setFloat32(16, serverMs);
  view.setFloat32(20, serviceMs);
  new Uint8Array(bytes, PICTURE_HEADER_BYTES).set(jpeg);
  return bytes;
}

test("a frame has its kind, index and time in front, big-endian", () => {
  const bytes = Buffer.from(packFrame(258, 1.5, new Uint8Array([9, 8])));
  assert.equal(bytes.toString("hex"), "0100000000000102" + "3ff8000000000000" + "0908");
  assert.equal(bytes.length, FRAME_HEADER_BYTES + 2);
});

test("a frame index is an unsigned 32-bit number", () => {
  for (const index of [-1, 0.5, 2 ** 32, NaN]) assert.throws(() => packFrame(index, 0, new Uint8Array(1)), RangeError);
  packFrame(2 ** 32 - 1, 0, new Uint8Array(1));
});

test("a picture is read with all that stands in front of it", () => {
  const read = unpackPicture(picture({}));
  assert.deepEqual({ ...read, jpeg: [...read.jpeg] }, { tile: 3, frame: 70_000, capturedMs: 12.5, serverMs: 30.25, serviceMs: 20.5, jpeg: [1, 2, 3] });
});

test("what is no picture is none", () => {
  for (const bytes of [new ArrayBuffer(0), new ArrayBuffer(24), picture({ kind: 1 }), picture({ tile: 9 }), picture({ jpeg: [] })]) {
    assert.equal(unpackPicture(bytes), null);
  }
});
