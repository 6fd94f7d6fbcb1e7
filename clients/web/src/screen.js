// Pictures out: the newest one is drawn on a canvas, which is a stream, too.
import { Decoding } from "./decoding.js";

export class Screen {
  /**
   * @param {HTMLCanvasElement} canvas
   * @param {(page: number | null) => void} onTaken one picture of that page was taken, drawn or not
   */
  constructor(canvas, onTaken) {
    this.canvas = canvas;
    this.brush = /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d", { alpha: false }));
    this.decoding = new Decoding({ decoded: (bitmap) => this.draw(bitmap), taken: onTaken });
    /** @type {MediaStream | null} */
    this.captured = null;
  }

  get stream() {
    this.captured ??= this.canvas.captureStream();
    return this.captured;
  }

  /** @param {Uint8Array} jpeg @param {number | null} page under which it came */
  show(jpeg, page) {
    this.decoding.add({ jpeg }, page);
  }

  /** @param {ImageBitmap} bitmap */
  draw(bitmap) {
    if (this.canvas.width !== bitmap.width) this.canvas.width = bitmap.width;
    if (this.canvas.height !== bitmap.height) this.canvas.height = bitmap.height;
    this.brush.drawImage(bitmap, 0, 0);
    bitmap.close();
  }

  stop() {
    for (const track of this.captured?.getTracks() ?? []) track.stop();
  }
}
