import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import { fitted, keptPresets, loading, nameFor, noPresets, presetOf, presetsText, readPresets, withPreset } from "../../../services/rearview/studio/page/state/presets.js";
import { newTile, tileAfter } from "../../../services/rearview/studio/page/state/tile.js";

const OPTIONS = { width: 256, height: 256, frame_rate: 30, drop_policy: "latest", method: "streamv2v", max_steps: 4, settings: { prompt: "oil painting", strength: 0.4 } };
const IN_FORCE = { prompt: "oil painting", prompts: [], strength: 0.4, steps: 2, seed: 0, adapters: "", adapter_mix: [], width: 256, height: 256 };
const MODEL = { name: "pocket", adapters: ["ink"], controls: ["edges"], methods: ["per_frame", "streamv2v"], default_method: "streamv2v", max_steps: 4, takes_reference: true };

const tileWith = (settings = {}, options = {}) =>
  tileAfter(newTile({ ...OPTIONS, ...options }), { type: "opened", tile: 0, frame: 0, settings: { ...IN_FORCE, ...settings }, method: options.method ?? OPTIONS.method }, 0);

test("a tile that has changed since is brought back by what differs, and by nothing else", () => {
  const preset = presetOf(tileWith(), "pocket", "oil");
  assert.equal("width" in preset.settings, false);
  const later = tileWith({ prompt: "", prompts: [{ prompt: "neon", weight: 1 }], seed: 7 });
  assert.deepEqual(loading(preset, later), { change: { prompt: "oil painting", seed: 0 }, anew: null });
  assert.deepEqual(loading(preset, tileWith()), { change: null, anew: null });
});

test("a place keeps the name that it was given, and else has the look's", () => {
  const before = presetOf(tileWith(), "pocket", "oil painting");
  const neon = tileWith({ prompt: "neon lights" });
  assert.equal(nameFor(neon, null), "neon lights");
  assert.equal(nameFor(neon, before), "neon lights");
  assert.equal(nameFor(neon, { ...before, name: "Opening" }), "Opening");
});

test("a mix and its weights come back whole", () => {
  const mixed = { prompt: "", prompts: [{ prompt: "a", weight: 1 }, { prompt: "b", weight: 2 }], adapters: "", adapter_mix: [{ adapters: "ink", weight: 0.5 }] };
  const { change } = loading(presetOf(tileWith(mixed), "pocket", "two"), tileWith());
  assert.deepEqual(change, { prompts: mixed.prompts, adapter_mix: mixed.adapter_mix });
});

test("a look without adapters takes them from a tile that has some", () => {
  const later = tileWith({ adapter_mix: [{ adapters: "ink", weight: 1 }] });
  assert.deepEqual(loading(presetOf(tileWith(), "pocket", "plain"), later).change, { adapters: "" });
});

test("frames that are to be related otherwise ask for a session anew, with the look", () => {
  const bank = { policy: "queue", max_frames: 2 };
  const preset = presetOf(tileWith({}, { feature_bank: bank }), "pocket", "queue");
  const { change, anew } = loading(preset, tileWith({ seed: 3 }, { method: "per_frame", similarity_filter: {} }));
  assert.equal(change, null);
  assert.deepEqual(anew, { method: "streamv2v", feature_bank: bank, temporal_cache: undefined, similarity_filter: undefined, settings: preset.settings });
});

test("what a preset leaves out stays as it is, also in a session anew", () => {
  const preset = { name: "one", model: "", settings: { prompts: [{ prompt: "neon", weight: 1 }] }, motion: { method: "per_frame" } };
  const { anew } = loading(preset, tileWith({ seed: 5 }));
  assert.deepEqual([anew.settings.seed, anew.settings.prompts, anew.settings.prompt], [5, preset.settings.prompts, undefined]);
  assert.deepEqual(loading({ ...preset, motion: { method: "streamv2v" } }, tileWith({ seed: 5 })).change, preset.settings);
});

test("the file in the docs is read", () => {
  const text = readFileSync(new URL("../../../docs/stage.md", import.meta.url), "utf8");
  const [opening] = readPresets(/```json\n([^]*?)```/.exec(text)[1]);
  assert.equal(opening.name, "Opening");
  assert.deepEqual(loading(opening, tileWith()).change, { prompt: "neon lights", strength: 0.5 });
});

test("a bank that was named in another order is the same bank", () => {
  const preset = presetOf(tileWith({}, { feature_bank: { interval: 2, policy: "merge" } }), "pocket", "bank");
  assert.equal(loading(preset, tileWith({}, { feature_bank: { policy: "merge", interval: 2 } })).anew, null);
});

test("a preset of this model fits it as it is", () => {
  const preset = presetOf(tileWith({ adapters: "ink", controls: [{ name: "edges", weight: 1 }] }), "pocket", "ink");
  assert.deepEqual(fitted(preset, MODEL, []), { preset, misfits: [] });
});

test("what another model lacks is left out, and each of it is said", () => {
  const settings = { prompt: "oil mosaic", adapter_mix: [{ adapters: "ink", weight: 1 }, { adapters: "gold", weight: 1 }], controls: [{ name: "depth", weight: 1 }], steps: 8, reference: { base64: "aa" }, reference_scale: 1 };
  const preset = { name: "gold", model: "sdxl", settings, motion: { method: "live2diff", temporal_cache: {}, similarity_filter: {} } };
  const found = fitted(preset, { ...MODEL, takes_reference: false }, ["oil"]);
  assert.deepEqual(found.preset.settings, { prompt: "oil mosaic", adapter_mix: [{ adapters: "ink", weight: 1 }], controls: [], steps: 4 });
  assert.deepEqual(found.preset.motion, { method: "streamv2v", similarity_filter: {} });
  assert.deepEqual(found.misfits.length, 6);
  for (const word of ["gold", "depth", "8 steps", "reference", "live2diff", "mosaic"]) assert.match(found.misfits.join("; "), new RegExp(word));
  assert.equal(preset.settings.steps, 8, "what is kept stays as it was saved");
});

test("adapters of which none is there leave the tile without any", () => {
  const preset = presetOf(tileWith({ adapter_mix: [{ adapters: "gold", weight: 1 }] }), "other", "gold");
  assert.equal(fitted(preset, MODEL, []).preset.settings.adapters, "");
});

test("what is saved is read again, each in its place", () => {
  const presets = withPreset(withPreset(noPresets(), 0, presetOf(tileWith(), "pocket", "oil")), 8, presetOf(tileWith({ seed: 9 }), "pocket", "nine"));
  assert.deepEqual(readPresets(presetsText(presets)), presets);
});

const GOOD = { place: 1, name: "a", model: "pocket", settings: {}, motion: { method: "per_frame" } };

for (const [what, change] of [
  ["format", { format: "other" }],
  ["version", { version: 2 }],
  ["no presets", { presets: null }],
  ["preset 1 has no place", { presets: [{ ...GOOD, place: 10 }] }],
  ["preset 2 has the place", { presets: [GOOD, GOOD] }],
  ["preset 1 has no name", { presets: [{ ...GOOD, name: " " }] }],
  ["preset 1 has no settings", { presets: [{ ...GOOD, settings: [] }] }],
  ["preset 1 does not say", { presets: [{ ...GOOD, motion: {} }] }],
  ["settings has no place for .strenght.", { presets: [{ ...GOOD, settings: { strenght: 0.5 } }] }],
  ["settings has no place for .width.", { presets: [{ ...GOOD, settings: { width: 512 } }] }],
  ["strength is no number", { presets: [{ ...GOOD, settings: { strength: "0.5" } }] }],
  ["steps is no whole number", { presets: [{ ...GOOD, settings: { steps: 1.5 } }] }],
  ["prompt is no text", { presets: [{ ...GOOD, settings: { prompt: null } }] }],
  ["guidance is none of none, self", { presets: [{ ...GOOD, settings: { guidance: "much" } }] }],
  ["controls is no list", { presets: [{ ...GOOD, settings: { controls: "edges" } }] }],
  ["controls 2 is no object", { presets: [{ ...GOOD, settings: { controls: [{ name: "edges" }, "depth"] } }] }],
  ["prompts 1 has no weight", { presets: [{ ...GOOD, settings: { prompts: [{ prompt: "a" }] } }] }],
  ["reference has no place for .jpeg.", { presets: [{ ...GOOD, settings: { reference: { jpeg: "" } } }] }],
  ["policy is none of merge, queue", { presets: [{ ...GOOD, motion: { method: "streamv2v", feature_bank: { policy: "best" } } }] }],
  ["motion has no place for .bank.", { presets: [{ ...GOOD, motion: { method: "streamv2v", bank: {} } }] }],
]) {
  test(`a file is refused with the reason: ${what}`, () => {
    assert.throws(() => readPresets(JSON.stringify({ format: "rearview-presets", version: 1, presets: [GOOD], ...change })), new RegExp(what));
  });
}

test("what is no JSON is refused", () => {
  assert.throws(() => readPresets("oil"), /JSON/);
  assert.throws(() => readPresets("null"), /format/);
});

test("what a browser keeps is read as far as it makes sense", () => {
  const kept = [{ ...GOOD, place: 2 }, { ...GOOD, settings: { strenght: 1 } }, { ...GOOD, place: 12 }];
  const read = keptPresets(JSON.stringify({ format: "rearview-presets", version: 1, presets: kept }));
  assert.deepEqual(read.map((one) => one?.name ?? null), [null, "a", ...Array(7).fill(null)]);
  for (const text of [null, "oil", "{}"]) assert.deepEqual(keptPresets(text), noPresets());
});

test("a set that is merged into weights is taken alone and at weight 1", () => {
  const model = { ...MODEL, adapters: ["gold", "ink"], merged_adapters: ["gold"] };
  const fit = (adapter_mix) => fitted(presetOf(tileWith({ adapter_mix }), "pocket", "gold"), model, []);
  const gold = { adapters: "gold", weight: 1 };
  for (const mix of [[{ adapters: "ink", weight: 1 }, gold], [{ adapters: "gold", weight: 0.5 }]]) {
    const { preset, misfits } = fit(mix);
    assert.deepEqual(preset.settings.adapter_mix, [gold]);
    assert.match(misfits.join(), /gold.* alone/);
  }
  for (const mix of [[gold], [{ adapters: "ink", weight: 0.5 }], [{ adapters: "ink", weight: 1 }, { adapters: "gold", weight: 0 }]]) {
    assert.deepEqual(fit(mix).misfits, []);
    assert.deepEqual(fit(mix).preset.settings.adapter_mix, mix);
  }
});
