// The page: bar, stage, panels, sheets, and what a screen reader hears.
import { html } from "../html.js";
import { readComplaint } from "../actions.js";
import { toggleFull } from "../keys.js";
import { snapshot, toggleRecording } from "../keep.js";
import * as store from "../store.js";
import { nextTheme } from "../theme.js";
import { Learning } from "./controllers.js";
import { Health } from "./health.js";
import { Look } from "./look.js";
import { Mixer, openFeed } from "./mixer.js";
import { Motion } from "./motion.js";
import { Button } from "./parts.js";
import { Presets } from "./presets.js";
import { Sheets } from "./sheets.js";
import { Stage } from "./stage.js";
import { Take } from "./take.js";
import { Icon } from "./icons.js";

export function Studio() {
  return html`${!store.isBare.value && html`<a class="skip" href="#panel">Skip to the controls</a>`}
    <${Bar} />
    <${Complaints} />
    <div class="body" data-bare=${store.isBare.value || null}><${Stage} />${!store.isBare.value && html`<${Panels} />`}</div>
    <${Sheets} />
    <${Spoken} />`;
}

function Bar() {
  const model = store.model.value;
  const recording = store.recording.value;
  const hasPicture = store.tile.value !== null;
  return html`<header class="bar">
    <div class="brand"><span class="mark" aria-hidden="true"></span><b>rearview</b></div>
    <${Pill} />
    <div class="bar-space"></div>
    ${model && html`<button type="button" class="button quiet model-button" onClick=${() => (store.sheet.value = "models")} title="Models (M)">
      <${Icon} name="model" /><span>${model.title ?? model.name}</span></button>`}
    <div class="bar-tools">
      <${Button} icon="snapshot" label="Snapshot" shortcut="S" kind="quiet" disabled=${!hasPicture} onClick=${snapshot} />
      <${Button} icon=${recording ? "stop" : "record"} filled label=${recording ? "Stop recording" : "Record a video"} shortcut="R" pressed=${Boolean(recording)}
        kind=${recording ? "danger" : "quiet red"} disabled=${!hasPicture} onClick=${toggleRecording} />
      <span class="bar-line" aria-hidden="true"></span>
      <${Button} icon="full" label="Full screen" shortcut="F" kind="quiet wide-only" onClick=${toggleFull} />
      <${Button} icon="window" label="Clean feed in a window" shortcut="P" kind="quiet wide-only" disabled=${!hasPicture} onClick=${openFeed} />
      <${Button} icon="share" label="Viewers' link and QR code" kind="quiet" disabled=${!hasPicture} onClick=${() => (store.sheet.value = "share")} />
      <span class="bar-line" aria-hidden="true"></span>
      <${Button} icon=${{ auto: "auto", dark: "moon", light: "sun" }[store.theme.value]} label=${`Theme: ${store.theme.value}`} shortcut="L" kind="quiet" onClick=${nextTheme} />
      <${Button} icon="help" label="Keys" shortcut="?" kind="quiet" onClick=${() => (store.sheet.value = "help")} />
    </div>
  </header>`;
}

/** @type {Record<string, [string, string]>} */
const TILE_WORDS = { opening: ["busy", "Opening"], queued: ["warn", "In the queue"], live: ["good", "Live"], reconnecting: ["warn", "Reconnecting"], refused: ["bad", "Refused"], ended: ["off", "Ended"] };

function Pill() {
  const link = store.link.value;
  const tile = store.tile.value;
  const source = store.source.value;
  let [kind, text] = ["off", "Ready"];
  const service = store.info.value ? store.wall.value.service : store.starting.value;
  if (service?.state === "unreachable") [kind, text] = ["warn", "No answer"];
  else if (!store.info.value) [kind, text] = ["busy", "Starting"];
  else if (link.state !== "open") [kind, text] = [link.attempt ? "warn" : "busy", link.attempt ? "Reconnecting" : "Connecting"];
  else if (store.wall.value.service.state !== "ready") [kind, text] = store.wall.value.service.state === "failed" ? ["bad", "No service"] : ["busy", "Starting"];
  else if (store.paused.value) [kind, text] = ["off", "Paused"];
  else if (tile) [kind, text] = source.state === "live" ? TILE_WORDS[tile.state] ?? ["off", tile.state] : ["off", "No source"];
  return html`<span class="pill" data-kind=${kind}>${text}</span>`;
}

/** @type {{id: "look" | "motion" | "presets" | "mixer" | "take" | "health", name: string, shows: any}[]} */
const PANELS = [
  { id: "look", name: "Look", shows: Look },
  { id: "motion", name: "Motion", shows: Motion },
  { id: "presets", name: "Presets", shows: Presets },
  { id: "mixer", name: "Mixer", shows: Mixer },
  { id: "take", name: "Take", shows: Take },
  { id: "health", name: "Health", shows: Health },
];

function Panels() {
  const at = PANELS.findIndex((one) => one.id === store.panel.value);
  const move = (/** @type {KeyboardEvent} */ event) => {
    const step = { ArrowRight: 1, ArrowLeft: PANELS.length - 1 }[event.key];
    if (!step) return;
    event.preventDefault();
    store.panel.value = PANELS[(at + step) % PANELS.length].id;
    const tabs = /** @type {HTMLElement} */ (event.currentTarget);
    setTimeout(() => /** @type {HTMLElement | null} */ (tabs.querySelector("[aria-selected=true]"))?.focus());
  };
  const { shows: Panel, id, name } = PANELS[at];
  return html`<aside class="panels" id="panel" tabindex="-1" aria-label="Controls">
    <div class="tabs" role="tablist" aria-label="Panels" onKeyDown=${move}>
      ${PANELS.map((one) => html`<button type="button" role="tab" id=${`tab-${one.id}`} aria-selected=${String(one.id === id)} aria-controls="tabpanel"
        tabindex=${one.id === id ? 0 : -1} onClick=${() => (store.panel.value = one.id)}>${one.name}</button>`)}
    </div>
    <div class="panel" role="tabpanel" id="tabpanel" aria-labelledby=${`tab-${id}`} aria-label=${name} tabindex="0" key=${id}>
      <${ForTile} panel=${id} /><${Learning} /><${Panel} />
    </div>
  </aside>`;
}

/** Which tile the controls are for, where there are several. @param {{panel: string}} props */
function ForTile({ panel }) {
  const tiles = store.tiles.value;
  if (tiles.length < 2 || panel === "mixer") return null;
  return html`<div class="for-tile" role="group" aria-label="Tile to change">
    ${tiles.map((index) => html`<button type="button" key=${index} aria-pressed=${String(store.focus.value === index)} onClick=${() => (store.focus.value = index)}
      title=${`Edit tile ${index + 1} (Alt+${index + 1})`}>${index + 1}</button>`)}
  </div>`;
}

/** What else would be said nowhere. A screen reader has heard it when it came. */
function Complaints() {
  const said = store.complaints.value;
  if (said.length === 0) return null;
  return html`<section class="complaints" aria-label="What went wrong">
    ${said.map(({ key, title, help }) => html`<div class="complaint" key=${key}>
      <div><b>${title}</b>${help && html`<p>${help}</p>`}</div>
      <${Button} icon="close" label=${`Close: ${title}`} kind="quiet tiny" onClick=${() => readComplaint(key)} />
    </div>`)}
  </section>`;
}

function Spoken() {
  const { text, isUrgent } = store.announced.value;
  return html`<div class="sr" role="status" aria-live="polite">${isUrgent ? "" : text}</div>
    <div class="sr" role="alert" aria-live="assertive">${isUrgent ? text : ""}</div>`;
}
