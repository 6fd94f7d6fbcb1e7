// The worker: owns socket, capture, decoding and canvases, and tells the page what it must know.
import { Credit } from "../client/credit.js";
import { Pace } from "../client/pacing.js";
import { unpackPicture } from "../client/protocol.js";
import { Capture } from "../client/capture.js";
import { Link } from "../client/link.js";
import { Pictures } from "./pictures.js";
import { Recorder } from "./recorder.js";

const BEAT_MS = 500;
const ACKNOWLEDGE_MS = 50;
const ACKNOWLEDGE_EVERY = 8;

/** @param {Record<string, unknown>} message @param {Transferable[]} [transfer] */
const tell = (message, transfer = []) => /** @type {any} */ (self).postMessage(message, transfer);

const credit = new Credit();
const link = new Link({ text: heard, bytes: pictured, changed: (state) => tell({ is: "link", ...state }) });
const capture = new Capture(link, credit);
const pictures = new Pictures({
  taken,
  inputOf: (frame) => capture.inputOf(frame),
  gap: (tile, gap) => tell({ is: "gap", tile, ...gap }),
});
const recorder = new Recorder(pictures, tell);
/** Tiles that take frames. @type {Set<number>} */
const live = new Set();
/** @type {{token: string | null, wall: string | null}} */
const known = { token: null, wall: null };
let isViewer = false;
let ticking = 0;

capture.onInput = () => {
  if (pictures.isVisible && !isViewer && !pictures.feeds.get(pictures.tile)?.shown) pictures.drawStage();
};

/** @param {any} message */
function heard(message) {
  switch (message.type) {
    case "welcome":
      known.wall = message.wall;
      credit.restart(message.credit ?? 0);
      live.clear();
      for (const tile of message.tiles ?? []) opened(tile);
      if (message.program) pictures.cut({ ...message.program, fade_ms: 0 });
      break;
    case "credit":
      credit.grant(message.frames);
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
      taken();
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

/** @param {ArrayBuffer} bytes */
function pictured(bytes) {
  const picture = unpackPicture(bytes);
  if (picture) pictures.arrived(picture, performance.now());
}

function taken() {
  credit.take();
  if (!isViewer) acknowledge(ACKNOWLEDGE_EVERY);
}

function acknowledge(/** @type {number} */ step) {
  const answers = link.isOpen ? credit.due(step) : null;
  if (answers !== null) link.say({ type: "received", answers });
}

/** @type {Record<string, (order: any) => unknown>} */
const orders = {
  connect({ url, token, wall, viewer }) {
    known.token = token;
    known.wall = wall;
    isViewer = Boolean(viewer);
    link.connect(url, () => (isViewer ? { type: "hello" } : { type: "hello", ...known }));
  },
  reconnect: () => link.again(),
  token({ token }) {
    known.token = token;
    link.again();
  },
  say({ message }) {
    if (message.type === "close") {
      live.delete(message.tile);
      pictures.drop(message.tile);
      capture.isWanted = live.size > 0;
    }
    link.say(message);
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
  fit({ width, height, rate, quality, said = [] }) {
    if (width) capture.setSize({ width, height });
    for (const message of said) link.say(message);
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
    link.say({ type: "bye" });
    link.close();
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
  const shape = capture.shape.settled(nowMs);
  if (shape) tell({ is: "shape", ...shape });
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

// The last few answers before a pause are acknowledged, too.
setInterval(() => {
  if (!isViewer) acknowledge(1);
}, ACKNOWLEDGE_MS);

self.onmessage = ({ data }) => orders[data.do]?.(data);
