// Pictures as bytes in, bitmaps out: one at a time, newest first. Each is taken once, decoded or not.

/** @template {{jpeg: Uint8Array}} Picture */
export class Decoding {
  /**
   * @param {{decoded: (bitmap: ImageBitmap, picture: Picture) => void, taken: (page: number | null) => void}} listener
   *   `decoded` takes over the bitmap; `taken`: one picture of that page was taken
   */
  constructor(listener) {
    this.listener = listener;
    /** @type {{picture: Picture, page: number | null} | null} */
    this.waiting = null;
    this.isBusy = false;
  }

  /** @param {Picture} picture @param {number | null} page under which it came */
  add(picture, page) {
    // A picture that finds another one waiting takes its place.
    if (this.waiting) this.listener.taken(this.waiting.page);
    this.waiting = { picture, page };
    if (!this.isBusy) this.run();
  }

  async run() {
    this.isBusy = true;
    while (this.waiting) {
      const { picture, page } = this.waiting;
      this.waiting = null;
      try {
        const blob = new Blob([/** @type {any} */ (picture.jpeg)], { type: "image/jpeg" });
        this.listener.decoded(await createImageBitmap(blob), picture);
      } catch {
        // Not a picture that this browser reads: it is answered, and the last one stays.
      }
      this.listener.taken(page);
    }
    this.isBusy = false;
  }
}
