// Frames in: paced, cut to the session's size, encoded, and sent while there is credit. Only the newest waits.
import { cover } from "./size.js";
import { Pace } from "./pacing.js";

/**
 * @typedef {VideoFrame | ImageBitmap} Image
 * @typedef {{
 *   readonly maySend: boolean, send: (frame: number, capturedMs: number, jpeg: Uint8Array) => boolean,
 *   say: (message: Record<string, unknown>) => unknown,
 * }} Outlet where frames go
 * @typedef {{
 *   saw: (size: import("./size.js").Size, nowMs: number) => boolean, restart: () => void,
 * }} ShapeWatch hears of each frame's shape, and says whether it is a new one
 */

const INPUTS_BYTES = 48e6;

export class Capture {
  /**
   * @param {Outlet} outlet
   * @param {{keepsInputs?: boolean, shape?: ShapeWatch | null}} [how] whether an answer is to stand beside its own frame;
   *   what gives the size of a source whose shape changes: for it the first frames of a new shape are kept
   */
  constructor(outlet, { keepsInputs = false, shape = null } = {}) {
    this.outlet = outlet;
    this.keepsInputs = keepsInputs;
    this.shape = shape;
    this.pace = new Pace(30);
    this.quality = 0.85;
    this.canvas = new OffscreenCanvas(16, 16);
    this.hasSize = false;
    /** Frames are sent only while a tile takes them. */
    this.isWanted = false;
    this.isPaused = false;
    /** @type {{image: Image, ms: number} | null} */
    this.newest = null;
    /**
     * The last frame, for another size: a window in which nothing moves gives no other. Without `shape` it is what was sent
     * last, until the next one comes; with it a copy, while its shape is a new one.
     * @type {Image | null}
     */
    this.spare = null;
    this.isBusy = false;
    /** How often it was stopped: what was encoded meanwhile is not kept. */
    this.stops = 0;
    this.frame = 0;
    this.seen = 0;
    this.sent = 0;
    this.skipped = 0;
    this.bytes = 0;
    /** What was sent, by frame, so that an answer stands beside its own frame. @type {Map<number, ImageBitmap>} */
    this.inputs = new Map();
    /** Said right before the frame at which they shall take effect. @type {{frame: number, message: Record<string, unknown>}[]} */
    this.scheduled = [];
    /** @type {() => void} */
    this.onInput = () => {};
    /** @type {ReadableStreamDefaultReader<VideoFrame> | null} */
    this.reader = null;
  }

  /** @param {{width: number, height: number}} size */
  setSize({ width, height }) {
    if (this.hasSize && this.canvas.width === width && this.canvas.height === height) return;
    this.canvas = new OffscreenCanvas(width, height);
    this.hasSize = true;
    this.forget();
    if (this.spare && !this.newest) this.newest = { image: this.spare, ms: performance.now() };
    else this.spare?.close();
    this.spare = null;
  }

  /** @param {ReadableStream<VideoFrame>} frames */
  async read(frames) {
    const reader = frames.getReader();
    this.reader = reader;
    try {
      for (;;) {
        const { value, done } = await reader.read();
        if (done || this.reader !== reader) {
          value?.close();
          break;
        }
        this.offer(value, performance.now());
      }
    } catch {
      // The track was taken away; the page hears it from the track itself.
    }
    reader.cancel().catch(() => {});
  }

  stop() {
    this.stops += 1;
    this.reader?.cancel().catch(() => {});
    this.reader = null;
    this.newest?.image.close();
    this.newest = null;
    this.keepSpare(null);
    this.shape?.restart();
  }

  /** Takes over the image. @param {Image} image @param {number} nowMs */
  offer(image, nowMs) {
    this.seen += 1;
    if (this.shape) {
      const isNew = this.shape.saw(sizeOf(image), nowMs);
      this.keepSpare(isNew && "clone" in image ? image.clone() : null);
    }
    if (this.isPaused || !this.pace.takes(nowMs)) return image.close();
    if (!this.shape) this.keepSpare(null);
    if (this.newest) {
      this.skipped += 1;
      this.newest.image.close();
    }
    this.newest = { image, ms: nowMs };
    return this.pump();
  }

  /** @param {Image | null} image */
  keepSpare(image) {
    this.spare?.close();
    this.spare = image;
  }

  /** Sends the newest frame, if it may. */
  async pump() {
    if (this.isBusy || !this.newest || !this.hasSize) return;
    const { image, ms } = this.newest;
    const { frame, canvas, stops } = this;
    this.isBusy = true;
    this.newest = null;
    try {
      if (this.isWanted && this.outlet.maySend) {
        const blob = await this.encoded(image);
        const jpeg = new Uint8Array(await blob.arrayBuffer());
        if (canvas === this.canvas && this.isWanted) {
          if (this.keepsInputs) this.keep(frame);
          this.send(frame, ms, jpeg);
          if (!this.shape && !this.newest && stops === this.stops) this.keepSpare(image);
        } else if (stops === this.stops) {
          // The size was changed meanwhile, or is being changed: no session takes the frame as it is.
          this.newest ??= { image, ms };
        }
      } else {
        // Shown, not sent. It waits for credit unless a newer one comes.
        if (this.newest === null) this.newest = { image, ms };
        if (!this.keepsInputs) return;
        await this.encoded(image, false);
        this.keep(-1);
        return;
      }
    } finally {
      this.isBusy = false;
      if (this.newest?.image !== image && this.spare !== image) image.close();
      this.onInput();
    }
    await this.pump();
  }

  /** @param {Image} image @param {boolean} [wanted] @returns {Promise<Blob>} */
  async encoded(image, wanted = true) {
    const { width, height } = this.canvas;
    const from = cover(sizeOf(image), this.canvas);
    const brush = /** @type {OffscreenCanvasRenderingContext2D} */ (this.canvas.getContext("2d", { alpha: false }));
    brush.imageSmoothingQuality = "high";
    brush.drawImage(image, from.x, from.y, from.width, from.height, 0, 0, width, height);
    return wanted ? this.canvas.convertToBlob({ type: "image/jpeg", quality: this.quality }) : new Blob();
  }

  /** Keeps what the canvas shows; -1 is the frame that was not sent. @param {number} frame */
  keep(frame) {
    this.inputs.get(frame)?.close();
    this.inputs.delete(frame);
    const bitmap = this.canvas.transferToImageBitmap();
    this.inputs.set(frame, bitmap);
    const most = Math.max(6, Math.floor(INPUTS_BYTES / (4 * bitmap.width * bitmap.height)));
    for (const [old, kept] of this.inputs) {
      if (this.inputs.size <= most) break;
      kept.close();
      this.inputs.delete(old);
    }
  }

  /** The input of an answered frame, else the newest there is. @param {number} frame */
  inputOf(frame) {
    return this.inputs.get(frame) ?? [...this.inputs.values()].at(-1) ?? null;
  }

  /** @param {number} frame @param {number} ms @param {Uint8Array} jpeg */
  send(frame, ms, jpeg) {
    // The connection may have gone while the frame was encoded.
    if (!this.outlet.maySend) return;
    while (this.scheduled.length > 0 && this.scheduled[0].frame <= frame) {
      this.outlet.say(/** @type {{message: Record<string, unknown>}} */ (this.scheduled.shift()).message);
    }
    if (!this.outlet.send(frame, ms, jpeg)) return;
    this.frame = frame + 1;
    this.sent += 1;
    this.bytes += jpeg.length;
  }

  forget() {
    for (const kept of this.inputs.values()) kept.close();
    this.inputs.clear();
  }
}

/** @param {Image} image @returns {import("./size.js").Size} */
function sizeOf(image) {
  return "displayWidth" in image ? { width: image.displayWidth, height: image.displayHeight } : image;
}
