// What a viewer of the program is told, when the picture is not simply live. No DOM.

const STILL_MS = 4000;

/**
 * @typedef {{link: "connecting" | "open" | "waiting", isOver: boolean, refused: string, silentMs: number | null, pauseAfterMs: number}} Seen
 * `refused`: why the gateway shows nothing, in its words. `isOver`: the studio knows the link no more. `silentMs`: since the last picture; null: there was none.
 */

/** Empty while pictures come. A screen reader hears it: no number in it runs. @param {Seen} seen */
export function viewerWords({ link, isOver, refused, silentMs, pauseAfterMs }) {
  if (isOver) return "This program is over. Ask for a new link.";
  if (refused && link !== "open") return `${refused} Trying again\u2026`;
  if (link === "waiting") return "The studio has ended, or cannot be reached. Trying again\u2026";
  if (link === "connecting") return "Connecting\u2026";
  if (silentMs === null) return "Waiting for the program\u2026";
  if (silentMs > Math.max(STILL_MS, pauseAfterMs)) return "The picture stands still: the studio is paused, or its page was closed.";
  return "";
}
