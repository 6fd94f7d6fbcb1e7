// Pictures for a recording: to a track's writable where the browser has one, else one by one to the page.

export class Recorder {
  /**
   * @param {import("./pictures.js").Pictures} pictures
   * @param {(message: Record<string, unknown>, transfer?: Transferable[]) => void} tell
   */
  constructor(pictures, tell) {
    this.pictures = pictures;
    this.tell = tell;
    /** @type {WritableStreamDefaultWriter<VideoFrame> | null} */
    this.writer = null;
  }

  /** @param {WritableStream<VideoFrame> | null} writable @param {number | "program"} what */
  start(writable, what) {
    this.writer = writable?.getWriter() ?? null;
    this.pictures.recorded = what;
    this.pictures.onRecord = (source) => (this.writer ? this.write(source) : this.post(source));
  }

  /** @param {OffscreenCanvas | ImageBitmap} source */
  write(source) {
    const frame = new VideoFrame(/** @type {any} */ (source), { timestamp: Math.round(performance.now() * 1000) });
    this.writer?.write(frame).catch(() => frame.close());
  }

  /** @param {OffscreenCanvas | ImageBitmap} source */
  async post(source) {
    const bitmap = await createImageBitmap(source);
    this.tell({ is: "recorded", bitmap }, [bitmap]);
  }

  stop() {
    this.pictures.onRecord = null;
    this.writer?.close().catch(() => {});
    this.writer = null;
  }
}
