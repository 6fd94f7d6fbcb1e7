import assert from "node:assert/strict";
import { test } from "node:test";
import { cutTo, fadeDone, layers, onlyTile, sharesAt } from "../../../services/rearview/studio/page/state/program.js";

const rounded = (shares) => Object.fromEntries(shares.map(({ tile, weight }) => [tile, Number(weight.toFixed(3))]));

test("a cut shows one tile at once", () => {
  const program = cutTo(onlyTile(0), { a: 3, b: null, mix: 0, fade_ms: 0 }, 100);
  assert.deepEqual(sharesAt(program, 100), [{ tile: 3, weight: 1 }]);
});

test("a fade goes in a straight line", () => {
  const program = cutTo(onlyTile(0), { a: 1, b: null, mix: 0, fade_ms: 1000 }, 0);
  assert.deepEqual(rounded(sharesAt(program, 250)), { 0: 0.75, 1: 0.25 });
  assert.deepEqual(rounded(sharesAt(program, 1000)), { 1: 1 });
  assert.equal(fadeDone(program, 400), 0.4);
});

test("a fade that is interrupted goes on from what is seen", () => {
  const first = cutTo(onlyTile(0), { a: 1, b: null, mix: 0, fade_ms: 1000 }, 0);
  const second = cutTo(first, { a: 2, b: null, mix: 0, fade_ms: 1000 }, 500);
  assert.deepEqual(rounded(sharesAt(second, 500)), { 0: 0.5, 1: 0.5 });
  assert.deepEqual(rounded(sharesAt(second, 1000)), { 0: 0.25, 1: 0.25, 2: 0.5 });
});

test("a viewer who comes late fades from where the gateway says", () => {
  const program = cutTo(onlyTile(7), { a: 1, b: null, mix: 0, fade_ms: 1000, start: { a: 0, b: 2, mix: 0.5 } }, 0);
  assert.deepEqual(rounded(sharesAt(program, 0)), { 0: 0.5, 2: 0.5, 1: 0 }.constructor === Object && { 0: 0.5, 2: 0.5 });
});

test("a mix by hand shows both", () => {
  assert.deepEqual(rounded(sharesAt(cutTo(onlyTile(0), { a: 0, b: 1, mix: 0.3 }, 0), 0)), { 0: 0.7, 1: 0.3 });
  assert.deepEqual(rounded(sharesAt(cutTo(onlyTile(0), { a: 0, b: 1, mix: 1 }, 0), 0)), { 1: 1 });
});

test("an empty program shows nothing", () => {
  assert.deepEqual(sharesAt(cutTo(onlyTile(0), { a: null, b: null, mix: 0, fade_ms: 0 }, 0), 1), []);
});

test("layers drawn over each other give the shares", () => {
  const drawn = layers([{ tile: 0, weight: 0.2 }, { tile: 1, weight: 0.3 }, { tile: 2, weight: 0.5 }]);
  const seen = { 0: 0, 1: 0, 2: 0 };
  for (const { tile, alpha } of drawn) {
    for (const other of Object.keys(seen)) seen[other] *= 1 - alpha;
    seen[tile] += alpha;
  }
  assert.deepEqual(Object.values(seen).map((share) => Number(share.toFixed(6))), [0.2, 0.3, 0.5]);
});
