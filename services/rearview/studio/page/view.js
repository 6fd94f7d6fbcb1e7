// The clean feed: the program of a wall, read-only, edge to edge.
import { lend, listen, order, startEngine } from "./engine.js";
import { complaint } from "./state/words.js";
import { viewerWords } from "./state/viewing.js";

const canvas = /** @type {HTMLCanvasElement} */ (document.getElementById("feed"));
const words = /** @type {HTMLElement} */ (document.getElementById("words"));

/** @type {import("./state/viewing.js").Seen} */
let seen = { link: "connecting", isOver: false, refused: "", silentMs: null, pauseAfterMs: 0 };

/** @param {Partial<import("./state/viewing.js").Seen>} change */
function write(change) {
  seen = { ...seen, ...change };
  const said = viewerWords(seen);
  if (said !== words.textContent) words.textContent = said;
}

/** A socket that is refused does not say why; the page of the program does. */
async function askIfOver() {
  const answer = await fetch(location.href, { cache: "no-store" }).catch(() => null);
  if (answer?.status !== 404) return;
  order("bye");
  write({ isOver: true });
}

startEngine();
listen((news) => {
  if (news.is === "link") {
    // Trying again is no news.
    write({ link: news.state === "connecting" && news.attempt > 0 ? "waiting" : news.state, ...(news.state === "open" && { refused: "" }) });
    if (news.state === "waiting") askIfOver();
  }
  if (news.is === "said" && news.message.type === "error") write({ refused: complaint(news.message.reason, news.message.message).help });
  if (news.is === "beat") {
    const tiles = Object.values(/** @type {Record<string, any>} */ (news.tiles));
    canvas.dataset.frame = String(Math.max(0, ...tiles.map((one) => one.frame ?? 0)));
    // The program's tiles alone send pictures: the newest one counts.
    const newest = tiles.sort((a, b) => a.silentMs - b.silentMs)[0];
    write({ silentMs: newest?.silentMs ?? null, pauseAfterMs: newest?.pauseAfterMs ?? 0 });
  }
});
lend(canvas, "stage");
order("look", { view: "program", split: 0, tile: 0 });
order("connect", { url: `${location.href.replace(/^http/, "ws").replace(/[?#].*/, "")}/feed`, viewer: true });

const full = () => (document.fullscreenElement ? document.exitFullscreen() : document.documentElement.requestFullscreen());
canvas.addEventListener("dblclick", full);
addEventListener("keydown", (event) => {
  if (event.key === "f" || event.key === "Enter") full();
});
let quiet = 0;
function wake() {
  document.body.dataset.awake = "yes";
  clearTimeout(quiet);
  quiet = setTimeout(() => delete document.body.dataset.awake, 2500);
}
addEventListener("pointermove", wake);
wake();
/** @type {HTMLElement} */ (document.getElementById("full")).addEventListener("click", full);
