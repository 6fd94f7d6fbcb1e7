import assert from "node:assert/strict";
import { test } from "node:test";
import { SETTLED_MS, Shape, refusedSize } from "../../../services/rearview/studio/page/state/shape.js";

const WIDE = { width: 640, height: 480 };
const TALL = { width: 480, height: 640 };

/** One whose shape was told. */
function known(size) {
  const shape = new Shape();
  shape.saw(size, 0);
  assert.deepEqual(shape.settled(SETTLED_MS), size);
  return shape;
}

test("a shape is told once, when it has stood for a while", () => {
  const shape = known(WIDE);
  assert.equal(shape.saw(WIDE, 1000), false);
  assert.equal(shape.settled(2000), null);
  assert.equal(shape.saw(TALL, 3000), true);
  assert.equal(shape.settled(3000 + SETTLED_MS - 1), null);
  assert.deepEqual(shape.settled(3000 + SETTLED_MS), TALL);
  assert.equal(shape.saw(TALL, 5000), false);
  assert.equal(shape.settled(9000), null);
});

test("a window that is dragged is told of when it rests, though it gives no more frames", () => {
  const shape = known(WIDE);
  for (let ms = 1000; ms < 3000; ms += 50) {
    assert.equal(shape.saw({ width: ms, height: 480 }, ms), true);
    assert.equal(shape.settled(ms), null);
  }
  assert.deepEqual(shape.settled(2950 + SETTLED_MS), { width: 2950, height: 480 });
});

test("a shape that comes back before it was told is no news", () => {
  const shape = known(WIDE);
  shape.saw(TALL, 1000);
  assert.equal(shape.saw(WIDE, 1100), false);
  assert.equal(shape.settled(5000), null);
});

test("another source is told of anew, and nothing without a frame", () => {
  const shape = known(WIDE);
  shape.restart();
  assert.equal(shape.settled(9000), null);
  assert.equal(shape.saw(WIDE, 9000), true);
  assert.deepEqual(shape.settled(9000 + SETTLED_MS), WIDE);
});

test("a size without room is tried in another session, any other refusal leaves the session at its size", () => {
  assert.deepEqual(refusedSize({ ...TALL, frame_rate: 30 }, TALL, "RESOLUTION_UNSUPPORTED", WIDE, TALL), { again: TALL });
  assert.deepEqual(refusedSize(TALL, TALL, "TENANT_RATE_EXHAUSTED", { ...WIDE, prompt: "a" }, TALL), { back: WIDE });
  assert.equal(refusedSize(TALL, TALL, "SESSION_UNKNOWN", null, TALL), null);
});

test("a refusal that comes late touches nothing", () => {
  assert.equal(refusedSize(WIDE, TALL, "RESOLUTION_UNSUPPORTED", WIDE, WIDE), null);
  assert.equal(refusedSize(WIDE, TALL, "TENANT_RATE_EXHAUSTED", WIDE, WIDE), null);
});

test("a session that is refused the way back is opened again for it", () => {
  assert.deepEqual(refusedSize(WIDE, WIDE, "TENANT_RATE_EXHAUSTED", TALL, TALL), { again: WIDE });
});
