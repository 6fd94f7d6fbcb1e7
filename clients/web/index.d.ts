/** Seconds, unless a name says otherwise. */

export interface WeightedPrompt { prompt: string; weight: number }
export interface WeightedAdapters { adapters: string; weight?: number }
export interface WeightedControl { name: string; weight?: number }

/** What frames are translated under; in `change`, an absent field keeps its value. */
export interface Settings {
  prompt?: string;
  prompts?: WeightedPrompt[];
  negativePrompt?: string;
  blendFrames?: number;
  strength?: number;
  steps?: number;
  timestepIndices?: number[];
  seed?: number;
  noiseRule?: "fixed" | "fresh" | "first";
  guidance?: "none" | "self" | "initialize" | "full";
  guidanceScale?: number;
  delta?: number;
  adapters?: string;
  adapterMix?: WeightedAdapters[];
  controls?: WeightedControl[];
  jpegQuality?: number;
  width?: number;
  height?: number;
  /** A baseline JPEG or a PNG; empty: none. */
  reference?: Uint8Array;
  referenceScale?: number;
  referenceMask?: Uint8Array;
}

export interface FeatureBank {
  policy?: "merge" | "queue";
  interval?: number;
  maxFrames?: number;
  fusionStrength?: number;
  fusionThreshold?: number;
  promptChange?: "keep" | "clear" | "fade";
  phase?: number;
}

export interface TemporalCache {
  promptChange?: "reset" | "shadow" | "keep";
  sceneCut?: "reset" | "shadow" | "keep";
  sceneDetection?: boolean;
  instantStart?: boolean;
}

export type Continuity = "exact" | "approximate" | "reset";

/** The session as the service describes it. */
export interface Opened {
  sessionId: string;
  model: string;
  width: number;
  height: number;
  settings: Settings;
  method: string | null;
  advice: string;
  unknownWords: string[];
  warmUpFrames: number;
  continuity: Continuity;
  /** The first frame that may go to it. */
  frame: number;
}

/** A change that is in force, from `frame` on. */
export interface Applied { frame: number; settings: Settings; advice: string; unknownWords: string[] }

export interface Picture {
  frame: number;
  /** By `performance.now()`. */
  capturedMs: number;
  /** In the studio, and what the service spent of it. */
  serverMs: number;
  serviceMs: number;
  jpeg: Uint8Array;
}

export interface Notice { message: string; continuity: Continuity | null; frame: number | null }

/** What each event's `detail` is, and what `on…` is called with. */
export interface Events {
  /** It is open; again if it had to be opened anew. */
  opened: Opened;
  /** Refused for now: it is tried again after so long, for a minute. */
  queued: { reason: string; message: string; retryAfterS?: number };
  frame: Picture;
  /** A frame that has no picture, and why. */
  dropped: { frame: number; reason: string };
  applied: Applied | { rejected: { reason: string; message: string } };
  /** The session goes on at other replicas. */
  moved: Notice;
  /** The studio had lost the service, and goes on. */
  resumed: Notice;
  resized: Notice;
  drain: Notice;
  reconnecting: { where: "gateway" | "service"; attempt?: number };
  /** `exact`: with all of the picture's past; `reset`: with none. */
  reconnected: { continuity: Continuity };
  stats: { fps: number; p50Ms: number | null; p95Ms: number | null; spans: unknown[]; drops: Record<string, number> };
  /** Something that was said made no sense to the studio. */
  complaint: { reason: string; message: string };
  /** The camera is gone, or the screen no longer shared. */
  sourceended: Record<string, never>;
  /** `CLOSED`: by the page itself. */
  ended: { reason: string; message: string };
}

export type Callbacks = { [Name in keyof Events as `on${Name}`]?: (detail: Events[Name]) => void };

export interface Options extends Callbacks {
  /** Of the studio. Default: where the page is from. */
  url?: string | URL;
  /** Of one session, or what is asked for it: at first, and where the studio no longer takes the last one. None: the page is the studio's own. */
  token?: string | (() => string | Promise<string>) | null;
  settings?: Settings;
  /** On which pictures are drawn. Default: a new one. */
  canvas?: HTMLCanvasElement;
  /** Default: the model's own size, in the shape of the source. */
  width?: number;
  height?: number;
  frameRate?: number;
  /** Of the JPEGs that are sent, 0 to 1. Default 0.85. */
  quality?: number;
  /** `latest`, the default, drops frames rather than fall behind; `lossless` drops none that was sent. */
  dropPolicy?: "latest" | "lossless" | "deadline";
  frameBudgetS?: number;
  jpegQuality?: number;
  maxSteps?: number;
  method?: "per-frame" | "streamv2v" | "live2diff";
  featureBank?: FeatureBank;
  temporalCache?: TemporalCache;
  similarityFilter?: { threshold?: number; maxSkipFrames?: number };
  /** Wait up to a minute where there is no room. Default true; else it is refused at once. */
  queue?: boolean;
  /** Default 20. */
  openTimeoutS?: number;
  /** How long a lost connection is sought. Default 60: as long as the studio keeps the session. */
  giveUpAfterS?: number;
}

export class RearviewError extends Error {
  readonly reason: string;
  readonly retryAfterS?: number;
}

export class Session extends EventTarget {
  addEventListener<Name extends keyof Events>(
    name: Name, listener: (event: CustomEvent<Events[Name]>) => void, options?: boolean | AddEventListenerOptions,
  ): void;
  addEventListener(
    name: string, listener: EventListenerOrEventListenerObject | null, options?: boolean | AddEventListenerOptions,
  ): void;
  removeEventListener<Name extends keyof Events>(
    name: Name, listener: (event: CustomEvent<Events[Name]>) => void, options?: boolean | EventListenerOptions,
  ): void;
  removeEventListener(
    name: string, listener: EventListenerOrEventListenerObject | null, options?: boolean | EventListenerOptions,
  ): void;
  /** The painted pictures, for a video element, a call or a recorder. */
  readonly stream: MediaStream;
  /** The same as a canvas. */
  readonly canvas: HTMLCanvasElement;
  readonly opened: Opened;
  /** A page on which others watch, and change nothing. */
  readonly viewerLink: string;
  /** Connections that it has had; 1 if none was lost. */
  readonly connections: number;
  readonly unansweredFrames: number;
  /** Set once it has ended. */
  readonly error: RearviewError | null;
  /** Changes settings from the next frame on. Rejects with a RearviewError where that is refused. */
  change(settings: Settings): Promise<Applied>;
  /** A frame where there is no source: JPEG bytes, or what a canvas may draw. Its number, once it is on its way. */
  send(image: Uint8Array | ImageBitmapSource): Promise<number>;
  /** Waits until every frame is answered, and ends the session. */
  finish(): Promise<void>;
  /** Ends the session at once. The source goes on. */
  close(): void;
}

/** Open a session. Rejects with a RearviewError where it is refused, invalid or not reached. */
export function connect(
  source: MediaStream | HTMLVideoElement | HTMLCanvasElement | null, options?: Options,
): Promise<Session>;
