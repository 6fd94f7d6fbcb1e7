export { RearviewError } from "./src/errors.js";
export { Session, connect } from "./src/session.js";
