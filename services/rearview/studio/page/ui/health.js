// How it runs: rates, where a frame's time goes, drops, and the lanes that carry the session.
import { html } from "../html.js";
import { useEffect, useRef } from "../vendor/hooks.js";
import uPlot from "../vendor/uplot.js";
import { budget } from "../state/series.js";
import { hasOthers } from "../state/wall.js";
import { causeWord, continuityWord, countWord, dropWord, manyWord, msWord, replicaWord, spanWord } from "../state/words.js";
import { kill } from "../actions.js";
import * as store from "../store.js";

export function Health() {
  return html`<div class="stack">
    <${Rates} />
    <${Time} />
    <${Drops} />
    <${Lanes} />
  </div>`;
}

function Rates() {
  const beat = store.beat.value;
  const mine = beat?.tiles[store.focus.value];
  return html`<section class="card" aria-label="Frames a second">
    <div class="card-head"><h2>Frames a second</h2></div>
    <dl class="legend">
      <div data-line="1"><dt>source</dt><dd>${beat ? beat.seenFps.toFixed(0) : "–"}</dd></div>
      <div data-line="2"><dt>sent</dt><dd>${beat ? beat.sentFps.toFixed(0) : "–"}</dd></div>
      <div data-line="3"><dt>pictures</dt><dd>${mine ? mine.fps.toFixed(mine.fps < 10 ? 1 : 0) : "–"}</dd></div>
    </dl>
    <${Chart} series=${store.charts.rate} lines=${["--line-1", "--line-2", "--line-3"]} label="Frames a second over the last minute" />
  </section>`;
}

function Time() {
  const mine = store.beat.value?.tiles[store.focus.value];
  const stats = store.tile.value?.stats;
  const parts = mine ? budget(mine, stats?.spans ?? []) : [];
  const total = parts.reduce((sum, part) => sum + part.ms, 0);
  return html`<section class="card" aria-label="Latency">
    <div class="card-head"><h2>From glass to glass</h2><span class="effect">p95 ${msWord(mine?.glassP95Ms)}</span></div>
    <dl class="legend">
      <div data-line="3"><dt>median</dt><dd>${msWord(mine?.glassMs)}</dd></div>
      <div data-line="1"><dt>p95</dt><dd>${msWord(mine?.glassP95Ms)}</dd></div>
    </dl>
    <${Chart} series=${store.charts.latency} lines=${["--line-3", "--line-1"]} label="Milliseconds from capture to picture over the last minute" />
    ${total > 0 && html`<div class="budget" aria-hidden="true">${parts.map((part) => html`<i data-kind=${part.kind} style=${{ flexGrow: part.ms }}></i>`)}</div>
      <ul class="parts">${parts.map((part) => html`<li data-kind=${part.kind}><span>${part.name.startsWith("wait for ") ? `wait for ${spanWord(part.name.slice(9))}` : spanWord(part.name)}</span><b>${part.ms < 10 ? part.ms.toFixed(1) : Math.round(part.ms)} ms</b></li>`)}</ul>`}
  </section>`;
}

function Drops() {
  const tile = store.tile.value;
  const drops = Object.entries(tile?.stats?.drops ?? tile?.dropped ?? {}).filter(([, count]) => count > 0);
  const total = drops.reduce((sum, [, count]) => sum + count, 0);
  return html`<section class="card" aria-label="Drops">
    <div class="card-head"><h2>Dropped frames</h2><span class="effect">${countWord(total)}</span></div>
    <${Chart} series=${store.charts.drops} lines=${["--line-1"]} label="Dropped frames over the last minute" height=${64} />
    ${drops.length === 0 ? html`<p class="hint">None. Every frame was answered by a picture.</p>`
    : html`<ul class="parts">${drops.map(([reason, count]) => html`<li><span>${dropWord(reason)}</span><b>${countWord(count)}</b></li>`)}</ul>`}
  </section>`;
}

function Lanes() {
  const spans = store.wall.value.lanes;
  const isLocal = store.info.value?.local;
  return html`<section class="card" aria-label="Lanes">
    <div class="card-head"><h2>Lanes</h2><span class="effect">who paints this</span></div>
    ${spans.length > 0 && html`<div class="lanes">
      ${spans.map((span, at) => html`${at > 0 && html`<span class="lane-arrow" aria-hidden="true">→</span>`}
        <div class="lane" key=${span.name}>
          <h3>${spanWord(span.name)}</h3>
          ${span.replicas.map((replica) => html`<${Replica} key=${replica.id} replica=${replica} />`)}
          ${isLocal && html`<button type="button" class="button small danger" onClick=${() => kill(span.name)} title="Ends the process of a replica of this span">Kill a replica</button>`}
        </div>`)}
    </div>`}
    ${hasOthers(spans) && html`<p class="hint">The other sessions are of other pages; those of a page that was closed are kept for a minute.</p>`}
    ${isLocal ? html`<p class="hint">${spans.length > 0 ? "Sessions outlive their replicas. Try it: kill the one that paints, and watch the gap." : "The replicas are not known yet."}</p>`
    : html`<p class="hint">This studio has not started the service, and a service does not tell its clients of its replicas.</p>`}
    <${Gaps} />
  </section>`;
}

/** @param {{replica: import("../state/wall.js").Replica}} props */
function Replica({ replica }) {
  const { id, state, sessions, tiles } = replica;
  const held = tiles.length > 0 && tiles.length < sessions ? `${manyWord(sessions, "session")}, ${tiles.length} of yours` : manyWord(sessions, "session");
  return html`<div class="replica" data-state=${state} data-mine=${tiles.includes(store.focus.value) || null} title=${id}>
    <span>${replicaWord(id)}</span><small>${state === "up" ? held : state}</small></div>`;
}

/** The pauses that the session has survived. */
function Gaps() {
  const gaps = store.tile.value?.gaps ?? [];
  const killed = store.killed.value;
  const continuity = store.tile.value?.notice?.continuity;
  return html`${killed && html`<p class="hint">Killed a replica of ${spanWord(killed.span)}${killed.frame === null ? "" : ` at frame ${countWord(killed.frame)}`}.</p>`}
    ${gaps.length > 0 && html`<ol class="events" aria-label="Pauses">
      ${[...gaps].reverse().slice(0, 5).map((gap) => html`<li><span>${msWord(gap.ms)}</span><span>frame ${countWord(gap.from)} → ${countWord(gap.to)}, ${gap.lost} lost, ${causeWord(gap.cause)}</span></li>`)}
    </ol>`}
    ${continuity && html`<p class="hint">Since then: ${continuityWord(continuity)}.</p>`}`;
}

/** Room for the longest number of the axis. @param {unknown} _ @param {string[] | null} values */
function axisWidth(_, values) {
  return 14 + 7 * Math.max(3, ...(values ?? []).map((value) => value.length));
}

/** @param {{series: import("../state/series.js").Series, lines: string[], label: string, height?: number}} props */
function Chart({ series, lines, label, height = 92 }) {
  const ref = useRef(/** @type {HTMLDivElement | null} */ (null));
  const chart = useRef(/** @type {any} */ (null));
  const grown = store.charted.value;
  const theme = store.theme.value;
  useEffect(() => {
    const box = /** @type {HTMLDivElement} */ (ref.current);
    // Of a property that takes a colour: the token itself holds the light and the dark one.
    const colour = (/** @type {string} */ name) => {
      box.style.color = `var(${name})`;
      return getComputedStyle(box).color;
    };
    const axis = { stroke: colour("--text-3"), grid: { stroke: colour("--line"), width: 1 }, ticks: { show: false }, font: "11px Inter, system-ui", size: axisWidth };
    chart.current = new uPlot(
      {
        width: box.clientWidth || 300,
        height,
        padding: [6, 4, 8, 0],
        cursor: { show: false },
        legend: { show: false },
        scales: { x: { time: false }, y: { range: (/** @type {any} */ _, /** @type {number} */ __, /** @type {number} */ most) => [0, Math.max(1, most * 1.15)] } },
        axes: [{ show: false }, { ...axis, space: 28 }],
        series: [{}, ...lines.map((name) => ({ stroke: colour(name), width: 1.5, points: { show: false }, spanGaps: false }))],
      },
      /** @type {any} */ (series.columns),
      box,
    );
    const watch = new ResizeObserver(() => chart.current?.setSize({ width: box.clientWidth, height }));
    watch.observe(box);
    return () => {
      watch.disconnect();
      chart.current.destroy();
      chart.current = null;
    };
  }, [theme]);
  useEffect(() => chart.current?.setData(series.columns), [grown]);
  return html`<div class="chart" ref=${ref} role="img" aria-label=${label}></div>`;
}
