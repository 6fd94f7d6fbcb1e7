import assert from "node:assert/strict";
import { test } from "node:test";
import { Conversation } from "../src/conversation.js";
import { FRAME_HEADER_BYTES, MAX_FRAME_BYTES, MAX_TEXT_LENGTH, PICTURE_HEADER_BYTES, tooLarge } from "../src/protocol.js";

/** One that has no socket, and what its page hears. */
function begun(page = 1) {
  const told = { said: [], pages: [] };
  const conversation = new Conversation({
    said: (message) => told.said.push(message),
    pictured: (picture, of) => told.pages.push(of),
    changed: () => {},
  });
  conversation.heard({ type: "welcome", wall: "w", page, credit: 4, resumed: false });
  told.said.length = 0;
  return { conversation, told };
}

function picture(frame) {
  const message = new ArrayBuffer(PICTURE_HEADER_BYTES + 1);
  new DataView(message).setUint8(0, 2);
  new DataView(message).setUint32(4, frame);
  return message;
}

test("a picture that is taken when the page has another number is no answer to it", () => {
  const { conversation, told } = begun(1);
  conversation.pictured(picture(0));
  conversation.heard({ type: "welcome", wall: "w", page: 2, credit: 4, resumed: true });
  conversation.taken(told.pages[0]);
  assert.equal(conversation.credit.answers, 0);
  conversation.pictured(picture(1));
  conversation.taken(told.pages[1]);
  conversation.heard({ type: "dropped", tile: 0, frame: 2, reason: "late" });
  conversation.taken();
  assert.deepEqual([told.pages, conversation.credit.answers], [[1, 2], 2]);
});

test("what is larger than a gateway takes is refused before it costs anything", () => {
  const { conversation, told } = begun();
  assert.equal(conversation.send(0, 1, new Uint8Array(MAX_FRAME_BYTES + 1)), false);
  conversation.say({ type: "control", tile: 0, id: 7, settings: { prompt: "a".repeat(MAX_TEXT_LENGTH) } });
  conversation.say({ type: "open", tile: 0, options: { settings: { prompt: "a".repeat(MAX_TEXT_LENGTH) } } });
  assert.deepEqual([conversation.ledger.items, conversation.credit.sent], [[], 0]);
  assert.deepEqual(told.said.map(({ type, id, rejected, reason }) => [type, id, rejected?.reason ?? reason]), [
    ["error", undefined, "MESSAGE_TOO_LARGE"],
    ["applied", 7, "MESSAGE_TOO_LARGE"],
    ["error", undefined, "MESSAGE_TOO_LARGE"],
  ]);
});

test("what is as large as a gateway takes is sent", () => {
  const { conversation } = begun();
  assert.equal(conversation.send(0, 1, new Uint8Array(MAX_FRAME_BYTES)), true);
  assert.deepEqual([conversation.ledger.frames, conversation.credit.sent], [1, 1]);
  assert.equal(tooLarge("a".repeat(MAX_TEXT_LENGTH)), null);
  assert.equal(tooLarge(new ArrayBuffer(FRAME_HEADER_BYTES + MAX_FRAME_BYTES)), null);
});
