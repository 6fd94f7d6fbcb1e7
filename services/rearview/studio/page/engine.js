// The page's end of the worker: orders go down, news comes up.

/** @type {Worker | null} */
let worker = null;
/** @type {Set<(news: any) => void>} */
const listeners = new Set();

/** Starts the worker. The page has one. */
export function startEngine() {
  worker = new Worker(new URL("./worker/main.js", import.meta.url), { type: "module" });
  worker.onmessage = ({ data }) => listeners.forEach((listener) => listener(data));
  document.addEventListener("visibilitychange", sayVisible);
  sayVisible();
}

function sayVisible() {
  order("visible", { visible: document.visibilityState === "visible" });
}

/** @param {string} what @param {Record<string, unknown>} [about] @param {Transferable[]} [transfer] */
export function order(what, about = {}, transfer = []) {
  worker?.postMessage({ do: what, ...about }, transfer);
}

/** A JSON message for the gateway. @param {Record<string, unknown>} message */
export function say(message) {
  order("say", { message });
}

/** @param {(news: any) => void} listener */
export function listen(listener) {
  listeners.add(listener);
  return () => listeners.delete(listener);
}

/**
 * Lends a canvas to the worker for good, and keeps its size in device pixels. Returns what stops watching it.
 * @param {HTMLCanvasElement} canvas
 * @param {string} name
 */
export function lend(canvas, name) {
  const offscreen = canvas.transferControlToOffscreen();
  order("lend", { name, canvas: offscreen }, [offscreen]);
  const watch = new ResizeObserver(([entry]) => {
    const scale = Math.min(2, devicePixelRatio);
    const { width, height } = entry.contentRect;
    if (width < 2 || height < 2) return;
    order("resize", { name, width: Math.round(width * scale), height: Math.round(height * scale) });
  });
  watch.observe(canvas);
  return () => watch.disconnect();
}
