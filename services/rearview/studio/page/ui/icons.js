// Line icons, 20 x 20, drawn with the text's colour.
import { html } from "../html.js";

/** @type {Record<string, string>} */
const PATHS = {
  camera: "M3 6.5h2.8l1.2-2h6l1.2 2H17a1 1 0 0 1 1 1V15a1 1 0 0 1-1 1H3a1 1 0 0 1-1-1V7.500a1 1 0 0 1 1-1zM10 8a3 3 0 1 0 0 6 3 3 0 0 0 0-6z",
  screen: "M2.500 4h15v9.500h-15zM7 17h6M10 13.500V17",
  file: "M5 2.500h6.500L15.500 6.500v11h-10.500zM11 2.500V7h4.500",
  sample: "M3 4h14v12H3zM8.300 7.300v5.400l4.400-2.700z",
  record: "M10 4.500a5.500 5.500 0 1 0 0 11 5.500 5.500 0 0 0 0-11z",
  stop: "M5.500 5.500h9v9h-9z",
  snapshot: "M4 7V4h3M13 4h3v3M16 13v3h-3M7 16H4v-3M10 7.500a2.500 2.500 0 1 0 0 5 2.500 2.500 0 0 0 0-5z",
  window: "M11.500 3H17v5.500M17 3l-6.500 6.500M8 4H4.500A1.500 1.500 0 0 0 3 5.500v10A1.500 1.500 0 0 0 4.500 17h10a1.500 1.500 0 0 0 1.500-1.500V12",
  full: "M3 7.500V3h4.500M12.500 3H17v4.500M17 12.500V17h-4.500M7.500 17H3v-4.500",
  share: "M3 3h5v5H3zM12 3h5v5h-5zM3 12h5v5H3zM12 12h2v2h-2zM15.500 15.500h1.500V17h-1.500M12 17h1M16 12h1",
  moon: "M16.500 12A7 7 0 0 1 8 3.500 7 7 0 1 0 16.500 12z",
  sun: "M10 6.500a3.500 3.500 0 1 0 0 7 3.500 3.500 0 0 0 0-7zM10 1.500v2M10 16.500v2M1.500 10h2M16.500 10h2M4 4l1.400 1.400M14.600 14.600 16 16M16 4l-1.400 1.400M5.400 14.600 4 16",
  auto: "M10 2.500a7.500 7.500 0 1 0 0 15 7.500 7.500 0 0 0 0-15zM10 2.500v15",
  help: "M7.300 7.400A2.700 2.700 0 0 1 10 5c1.600 0 2.700 1 2.700 2.400 0 2-2.700 2.200-2.700 4.200M10 14.600v.4",
  plus: "M10 4v12M4 10h12",
  close: "M5 5l10 10M15 5 5 15",
  pause: "M6.500 4.500v11M13.500 4.500v11",
  play: "M6 4v12l10-6z",
  dice: "M4 4h12v12H4zM7.500 7.500h.01M12.500 12.500h.01M10 10h.01",
  download: "M10 3v10M6 9.500l4 4 4-4M4 17h12",
  upload: "M10 13.500V3.500M6 7l4-4 4 4M4 17h12",
  bolt: "M11 2 4.500 11.500H9L8 18l7-10h-4.500z",
  copy: "M7 7h9.500v9.500H7zM13 7V3.500H3.500V13H7",
  model: "M10 2.500 17 6.300v7.400l-7 3.800-7-3.800V6.300zM3 6.300l7 3.800 7-3.800M10 10.100v7.400",
  check: "M4 10.500l4 4 8-9",
  more: "M5 10h.01M10 10h.01M15 10h.01",
};

/** @param {{name: string, filled?: boolean}} props */
export function Icon({ name, filled }) {
  return html`<svg class="icon" viewBox="0 0 20 20" aria-hidden="true" data-filled=${filled || null}><path d=${PATHS[name]} /></svg>`;
}
