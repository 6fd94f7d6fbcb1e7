import assert from "node:assert/strict";
import { test } from "node:test";
import { ask, askable, meant, merge, newTile, nextAsked, ranUnder, reopening, tileAfter } from "../../../services/rearview/studio/page/state/tile.js";
import { withCause, withGap } from "../../../services/rearview/studio/page/state/gaps.js";

const OPTIONS = { width: 256, height: 256, frame_rate: 30, drop_policy: "latest", method: "streamv2v", max_steps: 4, settings: { prompt: "oil" } };
const OPENED = { type: "opened", tile: 0, session_id: "ab", width: 320, height: 192, settings: { prompt: "oil", prompts: [], strength: 0.4 }, method: "streamv2v", frame: 12, warm_up_frames: 1, unknown_words: [] };
const live = () => tileAfter(newTile(OPTIONS), OPENED, 0);

test("a tile that is opened lives, in the size and settings that it got", () => {
  const tile = live();
  assert.equal(tile.state, "live");
  assert.equal(tile.sinceFrame, 12);
  assert.deepEqual([tile.options.width, tile.options.height], [320, 192]);
  assert.equal(tile.settings.strength, 0.4);
});

test("one control is on its way at a time; the newest values wait", () => {
  let [tile, sent] = ask(live(), { strength: 0.5 }, 1);
  assert.deepEqual(sent, { strength: 0.5 });
  [tile, sent] = ask(tile, { strength: 0.6 }, 2);
  assert.equal(sent, null);
  [tile, sent] = ask(tile, { strength: 0.7, steps: 3 }, 2);
  assert.equal(meant(tile).strength, 0.7);
  tile = tileAfter(tile, { type: "applied", id: 1, frame: 40, settings: { prompt: "oil", strength: 0.5 } }, 0);
  [tile, sent] = nextAsked(tile, 2);
  assert.deepEqual(sent, { strength: 0.7, steps: 3 });
  assert.deepEqual(nextAsked(tile, 3)[1], null);
});

test("each control shows the frame at which it took effect", () => {
  let [tile] = ask(live(), { strength: 0.5, prompts: [{ prompt: "a", weight: 1 }] }, 1);
  tile = tileAfter(tile, { type: "applied", id: 1, frame: 40, settings: { strength: 0.5 } }, 0);
  assert.equal(tile.tookEffect.strength, 40);
  assert.equal(tile.tookEffect.prompt, 40);
  assert.equal(tile.tookEffect.steps, undefined);
});

test("a control that is refused changes nothing and says why", () => {
  let [tile] = ask(live(), { strength: 7 }, 1);
  tile = tileAfter(tile, { type: "applied", id: 1, frame: null, settings: null, rejected: { reason: "SETTING_OUT_OF_RANGE", message: "strength" } }, 0);
  assert.equal(tile.settings.strength, 0.4);
  assert.deepEqual(tile.rejected, { reason: "SETTING_OUT_OF_RANGE", message: "strength", fields: ["strength"] });
  assert.equal(tile.inFlight, null);
  [tile] = ask(tile, { strength: 0.5 }, 2);
  tile = tileAfter(tile, { type: "applied", id: 2, frame: 9, settings: { strength: 0.5 } }, 0);
  assert.equal(tile.rejected, null);
});

test("a control of a score counts although it was not asked by hand", () => {
  const tile = tileAfter(live(), { type: "applied", id: 99, asked: { seed: 5 }, frame: 77, settings: { seed: 5 } }, 0);
  assert.equal(tile.tookEffect.seed, 77);
});

test("a control whose answer cannot come is asked again when the tile lives", () => {
  let [tile] = ask(live(), { strength: 0.5 }, 1);
  tile = tileAfter(tile, { type: "state", state: "reconnecting" }, 0);
  let sent;
  [tile, sent] = ask(tile, { steps: 1 }, 2);
  assert.equal(sent, null);
  tile = tileAfter(tile, { type: "state", state: "live" }, 0);
  [tile, sent] = nextAsked(tile, 2);
  assert.deepEqual(sent, { strength: 0.5, steps: 1 });
});

test("prompt and prompts replace each other", () => {
  assert.deepEqual(merge({ prompts: [1], steps: 2 }, { prompt: "a" }), { prompt: "a", steps: 2 });
  assert.deepEqual(merge({ prompt: "a" }, { prompts: [1] }), { prompts: [1] });
  assert.deepEqual(askable({ prompt: "", prompts: [1], steps: 2 }), { prompts: [1], steps: 2 });
  assert.deepEqual(askable({ prompt: "a", prompts: [] }), { prompt: "a" });
  assert.deepEqual(askable({ prompt: "a", width: 320, height: 192 }), { prompt: "a" });
});

test("a tile is opened again as it is meant", () => {
  const [tile] = ask(live(), { prompt: "neon" }, 1);
  assert.deepEqual(reopening(tile).settings, { prompt: "neon", strength: 0.4 });
  assert.equal(reopening(tile).width, 320);
});

test("a control that changes the size changes what the tile is opened with again", () => {
  const [asked] = ask(live(), { width: 192, height: 320 }, 1);
  const settings = { ...asked.settings, width: 192, height: 320 };
  const tile = tileAfter(asked, { type: "applied", id: 1, frame: 7, rejected: null, settings }, 0);
  assert.deepEqual([reopening(tile).width, reopening(tile).height, reopening(tile).settings.width], [192, 320, undefined]);
});

test("drops are counted by reason, stats replace each other, gaps are few", () => {
  let tile = tileAfter(live(), { type: "dropped", frame: 3, reason: "LATE" }, 0);
  tile = tileAfter(tile, { type: "dropped", frame: 4, reason: "LATE" }, 0);
  assert.deepEqual(tile.dropped, { LATE: 2 });
  tile = tileAfter(tile, { type: "stats", fps: 20 }, 0);
  assert.deepEqual([tile.stats.fps, tile.stats.spans], [20, []]);
  for (let one = 0; one < 40; one += 1) {
    tile = withCause(tile, "moved", 10_000 * one);
    tile = withGap(tile, { from: one, to: one + 9, ms: 700, lost: 8, atMs: 10_000 * one + 500 });
  }
  assert.equal(tile.gaps.length, 20);
});

test("a notice is kept with its time, an unknown message changes nothing", () => {
  const tile = tileAfter(live(), { type: "notice", kind: "moved", message: "", continuity: "exact", frame: 8 }, 123);
  assert.equal(tile.notice.atMs, 123);
  assert.deepEqual(tile.causes, [{ cause: "moved", atMs: 123 }]);
  assert.equal(tileAfter(tile, { type: "nonsense" }, 0), tile);
});

test("a tile that begins anew goes back to what it ran under, never to what was only asked", () => {
  const asked = ask(live(), { strength: 7 }, 1)[0];
  const ran = { ...OPTIONS, width: 320, height: 192, settings: { prompt: "oil", strength: 0.4 } };
  assert.deepEqual(ranUnder(asked), ran);
  const anew = newTile({ ...OPTIONS, method: "per_frame" }, ran);
  assert.deepEqual(ranUnder(anew), ran, "asked again before it has run");
  assert.equal(ranUnder(tileAfter(anew, { type: "state", tile: 0, state: "refused" }, 0)), ran);
  assert.equal(tileAfter(anew, OPENED, 0).former, null);
  assert.equal(ranUnder(newTile(OPTIONS)), null);
});
