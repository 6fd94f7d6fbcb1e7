// What the gateway complains of, until it is over or somebody has read it. No I/O.
import { complaint } from "./words.js";

/**
 * @typedef {{key: string, about: "hello" | "wall" | "model" | "control" | "tile" | "trouble", tile: number | null, title: string, help: string}} Complaint
 * One key stands once: what is said again takes the place of what was said before.
 */

const MOST = 4;

/**
 * What stands after one of the gateway's messages. `message.atHello`: an error that answers `hello`, so there is no wall.
 * @param {Complaint[]} standing
 * @param {any} message
 * @returns {Complaint[]}
 */
export function complaintsAfter(standing, message) {
  const { type, tile } = message;
  switch (type) {
    case "error": {
      const about = message.atHello ? "hello" : "wall";
      return stated(standing, about, about === "hello" ? "" : `${message.reason} ${message.message}`, message);
    }
    case "welcome":
      return without(standing, (one) => one.about === "hello");
    // Another model: what was said of the one before is over.
    case "serving":
      return without(standing, (one) => one.about === "wall");
    case "model":
      return message.state === "failed" ? stated(standing, "model", message.id, message) : over(standing, "model", message.id);
    case "applied":
      return message.rejected ? stated(standing, "control", tile, { ...message.rejected, tile }) : over(standing, "control", tile);
    // Of this page and of its controllers: in words of their own.
    case "trouble":
      return entered(standing, { key: `trouble ${message.about}`, about: "trouble", tile: null, title: message.title, help: message.help });
    case "state": {
      const isBad = message.state === "refused" || (message.state === "ended" && message.reason !== "IDLE");
      return isBad ? stated(standing, "tile", tile, message) : over(standing, "tile", tile);
    }
    case "opened":
      return over(standing, "tile", tile);
    default:
      return standing;
  }
}

/** A tile is closed, or opened anew. @param {Complaint[]} standing @param {number} index */
export function withoutTileComplaints(standing, index) {
  return without(standing, (one) => one.tile === index);
}

/** Somebody has read it. @param {Complaint[]} standing @param {string} key */
export function read(standing, key) {
  return without(standing, (one) => one.key === key);
}

/**
 * Those that nothing else on the page says: the overlay speaks for the tile in focus and for a connection without a wall,
 * the look's panel for its controls.
 * @param {Complaint[]} standing
 * @param {{focus: number, panel: string, isBare: boolean}} page
 */
export function unsaid(standing, { focus, panel, isBare }) {
  if (isBare) return standing;
  return standing.filter(({ about, tile }) => {
    if (about === "hello") return false;
    if (about === "tile") return tile !== focus;
    return about !== "control" || tile !== focus || panel !== "look";
  });
}

/** @param {Complaint[]} standing @param {Complaint["about"]} about @param {string | number} which @param {any} said @returns {Complaint[]} */
function stated(standing, about, which, said) {
  const key = `${about} ${which}`;
  const { title, help } = complaint(said.reason, said.message);
  const tile = typeof said.tile === "number" ? said.tile : null;
  return entered(standing, { key, about, tile, title: tile === null ? title : `Tile ${tile + 1}: ${title}`, help });
}

/** @param {Complaint[]} standing @param {Complaint} complaint @returns {Complaint[]} */
function entered(standing, complaint) {
  return [...read(standing, complaint.key), complaint].slice(-MOST);
}

/** The same array if there is none of them. @param {Complaint[]} standing @param {(one: Complaint) => boolean} isOver */
function without(standing, isOver) {
  return standing.some(isOver) ? standing.filter((one) => !isOver(one)) : standing;
}

/** @param {Complaint[]} standing @param {Complaint["about"]} about @param {string | number} which */
function over(standing, about, which) {
  return read(standing, `${about} ${which}`);
}
