import assert from "node:assert/strict";
import { test } from "node:test";
import { cover, sessionSize } from "../src/size.js";

const POCKET = { width: 256, height: 256, multiple: 32 };

for (const source of [{ width: 1280, height: 720 }, { width: 720, height: 1280 }, { width: 640, height: 480 }, { width: 256, height: 256 }, { width: 3840, height: 800 }]) {
  test(`a source of ${source.width} x ${source.height} has a session in its shape that the model takes`, () => {
    const size = sessionSize(source, POCKET);
    assert.equal(size.width % 32, 0);
    assert.equal(size.height % 32, 0);
    assert.ok(size.width * size.height <= 256 * 256);
    assert.ok(size.width * size.height >= 256 * 256 * 0.6, JSON.stringify(size));
    const skew = Math.abs(Math.log(size.width / size.height / (source.width / source.height)));
    assert.ok(skew < 0.2 || source.width / source.height > 2.5, JSON.stringify(size));
  });
}

test("a square source has the model's own size", () => {
  assert.deepEqual(sessionSize({ width: 500, height: 500 }, { width: 512, height: 512, multiple: 64 }), { width: 512, height: 512 });
});

test("the middle of a source covers the session", () => {
  assert.deepEqual(cover({ width: 1280, height: 720 }, { width: 256, height: 256 }), { x: 280, y: 0, width: 720, height: 720 });
});
