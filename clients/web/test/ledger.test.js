import assert from "node:assert/strict";
import { test } from "node:test";
import { Ledger } from "../src/ledger.js";

function said() {
  const ledger = new Ledger();
  ledger.add("other", 0, "open");
  ledger.add("frame", 0, "frame 0");
  ledger.add("control", 7, "control 7");
  ledger.add("frame", 1, "frame 1");
  ledger.add("other", 0, "program");
  return ledger;
}

const messages = (items) => items.map(({ message }) => message);

test("what a peer has not heard is said again in its order", () => {
  const ledger = said();
  assert.deepEqual(messages(ledger.unheard(0)), ["open", "frame 0", "control 7", "frame 1", "program"]);
  assert.deepEqual(messages(ledger.unheard(3)), ["frame 1", "program"]);
  assert.deepEqual(messages(ledger.unheard(5)), []);
});

test("an answer is to one message, and says that those before it were heard", () => {
  const ledger = said();
  ledger.answered("frame", 1);
  assert.deepEqual(messages(ledger.unheard(0)), ["frame 0", "control 7", "program"]);
  assert.equal(ledger.frames, 1);
  ledger.answered("frame", 1);
  ledger.answered("control", 0);
  assert.deepEqual(messages(ledger.unanswered), ["frame 0", "control 7"]);
});

test("to another peer everything without an answer may be said anew", () => {
  const ledger = said();
  ledger.answered("frame", 0);
  assert.deepEqual(messages(ledger.restart()), ["control 7", "frame 1"]);
  assert.deepEqual(ledger.unheard(0), []);
  ledger.add("frame", 9, "frame 9");
  assert.deepEqual(messages(ledger.unheard(0)), ["frame 9"]);
  assert.deepEqual(messages(ledger.unheard(1)), []);
});
