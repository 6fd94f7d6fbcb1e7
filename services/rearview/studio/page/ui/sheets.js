// Sheets over the page: models, keys, the viewers' link, the token.
import { html } from "../html.js";
import { useEffect } from "../vendor/hooks.js";
import { useModel, useToken } from "../actions.js";
import { tell } from "../announce.js";
import { bytesWord } from "../state/words.js";
import * as store from "../store.js";
import { KEYS } from "../keys.js";
import { openFeed, viewerUrl } from "./mixer.js";
import { Button, Sheet } from "./parts.js";

const close = () => (store.sheet.value = null);

export function Sheets() {
  switch (store.sheet.value) {
    case "help":
      return html`<${Help} />`;
    case "models":
      return html`<${Models} />`;
    case "share":
      return html`<${Share} />`;
    case "token":
      return html`<${Token} />`;
    default:
      return null;
  }
}

function Help() {
  return html`<${Sheet} title="Keys" onClose=${close} wide>
    <dl class="keys">${KEYS.map((one) => html`<div><dt>${one.keys.map((key) => html`<kbd>${key}</kbd>`)}</dt><dd>${one.does}</dd></div>`)}</dl>
    <p class="fine">Everything is reached with Tab, too; sliders move with the arrow keys.</p>
  </${Sheet}>`;
}

function Models() {
  const models = store.models.value;
  // Those of unknown size are asked for it: bytes are said before anything is fetched.
  useEffect(() => {
    for (const one of models) if (one.state === "absent" && !one.bytesTotal) useModel(one.id, "look");
  }, []);
  return html`<${Sheet} title="Models" onClose=${close} wide>
    <p class="lead">The stream goes on while another model is fetched and loaded; then your look moves over.</p>
    <ul class="models">${models.map((one) => html`<${ModelCard} key=${one.id} model=${one} />`)}</ul>
    ${models.length < 2 && html`<p class="hint">This service offers no other model.</p>`}
  </${Sheet}>`;
}

/** @type {Record<string, string>} */
const STATES = { absent: "not here yet", fetching: "being fetched", loading: "being loaded", ready: "ready", in_use: "in use", failed: "failed" };

/** @param {{model: import("../state/wall.js").Model}} props */
function ModelCard({ model }) {
  const { id, title, licence, state, note, message } = model;
  const total = model.bytesTotal ?? model.bytes;
  const share = total ? model.bytesDone / total : undefined;
  const going = store.wall.value.going?.id === id ? store.wall.value.going : null;
  const isGoing = going !== null && !going.refused;
  return html`<li class="model" data-state=${state}>
    <div class="model-head"><h3>${title}</h3><span class="tag">${STATES[state] ?? state}</span></div>
    ${note && html`<p>${note}</p>`}
    <p class="fine">${[total ? bytesWord(total) : "", licence ? `licence: ${licence}` : ""].filter(Boolean).join(" · ")}</p>
    ${isGoing && state === "ready" && html`<div class="model-progress" role="status"><progress aria-label=${`${title}: asked for`}></progress><span>going over to it</span></div>`}
    ${going?.refused && html`<p class="note is-bad" role="status">${going.refused}</p>`}
    ${(state === "fetching" || state === "loading") && html`<div class="model-progress" role="status">
      <progress max="1" value=${state === "fetching" ? share : undefined} aria-label=${`${title}: ${STATES[state]}`}></progress>
      <span>${state === "fetching" && total ? `${bytesWord(model.bytesDone) || "0 B"} of ${bytesWord(total)}` : "loading beside the running stream"}</span></div>`}
    ${message && html`<p class=${state === "failed" ? "note is-bad" : "hint"}>${message}</p>`}
    <div class="row">
      ${(state === "absent" || state === "failed") && html`<${Button} icon="download" text=${`Fetch${total ? ` ${bytesWord(total)}` : ""}`} label=${`Fetch${total ? ` ${bytesWord(total)}` : ""}: ${title}`} kind="primary" onClick=${() => useModel(id, "fetch")} />`}
      ${state === "fetching" && html`<${Button} icon="close" text="Cancel" label=${`Cancel fetching ${title}`} onClick=${() => useModel(id, "cancel")} />`}
      ${state === "ready" && html`<${Button} icon="check" text="Use it" label=${`Use it: ${title}`} kind="primary" disabled=${isGoing} onClick=${() => useModel(id, "use")} />`}
    </div>
  </li>`;
}

function Share() {
  const url = viewerUrl();
  if (!url) return html`<${Sheet} title="Viewers" onClose=${close}><p class="hint">There is no program yet.</p></${Sheet}>`;
  const isLocal = ["localhost", "127.0.0.1", "[::1]"].includes(new URL(url).hostname);
  return html`<${Sheet} title="Viewers" onClose=${close}>
    <div class="share">
      <img class="qr" src=${`api/qr.svg?view=${encodeURIComponent(store.wall.value.viewer ?? "")}`} alt="QR code of the viewers' link" width="220" height="220" />
      <p>Scan it, or send the link. Viewers see the program and can change nothing.</p>
      <div class="command"><code tabindex="0">${url}</code><${Button} icon="copy" label="Copy the link" kind="quiet" onClick=${() => navigator.clipboard?.writeText(url).then(() => tell("Copied"))} /></div>
      ${isLocal && html`<p class="note">This address is your machine's own: others reach it when the studio runs with <code>--lan</code>.</p>`}
      <${Button} icon="window" text="Open the clean feed" label="Open the clean feed" onClick=${openFeed} />
      ${store.info.value?.lan && html`<details class="phone"><summary><h3>Use a phone as the camera</h3></summary>
        <p class="hint">This code opens the studio itself, with all its controls, on another device.</p>
        <img class="qr" src="api/qr.svg" alt="QR code of the studio" width="200" height="200" /></details>`}
    </div>
  </${Sheet}>`;
}

function Token() {
  const submit = (/** @type {any} */ event) => {
    event.preventDefault();
    useToken(String(new FormData(event.currentTarget).get("token") ?? ""));
  };
  return html`<${Sheet} title="This service asks who you are" onClose=${close}>
    <form class="stack" onSubmit=${submit}>
      ${store.noWall.value && html`<p class="note is-bad">${store.noWall.value.title}</p>`}
      <div class="field"><label for="token">Token</label><input id="token" name="token" type="password" autocomplete="off" required /></div>
      <p class="hint">Whoever runs the service has given you one. It stays in this tab.</p>
      <button type="submit" class="button primary">Go on</button>
    </form>
  </${Sheet}>`;
}
