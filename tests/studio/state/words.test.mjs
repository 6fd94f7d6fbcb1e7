import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import { Series, budget, percentile } from "../../../services/rearview/studio/page/state/series.js";
import { whyNoCamera, whyNoFile, whyRefused } from "../../../services/rearview/studio/page/state/sources.js";
import { bytesWord, clockWord, continuityWord, countWord, dropWord, explain, fileName, manyWord, msWord, replicaWord, spanWord } from "../../../services/rearview/studio/page/state/words.js";

test("a camera is missing on plain HTTP for a reason, and there is something to do", () => {
  const trouble = whyNoCamera({ secure: false, mediaDevices: false, host: "192.168.1.5:8080" });
  assert.match(trouble.title, /plain HTTP/);
  assert.match(trouble.help, /--lan/);
  assert.match(trouble.help, /192\.168\.1\.5:8080/);
  assert.equal(whyNoCamera({ secure: true, mediaDevices: true, host: "localhost" }), null);
  assert.match(whyNoCamera({ secure: true, mediaDevices: false, host: "x" }).title, /no camera/);
});

test("each way of failing has words of its own", () => {
  const names = ["NotAllowedError", "NotFoundError", "NotReadableError", "OverconstrainedError", "OddError"];
  const titles = names.map((name) => whyRefused("camera", name).title);
  assert.equal(new Set(titles).size, names.length);
  assert.match(whyRefused("screen", "NotAllowedError").help, /Screen/);
  assert.match(whyNoFile("x.mkv").help, /x\.mkv/);
});

test("every reason for which the service refuses has words", () => {
  const proto = readFileSync(new URL("../../../proto/rearview/v1/error_reason.proto", import.meta.url), "utf8");
  const shown = ["NO_CAPACITY", "TENANT_STREAMS_EXHAUSTED", "TOKEN_INVALID", "RESOLUTION_UNSUPPORTED", "METHOD_UNSUPPORTED", "SETTING_OUT_OF_RANGE", "PROMPT_TOO_LONG", "REPLICA_LOST", "DRAINING", "IDLE"];
  for (const reason of shown) {
    assert.match(proto, new RegExp(`ERROR_REASON_${reason}\\b`));
    assert.equal(explain(reason).title, explain(`ERROR_REASON_${reason}`).title);
    assert.doesNotMatch(explain(reason).title, /_/);
  }
  assert.equal(explain("NEW_ONE", "what the service says").title, "what the service says");
  assert.equal(explain(null).title, "That did not work");
});

test("every reason for a drop has words", () => {
  const proto = readFileSync(new URL("../../../proto/rearview/v1/error_reason.proto", import.meta.url), "utf8");
  const reasons = [...proto.matchAll(/DROP_REASON_(?!UNSPECIFIED)([A-Z_]+) =/g)].map((found) => found[1]);
  assert.ok(reasons.length > 8);
  for (const reason of reasons) assert.notEqual(dropWord(reason), reason.toLowerCase().replaceAll("_", " "), reason);
});

test("numbers are said as people say them", () => {
  assert.deepEqual([0, 999, 1000, 17_400_000, 2_580_000_000].map(bytesWord), ["", "999 B", "1.0 kB", "17 MB", "2.6 GB"]);
  assert.equal(countWord(1234567), "1\u202f234\u202f567");
  assert.deepEqual([12.4, 1530, null].map(msWord), ["12 ms", "1.5 s", "–"]);
  assert.deepEqual([0, 75, 3600].map(clockWord), ["0:00", "1:15", "60:00"]);
  assert.deepEqual([0, 1, 1200].map((number) => manyWord(number, "frame")), ["0 frames", "1 frame", "1\u202f200 frames"]);
  assert.equal(spanWord("denoise-1"), "paint 2");
  assert.deepEqual(["fused#0", "denoise-0#12"].map(replicaWord), ["replica 0", "replica 12"]);
  assert.equal(continuityWord("CONTINUITY_EXACT"), continuityWord("exact"));
});

test("a file is named after its look and time", () => {
  const at = new Date("2026-01-27T10:15:30.500Z");
  assert.equal(fileName("Oil painting!", at, "png"), "rearview-oil-painting-20260127-101530.png");
  assert.equal(fileName("…", at, "png"), "rearview-picture-20260127-101530.png");
});

test("a series keeps its window, and refuses rows of another width", () => {
  const series = new Series(2, 10);
  for (let at = 0; at < 100; at += 1) series.add(at, [at, null]);
  assert.deepEqual(series.columns[0], [89, 90, 91, 92, 93, 94, 95, 96, 97, 98, 99]);
  assert.deepEqual(series.last, [99, null]);
  assert.throws(() => series.add(100, [1]));
});

test("a frame's time is divided without rest", () => {
  const spans = [{ name: "encode", queue_ms: 2, work_ms: 5 }, { name: "denoise-0", queue_ms: 0, work_ms: 20 }];
  const parts = budget({ glassMs: 60, serverMs: 40, serviceMs: 30 }, spans);
  assert.equal(Math.round(parts.reduce((sum, part) => sum + part.ms, 0)), 60);
  assert.ok(parts.every((part) => part.ms > 0));
  assert.deepEqual(budget({ glassMs: null, serverMs: null, serviceMs: null }, spans), []);
});

test("a percentile is one of the numbers", () => {
  assert.equal(percentile([5, 1, 9, 3], 0.5), 3);
  assert.equal(percentile([5, 1, 9, 3], 0.95), 9);
  assert.equal(percentile([], 0.5), null);
});
