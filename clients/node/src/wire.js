// Between what a user writes and messages of `rearview.v1`: names, enums, and words for what is not known.

import { existsSync } from "node:fs";
import { fileURLToPath } from "node:url";
import grpc from "@grpc/grpc-js";
import protoLoader from "@grpc/proto-loader";

/** The package's own copy, or in a checkout that of the repository. */
const PROTO = [new URL("../proto/", import.meta.url), new URL("../../../proto/", import.meta.url)]
  .map(fileURLToPath)
  .find((folder) => existsSync(`${folder}rearview/v1/translation_service.proto`));
const definition = protoLoader.loadSync("rearview/v1/translation_service.proto", {
  includeDirs: [PROTO], longs: Number, enums: String, oneofs: true,
});
const sessions = protoLoader.loadSync("rearview/v1/session_service.proto", {
  includeDirs: [PROTO], longs: Number, enums: String, oneofs: true,
});
export const { TranslationService } = grpc.loadPackageDefinition(definition).rearview.v1;
export const { SessionService } = grpc.loadPackageDefinition(sessions).rearview.v1;

const BANK = { policy: "POLICY_", promptChange: "PROMPT_CHANGE_" };
const CACHE = { promptChange: "REWARM_", sceneCut: "REWARM_" };
const ENUMS = {
  Open: { dropPolicy: "DROP_POLICY_", method: "METHOD_", answerFormat: "IMAGE_FORMAT_" },
  Settings: { noiseRule: "NOISE_RULE_", guidance: "GUIDANCE_" },
  FeatureBank: BANK,
  TemporalCache: CACHE,
  SimilarityFilter: {},
};
const NESTED = { featureBank: "FeatureBank", temporalCache: "TemporalCache", similarityFilter: "SimilarityFilter" };
const HIDDEN = new Set(["answerCredit", "settings"]);

/** Fields of a message type, by their JSON names; of an enum field its numbers by name. */
const TYPES = Object.fromEntries(
  Object.keys(ENUMS).map((name) => [name, fieldsOf(definition[`rearview.v1.${name}`].type)]),
);

function fieldsOf(type) {
  const camel = (name) => name.replace(/_([a-z0-9])/g, (_, letter) => letter.toUpperCase());
  return new Map(type.field.map((field) => [camel(field.name), field]));
}

/** @returns {object} `Open`, without credit; it is written later, and perhaps once more, as it was asked */
export function openOf({ settings = {}, frameBudgetS, ...options }) {
  if (frameBudgetS !== undefined) options.frameBudget = durationOf(frameBudgetS);
  return { ...messageOf("Open", options), settings: settingsOf(settings) };
}

/** @returns {object} `Settings`, of its own all through: they are written later, and perhaps once more */
export function settingsOf({ controls, reference, referenceMask, ...changes }) {
  const message = messageOf("Settings", changes);
  if (controls !== undefined) message.controls = { controls: owned(controls) };
  if (reference !== undefined) message.reference = owned(reference);
  if (referenceMask !== undefined) message.referenceMask = owned(referenceMask);
  return message;
}

/** @returns {object} `Frame`, with bytes of its own: it is written later, and perhaps once more */
export function frameOf(image, { index, presentationS = 0, format = "jpeg", controls = {} }) {
  const how = enumOf("format", "IMAGE_FORMAT_", format);
  const shown = Object.entries(controls).map(([name, picture]) => ({ name, format: how, image: copied(picture) }));
  const presentationOffset = durationOf(presentationS);
  return { frameIndex: index, presentationOffset, format: how, image: copied(image), controls: shown };
}

function copied(image) {
  if (!(image instanceof Uint8Array)) throw new TypeError("an image is a Uint8Array");
  return Buffer.from(image);
}

function owned(value) {
  if (value instanceof Uint8Array) return Buffer.from(value);
  if (Array.isArray(value)) return value.map(owned);
  if (value === null || typeof value !== "object") return value;
  return Object.fromEntries(Object.entries(value).map(([name, one]) => [name, owned(one)]));
}

function messageOf(type, given) {
  const message = {};
  for (const [name, value] of Object.entries(given)) {
    if (value === undefined) continue;
    if (!TYPES[type].has(name) || HIDDEN.has(name)) {
      const known = [...TYPES[type].keys()].filter((each) => each !== "answerCredit").join(", ");
      throw new TypeError(`${type} has no ${name}; there are: ${known.replace("frameBudget,", "frameBudgetS,")}`);
    }
    if (name in NESTED) message[name] = messageOf(NESTED[name], value);
    else message[name] = name in ENUMS[type] ? enumOf(name, ENUMS[type][name], value) : owned(value);
  }
  return message;
}

const ENUM_VALUES = new Set(
  Object.values(definition)
    .flatMap((one) => (one.format?.includes("EnumDescriptorProto") ? [one] : (one.type?.enumType ?? []).map((type) => ({ type }))))
    .flatMap((one) => one.type.value.map((value) => value.name)),
);

function enumOf(name, prefix, value) {
  const member = prefix + String(value).toUpperCase().replaceAll("-", "_");
  if (ENUM_VALUES.has(member) && !member.endsWith("_UNSPECIFIED")) return member;
  const known = [...ENUM_VALUES].filter((each) => each.startsWith(prefix) && !each.endsWith("_UNSPECIFIED"));
  throw new TypeError(`${name} is ${value}; there are: ${known.map((each) => wordOf(each, prefix)).join(", ")}`);
}

/** `DROP_POLICY_LATEST` as `latest`. */
export function wordOf(member, prefix) {
  return member?.startsWith(prefix) ? member.slice(prefix.length).toLowerCase().replaceAll("_", "-") : undefined;
}

export function durationOf(seconds) {
  const whole = Math.floor(seconds);
  const nanos = Math.round((seconds - whole) * 1e9);
  return nanos < 1e9 ? { seconds: whole, nanos } : { seconds: whole + 1, nanos: 0 };
}

export const secondsOf = (duration) => (duration ? Number(duration.seconds ?? 0) + (duration.nanos ?? 0) / 1e9 : 0);

/** What `Settings` says, as a user writes it. */
export function settingsFrom(message = {}) {
  const found = {};
  for (const [name, value] of Object.entries(message)) {
    if (name.startsWith("_")) continue;
    const prefix = ENUMS.Settings[name];
    found[name] = prefix ? wordOf(value, prefix) : name === "controls" ? (value?.controls ?? []) : value;
  }
  return found;
}

export function answerFrom(response, opened) {
  switch (response.message) {
    case "frame": {
      const { frameIndex = 0, presentationOffset, format, image, timings, width, height } = response.frame;
      return {
        kind: "frame", index: frameIndex, presentationS: secondsOf(presentationOffset),
        format: wordOf(format, "IMAGE_FORMAT_") ?? "jpeg", image: image ?? Buffer.alloc(0),
        width: width || opened.width, height: height || opened.height, timings: timingsFrom(timings),
      };
    }
    case "dropped": {
      const { frameIndex = 0, reason, timings } = response.dropped;
      const why = reason?.replace(/^DROP_REASON_/, "") ?? "FAULT";
      return { kind: "dropped", index: frameIndex, reason: why, timings: timingsFrom(timings) };
    }
    case "notice": {
      const { kind, grace, continuity, gapFrames = 0 } = response.notice;
      const word = wordOf(kind, "KIND_");
      if (word === undefined || word === "credit" || word === "unspecified") return undefined;
      return {
        kind: "notice", notice: word, graceS: secondsOf(grace),
        continuity: wordOf(continuity, "CONTINUITY_"), gapFrames,
      };
    }
    default:
      return undefined;
  }
}

export function appliedFrom({ controlId = 0, settings, rejectedReason, advice = "" }, receivedFrames) {
  const isRejected = rejectedReason && !rejectedReason.endsWith("_UNSPECIFIED");
  return {
    kind: "control-applied", controlId, settings: settingsFrom(settings), advice, receivedFrames,
    rejectedReason: isRejected ? String(rejectedReason).replace(/^ERROR_REASON_/, "") : undefined,
  };
}

export function openedFrom(message) {
  return {
    sessionId: message.sessionId, resumeToken: message.resumeToken, model: message.model,
    width: message.width ?? 0, height: message.height ?? 0, settings: settingsFrom(message.settings),
    idleTimeoutS: secondsOf(message.idleTimeout), resumeGraceS: secondsOf(message.resumeGrace),
    continuity: wordOf(message.continuity, "CONTINUITY_") ?? "exact", advice: message.advice ?? "",
    method: wordOf(message.method, "METHOD_"), warmUpFrames: Math.max(1, message.warmUpFrames ?? 1),
    silenceS: message.heartbeat ? 1.5 * secondsOf(message.heartbeat) : undefined,
  };
}

function timingsFrom(message = {}) {
  return {
    totalS: secondsOf(message?.total), admissionS: secondsOf(message?.admission), codecS: secondsOf(message?.codec),
    spans: (message?.spans ?? []).map(({ span, queue, compute }) => ({
      span, queueS: secondsOf(queue), computeS: secondsOf(compute),
    })),
  };
}
