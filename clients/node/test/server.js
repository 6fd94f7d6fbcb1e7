// A service that answers each frame with itself: real gRPC, in this process, and as much of the protocol as a session needs.
import grpc from "@grpc/grpc-js";
import { SessionService, TranslationService } from "../src/wire.js";

const REFUSED = { code: grpc.status.UNIMPLEMENTED, details: "not here" };

/**
 * @param {import("node:test").TestContext} t at whose end it is stopped
 * @param {{heartbeatMs?: number}} how it says that it is there so often
 */
export async function serving(t, { heartbeatMs = 0 } = {}) {
  const told = { address: "", tokens: [], opened: 0, resumed: 0, received: 0, beats: 0, closed: [], open: undefined };
  const server = new grpc.Server();
  server.addService(TranslationService.service, { translate: (call) => translate(call, told, heartbeatMs) });
  server.addService(SessionService.service, {
    getSession: (_, answer) => answer(REFUSED),
    listSessions: (_, answer) => answer(REFUSED),
    closeSession({ request, metadata }, answer) {
      told.tokens.push(metadata.get("authorization")[0]);
      told.closed.push(request.sessionId);
      answer(null, {});
    },
  });
  const bound = (resolve, reject) => (error, port) => (error ? reject(error) : resolve(port));
  const port = await new Promise((resolve, reject) =>
    server.bindAsync("127.0.0.1:0", grpc.ServerCredentials.createInsecure(), bound(resolve, reject)),
  );
  told.address = `127.0.0.1:${port}`;
  t.after(() => server.forceShutdown());
  return told;
}

function translate(call, told, heartbeatMs) {
  const say = (response) => call.write({ ...response, frameCredit: 1000 });
  const beat = setInterval(() => {
    told.beats += 1;
    say({ notice: { kind: "KIND_CREDIT" } });
  }, heartbeatMs || 1e9);
  const heartbeat = heartbeatMs ? { seconds: 0, nanos: heartbeatMs * 1e6 } : undefined;
  const opened = { sessionId: "one", resumeToken: "r", width: 8, height: 8, settings: {}, resumeGrace: { seconds: 5 }, heartbeat };
  told.tokens.push(call.metadata.get("authorization")[0]);
  call.on("data", ({ message, open, frame, control }) => {
    if (message === "open") {
      told.opened += 1;
      told.open = open;
    }
    if (message === "resume") told.resumed += 1;
    if (message === "open" || message === "resume") say({ opened: { ...opened, receivedFrames: told.received } });
    if (message === "control") say({ controlApplied: { controlId: control.controlId, settings: control.settings } });
    if (message !== "frame") return;
    told.received += 1;
    say({ frame: { frameIndex: frame.frameIndex, image: frame.image, format: frame.format } });
  });
  call.on("end", () => call.end());
  call.on("cancelled", () => clearInterval(beat));
  call.on("close", () => clearInterval(beat));
  call.on("error", () => {});
}

/** Waits for what comes from elsewhere. */
export async function until(isSo) {
  while (!isSo()) await new Promise((resolve) => setTimeout(resolve, 5));
}
