// Where pictures come from, and in plain words why one does not come. No DOM.

/** @typedef {"camera" | "screen" | "file" | "sample"} SourceKind */
/** @typedef {{title: string, help: string}} Trouble */

/** The bundled clip's name: its address at the gateway, and what takes call it. */
export const SAMPLE = "sample.mp4";

/**
 * Why this page has no camera at all; null if it has one to ask for.
 * @param {{secure: boolean, mediaDevices: boolean, host: string}} where
 * @returns {Trouble | null}
 */
export function whyNoCamera({ secure, mediaDevices, host }) {
  if (mediaDevices) return null;
  if (!secure) {
    return {
      title: "No camera over plain HTTP",
      help:
        `Browsers give a camera only to HTTPS pages and to localhost, and this one is http://${host}. ` +
        "Start the studio with --lan and open the https:// address that it prints, or use a file or the sample clip.",
    };
  }
  return { title: "This browser has no camera to offer", help: "Use a file, the sample clip, or another browser." };
}

/**
 * Why asking for a camera or a screen failed.
 * @param {SourceKind} kind
 * @param {string} name of the DOMException
 * @returns {Trouble}
 */
export function whyRefused(kind, name) {
  const what = kind === "screen" ? "screen" : "camera";
  switch (name) {
    case "NotAllowedError":
    case "SecurityError":
      return kind === "screen"
        ? { title: "The screen was not shared", help: "Press Screen again and choose a window, a tab or a whole screen." }
        : {
            title: "The camera was not allowed",
            help: "Allow it with the camera sign in the address bar, then press Camera again. In the system's settings this browser must be allowed, too.",
          };
    case "NotFoundError":
      return { title: `There is no ${what}`, help: "Plug one in, or use a file or the sample clip." };
    case "NotReadableError":
    case "AbortError":
      return { title: `The ${what} is busy`, help: "Another program has it. Close that one, then press Camera again." };
    case "OverconstrainedError":
      return { title: "That camera is gone", help: "Choose another one." };
    default:
      return { title: `The ${what} did not start`, help: name };
  }
}

/** @param {string} name @returns {Trouble} */
export function whyNoFile(name) {
  return { title: "This browser cannot play that file", help: `${name}: MP4 (H.264) and WebM play everywhere.` };
}

/** Labels of cameras; browsers hide them until one was allowed. @param {{deviceId: string, label: string}[]} devices */
export function cameraNames(devices) {
  return devices.map((one, at) => ({ id: one.deviceId, name: one.label || `Camera ${at + 1}` }));
}
