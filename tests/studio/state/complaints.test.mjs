import assert from "node:assert/strict";
import { test } from "node:test";
import { complaintsAfter, read, unsaid } from "../../../services/rearview/studio/page/state/complaints.js";
import { after, newWall, withTile, withoutTile } from "../../../services/rearview/studio/page/state/wall.js";

const OPTIONS = { width: 256, height: 256, frame_rate: 30, drop_policy: "latest", method: "streamv2v", max_steps: 4, settings: { prompt: "oil" } };
const PAGE = { focus: 0, panel: "motion", isBare: false };
const REJECTED = { reason: "PROMPT_TOO_LONG", message: "at most 4 kB" };

/** Each way in which the gateway says that something went wrong, and what says that it is over. */
const WAYS = [
  ["wall", { type: "error", reason: "METHOD_UNSUPPORTED", message: "only on the machine that runs the service" }, { type: "serving", id: "x" }],
  ["hello", { type: "error", reason: "NO_CAPACITY", message: "the studio has 64 walls", atHello: true }, { type: "welcome" }],
  ["model", { type: "model", id: "sd-turbo", state: "failed", message: "the hub does not answer" }, { type: "model", id: "sd-turbo", state: "fetching" }],
  ["control", { type: "applied", tile: 1, id: 3, rejected: REJECTED }, { type: "applied", tile: 1, id: 4, rejected: null }],
  ["tile", { type: "state", tile: 1, state: "refused", reason: "NO_CAPACITY" }, { type: "opened", tile: 1 }],
  ["tile", { type: "state", tile: 1, state: "ended", reason: "REPLICA_LOST" }, { type: "state", tile: 1, state: "live" }],
];

test("whatever goes wrong stands until it is over", () => {
  for (const [about, message, end] of WAYS) {
    const [one, ...others] = complaintsAfter([], message);
    assert.equal(one.about, about);
    assert.ok(one.title && one.help, about);
    assert.deepEqual(others, []);
    assert.deepEqual(complaintsAfter([one], end), [], about);
    assert.deepEqual(complaintsAfter([one], { type: "stats", tile: 1 }), [one]);
  }
});

test("the gateway's own words are said, and whose they are", () => {
  const [one] = complaintsAfter([], WAYS[3][1]);
  assert.deepEqual([one.title, one.help], ["Tile 2: That prompt is too long", "At most 4 kB."]);
  assert.match(complaintsAfter([], WAYS[4][1])[0].help, /starts by itself/, "else the reason's own");
  assert.equal(complaintsAfter([], { type: "error", reason: "ODD", message: "" })[0].title, "That did not work");
});

test("what is said again stands once, the newest last, and never without end", () => {
  let standing = [];
  for (const number of [0, 1, 0]) standing = complaintsAfter(standing, { type: "error", reason: "ODD", message: `number ${number}` });
  assert.deepEqual(standing.map(({ help }) => help), ["Number 1.", "Number 0."]);
  for (let number = 0; number < 20; number += 1) standing = complaintsAfter(standing, { type: "error", reason: "ODD", message: `number ${number}` });
  assert.ok(standing.length < 5);
  assert.equal(standing.at(-1).help, "Number 19.");
});

test("an end for want of frames is no complaint", () => {
  assert.deepEqual(complaintsAfter([], { type: "state", tile: 0, state: "ended", reason: "IDLE" }), []);
});

test("what has been read, or its tile closed, is gone", () => {
  let wall = withTile(withTile(newWall(), 0, OPTIONS), 1, OPTIONS);
  for (const [, message] of WAYS) wall = after(wall, message, 0);
  assert.ok(wall.complaints.some(({ tile }) => tile === 1));
  assert.ok(!withoutTile(wall, 1).complaints.some(({ tile }) => tile === 1));
  assert.ok(!withTile(wall, 1, OPTIONS).complaints.some(({ tile }) => tile === 1));
  const [{ key }] = wall.complaints;
  assert.ok(!read(wall.complaints, key).some((one) => one.key === key));
});

test("nothing is said twice: the stage speaks for its tile and the connection, the look for its controls", () => {
  const about = (page) => unsaid(WAYS.flatMap(([, message]) => complaintsAfter([], message)), page).map((one) => one.about);
  assert.deepEqual(about(PAGE), ["wall", "model", "control", "tile", "tile"]);
  assert.deepEqual(about({ ...PAGE, focus: 1 }), ["wall", "model", "control"]);
  assert.deepEqual(about({ ...PAGE, focus: 1, panel: "look" }), ["wall", "model"]);
  assert.deepEqual(about({ ...PAGE, isBare: true }).length, WAYS.length, "nothing else speaks before the start");
});
