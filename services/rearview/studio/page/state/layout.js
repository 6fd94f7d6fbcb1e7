// Geometry: the size of a session, the part of a source that fills it, and where pictures stand. No DOM.

/** @typedef {{x: number, y: number, width: number, height: number}} Rect */
/** @typedef {{width: number, height: number}} Size */

/**
 * The size of a session for a source: its aspect as near as the model's grid allows, no more pixels than the
 * model's own size has, and no side under half of the model's.
 * @param {Size} source
 * @param {Size & {multiple: number}} model
 * @returns {Size}
 */
export function sessionSize(source, model) {
  const most = model.width * model.height;
  const grid = model.multiple;
  const aspect = clamp(source.width / source.height, 0.4, 2.5);
  let best = { width: model.width, height: model.height };
  let bestCost = Infinity;
  for (let width = grid; width <= most / grid; width += grid) {
    const height = Math.round(width / aspect / grid) * grid;
    for (const tall of [height, height - grid]) {
      if (tall < grid || width * tall > most) continue;
      const skew = Math.abs(Math.log(width / tall / aspect));
      const loss = Math.log(most / (width * tall));
      const cost = 3 * skew + loss;
      if (cost < bestCost) {
        bestCost = cost;
        best = { width, height: tall };
      }
    }
  }
  return best;
}

/**
 * The middle part of a source that has the target's aspect.
 * @param {Size} source
 * @param {Size} target
 * @returns {Rect}
 */
export function cover(source, target) {
  const scale = Math.min(source.width / target.width, source.height / target.height);
  const width = target.width * scale;
  const height = target.height * scale;
  return { x: (source.width - width) / 2, y: (source.height - height) / 2, width, height };
}

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

/** @param {number} value @param {number} low @param {number} high */
export function clamp(value, low, high) {
  return Math.min(high, Math.max(low, value));
}
