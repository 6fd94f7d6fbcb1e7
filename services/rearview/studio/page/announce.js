// What a screen reader hears: changes of state, never numbers that run.
import { complaint, explain } from "./state/words.js";
import { announced } from "./store.js";

/** @param {string} text */
export function tell(text, isUrgent = false) {
  announced.value = { text, isUrgent };
}

/** @type {Record<string, string>} */
const LINKS = { connecting: "Connecting", open: "Connected", waiting: "The connection is lost; the studio connects again" };
/** @type {Record<string, string>} */
const TILES = { opening: "opens", queued: "waits in the queue", live: "is live", reconnecting: "reconnects", ended: "has ended" };

let lastLink = "";

/**
 * @param {"link" | "message"} kind
 * @param {any} news
 * @param {import("./state/tile.js").Tile} [before]
 */
export function announceChange(kind, news, before) {
  if (kind === "link") {
    if (news === lastLink || (news === "connecting" && lastLink === "waiting")) return;
    lastLink = news;
    return tell(LINKS[news], news === "waiting");
  }
  if (news.type === "state" && news.state !== before?.state) {
    const name = `Tile ${news.tile + 1}`;
    if (news.state === "refused") return tell(`${name} is refused: ${explain(news.reason, news.message).title}`, true);
    return tell(`${name} ${TILES[news.state] ?? news.state}`, news.state === "reconnecting");
  }
  if (news.type === "opened" && before?.state !== "live") return tell(`Tile ${news.tile + 1} is live`);
  if (news.type === "applied" && news.rejected) return tell(explain(news.rejected.reason, news.rejected.message).title, true);
  if (news.type === "error" || (news.type === "model" && news.state === "failed")) {
    const { title, help } = complaint(news.reason, news.message);
    return tell(`${title}. ${help}`, true);
  }
  if (news.type === "trouble") return tell(`${news.title}. ${news.help}`, true);
  if (news.type === "notice" && news.message) return tell(news.message);
  return undefined;
}
