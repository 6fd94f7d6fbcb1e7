// The score: what was changed at which frame, saved, loaded and replayed.
import { html } from "../html.js";
import { beyond, eventWords, rendering } from "../state/score.js";
import { SAMPLE } from "../state/sources.js";
import { clockWord, countWord, manyWord } from "../state/words.js";
import { loadTake, playTake, saveTake, stopTake, toggleTake } from "../keep.js";
import * as store from "../store.js";
import { tell } from "../announce.js";
import { Button } from "./parts.js";
import { Icon } from "./icons.js";

export function Take() {
  const running = store.taken.value;
  const saved = store.score.value;
  const score = running?.take.score ?? saved?.score ?? null;
  const frames = running ? running.take.last - running.take.first : saved?.frames ?? 0;
  return html`<div class="stack">
    <section class="card" aria-label="Take">
      <div class="card-head"><h2>Take</h2>${score && html`<span class="effect">${manyWord(frames, "frame")}, ${clockWord(frames / score.frame_rate)}</span>`}</div>
      <p class="hint">A take keeps every change with the frame at which it took effect. Play it again live, or render it from the original video in full quality.</p>
      <div class="row">
        <${Button} icon=${running ? "stop" : "record"} filled text=${running ? "End the take" : "Start a take"} label=${running ? "End the take" : "Start a take"}
          kind=${running ? "danger" : "primary"} shortcut="T" disabled=${!store.tile.value} onClick=${toggleTake} />
        <${Player} />
      </div>
      ${score && html`<${Timeline} score=${score} frames=${frames} />`}
      <div class="row">
        <${Button} icon="download" text="Save" label="Save the take" disabled=${!saved || Boolean(running)} onClick=${saveTake} />
        <label class="button"><${Icon} name="upload" /><span>Load</span>
          <input class="sr" type="file" accept=".json,application/json" aria-label="Load a take" onChange=${(/** @type {any} */ event) => {
            const [file] = event.currentTarget.files;
            if (file) loadTake(file);
            event.currentTarget.value = "";
          }} /></label>
      </div>
    </section>
    ${score && html`<${Events} score=${score} />`}
    ${saved && !running && html`<${Render} saved=${saved} />`}
  </div>`;
}

function Player() {
  if (store.replaying.value) return html`<${Button} icon="stop" text="Stop" label="Stop the replay" onClick=${stopTake} />`;
  return html`<${Button} icon="play" text="Replay" label="Replay the take live" disabled=${!store.score.value || !store.tile.value || Boolean(store.taken.value)} onClick=${playTake} />`;
}

/** @param {{score: import("../state/score.js").Score, frames: number}} props */
function Timeline({ score, frames }) {
  const length = Math.max(frames, 1);
  const playing = store.replaying.value;
  const now = playing ? ((store.beat.value?.frame ?? 0) - playing.first) / length : null;
  return html`<div class="timeline" role="img" aria-label=${`${manyWord(score.events.length, "change")} in ${manyWord(frames, "frame")}`}>
    ${score.events.map((event) => html`<i style=${{ left: `${Math.min(100, (100 * event.frame) / length)}%` }}></i>`)}
    ${now !== null && html`<b style=${{ left: `${Math.min(100, 100 * now)}%` }}></b>`}
  </div>`;
}

/** @param {{score: import("../state/score.js").Score}} props */
function Events({ score }) {
  return html`<section class="card" aria-label="Changes">
    <div class="card-head"><h2>Changes</h2><span class="effect">${score.events.length}</span></div>
    ${score.events.length === 0 && html`<p class="hint">None yet: change something while the take runs.</p>`}
    <ol class="events">
      ${score.events.slice(-60).map((event) => html`<li><span>#${countWord(event.frame)}</span><span>${eventWords(event.settings)}</span></li>`)}
    </ol>
  </section>`;
}

/** @type {Record<"save" | "sample" | "video", any>} */
const BEFORE = {
  save: "Save the take; then, in its folder:",
  sample: html`Save the take, and <a href=${SAMPLE} download>the sample clip</a> beside it; then, in that folder:`,
  video: "Save the take; IN.mp4 stands for a video of yours:",
};

/** @param {{saved: NonNullable<typeof store.score.value>}} props */
function Render({ saved }) {
  const { score, clipS, frames } = saved;
  const { command, before } = rendering(saved.name, score.source, store.info.value?.sample ?? null);
  const rest = clipS === null ? null : beyond(score, frames, clipS);
  const lost = rest?.numLost ? `, so ${manyWord(rest.numLost, "change")} after ${clockWord(clipS ?? 0)} ${rest.numLost === 1 ? "is" : "are"} left out` : "";
  const copy = () => navigator.clipboard?.writeText(command).then(() => tell("Copied"));
  return html`<section class="card" aria-label="Render offline">
    <div class="card-head"><h2>Render it offline</h2></div>
    <p class="hint">Every frame, none dropped, the same changes at the same moments. ${BEFORE[before]}</p>
    <div class="command"><code tabindex="0">${command}</code><${Button} icon="copy" label="Copy the command" kind="quiet" onClick=${copy} /></div>
    ${rest && html`<p class="note">The clip was played ${rest.times.toFixed(1)} times in a loop. The render ends with the clip${lost}.</p>`}
  </section>`;
}
