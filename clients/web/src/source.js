// Where frames come from: a stream's track, a video or a canvas. Each is read until it is stopped.

/** @typedef {MediaStream | HTMLVideoElement | HTMLCanvasElement} Source */

/** Throws a TypeError for what gives no frames. @param {Source | null} source @returns {import("./size.js").Size | null} */
export function sizeOf(source) {
  if (source === null) return null;
  if (source instanceof HTMLCanvasElement) return { width: source.width, height: source.height };
  const { width = 0, height = 0 } =
    source instanceof HTMLVideoElement ? { width: source.videoWidth, height: source.videoHeight } : trackOf(source).getSettings();
  return width > 0 && height > 0 ? { width, height } : null;
}

/**
 * Gives the source's frames to `capture`. Returns what stops that; the source itself stays as it is.
 * @param {Source} source
 * @param {number} rate frames a second, of a source that does not give them by itself
 * @param {import("./capture.js").Capture} capture
 * @param {() => void} onEnded the source has ended by itself
 * @returns {() => void}
 */
export function feed(source, rate, capture, onEnded) {
  if (!(source instanceof MediaStream)) return ask(source, rate, capture);
  const track = trackOf(source);
  track.addEventListener("ended", onEnded);
  const Processor = /** @type {any} */ (globalThis).MediaStreamTrackProcessor;
  let unbind;
  if (Processor) {
    capture.read(new Processor({ track, maxBufferSize: 2 }).readable);
    unbind = () => capture.stop();
  } else {
    const video = document.createElement("video");
    Object.assign(video, { srcObject: source, muted: true, playsInline: true });
    video.play().catch(() => {}); // Without a frame there is nothing to send.
    const stop = ask(video, rate, capture);
    unbind = () => {
      stop();
      video.srcObject = null; // Else it plays on, seen by nobody.
    };
  }
  return () => {
    track.removeEventListener("ended", onEnded);
    unbind();
  };
}

/** @param {HTMLVideoElement | HTMLCanvasElement} element @param {number} rate @param {import("./capture.js").Capture} capture */
function ask(element, rate, capture) {
  let isBusy = false;
  let isStopped = false;
  const timer = setInterval(async () => {
    if (isBusy || (element instanceof HTMLVideoElement && element.readyState < 2)) return;
    isBusy = true;
    try {
      const bitmap = await createImageBitmap(element);
      if (isStopped) bitmap.close();
      else capture.offer(bitmap, performance.now());
    } catch {
      // Between two clips of a loop there may be no frame.
    }
    isBusy = false;
  }, 1000 / rate);
  return () => {
    isStopped = true;
    clearInterval(timer);
    capture.stop();
  };
}

/** @param {unknown} stream */
function trackOf(stream) {
  if (!(stream instanceof MediaStream)) throw new TypeError("a source is a stream, a video or a canvas");
  const [track] = stream.getVideoTracks();
  if (!track) throw new TypeError("the stream has no video track");
  return track;
}
