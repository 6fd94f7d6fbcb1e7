// One session of the Node client, as its argument says; prints what came of it as a line of JSON.
import { connect } from "@rearview/client";

const { address, options = {}, items, pauseMs = 0, leave = false } = JSON.parse(process.argv[2]);
const told = { answers: [] };

async function send(session) {
  for (const item of items) {
    if (item.control) await session.control(item.control);
    else await session.send(Buffer.from(item.frame), { index: item.index, format: "opaque" });
    if (pauseMs) await new Promise((resolve) => setTimeout(resolve, pauseMs));
  }
  await session.finish();
}

try {
  const session = await connect(address, options);
  told.sessionId = session.opened.sessionId;
  console.log(JSON.stringify({ opened: told.sessionId }));
  const sending = leave ? session.close() : send(session);
  sending.catch(() => {});
  for await (const { timings, settings, image, ...answer } of session) {
    if (settings) answer.seed = settings.seed;
    if (image) answer.image = image.toString();
    told.answers.push(answer);
  }
  await sending;
  told.connections = session.connections;
} catch (error) {
  const { reason, kind, retryAfterS, metadata, message } = error;
  told.error = { name: error.name, reason, kind, retryAfterS, metadata, message };
}
console.log(JSON.stringify(told));
