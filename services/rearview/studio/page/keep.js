// What is kept: snapshots, recordings, takes.
import { tell } from "./announce.js";
import { source } from "./begin.js";
import { order } from "./engine.js";
import * as media from "./media.js";
import { lookName } from "./state/prompts.js";
import { atRate, beginTake, lastFrame, reached, readScore, recorded, replay, scoreText } from "./state/score.js";
import { fileName, manyWord } from "./state/words.js";
import * as store from "./store.js";
import { newControl } from "./tiles.js";

export function snapshot() {
  order("snapshot");
}

/** The worker's answer. @param {Blob | null} blob */
export function kept(blob) {
  if (!blob) return tell("There is no picture yet", true);
  media.download(blob, fileName(lookName(store.settings.value), new Date(), "png"));
  return tell("Snapshot saved");
}

export async function toggleRecording() {
  const running = store.recording.value;
  if (running) return running.stop();
  const isProgram = store.view.value === "program" || store.view.value === "wall";
  const { stop, done } = media.record(isProgram ? "program" : store.focus.value);
  store.recording.value = { sinceMs: performance.now(), stop };
  tell(isProgram ? "Recording the program" : "Recording this tile");
  const { blob, ending } = await done;
  store.recording.value = null;
  media.download(blob, fileName(lookName(store.settings.value), new Date(), ending));
  return tell("Recording saved");
}

export function toggleTake() {
  const running = store.taken.value;
  if (!running) {
    const tile = store.tile.value;
    if (!tile) return;
    rewind();
    return order("mark");
  }
  store.taken.value = null;
  const { take, sinceMs } = running;
  const frames = take.last - take.first;
  const clip = source?.video;
  const clipS = clip?.loop && Number.isFinite(clip.duration) ? clip.duration : null;
  store.score.value = { name: "take.json", score: atRate(take.score, frames, performance.now() - sinceMs), frames, clipS };
  return tell(`The take has ${manyWord(take.score.events.length, "change")}`);
}

/** The worker's answer: the take begins with this frame. @param {number} first */
export function beginsWith(first) {
  const tile = store.tile.value;
  if (!tile) return;
  const { settings: _, ...options } = tile.options;
  const about = { frameRate: store.taking.value.rate, source: store.source.value.name || null, options, settings: store.settings.value };
  store.taken.value = { tile: store.focus.value, take: beginTake(first, about), sinceMs: performance.now() };
  tell("The take runs");
}

/** A clip starts again, so that its frames are those of the take. */
function rewind() {
  if (source?.video) source.video.currentTime = 0;
}

export function saveTake() {
  const saved = store.score.value;
  if (saved) media.download(scoreText(saved.score), saved.name);
}

/** @param {File} file */
export async function loadTake(file) {
  try {
    const score = readScore(await file.text());
    store.score.value = { name: file.name, score, frames: lastFrame(score), clipS: null };
    tell(`${file.name}: ${manyWord(score.events.length, "change")}`);
  } catch (error) {
    tell(`${file.name}: ${/** @type {Error} */ (error).message}`, true);
  }
}

/** Sends every control of the take right before the frame at which it took effect. */
export function playTake() {
  const saved = store.score.value;
  const index = store.focus.value;
  if (!saved || !store.tile.value) return;
  rewind();
  const events = replay(saved.score, 0).map(({ frame, settings }) => ({ frame, message: newControl(index, settings) }));
  order("replay", { events });
}

export function stopTake() {
  order("stop-replay");
  store.replaying.value = null;
}

/** A control took effect. @param {number} index @param {number} frame @param {import("./state/tile.js").Settings} settings */
export function noteControl(index, frame, settings) {
  const running = store.taken.value;
  if (running?.tile === index) store.taken.value = { ...running, take: recorded(running.take, frame, settings) };
}

/** The page has come as far as this frame. @param {number} frame */
export function noteFrame(frame) {
  const running = store.taken.value;
  if (running) store.taken.value = { ...running, take: reached(running.take, frame) };
  const playing = store.replaying.value;
  if (playing && store.score.value && frame > playing.first + lastFrame(store.score.value.score)) store.replaying.value = null;
}
