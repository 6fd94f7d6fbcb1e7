import assert from "node:assert/strict";
import { test } from "node:test";
import { RearviewError, Session, connect } from "../index.js";
import { serving, until } from "./server.js";

const frame = (number) => Uint8Array.of(number);
const within = { timeout: 20_000 };

/** A session that is left at the test's end, whatever comes. */
async function opened(t, address, options) {
  const session = await connect(address, options);
  t.after(() => session.close());
  return session;
}

test("frames come back in order, and the session ends with the last of them", within, async (t) => {
  const { address } = await serving(t);
  const session = await opened(t, address);
  for (const number of [0, 1, 2]) assert.equal(await session.send(frame(number), { format: "opaque" }), number);
  await session.finish();
  const found = [];
  for await (const answer of session) found.push([answer.index, answer.image[0]]);
  assert.deepEqual(found, [[0, 0], [1, 1], [2, 2]]);
});

test("a reader that takes its time does not make the service seem silent", within, async (t) => {
  const told = await serving(t, { heartbeatMs: 40 });
  const session = await opened(t, told.address, { answerWindow: 2 });
  for (const number of [0, 1]) await session.send(frame(number), { format: "opaque" });
  await until(() => told.beats > 10 || told.resumed > 0);
  const { value: first } = await session[Symbol.asyncIterator]().next();
  assert.equal(first.index, 0);
  assert.deepEqual([session.connections, told.resumed], [1, 0]);
  await session.close();
  assert.deepEqual(told.closed, ["one"]);
});

test("times that are undefined are the usual ones, and one without end does not end at once", within, async (t) => {
  const { address } = await serving(t);
  const reconnect = { firstWaitS: undefined, acceptTimeoutS: undefined, openTimeoutS: Infinity };
  const session = await opened(t, address, { reconnect });
  assert.equal(session.connections, 1);
});

test("a token that cannot be had ends the attempt with what was thrown, whatever that is", within, async (t) => {
  const { address } = await serving(t);
  for (const [thrown, told] of [[new Error("no session"), "no session"], ["no session", "no session"], [undefined, "undefined"]]) {
    await assert.rejects(connect(address, { token: () => Promise.reject(thrown) }), (error) => {
      assert.deepEqual([error.name, error.reason, error.message, error.cause], ["RearviewError", "INTERNAL", told, thrown]);
      return true;
    });
  }
});

test("a session is left at once though its token is waited for", within, async (t) => {
  const told = await serving(t);
  const never = () => new Promise(() => {});
  const unopened = new Session(told.address, { token: never });
  const beginning = assert.rejects(unopened.begin(), RearviewError);
  await unopened.close();
  await beginning;
  let isKnown = true;
  const session = await connect(told.address, { token: () => (isKnown ? "a" : never()), reconnect: { acceptTimeoutS: 0.2 } });
  isKnown = false;
  await session.close();
  assert.deepEqual([told.closed, told.tokens], [["one"], ["Bearer a", "Bearer a"]], "it is closed under the token that opened it");
});

test("a frame is what it was when it was given, though its bytes are written over", within, async (t) => {
  const { address } = await serving(t);
  const session = await opened(t, address);
  const image = frame(0);
  for (const number of [0, 1, 2, 3, 4, 5]) {
    image[0] = number;
    await session.send(image, { format: "opaque" });
    image[0] = 99;
  }
  await session.finish();
  const found = [];
  for await (const answer of session) found.push(answer.image[0]);
  assert.deepEqual(found, [0, 1, 2, 3, 4, 5]);
});

test("a session is opened as it was asked, though its settings are written over before it is dialled", within, async (t) => {
  const told = await serving(t);
  const settings = { prompt: "a", reference: Uint8Array.of(1, 2) };
  const token = () => {
    settings.prompt = "b";
    settings.reference[0] = 9;
    return "a";
  };
  await opened(t, told.address, { settings, token });
  const { settings: asked, answerCredit } = told.open;
  assert.deepEqual([asked.prompt, [...asked.reference], answerCredit], ["a", [1, 2], 32]);
});

test("what is no image or no index is refused, and the session goes on", within, async (t) => {
  const { address } = await serving(t);
  const session = await opened(t, address);
  for (const wrong of ["AAAA", [1, 2], undefined]) await assert.rejects(session.send(wrong, { format: "opaque" }), TypeError);
  for (const index of [-1, 0.5, NaN, 2 ** 53, "1"]) {
    await assert.rejects(session.send(frame(0), { format: "opaque", index }), RangeError, String(index));
  }
  assert.equal(await session.send(frame(7), { format: "opaque", index: 3 }), 3);
  await assert.rejects(session.send(frame(7), { format: "opaque", index: 3 }), RangeError);
  await session.finish();
  for await (const answer of session) assert.deepEqual([answer.index, answer.image[0]], [3, 7]);
});
