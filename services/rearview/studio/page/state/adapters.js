// Adapter sets of a session (LoRAs), each at a weight of its own. No I/O.

/** @typedef {{adapters: string, weight: number}} WeightedSet */

/**
 * How much of each set there is, by name; sets that are not there are left out.
 * @param {{adapters?: string, adapter_mix?: WeightedSet[]}} settings
 * @returns {Record<string, number>}
 */
export function weightsOf(settings) {
  if (settings.adapter_mix && settings.adapter_mix.length > 0) {
    return Object.fromEntries(settings.adapter_mix.map((one) => [one.adapters, one.weight]));
  }
  return settings.adapters ? { [settings.adapters]: 1 } : {};
}

/**
 * The change of settings that sets `name` to `weight`; at 0 it goes.
 * @param {{adapters?: string, adapter_mix?: WeightedSet[]}} settings
 * @param {string} name
 * @param {number} weight
 * @returns {{adapters: string} | {adapter_mix: WeightedSet[]}}
 */
export function changeOf(settings, name, weight) {
  const weights = Object.entries({ ...weightsOf(settings), [name]: weight }).filter(([, each]) => each !== 0);
  if (weights.length === 0) return { adapters: "" };
  return { adapter_mix: weights.map(([adapters, each]) => ({ adapters, weight: each })) };
}
