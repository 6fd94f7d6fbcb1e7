// What the tests of the web client ask of a page: one session, and what came of it.
import { connect } from "/package/src/index.js";

window.connect = connect;
const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));
const fetched = async () => (await (await fetch("/token")).json()).token;

/** Opens a session, and notes what it tells. */
async function begin({ url, token, asks = false, options = {} }) {
  const told = { frames: [], dropped: [], applied: [], events: [], stats: 0 };
  const note = (name) => (about) => told.events.push({ name, ...about });
  const session = await connect(null, {
    url,
    token: asks ? fetched : token,
    ...options,
    onframe: ({ frame, jpeg }) => told.frames.push([frame, new TextDecoder().decode(jpeg)]),
    ondropped: (about) => told.dropped.push(about),
    onapplied: ({ frame, settings }) => told.applied.push([settings.seed, frame]),
    onstats: () => (told.stats += 1),
    onmoved: note("moved"),
    onreconnecting: note("reconnecting"),
    onreconnected: note("reconnected"),
    onended: note("ended"),
  });
  return { session, told };
}

const failed = ({ name, reason, retryAfterS, message }) => ({ error: { name, reason, retryAfterS, message } });

window.begin = async (asked) => {
  try {
    window.begun = await begin(asked);
    return { sessionId: window.begun.session.opened.sessionId, viewerLink: window.begun.session.viewerLink };
  } catch (error) {
    return failed(error);
  }
};

/** Sends everything, and waits for every answer. */
window.go = async ({ items, pauseMs = 0 }) => {
  const { session, told } = window.begun;
  try {
    for (const item of items) {
      if (item.control) session.change(item.control).catch((error) => told.events.push({ name: "refused", reason: error.reason }));
      else await session.send(new TextEncoder().encode(item.frame));
      if (pauseMs) await pause(pauseMs);
    }
    await session.finish();
  } catch (error) {
    return { ...told, ...failed(error) };
  }
  return { ...told, connections: session.connections };
};
