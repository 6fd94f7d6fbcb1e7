// Pictures out: decoded, newest first, and drawn on the canvases that the page lent. Pixels stay here.
import { Decoding } from "../client/decoding.js";
import { cover } from "../client/size.js";
import { GapWatch } from "../state/gaps.js";
import { contain, places } from "../state/layout.js";
import { cutTo, fadeDone, layers, noTile, sharesAt } from "../state/program.js";
import { percentile } from "../state/series.js";

/** @typedef {import("../client/protocol.js").Picture} Picture */
/** @typedef {{bitmap: ImageBitmap, frame: number}} Shown */
/** @typedef {OffscreenCanvasRenderingContext2D} Brush */

const FADE_TICK_MS = 33;

/** What has come for one tile. */
class Feed {
  /** @param {() => void} changed it shows another picture @param {(page: number | null) => void} taken one of that page was taken */
  constructor(changed, taken) {
    /** @type {Shown | null} */
    this.shown = null;
    /** @type {Decoding<Picture>} */
    this.decoding = new Decoding({
      decoded: (bitmap, picture) => {
        this.shown?.bitmap.close();
        this.shown = { bitmap, frame: picture.frame };
        changed();
        this.glassMs.push(performance.now() - picture.capturedMs);
      },
      taken,
    });
    this.gaps = new GapWatch();
    this.arrived = 0;
    /** @type {number[]} */
    this.glassMs = [];
    this.serverMs = 0;
    this.serviceMs = 0;
  }

  /** Numbers since the last call. @param {number} seconds @param {number} nowMs */
  beat(seconds, nowMs) {
    const beat = {
      fps: this.arrived / seconds,
      glassMs: percentile(this.glassMs, 0.5),
      glassP95Ms: percentile(this.glassMs, 0.95),
      serverMs: this.arrived ? this.serverMs : null,
      serviceMs: this.arrived ? this.serviceMs : null,
      frame: this.shown?.frame ?? null,
      silentMs: this.gaps.silentMs(nowMs),
      pauseAfterMs: this.gaps.pauseAfterMs(nowMs),
    };
    this.arrived = 0;
    this.glassMs = [];
    return beat;
  }
}

export class Pictures {
  /**
   * @param {{taken: (page: number | null) => void, inputOf: (frame: number) => ImageBitmap | null,
   *   gap: (tile: number, gap: {from: number, to: number, ms: number}) => void}} page
   */
  constructor(page) {
    this.page = page;
    /** @type {Map<number, Feed>} */
    this.feeds = new Map();
    /** @type {Map<string, {canvas: OffscreenCanvas, brush: Brush}>} */
    this.canvases = new Map();
    /** @type {import("../state/layout.js").View} */
    this.view = "split";
    this.split = 0.5;
    this.tile = 0;
    this.isVisible = true;
    this.program = noTile();
    this.mixed = new OffscreenCanvas(16, 16);
    /** Hears of every new program or tile picture while something is recorded. @type {((source: OffscreenCanvas | ImageBitmap) => void) | null} */
    this.onRecord = null;
    /** @type {number | "program"} */
    this.recorded = "program";
    this.fading = 0;
  }

  /** @param {number} tile */
  feed(tile) {
    let feed = this.feeds.get(tile);
    if (!feed) this.feeds.set(tile, (feed = new Feed(() => this.changed(tile), this.page.taken)));
    return feed;
  }

  /** @param {Picture} picture @param {number | null} page under which it came @param {number} nowMs */
  arrived(picture, page, nowMs) {
    const feed = this.feed(picture.tile);
    const gap = feed.gaps.arrived(picture.frame, nowMs);
    if (gap) this.page.gap(picture.tile, gap);
    feed.arrived += 1;
    feed.serverMs = picture.serverMs;
    feed.serviceMs = picture.serviceMs;
    feed.decoding.add(picture, page);
  }

  /** A tile has a new picture. @param {number} tile */
  changed(tile) {
    const isOnProgram = this.isOnProgram(tile);
    if (isOnProgram && (this.view === "program" || this.onRecord)) this.mix();
    if (this.onRecord && (this.recorded === "program" ? isOnProgram : this.recorded === tile)) {
      const shown = this.feeds.get(tile)?.shown;
      if (this.recorded === "program") this.onRecord(this.mixed);
      else if (shown) this.onRecord(shown.bitmap);
    }
    if (!this.isVisible) return;
    this.drawTile(tile);
    if (this.view === "program" ? isOnProgram : tile === this.tile) this.drawStage();
  }

  /** @param {number} tile */
  isOnProgram(tile) {
    return sharesAt(this.program, performance.now()).some((share) => share.tile === tile);
  }

  /** @param {import("../state/program.js").ProgramMessage} message */
  cut(message) {
    this.program = cutTo(this.program, message, performance.now());
    clearTimeout(this.fading);
    const tick = () => {
      if (this.view === "program" && this.isVisible) {
        this.mix();
        this.drawStage();
      }
      if (fadeDone(this.program, performance.now()) < 1) this.fading = setTimeout(tick, FADE_TICK_MS);
    };
    tick();
  }

  /** Draws the program at its own size. */
  mix() {
    const shares = sharesAt(this.program, performance.now());
    const bitmaps = layers(shares).map(({ tile, alpha }) => ({ alpha, bitmap: this.feeds.get(tile)?.shown?.bitmap }));
    const first = bitmaps.find(({ bitmap }) => bitmap)?.bitmap;
    if (!first) return;
    if (this.mixed.width !== first.width || this.mixed.height !== first.height) {
      this.mixed = new OffscreenCanvas(first.width, first.height);
    }
    const brush = /** @type {Brush} */ (this.mixed.getContext("2d", { alpha: false }));
    for (const { alpha, bitmap } of bitmaps) {
      if (!bitmap) continue;
      brush.globalAlpha = alpha;
      brush.drawImage(bitmap, 0, 0, this.mixed.width, this.mixed.height);
    }
    brush.globalAlpha = 1;
  }

  drawStage() {
    const stage = this.canvases.get("stage");
    if (!stage || !this.isVisible) return;
    const shown = this.feeds.get(this.tile)?.shown;
    const output = this.view === "program" ? this.mixed : shown?.bitmap;
    const input = this.page.inputOf(shown?.frame ?? -1);
    const size = output ?? input;
    const { canvas, brush } = stage;
    brush.clearRect(0, 0, canvas.width, canvas.height);
    if (!size || size.width <= 16) return;
    const at = places(this.view, size, canvas);
    brush.imageSmoothingQuality = "high";
    const whole = output ?? (this.view === "picture" || this.view === "program" ? input : null);
    if (whole) brush.drawImage(whole, at.output.x, at.output.y, at.output.width, at.output.height);
    if (!input || !at.input) return;
    if (this.view === "side") return brush.drawImage(input, at.input.x, at.input.y, at.input.width, at.input.height);
    const share = output ? this.split : 1;
    const width = Math.round(at.input.width * share);
    if (width > 0) brush.drawImage(input, 0, 0, input.width * share, input.height, at.input.x, at.input.y, width, at.input.height);
  }

  /** @param {number} tile */
  drawTile(tile) {
    const small = this.canvases.get(`tile-${tile}`);
    const bitmap = this.feeds.get(tile)?.shown?.bitmap;
    if (!small || !bitmap) return;
    const { canvas, brush } = small;
    if (this.view === "wall") {
      const at = contain(bitmap, canvas);
      brush.clearRect(0, 0, canvas.width, canvas.height);
      brush.drawImage(bitmap, at.x, at.y, at.width, at.height);
    } else {
      const from = cover(bitmap, canvas);
      brush.drawImage(bitmap, from.x, from.y, from.width, from.height, 0, 0, canvas.width, canvas.height);
    }
  }

  drawAll() {
    if (this.view === "program") this.mix();
    this.drawStage();
    for (const tile of this.feeds.keys()) this.drawTile(tile);
  }

  /** @param {string} name @param {OffscreenCanvas} canvas */
  lend(name, canvas) {
    const brush = /** @type {Brush} */ (canvas.getContext("2d"));
    this.canvases.set(name, { canvas, brush });
    this.drawAll();
  }

  /** @param {string} name @param {number} width @param {number} height */
  resize(name, width, height) {
    const lent = this.canvases.get(name);
    if (!lent || (lent.canvas.width === width && lent.canvas.height === height)) return;
    lent.canvas.width = width;
    lent.canvas.height = height;
    this.drawAll();
  }

  /** The picture that is looked at, as a PNG; null if there is none yet. */
  async snapshot() {
    const shown = this.feeds.get(this.tile)?.shown;
    const source = this.view === "program" ? this.mixed : shown?.bitmap;
    if (!source || source.width <= 16) return null;
    const canvas = new OffscreenCanvas(source.width, source.height);
    /** @type {Brush} */ (canvas.getContext("2d")).drawImage(source, 0, 0);
    return canvas.convertToBlob({ type: "image/png" });
  }

  /** @param {number} tile */
  drop(tile) {
    this.feeds.get(tile)?.shown?.bitmap.close();
    this.feeds.delete(tile);
    this.drawStage();
  }
}
