import assert from "node:assert/strict";
import { test } from "node:test";
import { cover, sessionSize } from "../../../clients/web/src/size.js";
import { columns, contain, places } from "../../../services/rearview/studio/page/state/layout.js";

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

test("a picture is shown whole, in the middle", () => {
  assert.deepEqual(contain({ width: 100, height: 100 }, { width: 400, height: 200 }), { x: 100, y: 0, width: 200, height: 200 });
});

test("split, input and output lie on each other; in the picture there is no input", () => {
  const box = { width: 800, height: 600 };
  const split = places("split", { width: 4, height: 3 }, box);
  assert.deepEqual(split.input, split.output);
  assert.equal(places("picture", { width: 4, height: 3 }, box).input, null);
});

test("side by side turns on its side where the box is tall", () => {
  const wide = places("side", { width: 100, height: 100 }, { width: 800, height: 400 });
  assert.equal(wide.input.y, wide.output.y);
  assert.ok(wide.output.x >= wide.input.x + wide.input.width);
  const tall = places("side", { width: 100, height: 100 }, { width: 360, height: 700 });
  assert.equal(tall.input.x, tall.output.x);
  assert.ok(tall.output.y >= tall.input.y + tall.input.height);
});

test("a wall is as square as can be", () => {
  assert.deepEqual([1, 2, 4, 5, 9].map(columns), [1, 2, 2, 3, 3]);
});
