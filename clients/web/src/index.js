// `@rearview/web`: a camera in, a painted camera out.
export { RearviewError } from "./errors.js";
export { Session, connect } from "./session.js";
