// Light, dark, or as the system says. Kept in this browser.
import { theme } from "./store.js";

/** @type {("auto" | "dark" | "light")[]} */
const THEMES = ["auto", "dark", "light"];

export function readTheme() {
  const kept = localStorage.getItem("theme");
  setTheme(THEMES.find((one) => one === kept) ?? "auto");
}

/** @param {"auto" | "dark" | "light"} next */
export function setTheme(next) {
  theme.value = next;
  localStorage.setItem("theme", next);
  if (next === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = next;
}

export function nextTheme() {
  setTheme(THEMES[(THEMES.indexOf(theme.value) + 1) % THEMES.length]);
}
