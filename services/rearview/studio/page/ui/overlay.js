// What is said over the picture: where to start, and each state that is not simply "live".
import { html } from "../html.js";
import { useEffect, useState } from "../vendor/hooks.js";
import { reconnectNow } from "../actions.js";
import { begin } from "../begin.js";
import { PAUSE_MS, isExpected } from "../state/gaps.js";
import { causeWord, clockWord, continuityWord, countWord, explain, manyWord, msWord } from "../state/words.js";
import { reopening } from "../state/tile.js";
import * as store from "../store.js";
import { openTile } from "../tiles.js";
import { Button } from "./parts.js";
import { Icon } from "./icons.js";

const NOTICE_MS = 8000;
const FIGURE_AFTER_S = 3;
const LONG_START_S = 12;

/** @type {{kind: import("../state/sources.js").SourceKind, name: string, help: string}[]} */
export const SOURCES = [
  { kind: "camera", name: "Camera", help: "You, live" },
  { kind: "screen", name: "Screen", help: "A window or a tab" },
  { kind: "file", name: "File", help: "A video of yours" },
  { kind: "sample", name: "Sample clip", help: "Nothing needed" },
];

/** The first thing that is seen. */
export function Welcome() {
  const { state, trouble, kind } = store.source.value;
  const isReady = store.model.value !== null;
  return html`<div class="welcome">
    <p class="eyebrow">rearview studio</p>
    <h1>Paint what moves.</h1>
    <p class="lead">Choose something to look at. It comes back as an oil painting, a pencil sketch, a neon sign, while it moves.</p>
    ${isReady ? html`<div class="sources">
        ${SOURCES.map((one) => html`<${SourceCard} ...${one} busy=${state === "starting" && kind === one.kind} />`)}
      </div>`
    : html`<${Starting} />`}
    ${trouble && html`<${Trouble} ...${trouble} />`}
    ${isReady && html`<${FirstLook} />`}
    <p class="fine">Pictures go to ${location.hostname} and nowhere else.</p>
  </div>`;
}

/** With which look it begins; everything can be changed while it runs. */
function FirstLook() {
  const styles = store.model.value?.styles ?? [];
  const chosen = store.firstLook.value || styles.find((/** @type {any} */ one) => !/natural/.test(one.name))?.prompt;
  if (styles.length === 0) return null;
  return html`<div class="first-look"><span id="first-look">Begin as</span>
    <div class="chips" role="group" aria-labelledby="first-look">${styles.map(
      (/** @type {any} */ style) => html`<button type="button" class="chip" key=${style.name} aria-pressed=${String(chosen === style.prompt)}
        onClick=${() => (store.firstLook.value = style.prompt)}>${style.name}</button>`,
    )}</div></div>`;
}

/** @param {{kind: import("../state/sources.js").SourceKind, name: string, help: string, busy: boolean}} props */
function SourceCard({ kind, name, help, busy }) {
  const inside = html`<${Icon} name=${kind} /><b>${busy ? "Starting…" : name}</b><span>${help}</span>`;
  if (kind !== "file") return html`<button type="button" class="source" data-first=${kind === "camera" || null} onClick=${() => begin(kind)}>${inside}</button>`;
  return html`<label class="source">${inside}<${FileInput} /></label>`;
}

export function FileInput() {
  const pick = (/** @type {any} */ event) => {
    const [file] = event.currentTarget.files;
    if (file) begin("file", { file });
    event.currentTarget.value = "";
  };
  return html`<input class="sr" type="file" accept="video/*" onChange=${pick} aria-label="Choose a video file" />`;
}

/** A service that does not answer. @param {string} message */
const nobody = (message) => ({ title: "Nobody answers", help: `${message}. The studio keeps trying.` });

/** The service's start. */
function Starting() {
  const starting = store.starting.value;
  if (starting?.state === "unreachable") return html`<${Trouble} ...${nobody(starting.message)} />`;
  if (starting?.state === "failed") return html`<${Trouble} title="The service did not start" help=${starting.message} />`;
  const seconds = starting?.seconds ?? 0;
  const message = starting?.message || (starting && starting.attempt > 2 ? "The service is starting" : "Looking for the service");
  return html`<div class="starting" role="status">
    <progress aria-label=${message}></progress>
    <p>${message}…${seconds >= FIGURE_AFTER_S && html`<span aria-hidden="true"> ${clockWord(seconds)}</span>`}</p>
    ${seconds >= LONG_START_S && html`<p class="hint">The first start on a machine takes longest, a minute or more. The next one is quicker.</p>`}
  </div>`;
}

/** @param {{title: string, help: string}} props */
export function Trouble({ title, help }) {
  return html`<div class="trouble"><b>${title}</b><p>${help}</p></div>`;
}

/** States of connection, source and tile. The worst one is shown, the picture stays below it. */
export function Overlay() {
  const [, tick] = useState(0);
  useEffect(() => {
    const timer = setInterval(() => tick((count) => count + 1), 500);
    return () => clearInterval(timer);
  }, []);
  const said = whatToSay();
  return html`${said && html`<div class="state" data-kind=${said.kind} data-corner=${said.corner || null}>
      ${said.busy && html`<span class="spinner" aria-hidden="true"></span>`}
      <div><b>${said.title}</b>${said.help && html`<p>${said.help}</p>`}
        ${said.actions && html`<div class="row">${said.actions}</div>`}</div>
    </div>`}
    <${Badges} />`;
}

/** @returns {{kind: string, title: string, help?: string, busy?: boolean, corner?: boolean, actions?: any} | null} */
function whatToSay() {
  const link = store.link.value;
  const source = store.source.value;
  const tile = store.tile.value;
  if (link.state === "waiting" || (link.state === "connecting" && link.attempt > 0)) {
    const actions = html`<${Button} icon="bolt" text="Try now" label="Try now" onClick=${reconnectNow} />`;
    const refusal = store.noWall.value;
    if (refusal) return { kind: "warn", title: refusal.title, busy: true, help: `${refusal.help} Trying again by itself.`, actions };
    const title = link.attempt > 3 ? "The service does not answer" : "Connection lost";
    return { kind: "warn", title, busy: true, help: `Trying again by itself (${link.attempt}). Your look is kept for a minute.`, actions };
  }
  const { service } = store.wall.value;
  if (service.state === "starting") return { kind: "calm", title: "The service is starting", busy: true, help: service.message || "This takes some seconds." };
  if (service.state === "unreachable") return { kind: "warn", busy: true, ...nobody(service.message) };
  if (service.state === "failed") return { kind: "bad", title: "The service did not start", help: service.message };
  if (tile?.state === "refused") {
    const { title, help } = explain(tile.reason, tile.message);
    const again = () => openTile(store.focus.value, reopening(tile));
    return { kind: "bad", title, help, actions: html`<${Button} icon="bolt" text="Try again" label="Try again" onClick=${again} />` };
  }
  if (tile?.state === "queued") {
    const wait = tile.retryMs ? ` Next look in ${msWord(tile.retryMs)}.` : "";
    return { kind: "warn", title: "In the queue", busy: true, help: `Every place is taken; the studio starts by itself.${wait}` };
  }
  if (tile?.state === "ended" && tile.reason !== "IDLE") {
    const { title, help } = explain(tile.reason, tile.message);
    const again = () => openTile(store.focus.value, reopening(tile));
    return { kind: "warn", title, help, actions: html`<${Button} icon="play" text="Go on" label="Go on" onClick=${again} />` };
  }
  if (source.state === "ended" || source.state === "failed" || source.state === "none") return noSource();
  if (source.trouble) return { kind: "bad", corner: true, ...source.trouble };
  if (!tile || tile.state === "opening") return { kind: "calm", title: "Opening the session", busy: true, corner: true };
  return pause(tile);
}

function noSource() {
  const { trouble, kind } = store.source.value;
  const actions = SOURCES.map((one) =>
    one.kind === "file"
      ? html`<label class="button"><${Icon} name="file" /><span>File</span><${FileInput} /></label>`
      : html`<${Button} icon=${one.kind} text=${one.name} label=${one.name} kind=${one.kind === kind ? "primary" : ""} onClick=${() => begin(one.kind)} />`,
  );
  return { kind: "warn", title: trouble?.title ?? "No source", help: trouble?.help ?? "Choose one to go on.", actions };
}

/** A live tile whose pictures stopped. @param {import("../state/tile.js").Tile} tile */
function pause(tile) {
  if (store.paused.value) return { kind: "calm", corner: true, title: "Paused", help: "Space goes on" };
  const mine = store.beat.value?.tiles[store.focus.value];
  const silentMs = mine?.silentMs ?? 0;
  const notice = tile.notice && performance.now() - tile.notice.atMs < NOTICE_MS ? tile.notice : null;
  if (tile.state === "reconnecting") {
    return { kind: "warn", corner: true, busy: true, title: "Reconnecting", help: silentMs > PAUSE_MS ? `no picture for ${msWord(silentMs)}` : tile.message };
  }
  if (/drain/i.test(notice?.kind ?? "")) {
    return { kind: "warn", corner: true, busy: true, title: "This service is being emptied", help: "Your stream moves to another place." };
  }
  const pauseAfterMs = isExpected(tile, performance.now()) ? PAUSE_MS : mine?.pauseAfterMs ?? Infinity;
  if (silentMs > pauseAfterMs && mine?.frame !== null) {
    return { kind: "warn", corner: true, busy: true, title: "A pause", help: `No picture for ${msWord(silentMs)}, since frame ${countWord(mine?.frame ?? 0)}.` };
  }
  const gap = tile.gaps.at(-1);
  if (gap && performance.now() - gap.atMs < NOTICE_MS) {
    const help = `${msWord(gap.ms)} between frame ${countWord(gap.from)} and ${countWord(gap.to)}: ${gap.lost} lost, ${causeWord(gap.cause)}. ${continuityWord(notice?.continuity)}`;
    return { kind: "good", corner: true, title: "It goes on", help };
  }
  if (notice && /mov/i.test(notice.kind)) return { kind: "good", corner: true, title: "Moved to another replica", help: continuityWord(notice.continuity) };
  if (tile.warmUpFrames > 1 && !mine) return { kind: "calm", corner: true, busy: true, title: `Warming up: ${manyWord(tile.warmUpFrames, "frame")}` };
  return null;
}

function Badges() {
  const recording = store.recording.value;
  const take = store.taken.value;
  return html`<div class="badges">
    ${recording && html`<span class="badge is-red">REC</span>`}
    ${take && html`<span class="badge is-amber">TAKE ${countWord(take.take.last - take.take.first)}</span>`}
    ${store.replaying.value && html`<span class="badge is-amber">REPLAY</span>`}
  </div>`;
}
