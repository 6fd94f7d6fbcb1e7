import assert from "node:assert/strict";
import { test } from "node:test";
import { GapWatch, isExpected, noGaps, withCause, withGap } from "../../../services/rearview/studio/page/state/gaps.js";

test("a pause in the answers is seen with what it cost", () => {
  const watch = new GapWatch();
  for (let frame = 0; frame < 30; frame += 1) assert.equal(watch.arrived(frame, frame * 33), null);
  assert.deepEqual(watch.arrived(61, 29 * 33 + 1500), { from: 29, to: 61, ms: 1500 });
});

test("a slow stream has no pauses only because it is slow", () => {
  const watch = new GapWatch();
  for (let frame = 0; frame < 60; frame += 1) assert.equal(watch.arrived(frame, frame * 450), null);
  assert.equal(watch.arrived(61, 59 * 450 + 900), null);
});

test("a source that was stopped ends no pause", () => {
  const watch = new GapWatch();
  watch.arrived(1, 0);
  watch.forget();
  assert.equal(watch.silentMs(9000), 0);
  assert.equal(watch.arrived(2, 9000), null);
});

test("the first pictures of a session, however slow, make no pause", () => {
  const watch = new GapWatch();
  const ended = [0, 669, 900, 4900].map((ms, frame) => watch.arrived(frame, ms));
  assert.deepEqual(ended.filter(Boolean).map(({ ms }) => ms), [4000]);
  const tile = ended.filter(Boolean).reduce((before, one) => withGap(before, { ...one, lost: 0, atMs: 5000 }), noGaps());
  assert.deepEqual(tile.gaps, []);
  assert.equal(watch.pauseAfterMs(5000), 10_000);
});

test("a silence is a pause where it is longer than any of the last minute", () => {
  const watch = new GapWatch();
  for (let frame = 0; frame < 30; frame += 1) watch.arrived(frame, frame * 33);
  assert.equal(watch.pauseAfterMs(1000), 1200);
  watch.arrived(30, 5000);
  assert.ok(watch.pauseAfterMs(5000) > 1.4 * 4000);
  assert.equal(watch.pauseAfterMs(66_000), 1200);
});

test("a stream of one picture a second does not pause between two of them", () => {
  const watch = new GapWatch();
  for (let frame = 0; frame < 30; frame += 1) watch.arrived(frame, frame * 1000);
  assert.equal(watch.pauseAfterMs(30_000), 4000);
});

const gap = (atMs, ms) => ({ from: 1, to: 9, ms, lost: 7, atMs });
const kept = (tile) => tile.gaps.map(({ atMs, ms, cause }) => [atMs, ms, cause]);

test("a pause without a cause is not kept", () => {
  assert.deepEqual(kept(withGap(noGaps(), gap(9000, 4000))), []);
  assert.deepEqual(kept(withGap(withCause(noGaps(), "killed", 1000), gap(9000, 4000))), []);
});

test("a pause after a kill is kept, whether its notice comes before or after its end", () => {
  assert.deepEqual(kept(withGap(withCause(noGaps(), "killed", 4900), gap(9000, 4000))), [[9000, 4000, "killed"]]);
  assert.deepEqual(kept(withCause(withGap(noGaps(), gap(9000, 4000)), "moved", 9200)), [[9000, 4000, "moved"]]);
});

test("one cause has one gap, the longest, whatever stutters around it", () => {
  let tile = withCause(noGaps(), "killed", 5000);
  tile = withGap(tile, gap(5600, 700));
  tile = withGap(tile, gap(9000, 3300));
  tile = withCause(tile, "moved", 9050);
  tile = withGap(tile, gap(9900, 600));
  assert.deepEqual(kept(tile), [[9000, 3300, "killed"]]);
  tile = withGap(withCause(tile, "killed", 30_000), gap(31_000, 800));
  assert.deepEqual(kept(tile).at(-1), [31_000, 800, "killed"]);
});

test("after a kill a pause is expected, and some seconds later no more", () => {
  const tile = withCause(noGaps(), "killed", 5000);
  assert.deepEqual([isExpected(noGaps(), 0), isExpected(tile, 8000), isExpected(tile, 60_000)], [false, true, false]);
});
