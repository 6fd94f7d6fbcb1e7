import assert from "node:assert/strict";
import { test } from "node:test";
import { forgotten, heard, isTurnable, keyOf, keyWord, learned, placeOf, presetTarget, presses, readMapping, targetWord } from "../../../services/rearview/studio/page/state/midi.js";

const MODEL = { adapters: ["ink"], controls: ["edges"], dials: { strength: { low: 0, high: 1, step: 0.1 }, adapter: {}, control: {}, share: {} } };

test("knobs, keys, pedals and wheels have a key and a place from 0 to 1", () => {
  assert.deepEqual(heard([0xb0, 74, 127]), { key: "cc 1/74", share: 1 });
  assert.deepEqual(heard(Uint8Array.of(0xbf, 1, 0)), { key: "cc 16/1", share: 0 });
  assert.deepEqual(heard([0x99, 36, 127]), { key: "note 10/36", share: 1 });
  assert.deepEqual(heard([0xc0, 4]), { key: "program 1/5", share: 1 });
  assert.deepEqual(heard([0xe0, 0x7f, 0x7f]), { key: "bend 1", share: 1 });
  assert.deepEqual(heard([0xe1, 0, 0]), { key: "bend 2", share: 0 });
});

for (const data of [[0x80, 36, 64], [0x90, 36, 0], [0xb0, 123, 0], [0xf8], [0xfe], [0xd0, 3], []]) {
  test(`nothing turns at [${data}]`, () => assert.equal(heard(data), null));
}

test("a key turns one thing, and a thing is turned by one key", () => {
  let mapping = learned({}, "cc 1/1", "strength");
  mapping = learned(mapping, "cc 1/2", "adapter/ink");
  mapping = learned(mapping, "cc 1/1", "seed");
  assert.deepEqual(mapping, { "cc 1/2": "adapter/ink", "cc 1/1": "seed" });
  mapping = learned(mapping, "cc 1/3", "seed");
  assert.deepEqual(mapping, { "cc 1/2": "adapter/ink", "cc 1/3": "seed" });
  assert.equal(keyOf(mapping, "seed"), "cc 1/3");
  assert.equal(keyOf(mapping, "strength"), null);
  assert.deepEqual(forgotten(mapping, "cc 1/3"), { "cc 1/2": "adapter/ink" });
});

test("a preset is a target like any other", () => {
  assert.equal(placeOf(presetTarget(2)), 2);
  assert.equal(placeOf("strength"), null);
  assert.equal(placeOf("preset 10"), null);
});

test("a knob presses a preset once on its way up", () => {
  const knob = (share) => ({ key: "cc 1/1", share });
  assert.equal(presses(knob(0.4), 0.1), false);
  assert.equal(presses(knob(0.6), 0.4), true);
  assert.equal(presses(knob(0.9), 0.6), false);
  assert.equal(presses(knob(1), undefined), true);
  assert.equal(presses({ key: "note 1/36", share: 0.2 }, 0.9), true);
});

test("what a model lacks is not turned", () => {
  for (const name of ["strength", "noise_rule", "guidance", "adapter/ink", "control/edges", "share/2"]) assert.equal(isTurnable(name, MODEL), true, name);
  for (const name of ["adapter/gold", "control/depth", "colour"]) assert.equal(isTurnable(name, MODEL), false, name);
});

test("a mapping that was kept is read again, and anything else is an empty one", () => {
  const mapping = { "cc 1/1": "strength", "note 1/36": "preset 3" };
  assert.deepEqual(readMapping(JSON.stringify(mapping)), mapping);
  for (const text of [null, "", "{", "[]", "null", '{"cc 1/1": 3}']) assert.deepEqual(readMapping(text), {});
});

test("keys and targets are said in words", () => {
  assert.equal(keyWord("cc 1/74"), "CC 74");
  assert.equal(keyWord("note 10/36"), "Note 36, channel 10");
  assert.equal(keyWord("bend 1"), "Pitch bend");
  assert.equal(targetWord("adapter/ink"), "adapter ink");
  assert.equal(targetWord("guidance_scale"), "guidance scale");
});
