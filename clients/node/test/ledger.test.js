import assert from "node:assert/strict";
import { test } from "node:test";
import { Ledger, RESTORE_ID, input } from "../src/ledger.js";

const frame = (number) => input({ frame: number }, number, true);
const control = (number, seed = number) => input({ control: { controlId: number, settings: { seed } } }, number, false);

function filled(...items) {
  const ledger = new Ledger();
  ledger.frameCredit = 100;
  for (const item of items) ledger.submit(item);
  return ledger;
}

function takeAll(ledger) {
  const names = [];
  for (let item = ledger.take(); item; item = ledger.take()) names.push(`${item.isFrame ? "f" : "c"}${item.number}`);
  return names;
}

test("what the server has not received goes out again, and nothing else", () => {
  const ledger = filled(...[0, 1, 2, 3, 4].map(frame));
  takeAll(ledger);
  ledger.answered(0);
  ledger.resume(3, 100, {});
  assert.deepEqual(takeAll(ledger), ["f3", "f4"]);
  for (const index of [1, 2, 3, 4]) ledger.answered(index);
  assert.ok(ledger.isEmpty);
});

test("a control without an answer is sent again in its place, after the settings before it", () => {
  const ledger = filled(frame(0), control(1), frame(1), control(2), frame(2), control(3), frame(3));
  takeAll(ledger);
  ledger.resume(2, 100, {});
  assert.deepEqual(takeAll(ledger), [`c${RESTORE_ID}`, "c1", "c2", "f2", "c3", "f3"]);
});

test("frames lost from before an answered control are sent again under their settings", () => {
  const ledger = filled(frame(0), control(1), frame(1), control(2), frame(2));
  takeAll(ledger);
  assert.ok(ledger.controlAnswered(1, { seed: 1 }));
  assert.ok(ledger.controlAnswered(2, { seed: 2 }));
  ledger.answered(0);
  ledger.resume(1, 100, { seed: 2 });
  const restore = ledger.take();
  assert.deepEqual(restore.request.control, { controlId: RESTORE_ID, settings: { seed: 1 } });
  assert.deepEqual(takeAll(ledger), ["f1", "c2", "f2"]);
  assert.equal(ledger.controlAnswered(2, { seed: 2 }), undefined, "the user has it already");
});

test("a mix is restored without the blank prompt beside it", () => {
  const ledger = filled(control(1));
  ledger.settings = { prompt: "", prompts: [{ prompt: "a", weight: 2 }], adapters: "", adapterMix: [] };
  takeAll(ledger);
  ledger.resume(0, 100, ledger.settings);
  const { settings } = ledger.take().request.control;
  assert.deepEqual(settings, { prompts: [{ prompt: "a", weight: 2 }], adapters: "", adapterMix: [] });
});

test("settings that the server has lost are restored though no control is on its way", () => {
  const ledger = filled(frame(0));
  ledger.settings = { seed: 3 };
  takeAll(ledger);
  ledger.resume(1, 100, { seed: 0 });
  assert.deepEqual(takeAll(ledger), [`c${RESTORE_ID}`]);
  ledger.resume(1, 100, { seed: 3 });
  assert.deepEqual(takeAll(ledger), []);
});

test("frames wait for credit, also after a resume", () => {
  const ledger = filled(...[0, 1, 2, 3].map(frame));
  ledger.frameCredit = 2;
  assert.deepEqual(takeAll(ledger), ["f0", "f1"]);
  ledger.resume(1, 2, {});
  assert.deepEqual(takeAll(ledger), ["f1"]);
});

test("impossible numbers are refused", () => {
  const ledger = filled(frame(0), frame(1));
  takeAll(ledger);
  ledger.answered(0);
  assert.throws(() => ledger.resume(0, 9, {}), /has received 0 frames, the client has 1 answers/);
  assert.throws(() => ledger.resume(3, 9, {}), /has sent 2 frames/);
  assert.throws(() => ledger.answered(5), /expected 1/);
});
