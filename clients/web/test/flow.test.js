import assert from "node:assert/strict";
import { test } from "node:test";
import { Credit } from "../src/credit.js";
import { Pace, reconnectAfterMs } from "../src/pacing.js";

test("frames are sent while there is credit, and not one more", () => {
  const credit = new Credit();
  credit.restart(2);
  credit.spend();
  credit.spend();
  assert.equal(credit.maySend, false);
  assert.throws(() => credit.spend());
  credit.grant(3);
  assert.equal(credit.maySend, true);
});

test("credit that comes late takes nothing away", () => {
  const credit = new Credit();
  credit.restart(5);
  credit.grant(3);
  assert.equal(credit.allowed, 5);
});

test("answers are acknowledged once, by their sum", () => {
  const credit = new Credit();
  credit.restart(9);
  for (let answer = 0; answer < 5; answer += 1) credit.take();
  assert.equal(credit.due(8), null);
  assert.equal(credit.due(1), 5);
  assert.equal(credit.due(1), null);
});

test("everything counts from the welcome", () => {
  const credit = new Credit();
  credit.restart(1);
  credit.spend();
  credit.take();
  credit.due();
  credit.restart(4);
  assert.deepEqual([credit.allowed, credit.sent, credit.answers, credit.due()], [4, 0, 0, null]);
});

for (const [source, rate] of [[60, 30], [30, 30], [25, 30], [30, 10], [144, 24]]) {
  test(`a source of ${source} frames a second, jittering, gives about ${Math.min(source, rate)} at ${rate}`, () => {
    const pace = new Pace(rate);
    let taken = 0;
    for (let frame = 0; frame < source * 10; frame += 1) {
      const jitterMs = 4 * Math.sin(frame * 12.9898);
      if (pace.takes((1000 * frame) / source + jitterMs)) taken += 1;
    }
    assert.ok(Math.abs(taken / 10 - Math.min(source, rate)) <= 1, String(taken));
  });
}

test("after a pause the pace makes nothing up", () => {
  const pace = new Pace(10);
  pace.takes(0);
  assert.equal(pace.takes(5000), true);
  assert.equal(pace.takes(5010), false);
  assert.equal(pace.takes(5100), true);
});

test("the first attempts come at once, later ones never further apart than six seconds", () => {
  const waits = [0, 1, 2, 3, 4, 5, 20].map((attempt) => reconnectAfterMs(attempt));
  assert.deepEqual(waits, [250, 500, 1000, 2000, 4000, 5000, 5000]);
  assert.ok(reconnectAfterMs(20, 0.999) < 6300);
});
