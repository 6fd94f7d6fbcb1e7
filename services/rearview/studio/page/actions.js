// What the user can do, and what follows from the gateway's and the worker's news. Changes `store.js`.
import { announceChange, tell } from "./announce.js";
import { reshaped, resumeSource, sizeFor } from "./begin.js";
import { complain } from "./complain.js";
import { listen, order, say, startEngine } from "./engine.js";
import { beginsWith, kept, noteControl, noteFrame } from "./keep.js";
import { loadPreset } from "./presets.js";
import { read } from "./state/complaints.js";
import { withGap } from "./state/gaps.js";
import { refusedSize } from "./state/shape.js";
import { reopening } from "./state/tile.js";
import { after, goingTo, interrupted, modelsOf, replaced } from "./state/wall.js";
import { complaint, spanWord } from "./state/words.js";
import * as store from "./store.js";
import { answered, openAgain, openTile, sendNext, show, takeBack } from "./tiles.js";

const INFO_AGAIN_MS = 700;

export async function start() {
  startEngine();
  listen(heard);
  await readInfo();
  order("connect", {
    url: new URL("wall", location.href.replace(/^http/, "ws")).href,
    token: sessionStorage.getItem("token"),
    wall: sessionStorage.getItem("wall"),
  });
}

/** Asks until the gateway answers: it may still be starting. */
async function readInfo() {
  const beganMs = performance.now();
  for (let attempt = 0; ; attempt += 1) {
    const seconds = Math.floor((performance.now() - beganMs) / 1000);
    try {
      const answer = await fetch("api/info", { cache: "no-store" });
      const info = await answer.json();
      if (info.model || info.needs_token) {
        store.info.value = info;
        store.starting.value = null;
        store.wall.value = { ...store.wall.value, models: modelsOf(info.models ?? []) };
        if (info.needs_token && !sessionStorage.getItem("token")) store.sheet.value = "token";
        return;
      }
      store.starting.value = { attempt, seconds, ...info.service };
    } catch {
      store.starting.value = { attempt, seconds, state: "starting", message: "" };
    }
    await new Promise((resolve) => setTimeout(resolve, INFO_AGAIN_MS));
  }
}

/** @param {any} news from the worker */
function heard(news) {
  switch (news.is) {
    case "said":
      return said(news.message);
    case "link":
      announceChange("link", news.state);
      if (news.state === "waiting") store.wall.value = interrupted(store.wall.value, "link", performance.now());
      store.link.value = news;
      return undefined;
    case "beat":
      return beaten(news);
    case "shape":
      return reshaped(news);
    case "gap":
      return gapEnded(news);
    case "marked":
      return beginsWith(news.frame);
    case "snapshot":
      return kept(news.blob);
    case "replaying":
      store.replaying.value = { tile: store.focus.value, first: news.first };
      return undefined;
  }
}

/** @param {any} message */
function said(message) {
  if (message.type === "recall") return loadPreset(message.place - 1, message.tile);
  const about = withContext(message);
  const before = store.wall.value;
  store.wall.value = after(before, about, performance.now());
  announceChange("message", about, before.tiles[message.tile]);
  if (message.type === "turned") return turned(about);
  if (message.type === "welcome") welcomed(message);
  if (message.type === "applied") applied(about);
  if (message.type === "opened" || (message.type === "state" && message.state === "live")) sendNext(message.tile);
  if (message.type === "state" && message.state === "refused") refused(message);
  if (message.type === "serving") store.info.value = { ...store.info.value, model: message.model, serving: message.id };
  if (message.type === "error" && /^TOKEN/.test(message.reason ?? "")) store.sheet.value = "token";
  return undefined;
}

/** What the page alone knows of a message. @param {any} message */
function withContext(message) {
  // To the tile it is one more control that has taken effect.
  if (message.type === "turned") return { ...message, type: "applied", id: null };
  if (message.type === "applied") return { ...message, asked: answered(message.id) ?? undefined };
  return message.type === "error" ? { ...message, atHello: store.link.value.state !== "open" } : message;
}

/** A controller has changed a tile. @param {any} about */
function turned({ tile, frame, asked, rejected }) {
  if (!rejected) noteControl(tile, frame, asked);
  return undefined;
}

/** @param {any} message */
function welcomed(message) {
  sessionStorage.setItem("wall", message.wall);
  const open = new Set((message.tiles ?? []).map((/** @type {any} */ one) => one.tile));
  // A gateway with which the page goes on has heard of every tile.
  for (const index of message.goesOn ? [] : store.tiles.value) {
    const tile = store.wall.value.tiles[index];
    if (!open.has(index)) openTile(index, reopening(tile));
  }
  if (!open.has(store.focus.value) && open.size > 0) store.focus.value = Math.min(...open);
  if (store.source.value.state === "none") resumeSource(open.size > 0);
}

/** @param {any} message */
function applied(message) {
  const { asked } = message;
  const isSize = asked?.width !== undefined;
  // A take is rendered in one size.
  if (asked && !isSize && !message.rejected && message.frame !== null) noteControl(message.tile, message.frame, asked);
  if (isSize && message.rejected) sizeRefused(message, asked);
  sendNext(message.tile);
}

/** @param {any} message @param {any} asked */
function sizeRefused(message, asked) {
  const tile = store.wall.value.tiles[message.tile];
  const next = tile && refusedSize(tile.options, asked, message.rejected.reason, message.settings ?? null, sizeFor(store.source.value));
  if (next && "again" in next) openAgain(message.tile, next.again);
  if (next && "back" in next) takeBack(message.tile, next.back);
}

/** The model's own size is taken where it refuses another; a tile that was to begin anew goes on as it was. @param {any} message */
function refused(message) {
  const tile = store.wall.value.tiles[message.tile];
  const { width, height } = store.model.value;
  if (!tile) return;
  if (/RESOLUTION/.test(message.reason ?? "") && (tile.options.width !== width || tile.options.height !== height)) {
    openTile(message.tile, { ...reopening(tile), width, height }, tile.former);
  } else if (tile.former) {
    openTile(message.tile, tile.former);
    const { title, help } = complaint(message.reason, message.message);
    complain(`tile ${message.tile}`, `Tile ${message.tile + 1} goes on as it was: ${title}`, help);
  }
}

/** @param {any} news */
function beaten(news) {
  store.beat.value = news;
  const mine = news.tiles[store.focus.value];
  const tile = store.tile.value;
  const drops = tile?.stats ? Object.values(tile.stats.drops).reduce((sum, one) => sum + one, 0) : 0;
  store.charts.rate.add(news.at, [news.seenFps, news.sentFps, mine?.fps ?? 0]);
  store.charts.latency.add(news.at, [mine?.glassMs ?? null, mine?.glassP95Ms ?? null]);
  store.charts.drops.add(news.at, [drops]);
  store.charted.value += 1;
  noteFrame(news.frame);
}

/** @param {{tile: number, from: number, to: number, ms: number}} gap */
function gapEnded(gap) {
  const tile = store.wall.value.tiles[gap.tile];
  if (!tile) return;
  const lost = Math.max(0, gap.to - gap.from - 1);
  const seen = { from: gap.from, to: gap.to, ms: gap.ms, lost, atMs: performance.now() };
  store.wall.value = replaced(store.wall.value, gap.tile, withGap(tile, seen));
}

/** @param {number} index */
export function cut(index, fadeMs = 0) {
  if (!store.wall.value.tiles[index]) return;
  const isStill = matchMedia("(prefers-reduced-motion: reduce)").matches;
  show({ a: index, b: null, mix: 0, fade_ms: isStill ? 0 : fadeMs });
  tell(fadeMs ? `Tile ${index + 1} fades to program` : `Tile ${index + 1} is on program`);
}

/** @param {number} a @param {number} b @param {number} mix */
export function mixTiles(a, b, mix) {
  show({ a, b, mix, fade_ms: 0 });
}

/** @param {import("./state/layout.js").View} view */
export function look(view) {
  store.view.value = view;
}

export function togglePause() {
  store.paused.value = !store.paused.value;
  order("pause", { paused: store.paused.value });
  tell(store.paused.value ? "Paused" : "Goes on");
}

/** @param {string} span */
export function kill(span) {
  store.killed.value = { span, atMs: performance.now(), frame: store.beat.value?.tiles[store.focus.value]?.frame ?? null };
  store.wall.value = interrupted(store.wall.value, "killed", performance.now());
  say({ type: "kill", span });
  tell(`A replica of ${spanWord(span)} is killed`, true);
}

/** @param {string} id @param {"look" | "fetch" | "cancel" | "use"} action */
export function useModel(id, action) {
  if (action === "use") store.wall.value = goingTo(store.wall.value, id);
  say({ type: "model", id, action });
}

/** @param {string} key */
export function readComplaint(key) {
  store.wall.value = { ...store.wall.value, complaints: read(store.wall.value.complaints, key) };
}

/** @param {string} token */
export function useToken(token) {
  sessionStorage.setItem("token", token);
  store.sheet.value = null;
  order("token", { token });
}

export function reconnectNow() {
  order("reconnect");
}
