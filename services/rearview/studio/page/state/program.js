// What viewers see: a tile, two mixed by hand, or a fade under way. No clock: `nowMs` is given.

/** @typedef {{tile: number, weight: number}} Share */
/** @typedef {{from: Share[], to: Share[], startMs: number, fadeMs: number}} Program */
/**
 * @typedef {{a: number | null, b?: number | null, mix: number}} Mixed
 * @typedef {Mixed & {fade_ms?: number, start?: Mixed | null}} ProgramMessage
 */

/** Nothing is shown yet. @returns {Program} */
export function noTile() {
  return { from: [], to: [], startMs: 0, fadeMs: 0 };
}

/** @returns {Program} */
export function onlyTile(/** @type {number} */ tile) {
  const to = [{ tile, weight: 1 }];
  return { from: to, to, startMs: 0, fadeMs: 0 };
}

/** @param {Mixed} mixed @returns {Share[]} */
function sharesOf({ a, b, mix }) {
  if (a === null) return [];
  if (b === null || b === undefined || b === a || mix <= 0) return [{ tile: a, weight: 1 }];
  if (mix >= 1) return [{ tile: b, weight: 1 }];
  return [
    { tile: a, weight: 1 - mix },
    { tile: b, weight: mix },
  ];
}

/**
 * The program after a message: a fade goes from `start`, else from what is seen at that moment.
 * @param {Program} program
 * @param {ProgramMessage} message
 * @param {number} nowMs
 * @returns {Program}
 */
export function cutTo(program, message, nowMs) {
  const from = message.start ? sharesOf(message.start) : sharesAt(program, nowMs);
  return { from, to: sharesOf(message), startMs: nowMs, fadeMs: message.fade_ms || 0 };
}

/** How much of a fade is done, 0 to 1. @param {Program} program @param {number} nowMs */
export function fadeDone(program, nowMs) {
  if (program.fadeMs <= 0) return 1;
  return Math.min(1, Math.max(0, (nowMs - program.startMs) / program.fadeMs));
}

/**
 * The tiles on program with weights that sum to 1, the heaviest last change first.
 * @param {Program} program
 * @param {number} nowMs
 * @returns {Share[]}
 */
export function sharesAt(program, nowMs) {
  const done = fadeDone(program, nowMs);
  if (done >= 1) return program.to;
  /** @type {Map<number, number>} */
  const weights = new Map();
  for (const { tile, weight } of program.from) weights.set(tile, (1 - done) * weight);
  for (const { tile, weight } of program.to) weights.set(tile, (weights.get(tile) ?? 0) + done * weight);
  return [...weights].filter(([, weight]) => weight > 0.002).map(([tile, weight]) => ({ tile, weight }));
}

/**
 * Opacities that draw the shares one over the other: the first is opaque.
 * @param {Share[]} shares
 * @returns {{tile: number, alpha: number}[]}
 */
export function layers(shares) {
  let below = 0;
  return shares.map(({ tile, weight }) => {
    below += weight;
    return { tile, alpha: weight / below };
  });
}
