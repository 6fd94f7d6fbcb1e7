// Geometry: the size of a session, and the part of a source that fills it. No DOM.

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

/** @param {number} value @param {number} low @param {number} high */
export function clamp(value, low, high) {
  return Math.min(high, Math.max(low, value));
}
