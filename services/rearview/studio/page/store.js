// What the page shows, as signals. Changed by `actions.js` alone.
import { computed, effect, signal } from "./vendor/signals.js";
import { Series } from "./state/series.js";
import { unsaid } from "./state/complaints.js";
import { noPresets } from "./state/presets.js";
import { meant } from "./state/tile.js";
import { allModels, indices, newWall } from "./state/wall.js";

/** What `/api/info` says; null until it answers. @type {import("./vendor/signals.js").Signal<any>} */
export const info = signal(null);
/** @type {import("./vendor/signals.js").Signal<{attempt: number, seconds: number, state: string, message: string} | null>} */
export const starting = signal({ attempt: 0, seconds: 0, state: "starting", message: "" });
/** @type {import("./vendor/signals.js").Signal<{state: "connecting" | "open" | "waiting", attempt: number, retryMs: number}>} */
export const link = signal({ state: "connecting", attempt: 0, retryMs: 0 });
/** @type {import("./vendor/signals.js").Signal<import("./state/wall.js").Wall>} */
export const wall = signal(newWall());
/** The tile that the controls are for. @type {import("./vendor/signals.js").Signal<number>} */
export const focus = signal(0);
/** @type {import("./vendor/signals.js").Signal<import("./state/layout.js").View>} */
export const view = signal("split");
export const split = signal(0.5);
/** @type {import("./vendor/signals.js").Signal<"look" | "motion" | "presets" | "mixer" | "take" | "health">} */
export const panel = signal("look");
/** @type {import("./vendor/signals.js").Signal<null | "help" | "models" | "share" | "token">} */
export const sheet = signal(null);
/** @type {import("./vendor/signals.js").Signal<"auto" | "dark" | "light">} */
export const theme = signal("auto");

/**
 * @typedef {{state: "none" | "starting" | "live" | "ended" | "failed", kind: import("./state/sources.js").SourceKind | null,
 *   trouble: import("./state/sources.js").Trouble | null, name: string, width: number, height: number, deviceId: string | null}} SourceState
 */
/** @type {import("./vendor/signals.js").Signal<SourceState>} */
export const source = signal({ state: "none", kind: null, trouble: null, name: "", width: 0, height: 0, deviceId: null });
/** @type {import("./vendor/signals.js").Signal<{id: string, name: string}[]>} */
export const cameras = signal([]);
export const paused = signal(false);
/** @type {import("./vendor/signals.js").Signal<{rate: number, quality: number}>} */
export const taking = signal({ rate: 30, quality: 0.85 });

/** The worker's numbers, twice a second. @type {import("./vendor/signals.js").Signal<any>} */
export const beat = signal(null);
/** Grows when the charts have new numbers. */
export const charted = signal(0);
export const charts = { rate: new Series(3), latency: new Series(2), drops: new Series(1) };

/** @type {import("./vendor/signals.js").Signal<{sinceMs: number, stop: () => void} | null>} */
export const recording = signal(null);
/** @type {import("./vendor/signals.js").Signal<{tile: number, take: import("./state/score.js").Take, sinceMs: number} | null>} */
export const taken = signal(null);
/** A finished or loaded take; `clipS`: how long the clip was that it was played to in a loop. @type {import("./vendor/signals.js").Signal<{name: string, score: import("./state/score.js").Score, frames: number, clipS: number | null} | null>} */
export const score = signal(null);
/** @type {import("./vendor/signals.js").Signal<{tile: number, first: number} | null>} */
export const replaying = signal(null);
/** @type {import("./vendor/signals.js").Signal<{span: string, atMs: number, frame: number | null} | null>} */
export const killed = signal(null);
/** @type {import("./vendor/signals.js").Signal<{text: string, isUrgent: boolean}>} */
export const announced = signal({ text: "", isUrgent: false });
export const fadeMs = signal(600);
/** @type {import("./vendor/signals.js").Signal<import("./state/presets.js").Presets>} */
export const presets = signal(noPresets());
/** The place among them that was used last, from 0. */
export const pad = signal(0);
/** Which key of a MIDI controller turns what. @type {import("./vendor/signals.js").Signal<import("./state/midi.js").Mapping>} */
export const mapping = signal({});
/** @type {import("./vendor/signals.js").Signal<{state: "off" | "on" | "refused", names: string[], why: string}>} */
export const midi = signal({ state: "off", names: [], why: "" });
/** While controllers are taught: what the next one is to turn, once that was touched. @type {import("./vendor/signals.js").Signal<{target: string | null} | null>} */
export const learning = signal(null);

export const tile = computed(() => wall.value.tiles[focus.value] ?? null);
export const tiles = computed(() => indices(wall.value));
/** Nothing was started yet. */
export const isBare = computed(() => tiles.value.length === 0 && source.value.state !== "live");
/** What is shown of the gateway's complaints. */
export const complaints = computed(() => unsaid(wall.value.complaints, { focus: focus.value, panel: panel.value, isBare: isBare.value }));
/** The gateway's answer to `hello`, where it gave no wall. */
export const noWall = computed(() => wall.value.complaints.find((one) => one.about === "hello") ?? null);
/** The look that the first tile opens with; empty: the model's first style. */
export const firstLook = signal("");
export const model = computed(() => info.value?.model ?? null);
/** The model that the gateway stands before, whatever is in use now. */
const own = signal({ id: "", title: "" });
effect(() => {
  const { model: now, serving = "" } = info.value ?? {};
  if (now && serving === "") own.value = { id: now.name, title: now.title ?? now.name };
});
export const models = computed(() => (own.value.id ? allModels(wall.value, own.value, info.value?.serving ?? "") : []));
/** The focused tile's settings, as the user means them. */
export const settings = computed(() => (tile.value ? meant(tile.value) : {}));
export const phrases = computed(() =>
  model.value && !model.value.takes_any_prompt ? model.value.styles.flatMap((/** @type {any} */ one) => [one.prompt, ...(one.phrases ?? [])]) : [],
);
