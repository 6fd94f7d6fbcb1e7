import assert from "node:assert/strict";
import { test } from "node:test";
import { heldBy, turned } from "../../../services/rearview/studio/page/state/controls.js";
import { eventWords } from "../../../services/rearview/studio/page/state/score.js";

const EDGES = { name: "edges", weight: 0.8 };

test("a control that is turned leaves the others, and goes at 0", () => {
  assert.deepEqual(heldBy(undefined), {});
  assert.deepEqual(turned(undefined, "edges", 0.8), [EDGES]);
  assert.deepEqual(turned([EDGES], "depth", 1), [EDGES, { name: "depth", weight: 1 }]);
  assert.deepEqual(turned([EDGES], "edges", 0), []);
});

test("a score says which controls and sets there are", () => {
  assert.equal(eventWords({ controls: [EDGES] }), "edges 0.80");
  assert.equal(eventWords({ controls: [] }), "no controls");
  assert.equal(eventWords({ adapter_mix: [{ adapters: "ink", weight: 0.5 }] }), "ink 0.50");
});
