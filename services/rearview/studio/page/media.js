// Cameras, screens, files: from a choice to frames in the worker. The worker paces, cuts and encodes them.
import { listen, order } from "./engine.js";

/**
 * @typedef {{kind: import("./state/sources.js").SourceKind, name: string, width: number, height: number,
 *   deviceId: string | null, video: HTMLVideoElement | null, start: () => void, stop: () => void}} Source
 * It is opened, which may fail, before it is started: the worker reads one source at a time.
 */

/**
 * @param {string} [deviceId]
 * @param {() => void} [ended]
 * @returns {Promise<Source>}
 */
export async function openCamera(deviceId, ended = () => {}) {
  const size = { width: { ideal: 1280 }, height: { ideal: 720 }, frameRate: { ideal: 30 } };
  const video = deviceId ? { ...size, deviceId: { exact: deviceId } } : { ...size, facingMode: "user" };
  const stream = await navigator.mediaDevices.getUserMedia({ video, audio: false });
  return fromStream("camera", stream, ended);
}

/** @param {() => void} [ended] @returns {Promise<Source>} */
export async function openScreen(ended = () => {}) {
  const stream = await navigator.mediaDevices.getDisplayMedia({ video: { frameRate: { ideal: 30 } }, audio: false });
  return fromStream("screen", stream, ended);
}

/**
 * A clip, played in a loop. Rejects if the browser cannot play it.
 * @param {"file" | "sample"} kind
 * @param {string} url
 * @param {string} name
 * @param {number} rate frames per second, where frames have to be asked for
 * @returns {Promise<Source>}
 */
export async function openClip(kind, url, name, rate) {
  const video = document.createElement("video");
  Object.assign(video, { src: url, loop: true, muted: true, playsInline: true });
  await new Promise((resolve, reject) => {
    video.onloadeddata = resolve;
    video.onerror = () => reject(new Error(name));
  });
  await video.play();
  // A captured video plays on in a hidden tab, and its track feeds the worker directly.
  const captureStream = /** @type {any} */ (video).captureStream;
  const track = captureStream && canFeed() ? captureStream.call(video).getVideoTracks()[0] : null;
  let unbind = () => {};
  return {
    ...{ kind, name, width: video.videoWidth, height: video.videoHeight, deviceId: null, video },
    start: () => (unbind = track ? feed(track) : askFor(video, rate)),
    stop() {
      unbind();
      video.pause();
      video.removeAttribute("src");
      if (kind === "file") URL.revokeObjectURL(url);
    },
  };
}

/**
 * @param {"camera" | "screen"} kind
 * @param {MediaStream} stream
 * @param {() => void} ended
 * @returns {Promise<Source>}
 */
async function fromStream(kind, stream, ended) {
  const [track] = stream.getVideoTracks();
  track.addEventListener("ended", ended);
  const { width, height, deviceId } = track.getSettings();
  const video = canFeed() ? null : document.createElement("video");
  if (video) {
    Object.assign(video, { srcObject: stream, muted: true, playsInline: true });
    await video.play();
  }
  let unbind = () => {};
  return {
    ...{ kind, name: track.label || kind, width: width ?? 640, height: height ?? 480, deviceId: deviceId ?? null, video: null },
    start: () => (unbind = video ? askFor(video, 30) : feed(track)),
    stop() {
      track.removeEventListener("ended", ended);
      unbind();
      for (const one of stream.getTracks()) one.stop();
    },
  };
}

function canFeed() {
  return "MediaStreamTrackProcessor" in globalThis;
}

/** The track's frames go to the worker without passing here. @param {MediaStreamTrack} track */
function feed(track) {
  const { readable } = new /** @type {any} */ (globalThis).MediaStreamTrackProcessor({ track, maxBufferSize: 2 });
  order("source", { readable }, [readable]);
  return () => order("stop");
}

/**
 * The worker's clock asks for frames: its timers run on in a hidden tab, those of a page do not.
 * @param {HTMLVideoElement} video
 * @param {number} rate
 */
function askFor(video, rate) {
  let isBusy = false;
  const unlisten = listen(async (news) => {
    if (news.is !== "tick" || isBusy || video.readyState < 2) return;
    isBusy = true;
    try {
      const bitmap = await createImageBitmap(video);
      order("image", { bitmap }, [bitmap]);
    } catch {
      // Between two clips of a loop there may be no frame.
    }
    isBusy = false;
  });
  order("source", { ticks: rate });
  return () => {
    unlisten();
    order("stop");
  };
}

/** Cameras that the browser tells of. */
export async function listCameras() {
  if (!navigator.mediaDevices?.enumerateDevices) return [];
  const devices = await navigator.mediaDevices.enumerateDevices();
  return devices.filter((one) => one.kind === "videoinput").map(({ deviceId, label }) => ({ deviceId, label }));
}

/** Whether the camera may be opened without asking. */
export async function mayUseCamera() {
  try {
    const permission = await navigator.permissions.query({ name: /** @type {any} */ ("camera") });
    return permission.state === "granted";
  } catch {
    return false;
  }
}

const TYPES = ["video/mp4;codecs=avc1.42E01F", "video/webm;codecs=vp9", "video/webm;codecs=vp8", "video/webm"];

/**
 * Records pictures of the worker. Resolves `done` with the file when it is stopped.
 * @param {number | "program"} what
 * @returns {{stop: () => void, done: Promise<{blob: Blob, ending: string}>}}
 */
export function record(what) {
  const type = TYPES.find((one) => MediaRecorder.isTypeSupported(one)) ?? "";
  const Generator = /** @type {any} */ (globalThis).MediaStreamTrackGenerator;
  let stream;
  let unlisten = () => {};
  if (Generator) {
    const track = new Generator({ kind: "video" });
    stream = new MediaStream([track]);
    order("record", { writable: track.writable, what }, [track.writable]);
  } else {
    const canvas = document.createElement("canvas");
    const brush = /** @type {ImageBitmapRenderingContext} */ (canvas.getContext("bitmaprenderer"));
    stream = canvas.captureStream();
    unlisten = listen((news) => {
      if (news.is === "recorded") brush.transferFromImageBitmap(news.bitmap);
    });
    order("record", { writable: null, what });
  }
  const recorder = new MediaRecorder(stream, { mimeType: type, videoBitsPerSecond: 8e6 });
  /** @type {Blob[]} */
  const parts = [];
  recorder.ondataavailable = ({ data }) => data.size && parts.push(data);
  const done = new Promise((resolve) => {
    recorder.onstop = () => {
      unlisten();
      order("stop-record");
      resolve({ blob: new Blob(parts, { type }), ending: type.includes("mp4") ? "mp4" : "webm" });
    };
  });
  recorder.start(1000);
  return { stop: () => recorder.stop(), done: /** @type {any} */ (done) };
}

/** @param {Blob | string} what @param {string} name */
export function download(what, name) {
  const blob = typeof what === "string" ? new Blob([what], { type: "application/json" }) : what;
  const url = URL.createObjectURL(blob);
  const link = document.createElement("a");
  Object.assign(link, { href: url, download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}
