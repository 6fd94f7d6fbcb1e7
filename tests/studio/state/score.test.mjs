import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import { atRate, beginTake, beyond, eventWords, lastFrame, reached, readScore, recorded, rendering, replay, scoreText } from "../../../services/rearview/studio/page/state/score.js";

const ABOUT = { frameRate: 30, source: "street.mp4", options: { width: 256, height: 256, method: "streamv2v" }, settings: { prompt: "oil painting", prompts: [], strength: 0.4 } };

test("frames of a take count from its first", () => {
  const take = recorded(beginTake(1000, ABOUT), 1120, { strength: 0.6 });
  assert.deepEqual(take.score.events, [{ frame: 120, settings: { strength: 0.6 } }]);
  assert.deepEqual(take.score.open, { width: 256, height: 256, method: "streamv2v", settings: { prompt: "oil painting", strength: 0.4 } });
});

test("two controls of one frame are one event, in which the later one wins", () => {
  let take = recorded(beginTake(0, ABOUT), 5, { prompt: "neon", seed: 1 });
  take = recorded(take, 5, { prompts: [{ prompt: "a", weight: 1 }] });
  assert.deepEqual(take.score.events, [{ frame: 5, settings: { seed: 1, prompts: [{ prompt: "a", weight: 1 }] } }]);
});

test("events stand in the order of their frames", () => {
  let take = recorded(beginTake(0, ABOUT), 9, { seed: 1 });
  take = recorded(take, 3, { seed: 2 });
  assert.deepEqual(take.score.events.map((event) => event.frame), [3, 9]);
  assert.equal(reached(take, 40).last, 40);
  assert.equal(reached(take, 4).last, 9);
});

test("a take has the rate that it really had", () => {
  const { score } = beginTake(0, ABOUT);
  assert.equal(atRate(score, 250, 20_000).frame_rate, 12.5);
  assert.equal(atRate(score, 0, 20_000).frame_rate, 30);
  assert.equal(atRate(score, 1, 1_000_000).frame_rate, 0.01);
});

test("what is saved is read again", () => {
  const { score } = recorded(beginTake(0, ABOUT), 9, { prompts: [{ prompt: "neon lights", weight: 0.5 }], blend_frames: 30 });
  assert.deepEqual(readScore(scoreText(score)), score);
});

for (const [what, change] of [
  ["format", { format: "other" }],
  ["version", { version: 2 }],
  ["frame_rate", { frame_rate: 0 }],
  ["events", { events: null }],
  ["event 1", { events: [{ frame: -1, settings: {} }] }],
  ["event 1", { events: [{ frame: 1, settings: [] }] }],
  ["event 2", { events: [{ frame: 5, settings: {} }, { frame: 4, settings: {} }] }],
]) {
  test(`a score with a bad ${what} is refused with the reason: ${JSON.stringify(change)}`, () => {
    const { score } = beginTake(0, ABOUT);
    assert.throws(() => readScore(JSON.stringify({ ...score, ...change })), new RegExp(what));
  });
}

test("what is no JSON is refused", () => {
  assert.throws(() => readScore("oil"), /JSON/);
  assert.throws(() => readScore("null"), /format/);
});

test("a replay opens as the take did, then changes at the same frames", () => {
  const { score } = recorded(beginTake(100, ABOUT), 130, { seed: 4 });
  assert.deepEqual(replay(score, 5000), [
    { frame: 5000, settings: { prompt: "oil painting", strength: 0.4 } },
    { frame: 5030, settings: { seed: 4 } },
  ]);
  assert.equal(lastFrame(score), 30);
});

test("the example that the service reads, too, is read and written alike", () => {
  const text = readFileSync(new URL("../score.json", import.meta.url), "utf8");
  const score = readScore(text);
  assert.equal(lastFrame(score), 300);
  assert.deepEqual(JSON.parse(scoreText(score)), JSON.parse(text));
});

const command = (...about) => rendering(...about).command;

test("the command that renders it names the file and the source", () => {
  assert.equal(command("my take.json", "street.mp4", null), "rearview translate --score 'my take.json' street.mp4 OUT.mp4");
  assert.equal(command("it's.json", null, null), "rearview translate --score 'it'\\''s.json' IN.mp4 OUT.mp4");
  assert.deepEqual(rendering("take.json", "FaceTime HD Camera", null), { command: "rearview translate --score take.json IN.mp4 OUT.mp4", before: "video" });
});

test("of the bundled clip it names the real file, or the one that has to be saved first", () => {
  assert.deepEqual(rendering("take.json", "sample.mp4", "/opt/a b/pan.mp4"), { command: "rearview translate --score take.json '/opt/a b/pan.mp4' OUT.mp4", before: "save" });
  assert.deepEqual(rendering("take.json", "sample.mp4", null), { command: "rearview translate --score take.json sample.mp4 OUT.mp4", before: "sample" });
});

test("what was changed after the first end of a clip is not rendered", () => {
  const { score } = recorded(recorded(beginTake(0, ABOUT), 90, { seed: 1 }), 270, { seed: 2 });
  assert.deepEqual(beyond(score, 360, 8), { times: 1.5, numLost: 1 });
  assert.equal(beyond(score, 240, 8), null);
});

test("a control is said in a few words", () => {
  assert.equal(eventWords({ prompt: "neon", blend_frames: 30, strength: 0.456 }), "“neon”, blend frames 30, strength 0.46");
});
