// Starting and changing the source. The first one opens the first tile.
import { order } from "./engine.js";
import * as media from "./media.js";
import { tell } from "./announce.js";
import { sessionSize } from "./client/size.js";
import { SAMPLE, cameraNames, whyNoCamera, whyNoFile, whyRefused } from "./state/sources.js";
import * as store from "./store.js";
import { openTile, reshape } from "./tiles.js";

/** @type {media.Source | null} */
export let source = null;

/**
 * @param {import("./state/sources.js").SourceKind} kind
 * @param {{deviceId?: string, file?: File}} [how]
 */
export async function begin(kind, how = {}) {
  const before = store.source.value;
  const where = { secure: isSecureContext, mediaDevices: Boolean(navigator.mediaDevices), host: location.host };
  const missing = kind === "camera" || kind === "screen" ? whyNoCamera(where) : null;
  if (missing) return fail(kind, missing, before);
  store.source.value = { ...before, state: before.state === "live" ? "live" : "starting", kind, trouble: null };
  let next;
  try {
    next = await open(kind, how);
  } catch (error) {
    const name = /** @type {Error} */ (error).name;
    const isClip = kind === "file" || kind === "sample";
    return fail(kind, isClip ? whyNoFile(how.file?.name ?? "the sample clip") : whyRefused(kind, name), before);
  }
  return use(next);
}

/** @param {import("./state/sources.js").SourceKind} kind @param {{deviceId?: string, file?: File}} how */
function open(kind, how) {
  const { rate } = store.taking.value;
  if (kind === "screen") return media.openScreen(ended);
  if (kind === "camera") return media.openCamera(how.deviceId, ended);
  if (kind === "sample") return media.openClip("sample", SAMPLE, SAMPLE, rate);
  const file = /** @type {File} */ (how.file);
  return media.openClip("file", URL.createObjectURL(file), file.name, rate);
}

/** One that is refused has left the old source alone. @param {media.Source} next */
async function use(next) {
  source?.stop();
  source = next;
  const { kind, name, width, height, deviceId } = next;
  store.source.value = { state: "live", kind, trouble: null, name, width, height, deviceId };
  const size = sizeFor(store.source.value);
  const isFirst = store.tiles.value.length === 0;
  if (isFirst) order("fit", { ...size });
  const isReshaped = reshape(size);
  next.start();
  sessionStorage.setItem("source", JSON.stringify({ kind, deviceId }));
  tell(`${name} is the source${isReshaped ? ": the picture takes its shape" : ""}`);
  if (isFirst) openFirst();
  if (kind === "camera") store.cameras.value = cameraNames(await media.listCameras());
}

/** The source has taken another shape by itself. @param {import("./state/layout.js").Size} shape */
export function reshaped({ width, height }) {
  const before = store.source.value;
  if (before.state !== "live" || (before.width === width && before.height === height)) return;
  store.source.value = { ...before, width, height };
  if (reshape(sizeFor(store.source.value))) tell(`${before.name} has another shape: the picture takes it`);
}

function openFirst() {
  const model = store.model.value;
  const style = model.styles.find((/** @type {any} */ one) => !/natural/.test(one.name));
  openTile(0, {
    ...sizeFor(store.source.value),
    frame_rate: store.taking.value.rate,
    drop_policy: "latest",
    method: model.default_method,
    max_steps: model.max_steps,
    settings: { prompt: store.firstLook.value || (style?.prompt ?? "oil painting"), strength: model.strength, steps: model.steps },
  });
}

/** The session's size for a source. @param {{width: number, height: number}} from */
export function sizeFor(from) {
  const model = store.model.value;
  if (from.width <= 0) return { width: model.width, height: model.height };
  // A grid that every method takes: a tile may change its method, and all tiles are of one size.
  return sessionSize(from, { ...model, multiple: model.motion_multiple || model.multiple });
}

/**
 * @param {import("./state/sources.js").SourceKind} kind
 * @param {import("./state/sources.js").Trouble} trouble
 * @param {import("./store.js").SourceState} before
 */
function fail(kind, trouble, before) {
  const isLive = before.state === "live" && source !== null;
  store.source.value = { ...before, state: isLive ? "live" : "failed", kind: isLive ? before.kind : kind, trouble };
  tell(`${trouble.title}. ${trouble.help}`, true);
}

/** The track ended by itself: unplugged, or no longer shared. */
function ended() {
  source?.stop();
  source = null;
  const before = store.source.value;
  const title = before.kind === "screen" ? "The screen is no longer shared" : "The camera is gone";
  const trouble = { title, help: "Choose a source to go on. The look is kept." };
  store.source.value = { ...before, state: "ended", trouble };
  tell(title, true);
}

/** After a reload: the source that may be opened without asking is. @param {boolean} isResumed */
export async function resumeSource(isResumed) {
  const kept = JSON.parse(sessionStorage.getItem("source") ?? "null");
  if (!isResumed || !kept) return undefined;
  if (kept.kind === "sample") return begin("sample");
  if (kept.kind === "camera" && (await media.mayUseCamera())) return begin("camera", { deviceId: kept.deviceId ?? undefined });
  const help = "Press it again: browsers ask anew after a reload. The look is kept.";
  store.source.value = { ...store.source.value, state: "ended", kind: kept.kind, trouble: { title: `Your ${kept.kind} has to be chosen again`, help } };
  return undefined;
}
