// The worker: owns socket, capture, decoding and canvases, and tells the page what it must know.
import { Conversation } from "../client/conversation.js";
import { Pace } from "../client/pacing.js";
import { Capture } from "../client/capture.js";
import { Shape } from "../state/shape.js";
import { Pictures } from "./pictures.js";
import { Recorder } from "./recorder.js";

const BEAT_MS = 500;

/** @param {Record<string, unknown>} message @param {Transferable[]} [transfer] */
const tell = (message, transfer = []) => /** @type {any} */ (self).postMessage(message, transfer);

const conversation = new Conversation({
  said,
  pictured: (picture, page) => pictures.arrived(picture, page, performance.now()),
  changed: (state) => tell({ is: "link", ...state }),
});
const shape = new Shape();
const capture = new Capture(conversation, { keepsInputs: true, shape });
const pictures = new Pictures({
  taken: (page) => conversation.taken(page),
  inputOf: (frame) => capture.inputOf(frame),
  gap: (tile, gap) => tell({ is: "gap", tile, ...gap }),
});
const recorder = new Recorder(pictures, tell);
/** Tiles that take frames. @type {Set<number>} */
const live = new Set();
let ticking = 0;

capture.onInput = () => {
  if (pictures.isVisible && !conversation.isViewer && !pictures.feeds.get(pictures.tile)?.shown) pictures.drawStage();
};

/** @param {any} message */
function said(message) {
  switch (message.type) {
    case "welcome":
      if (!message.goesOn) live.clear();
      for (const tile of message.tiles ?? []) opened(tile);
      if (message.program) pictures.cut({ ...message.program, fade_ms: 0 });
      break;
    case "credit":
      capture.pump();
      break;
    case "opened":
      opened(message);
      break;
    case "state":
      if (message.state === "live") live.add(message.tile);
      // A tile that ended for want of frames opens again with the next one.
      if (message.state === "refused" || (message.state === "ended" && message.reason !== "IDLE")) live.delete(message.tile);
      capture.isWanted = live.size > 0;
      break;
    case "dropped":
      conversation.taken();
      return;
    case "program":
      pictures.cut(message);
      break;
  }
  tell({ is: "said", message });
}

/** @param {any} message */
function opened(message) {
  live.add(message.tile);
  capture.isWanted = true;
  capture.setSize(message);
  capture.pump();
}

/** @type {Record<string, (order: any) => unknown>} */
const orders = {
  connect({ url, token, wall, viewer }) {
    conversation.connect(url, { token, wall, isViewer: Boolean(viewer) });
  },
  reconnect: () => conversation.again(),
  token({ token }) {
    conversation.token = token;
    conversation.again();
  },
  say({ message }) {
    if (message.type === "close") {
      live.delete(message.tile);
      pictures.drop(message.tile);
      capture.isWanted = live.size > 0;
    }
    conversation.say(message);
  },
  mark: () => tell({ is: "marked", frame: capture.frame }),
  /** Controls of a score: `frame` counts from the next frame that is sent. */
  replay({ events }) {
    const first = capture.frame;
    capture.scheduled = events.map((/** @type {any} */ one) => ({ frame: first + one.frame, message: one.message }));
    tell({ is: "replaying", first });
  },
  program: ({ program }) => pictures.cut(program),
  "stop-replay": () => (capture.scheduled = []),
  lend: ({ name, canvas }) => pictures.lend(name, canvas),
  resize: ({ name, width, height }) => pictures.resize(name, width, height),
  look({ view, split, tile }) {
    const isAnother = view !== pictures.view;
    pictures.view = view;
    pictures.split = split;
    pictures.tile = tile;
    if (isAnother) pictures.drawAll();
    else pictures.drawStage();
  },
  visible({ visible }) {
    pictures.isVisible = visible;
    if (visible) pictures.drawAll();
  },
  /** `said`: what tells of the size. It goes right before the first frame that has it. */
  fit({ width, height, rate, quality, said: saying = [] }) {
    if (width) capture.setSize({ width, height });
    for (const message of saying) conversation.say(message);
    if (rate) capture.pace = new Pace(rate);
    if (quality) capture.quality = quality;
  },
  /** A stream of VideoFrames, or a track to make one of. */
  source({ readable, track, ticks }) {
    orders.stop({});
    const Processor = /** @type {any} */ (self).MediaStreamTrackProcessor;
    if (readable) capture.read(readable);
    else if (track && Processor) capture.read(new Processor({ track }).readable);
    // Nothing gives frames of itself: this clock asks the page for them. It runs on in a hidden tab.
    else if (ticks) ticking = setInterval(() => tell({ is: "tick" }), 1000 / ticks);
  },
  image: ({ bitmap }) => capture.offer(bitmap, performance.now()),
  stop() {
    clearInterval(ticking);
    capture.stop();
    for (const feed of pictures.feeds.values()) feed.gaps.forget();
  },
  pause({ paused }) {
    capture.isPaused = paused;
    for (const feed of pictures.feeds.values()) feed.gaps.forget();
  },
  async snapshot() {
    tell({ is: "snapshot", blob: await pictures.snapshot() });
  },
  record: ({ writable, what }) => recorder.start(writable, what),
  "stop-record": () => recorder.stop(),
  bye() {
    conversation.close(true);
  },
};

let beatAt = performance.now();
setInterval(() => {
  const nowMs = performance.now();
  const seconds = (nowMs - beatAt) / 1000;
  beatAt = nowMs;
  /** @type {Record<number, unknown>} */
  const tiles = {};
  for (const [tile, feed] of pictures.feeds) tiles[tile] = feed.beat(seconds, nowMs);
  const settled = shape.settled(nowMs);
  if (settled) tell({ is: "shape", ...settled });
  const { seen, sent, skipped, bytes, frame } = capture;
  tell({
    is: "beat",
    at: nowMs / 1000,
    seenFps: seen / seconds,
    sentFps: sent / seconds,
    skipped,
    sentBytesPerS: bytes / seconds,
    frame,
    tiles,
  });
  capture.seen = capture.sent = capture.skipped = capture.bytes = 0;
}, BEAT_MS);

self.onmessage = ({ data }) => orders[data.do]?.(data);
