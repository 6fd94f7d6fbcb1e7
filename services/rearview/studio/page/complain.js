// What the page itself has to complain of.
import { tell } from "./announce.js";
import { after } from "./state/wall.js";
import * as store from "./store.js";

/** Shown where everybody sees it, until it is read. @param {string} about @param {string} title @param {string} help */
export function complain(about, title, help) {
  store.wall.value = after(store.wall.value, { type: "trouble", about, title, help }, performance.now());
  tell(`${title}. ${help}`, true);
}
