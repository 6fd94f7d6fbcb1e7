/** Seconds, unless a name says otherwise. Images are `Uint8Array`. */

export interface WeightedPrompt { prompt: string; weight: number }
export interface WeightedAdapters { adapters: string; weight?: number }
export interface WeightedControl { name: string; weight?: number }

/** What frames are translated under; in `control`, an absent field keeps its value. */
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

export interface Reconnect {
  firstWaitS?: number;
  maxWaitS?: number;
  giveUpAfterS?: number;
  openTimeoutS?: number;
  acceptTimeoutS?: number;
}

export interface Tls { ca?: Uint8Array; key?: Uint8Array; cert?: Uint8Array; serverName?: string }

export interface Options {
  /** The tenant's bearer token, or what is asked for it: before each connection, when the last one was refused, and by `close`. */
  token?: string | (() => string | Promise<string>);
  tls?: boolean | Tls;
  reconnect?: Reconnect;
  /** Answers that wait for the reader at most. */
  answerWindow?: number;
  settings?: Settings;
  model?: string;
  width?: number;
  height?: number;
  dropPolicy?: "latest" | "lossless" | "deadline";
  frameBudgetS?: number;
  frameRate?: number;
  answerFormat?: "jpeg" | "rgb" | "opaque";
  jpegQuality?: number;
  maxSteps?: number;
  method?: "per-frame" | "streamv2v" | "live2diff";
  featureBank?: FeatureBank;
  temporalCache?: TemporalCache;
  similarityFilter?: { threshold?: number; maxSkipFrames?: number };
}

export interface Timings {
  totalS: number;
  admissionS: number;
  codecS: number;
  spans: { span: string; queueS: number; computeS: number }[];
}

export type Continuity = "exact" | "approximate" | "reset";

export type Answer =
  | {
      kind: "frame"; index: number; presentationS: number; format: string; image: Uint8Array;
      width: number; height: number; timings: Timings;
    }
  | { kind: "dropped"; index: number; reason: string; timings: Timings }
  | {
      kind: "control-applied"; controlId: number; settings: Settings; advice: string;
      /** The first frame under the new settings is the one after so many. */
      receivedFrames: number;
      /** Why nothing was changed; undefined: it was. */
      rejectedReason?: string;
    }
  | {
      kind: "notice"; notice: "drain" | "moved" | "resized" | "resumed"; graceS: number;
      continuity?: Continuity; gapFrames: number;
    };

export interface Opened {
  sessionId: string;
  resumeToken: string;
  model: string;
  width: number;
  height: number;
  settings: Settings;
  idleTimeoutS: number;
  resumeGraceS: number;
  continuity: Continuity;
  advice: string;
  method?: string;
  warmUpFrames: number;
}

export interface Frame {
  index?: number;
  presentationS?: number;
  format?: "jpeg" | "rgb" | "opaque";
  /** What a ControlNet is shown of this frame, by its name. */
  controls?: Record<string, Uint8Array>;
}

export class RearviewError extends Error {
  readonly reason: string;
  readonly kind: "invalid" | "refused" | "not-found" | "ended" | "fault";
  readonly retryAfterS?: number;
  readonly metadata: Record<string, string>;
}

export class Session implements AsyncIterable<Answer> {
  readonly opened: Opened;
  readonly connections: number;
  readonly unansweredFrames: number;
  send(image: Uint8Array, frame?: Frame): Promise<number>;
  control(changes: Settings): Promise<number>;
  finish(): Promise<void>;
  close(): Promise<void>;
  [Symbol.asyncIterator](): AsyncIterator<Answer>;
}

/** Open a session. Rejects with RearviewError where it is refused, invalid or not reached. */
export function connect(address: string | string[], options?: Options): Promise<Session>;
