import assert from "node:assert/strict";
import { test } from "node:test";
import { base64Of, followed, middle, shown, unfollowed } from "../../../services/rearview/studio/page/state/reference.js";
import { eventWords } from "../../../services/rearview/studio/page/state/score.js";

test("the square in the middle of a picture is taken", () => {
  assert.deepEqual(middle(640, 480), { x: 80, y: 0, side: 480 });
  assert.deepEqual(middle(481, 640), { x: 0, y: 79, side: 481 });
  assert.deepEqual(middle(224, 224), { x: 0, y: 0, side: 224 });
});

test("bytes become text, however many they are", () => {
  const bytes = Uint8Array.from({ length: 100_000 }, (_, at) => at % 256);
  assert.deepEqual(Uint8Array.from(atob(base64Of(bytes)), (one) => one.charCodeAt(0)), bytes);
  assert.equal(base64Of(new Uint8Array()), "");
});

test("what is followed is shown, by its kind", () => {
  assert.equal(shown({}), null);
  assert.equal(shown(unfollowed()), null);
  assert.equal(shown({ reference: { base64: "/9j/4AAQ" } }), "data:image/jpeg;base64,/9j/4AAQ");
  assert.equal(shown({ reference: { base64: "iVBORw0K" } }), "data:image/png;base64,iVBORw0K");
});

test("a new picture leaves the scale, unless that is 0", () => {
  assert.deepEqual(followed({ reference_scale: 0.6 }, "abcd"), { reference: { base64: "abcd" } });
  assert.deepEqual(followed({}, "abcd"), { reference: { base64: "abcd" } });
  assert.deepEqual(followed({ reference_scale: 0 }, "abcd"), { reference: { base64: "abcd" }, reference_scale: 1 });
});

test("a score says that there is a picture, and not which", () => {
  assert.equal(eventWords(followed({}, "abcd")), "a reference");
  assert.equal(eventWords({ ...unfollowed(), reference_scale: 0.5 }), "no reference, reference scale 0.50");
});
