// Numbers over time for the charts: a window of columns, as uPlot takes them. No DOM.

/** Rows of numbers over the last `seconds`; the first is time. */
export class Series {
  /** @param {number} width numbers beside the time @param {number} seconds */
  constructor(width, seconds = 60) {
    this.seconds = seconds;
    /** @type {(number | null)[][]} */
    this.columns = Array.from({ length: width + 1 }, () => []);
  }

  /** @param {number} at seconds @param {(number | null)[]} values */
  add(at, values) {
    if (values.length !== this.columns.length - 1) throw new Error(`${values.length} values for ${this.columns.length - 1} columns`);
    const [times, ...rest] = this.columns;
    times.push(at);
    rest.forEach((column, number) => column.push(values[number]));
    let old = 0;
    while (old < times.length && /** @type {number} */ (times[old]) < at - this.seconds) old += 1;
    if (old > 0) for (const column of this.columns) column.splice(0, old);
  }

  get last() {
    return this.columns.slice(1).map((column) => column.at(-1) ?? null);
  }
}

/**
 * Where a frame's time goes, from its capture to its drawing, in ms; what is not accounted for is "network".
 * @param {{glassMs: number | null, serverMs: number | null, serviceMs: number | null}} beat
 * @param {import("./tile.js").Span[]} spans
 * @returns {{name: string, ms: number, kind: "page" | "wait" | "work"}[]}
 */
export function budget(beat, spans) {
  if (beat.glassMs === null) return [];
  const inSpans = spans.reduce((sum, span) => sum + span.queue_ms + span.work_ms, 0);
  const service = Math.max(beat.serviceMs ?? 0, inSpans);
  const server = Math.max(beat.serverMs ?? 0, service);
  const glass = Math.max(beat.glassMs, server);
  /** @type {{name: string, ms: number, kind: "page" | "wait" | "work"}[]} */
  const parts = [{ name: "page and network", ms: glass - server, kind: "page" }];
  parts.push({ name: "gateway", ms: server - service, kind: "page" });
  if (service > inSpans) parts.push({ name: "edge", ms: service - inSpans, kind: "wait" });
  for (const span of spans) {
    if (span.queue_ms > 0.5) parts.push({ name: `wait for ${span.name}`, ms: span.queue_ms, kind: "wait" });
    parts.push({ name: span.name, ms: span.work_ms, kind: "work" });
  }
  return parts.filter((part) => part.ms > 0.05);
}

/** A percentile of numbers, by nearest rank. @param {number[]} values @param {number} share */
export function percentile(values, share) {
  if (values.length === 0) return null;
  const sorted = [...values].sort((a, b) => a - b);
  return sorted[Math.min(sorted.length - 1, Math.max(0, Math.ceil(share * sorted.length) - 1))];
}
