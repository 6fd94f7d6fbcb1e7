import assert from "node:assert/strict";
import { test } from "node:test";
import { after, allModels, freePlace, goingTo, hasOthers, indices, misfits, modelsOf, newWall, withTile, withoutTile } from "../../../services/rearview/studio/page/state/wall.js";
import { sharesAt } from "../../../services/rearview/studio/page/state/program.js";

const OPTIONS = { width: 256, height: 256, frame_rate: 30, drop_policy: "latest", method: "streamv2v", max_steps: 4, settings: { prompt: "oil" } };
const welcome = (more = {}) => ({ type: "welcome", wall: "key", viewer: "seen", resumed: false, credit: 4, tiles: [], program: { a: 0, b: null, mix: 0, fade_ms: 0 }, ...more });
const opened = (tile, more = {}) => ({ type: "opened", tile, session_id: "s", width: 256, height: 256, settings: { prompt: "oil" }, method: "streamv2v", frame: 5, ...more });

test("a new wall has a secret, a viewers' key and no tiles", () => {
  const wall = after(newWall(), welcome(), 0);
  assert.deepEqual([wall.key, wall.viewer, indices(wall)], ["key", "seen", []]);
});

test("a wall that is resumed has its tiles, and no others", () => {
  const wall = after(withTile(newWall(), 4, OPTIONS), welcome({ resumed: true, tiles: [opened(2, { settings: { prompt: "neon" } })] }), 0);
  assert.deepEqual(indices(wall), [2]);
  assert.equal(wall.tiles[2].state, "live");
  assert.equal(wall.tiles[2].settings.prompt, "neon");
});

test("tiles that a new wall does not know wait to be opened again", () => {
  let wall = after(withTile(newWall(), 4, OPTIONS), opened(4), 0);
  assert.equal(wall.tiles[4].state, "live");
  wall = after(wall, welcome(), 0);
  assert.deepEqual(indices(wall), [4]);
  assert.equal(wall.tiles[4].state, "opening");
});

test("messages go to their tile, and to no other", () => {
  let wall = withTile(withTile(newWall(), 0, OPTIONS), 1, OPTIONS);
  wall = after(wall, opened(1), 0);
  assert.deepEqual([wall.tiles[0].state, wall.tiles[1].state], ["opening", "live"]);
  assert.equal(after(wall, opened(7), 0), wall);
});

test("the program of a wall is followed", () => {
  const wall = after(newWall(), { type: "program", a: 2, b: null, mix: 0, fade_ms: 0 }, 10);
  assert.deepEqual(sharesAt(wall.program, 10), [{ tile: 2, weight: 1 }]);
});

test("a model's bytes are counted while it is fetched", () => {
  let wall = { ...newWall(), models: modelsOf([{ id: "sd-turbo", title: "SD-Turbo", bytes: 100, state: "absent" }, { id: "pocket" }]) };
  wall = after(wall, { type: "model", id: "sd-turbo", state: "fetching", bytes_done: 40, bytes_total: 100 }, 0);
  assert.deepEqual([wall.models[0].state, wall.models[0].bytesDone, wall.models[1].state], ["fetching", 40, "absent"]);
});

test("the model that the gateway stands before is listed once", () => {
  const own = { id: "pocket", title: "Pocket" };
  const wall = { ...newWall(), models: modelsOf([{ id: "pocket", state: "ready" }, { id: "sd-turbo", state: "in_use" }]) };
  const listed = (serving) => allModels(wall, own, serving).map(({ id, state }) => [id, state]);
  assert.deepEqual(listed(""), [["pocket", "in_use"], ["sd-turbo", "ready"]]);
  assert.deepEqual(listed("sd-turbo"), [["pocket", "ready"], ["sd-turbo", "in_use"]]);
});

test("a model that was asked for is on its way until something is told of it", () => {
  const wall = goingTo({ ...newWall(), models: modelsOf([{ id: "sd-turbo" }]) }, "sd-turbo");
  assert.deepEqual(wall.going, { id: "sd-turbo", refused: "" });
  for (const told of [{ type: "model", id: "sd-turbo", state: "loading" }, { type: "serving", id: "sd-turbo" }]) assert.equal(after(wall, told, 0).going, null);
  assert.equal(after(wall, { type: "model", id: "other", state: "loading" }, 0).going, wall.going);
  const refused = after(wall, { type: "error", reason: "NO_CAPACITY", message: "no room" }, 0);
  assert.deepEqual(refused.going, { id: "sd-turbo", refused: "no room" });
});

test("an error stands on the wall, the service's state is known", () => {
  let wall = after(newWall(), { type: "error", reason: "MESSAGE_INVALID", message: "no" }, 0);
  wall = after(wall, { type: "error", reason: "MESSAGE_INVALID", message: "no" }, 0);
  assert.deepEqual(wall.complaints.map(({ help }) => help), ["No."]);
  assert.equal(after(wall, { type: "service", state: "starting", message: "soon" }, 0).service.state, "starting");
});

test("a tile takes the lowest free place, until the wall is full", () => {
  let wall = withTile(withTile(newWall(), 0, OPTIONS), 2, OPTIONS);
  assert.equal(freePlace(wall, 9), 1);
  wall = withoutTile(wall, 0);
  assert.equal(freePlace(wall, 9), 0);
  for (let index = 0; index < 9; index += 1) wall = withTile(wall, index, OPTIONS);
  assert.equal(freePlace(wall, 9), null);
});

test("sessions of others on a replica are seen", () => {
  const lanes = (sessions, tiles) => [{ name: "fused", replicas: [{ id: "fused#0", state: "up", sessions, tiles }] }];
  assert.deepEqual([lanes(1, [0]), lanes(3, [0]), []].map(hasOthers), [false, true, false]);
});

test("tiles of another size than the source's are found", () => {
  const wide = { ...OPTIONS, width: 320, height: 192 };
  const wall = withTile(withTile(withTile(newWall(), 0, OPTIONS), 2, wide), 3, { ...OPTIONS, height: 192 });
  assert.deepEqual(misfits(wall, { width: 256, height: 256 }), [2, 3]);
  assert.deepEqual(misfits(newWall(), { width: 256, height: 256 }), []);
});

test("no message changes what was there before", () => {
  const wall = withTile(newWall(), 0, OPTIONS);
  const text = JSON.stringify(wall);
  for (const message of [welcome(), opened(0), { type: "dropped", tile: 0, frame: 1, reason: "LATE" }, { type: "applied", tile: 0, id: 1, frame: 2, settings: {} }]) after(wall, message, 0);
  assert.equal(JSON.stringify(wall), text);
});
