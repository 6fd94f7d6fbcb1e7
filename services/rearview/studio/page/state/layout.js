// Geometry: where pictures stand. No DOM.

/** @typedef {import("../client/size.js").Rect} Rect */
/** @typedef {import("../client/size.js").Size} Size */

/**
 * The largest rectangle of the picture's aspect within a box, in its middle.
 * @param {Size} picture
 * @param {Size} box
 * @returns {Rect}
 */
export function contain(picture, box) {
  const scale = Math.min(box.width / picture.width, box.height / picture.height);
  const width = Math.round(picture.width * scale);
  const height = Math.round(picture.height * scale);
  return { x: Math.round((box.width - width) / 2), y: Math.round((box.height - height) / 2), width, height };
}

/** @typedef {"split" | "side" | "picture" | "program" | "wall"} View */

/**
 * Where input and output stand in the stage; side by side turns on its side where the box is tall.
 * @param {View} view
 * @param {Size} picture
 * @param {Size} box
 * @returns {{input: Rect | null, output: Rect}}
 */
export function places(view, picture, box) {
  if (view !== "side") {
    const output = contain(picture, box);
    return { input: view === "split" ? output : null, output };
  }
  const gap = Math.round(Math.min(box.width, box.height) / 80);
  const across = contain({ width: picture.width * 2, height: picture.height }, { width: box.width - gap, height: box.height });
  const down = contain({ width: picture.width, height: picture.height * 2 }, { width: box.width, height: box.height - gap });
  if (across.width * across.height >= down.width * down.height) {
    const width = across.width / 2;
    const input = { x: across.x, y: across.y, width, height: across.height };
    return { input, output: { ...input, x: across.x + width + gap } };
  }
  const height = down.height / 2;
  const input = { x: down.x, y: down.y, width: down.width, height };
  return { input, output: { ...input, y: down.y + height + gap } };
}

/** Columns of a wall of `count` tiles. @param {number} count */
export function columns(count) {
  return Math.max(1, Math.ceil(Math.sqrt(count)));
}
