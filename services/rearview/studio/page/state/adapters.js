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

/** Sets at a time. */
const MOST = 4;

/**
 * The change of settings that sets `name` to `weight`; at 0 it goes. So does the first of too many, and a
 * merged set, which goes with no other.
 * @param {{adapters?: string, adapter_mix?: WeightedSet[]}} settings
 * @param {string} name
 * @param {number} weight
 * @param {string[]} merged names of the merged sets
 * @returns {{adapters: string} | {adapter_mix: WeightedSet[]}}
 */
export function changeOf(settings, name, weight, merged = []) {
  const { [name]: _, ...others } = weightsOf(settings);
  const kept = Object.entries(others).filter(([each]) => !merged.includes(each));
  const weights = [...kept, /** @type {[string, number]} */ ([name, weight])].filter(([, each]) => each !== 0).slice(-MOST);
  if (weights.length === 0) return { adapters: "" };
  return { adapter_mix: weights.map(([adapters, each]) => ({ adapters, weight: each })) };
}
