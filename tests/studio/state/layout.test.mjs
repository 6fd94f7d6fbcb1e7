import assert from "node:assert/strict";
import { test } from "node:test";
import { columns, contain, places } from "../../../services/rearview/studio/page/state/layout.js";

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
