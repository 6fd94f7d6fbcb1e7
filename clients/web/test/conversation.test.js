import assert from "node:assert/strict";
import { test } from "node:test";
import { Conversation } from "../src/conversation.js";
import { PICTURE_HEADER_BYTES } from "../src/protocol.js";

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
