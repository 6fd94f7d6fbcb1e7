// ControlNets that hold a session's pictures to the frame's shape, each at a weight. No I/O.

/** @typedef {{name: string, weight: number}} WeightedControl */

/** How much of each there is, by name. @param {WeightedControl[] | undefined} controls @returns {Record<string, number>} */
export function heldBy(controls) {
  return Object.fromEntries((controls ?? []).map((one) => [one.name, one.weight]));
}

/**
 * All of them after `name` was turned to `weight`; at 0 it goes.
 * @param {WeightedControl[] | undefined} controls
 * @param {string} name
 * @param {number} weight
 * @returns {WeightedControl[]}
 */
export function turned(controls, name, weight) {
  const held = Object.entries({ ...heldBy(controls), [name]: weight }).filter(([, each]) => each > 0);
  return held.map(([each, value]) => ({ name: each, weight: value }));
}
