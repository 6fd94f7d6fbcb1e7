import assert from "node:assert/strict";
import { test } from "node:test";
import { addressesOf } from "../src/addresses.js";
import { isFinal, lossOf, notResumed, unreachable, RearviewError } from "../src/errors.js";
import { Inbox } from "../src/inbox.js";
import { Attempts, DEFAULTS, policyOf, timerMs } from "../src/reconnect.js";
import { appliedFrom, durationOf, frameOf, openOf, secondsOf, settingsOf } from "../src/wire.js";

test("an address without a port has the service's own", () => {
  assert.deepEqual(addressesOf("one, two:7 ,::1,[::1]:9,unix:/a/b"), [
    "one:50051", "two:7", "[::1]:50051", "[::1]:9", "unix:/a/b",
  ]);
  for (const wrong of ["", " , ", "http://one", "one:0", "one:70000", ":9"]) {
    assert.throws(() => addressesOf(wrong), TypeError, wrong);
  }
});

test("a slow reader is bounded, and the server is told in time", () => {
  const inbox = new Inbox(8);
  for (let index = 0; index < 8; index += 1) inbox.put({ kind: "frame", index });
  assert.equal(inbox.hasRoom, false);
  assert.equal(inbox.isCreditDue(3), false);
  assert.equal(inbox.isCreditDue(4), true);
  assert.equal(inbox.tellCredit(8), 8);
  inbox.put({ kind: "notice" });
  inbox.take();
  assert.equal(inbox.isCreditDue(8), false);
  inbox.take();
  assert.equal(inbox.isCreditDue(8), true, "a quarter of the window was taken");
  assert.equal(inbox.tellCredit(8), 10);
  assert.throws(() => new Inbox(0), RangeError);
});

test("attempts wait longer each time, and are given up", () => {
  const attempts = new Attempts(DEFAULTS);
  const waits = [0, 1, 2, 3, 4, 5, 6, 7].map(() => attempts.waitS(0, 100, 0, () => 1));
  assert.deepEqual(waits.slice(0, 4), [0.05, 0.1, 0.2, 0.4]);
  assert.equal(Math.max(...waits), DEFAULTS.maxWaitS);
  assert.equal(attempts.acceptS, 4);
  assert.equal(attempts.waitS(99, 100, 5, () => 1), undefined);
  attempts.renew();
  assert.equal(attempts.waitS(99, 100, 5, () => 1), 5);
});

test("what is not given of a policy has its default, and what is none is refused", () => {
  assert.deepEqual(policyOf({ firstWaitS: undefined, maxWaitS: 3 }), { ...DEFAULTS, maxWaitS: 3 });
  assert.throws(() => policyOf({ giveUpAfter: 3 }), new TypeError(
    "reconnect has no giveUpAfter; there are: firstWaitS, maxWaitS, giveUpAfterS, openTimeoutS, acceptTimeoutS",
  ));
  for (const wrong of [-1, NaN, "soon", null]) assert.throws(() => policyOf({ openTimeoutS: wrong }), RangeError);
});

test("a time without end is one that a timer takes", () => {
  assert.equal(timerMs(1.5), 1500);
  for (const seconds of [1e7, Infinity]) assert.equal(timerMs(seconds), 2 ** 31 - 1);
});

test("words become members of the proto's enums, and unknown ones are refused with those there are", () => {
  const open = openOf({ dropPolicy: "lossless", method: "per-frame", settings: { guidance: "self" } });
  assert.deepEqual(open, {
    dropPolicy: "DROP_POLICY_LOSSLESS", method: "METHOD_PER_FRAME",
    settings: { guidance: "GUIDANCE_SELF" },
  });
  assert.throws(() => openOf({ dropPolicy: "never" }), /dropPolicy is never; there are: latest, lossless, deadline/);
  assert.throws(() => openOf({ wdith: 8 }), /Open has no wdith; there are: model, width, height/);
  assert.throws(() => settingsOf({ promt: "a" }), /Settings has no promt; there are: prompt, strength/);
  assert.throws(() => openOf({ featureBank: { policy: "all" } }), /policy is all; there are: merge, queue/);
  assert.throws(() => frameOf(new Uint8Array(1), { index: 0, format: "gif" }), /format is gif; there are: jpeg, rgb/);
});

test("settings are what they were when they were given, though the caller writes over them", () => {
  const reference = Uint8Array.of(1, 2);
  const given = {
    reference, referenceMask: reference, prompts: [{ prompt: "a", weight: 1 }], timestepIndices: [3, 9], controls: [{ name: "edges" }],
  };
  const settings = settingsOf(given);
  const open = openOf({ featureBank: { interval: 2 }, settings: given });
  reference[0] = given.prompts[0].weight = given.timestepIndices[0] = 9;
  given.controls[0].name = "depth";
  const asked = {
    prompts: [{ prompt: "a", weight: 1 }], timestepIndices: [3, 9], controls: { controls: [{ name: "edges" }] },
    reference: Buffer.of(1, 2), referenceMask: Buffer.of(1, 2),
  };
  assert.deepEqual(settings, asked);
  assert.deepEqual(open, { featureBank: { interval: 2 }, settings: asked });
});

test("controls of the deployment are a list, and durations seconds", () => {
  assert.deepEqual(settingsOf({ controls: [{ name: "edges" }] }), { controls: { controls: [{ name: "edges" }] } });
  assert.equal(secondsOf(durationOf(1.25)), 1.25);
  assert.equal(secondsOf(undefined), 0);
  let second = 0;
  for (let frame = 0; frame < 10; frame += 1) second += 0.1;
  assert.deepEqual(durationOf(second), { seconds: 1, nanos: 0 }, "it is a little less, and a second has no 10⁹ nanoseconds");
  const applied = appliedFrom({ controlId: 2, settings: { prompt: "a", _prompt: "prompt", guidance: "GUIDANCE_NONE" } }, 7);
  assert.deepEqual(applied.settings, { prompt: "a", guidance: "none" });
  assert.equal(applied.rejectedReason, undefined);
});

test("a failure of the way is no failure of the service", () => {
  const loss = lossOf({ code: 14, details: "connect ECONNREFUSED" }, "here:1");
  assert.deepEqual([loss.error.reason, loss.error.kind, loss.isTransient], ["UNREACHABLE", "refused", true]);
  assert.match(loss.error.message, /no connection to here:1/);
  assert.equal(lossOf({ code: 12 }, "here:1").isTransient, false);
});

test("details that are none, from something before the service, hide nothing of the failure", () => {
  const metadata = { get: () => [Buffer.from([0x1a, 0xff, 1])] };
  const { error } = lossOf({ code: 14, details: "bad gateway", metadata }, "here:1");
  assert.deepEqual([error.reason, error.message], ["UNREACHABLE", "no connection to here:1: bad gateway"]);
});

test("a resume that was refused for now leaves the session to the next attempt", () => {
  const full = { error: new RearviewError("NO_CAPACITY", "full", { kind: "refused", retryAfterS: 2 }), isTransient: false };
  assert.equal(isFinal(full, { isOpen: true, hasBegun: false }), false);
  assert.equal(isFinal(full, { isOpen: false, hasBegun: false }), true);
  assert.equal(isFinal(full, { isOpen: true, hasBegun: true }), true);
  const lost = notResumed(unreachable("gone"), 3);
  assert.match(lost.message, /the session is lost, 3 frames are unanswered: gone/);
});
