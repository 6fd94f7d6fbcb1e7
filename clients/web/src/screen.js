// Pictures out: decoded, newest first, and drawn on one canvas, which is a stream, too.

export class Screen {
  /**
   * @param {HTMLCanvasElement} canvas
   * @param {(page: number | null) => void} onTaken one picture of that page was taken, drawn or not
   */
  constructor(canvas, onTaken) {
    this.canvas = canvas;
    this.onTaken = onTaken;
    this.brush = /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d", { alpha: false }));
    /** @type {{jpeg: Uint8Array, page: number | null} | null} */
    this.waiting = null;
    this.isDecoding = false;
    /** @type {MediaStream | null} */
    this.captured = null;
  }

  get stream() {
    this.captured ??= this.canvas.captureStream();
    return this.captured;
  }

  /** @param {Uint8Array} jpeg @param {number | null} page under which it came */
  show(jpeg, page) {
    // A picture that finds another one waiting takes its place.
    if (this.waiting) this.onTaken(this.waiting.page);
    this.waiting = { jpeg, page };
    if (!this.isDecoding) this.decode();
  }

  async decode() {
    this.isDecoding = true;
    while (this.waiting) {
      const { jpeg, page } = this.waiting;
      this.waiting = null;
      try {
        const bitmap = await createImageBitmap(new Blob([/** @type {any} */ (jpeg)], { type: "image/jpeg" }));
        if (this.canvas.width !== bitmap.width) this.canvas.width = bitmap.width;
        if (this.canvas.height !== bitmap.height) this.canvas.height = bitmap.height;
        this.brush.drawImage(bitmap, 0, 0);
        bitmap.close();
      } catch {
        // Not a picture that this browser reads: it is answered, and the last one stays.
      }
      this.onTaken(page);
    }
    this.isDecoding = false;
  }

  stop() {
    for (const track of this.captured?.getTracks() ?? []) track.stop();
  }
}
