import assert from "node:assert/strict";
import { test } from "node:test";
import { viewerWords } from "../../../services/rearview/studio/page/state/viewing.js";

const LIVE = { link: "open", isOver: false, refused: "", silentMs: 40, pauseAfterMs: 1200 };

test("nothing stands over a picture that is live", () => {
  assert.equal(viewerWords(LIVE), "");
  assert.equal(viewerWords({ ...LIVE, silentMs: 2000 }), "");
});

test("a picture that stands still has words that say why", () => {
  const cases = [{ silentMs: null }, { silentMs: 9000 }, { link: "connecting" }, { link: "waiting" }, { refused: "The wall is full.", link: "waiting" }, { isOver: true, link: "waiting" }];
  const said = cases.map((change) => viewerWords({ ...LIVE, ...change }));
  assert.equal(new Set(said).size, cases.length);
  assert.ok(said.every((words) => words !== ""));
  assert.match(said.at(-1), /over/);
  assert.match(said.at(-2), /^The wall is full\. /);
});

test("a program that is always slow does not stand still", () => {
  assert.equal(viewerWords({ ...LIVE, silentMs: 9000, pauseAfterMs: 12_000 }), "");
});
