import assert from "node:assert/strict";
import { test } from "node:test";
import { checkNames, copied, heard, merged, spoken } from "../src/names.js";

test("names and words go out as the protocol has them, what is undefined not at all", () => {
  const asked = { noiseRule: "fixed", featureBank: { promptChange: "fade", maxFrames: 2 }, method: "per-frame", seed: undefined };
  const said = { noise_rule: "fixed", feature_bank: { prompt_change: "fade", max_frames: 2 }, method: "per_frame" };
  assert.deepEqual(spoken(asked), said);
  assert.deepEqual(heard(said), { noiseRule: "fixed", featureBank: { promptChange: "fade", maxFrames: 2 }, method: "per-frame" });
});

test("what a user has written stays as it is, both ways", () => {
  const own = { prompt: "snow-white, in_oil", controls: [{ name: "soft_edge-2", weight: 0.5 }], adapters: "a_b-c" };
  assert.deepEqual(spoken(own), own);
  assert.deepEqual(heard(own), own);
});

test("bytes travel as base64, and come back as bytes", () => {
  const reference = Uint8Array.from([0, 255, 128, 10]);
  assert.deepEqual(spoken({ reference }), { reference: { base64: "AP+ACg==" } });
  assert.deepEqual(heard(spoken({ reference })), { reference });
});

test("a copy is the caller's no more, also of what a framework watches", () => {
  const watched = (value) => new Proxy(value, { get: (from, name) => (typeof from[name] === "object" ? watched(from[name]) : from[name]) });
  const prompts = [{ prompt: "a", weight: 1 }];
  assert.deepEqual(copied(watched({ prompts, seed: undefined, delta: 1 })), { prompts: [{ prompt: "a", weight: 1 }], delta: 1 });
  const given = { prompts, reference: Uint8Array.of(1, 2) };
  const copy = copied(given);
  prompts[0].prompt = "b";
  given.reference[0] = 9;
  assert.deepEqual(copy, { prompts: [{ prompt: "a", weight: 1 }], reference: Uint8Array.of(1, 2) });
});

test("of two settings that replace each other the later one stands", () => {
  const settings = { prompt: "a", seed: 1, adapters: "one" };
  assert.deepEqual(merged(settings, { prompts: [{ prompt: "b", weight: 1 }] }), {
    prompts: [{ prompt: "b", weight: 1 }], seed: 1, adapters: "one",
  });
  assert.deepEqual(merged({ adapterMix: [], seed: 1 }, { adapters: "two", seed: 2 }), { adapters: "two", seed: 2 });
  assert.deepEqual(settings, { prompt: "a", seed: 1, adapters: "one" });
});

test("a setting that is undefined keeps its value, as one that is absent", () => {
  assert.deepEqual(merged({ prompt: "a", seed: 1 }, { prompts: undefined, seed: undefined, strength: 0.5 }), {
    prompt: "a", seed: 1, strength: 0.5,
  });
});

test("reasons of drops are counted under the words that each drop has", () => {
  assert.deepEqual(heard({ p50_ms: 1, drops: { image_size_mismatch: 2 } }), { p50Ms: 1, drops: { image_size_mismatch: 2 } });
});

test("a name that the protocol does not know is refused, and said", () => {
  checkNames({ seed: 1 }, ["seed"], "setting");
  assert.throws(() => checkNames({ sede: 1 }, ["seed"], "setting"), new TypeError("there is no setting sede"));
});
