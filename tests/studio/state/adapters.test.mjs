import assert from "node:assert/strict";
import { test } from "node:test";
import { changeOf, weightsOf } from "../../../services/rearview/studio/page/state/adapters.js";
import { askable, merge } from "../../../services/rearview/studio/page/state/tile.js";

test("a set by its name has weight 1", () => {
  assert.deepEqual(weightsOf({ adapters: "ink" }), { ink: 1 });
  assert.deepEqual(weightsOf({ adapters: "" }), {});
  assert.deepEqual(weightsOf({ adapters: "", adapter_mix: [{ adapters: "ink", weight: 0.5 }] }), { ink: 0.5 });
});

test("a weight that is turned leaves the others, and a set at 0 goes", () => {
  const one = changeOf({ adapters: "ink" }, "oil", 0.3);
  assert.deepEqual(one, { adapter_mix: [{ adapters: "ink", weight: 1 }, { adapters: "oil", weight: 0.3 }] });
  assert.deepEqual(changeOf(one, "ink", 0), { adapter_mix: [{ adapters: "oil", weight: 0.3 }] });
  assert.deepEqual(changeOf({ adapters: "ink" }, "ink", 0), { adapters: "" });
});

test("there are four at a time, and a merged set is alone", () => {
  const four = { adapter_mix: ["a", "b", "c", "d"].map((adapters) => ({ adapters, weight: 1 })) };
  assert.deepEqual(weightsOf(changeOf(four, "e", 0.5)), { b: 1, c: 1, d: 1, e: 0.5 });
  assert.deepEqual(weightsOf(changeOf(four, "b", 0.5)), { a: 1, c: 1, d: 1, b: 0.5 });
  assert.deepEqual(changeOf({ adapters: "wash" }, "ink", 1, ["wash"]), { adapter_mix: [{ adapters: "ink", weight: 1 }] });
});

test("a set and a mix replace each other, and only one of them is asked for again", () => {
  const mix = [{ adapters: "oil", weight: 0.3 }];
  const mixed = merge({ prompt: "a", adapters: "ink" }, { adapter_mix: mix });
  assert.deepEqual(mixed, { prompt: "a", adapter_mix: mix });
  assert.deepEqual(merge(mixed, { adapters: "" }), { prompt: "a", adapters: "" });
  assert.deepEqual(askable({ prompt: "a", adapters: "", adapter_mix: mix }), { prompt: "a", adapter_mix: mix });
  assert.deepEqual(askable({ prompt: "a", adapters: "ink", adapter_mix: [] }), { prompt: "a", adapters: "ink" });
});
