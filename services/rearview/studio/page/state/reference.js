// A reference image whose face, style or look the pictures follow, as small as the service takes it. No I/O.

/** @typedef {{base64: string}} ImageFile */

/** Pixels a side of the square that image encoders see. */
export const SIDE = 224;
/** JPEG qualities to try, the best first. */
export const QUALITIES = [0.95, 0.9, 0.8, 0.65, 0.5];
/** Characters of it that a control has room for. */
export const MOST = 48_000;

/**
 * The square in a picture's middle, in its pixels.
 * @param {number} width
 * @param {number} height
 * @returns {{x: number, y: number, side: number}}
 */
export function middle(width, height) {
  const side = Math.min(width, height);
  return { x: Math.floor((width - side) / 2), y: Math.floor((height - side) / 2), side };
}

/** @param {Uint8Array} bytes @returns {string} */
export function base64Of(bytes) {
  let text = "";
  for (let at = 0; at < bytes.length; at += 0x8000) text += String.fromCharCode(...bytes.subarray(at, at + 0x8000));
  return btoa(text);
}

/**
 * What shows it; null: there is none.
 * @param {{reference?: ImageFile}} settings
 * @returns {string | null}
 */
export function shown(settings) {
  const text = settings.reference?.base64 ?? "";
  if (text === "") return null;
  return `data:image/${text.startsWith("iVBOR") ? "png" : "jpeg"};base64,${text}`;
}

/**
 * The change of settings that has this picture followed. One that is turned off is turned on again with it.
 * @param {{reference_scale?: number}} settings
 * @param {string} base64
 * @returns {{reference: ImageFile, reference_scale?: number}}
 */
export function followed(settings, base64) {
  const change = { reference: { base64 } };
  return settings.reference_scale === 0 ? { ...change, reference_scale: 1 } : change;
}

/** The change that ends it. @returns {{reference: ImageFile}} */
export function unfollowed() {
  return { reference: { base64: "" } };
}
