// What was sent and not yet answered: the exactly-once part of a session, without I/O or clock.
//
//     submit ─► take ─► answered / controlAnswered ─► forgotten
//                 ▲              │
//                 └─── resume ───┘   what the server has not received goes out again, in order
//
// Frames are numbered by their place in the session; `frameCredit` and `receivedFrames` count the same way,
// over all connections. A control has no number of its own: it stands before the frame that follows it. One
// whose answer is missing is sent again, although the server may have applied it, and so is one that was
// answered if the server has lost a frame from before it: the settings from before the first of them go
// ahead (RESTORE_ID), since settings are absolute values.

export const RESTORE_ID = 0;

/** @typedef {{request: object, number: number, isFrame: boolean, isTaken: boolean, framesBefore: number,
 *   isAcknowledged: boolean, isReported: boolean, settingsBefore: object}} Input */

/** One frame or control on its way; `number` is its frameIndex or controlId. @returns {Input} */
export function input(request, number, isFrame) {
  return {
    request, number, isFrame,
    isTaken: false, framesBefore: 0, isAcknowledged: false, isReported: false, settingsBefore: {},
  };
}

export class Ledger {
  frameCredit = 0;
  /** All settings after the last acknowledged control. */
  settings = {};
  receivedAnswers = 0;
  /** Frames that were handed to the present connection, or received over former ones. */
  sentFrames = 0;
  /** @type {Input[]} */ #items = [];
  /** @type {Input[]} */ #outgoing = [];

  get unansweredFrames() {
    return this.#items.filter((item) => item.isFrame).length;
  }

  /** Numbers of the frames that were sent and not answered, in order. */
  get sentIndices() {
    return this.#items.filter((item) => item.isFrame && item.isTaken).map((item) => item.number);
  }

  get isEmpty() {
    return this.#items.length === 0;
  }

  get hasOutgoing() {
    return this.#outgoing.length > 0;
  }

  submit(item) {
    this.#items.push(item);
    this.#outgoing.push(item);
    return item;
  }

  /** The next input to send, now counted as sent; undefined if there is none or no credit for it. */
  take() {
    const item = this.#outgoing[0];
    if (!item || (item.isFrame && this.sentFrames >= this.frameCredit)) return undefined;
    this.#outgoing.shift();
    if (!item.isTaken) {
      item.isTaken = true;
      item.framesBefore = this.sentFrames;
    }
    if (item.isFrame) this.sentFrames += 1;
    return item;
  }

  /** Forget the frame that this answer is for. Throws unless it is the oldest unanswered one. */
  answered(frameIndex) {
    const at = this.#items.findIndex((item) => item.isFrame);
    const item = this.#items[at];
    if (!item || !item.isTaken || item.number !== frameIndex) {
      throw new Error(`answer for frame ${frameIndex}, ${item ? `expected ${item.number}` : "but none is unanswered"}`);
    }
    this.#items.splice(at, 1);
    this.receivedAnswers += 1;
    this.#forget();
  }

  /** Note the answer to a control. Undefined: the user has it already, or it is the ledger's own. */
  controlAnswered(controlId, settings) {
    const item = this.#items.find((each) => !each.isFrame && each.number === controlId && !each.isAcknowledged);
    if (!item) return undefined;
    item.isAcknowledged = true;
    item.settingsBefore = this.settings;
    this.settings = settings;
    const wasReported = item.isReported;
    item.isReported = true;
    this.#forget();
    return wasReported ? undefined : item;
  }

  /** Prepare a new connection: send again what the server lacks, also of settings. */
  resume(receivedFrames, frameCredit, settings) {
    const newest = this.receivedAnswers + this.sentIndices.length;
    if (receivedFrames < this.receivedAnswers || receivedFrames > newest) {
      throw new Error(
        `the server has received ${receivedFrames} frames, the client has ${this.receivedAnswers} answers` +
          ` and has sent ${newest} frames`,
      );
    }
    this.sentFrames = receivedFrames;
    this.frameCredit = frameCredit;
    let again = this.#lacking(receivedFrames);
    const redone = again.filter((item) => !item.isFrame && item.isTaken);
    if (redone[0]?.isAcknowledged) this.settings = redone[0].settingsBefore;
    if (redone.length || !sameSettings(settings, this.settings)) again = [restoring(this.settings), ...again];
    this.#outgoing = again;
    for (const item of redone) item.isAcknowledged = false;
  }

  #lacking(receivedFrames) {
    let number = this.receivedAnswers;
    return this.#items.filter((item) => {
      if (item.isFrame) return number++ >= receivedFrames;
      return !(item.isAcknowledged && item.framesBefore <= receivedFrames);
    });
  }

  #forget() {
    while (this.#items[0]?.isAcknowledged && this.#items[0].framesBefore <= this.receivedAnswers) this.#items.shift();
  }
}

/** A control that restores `settings`. Of two fields that replace each other, the longer form is sent. */
function restoring(settings) {
  const restored = { ...settings };
  if (restored.prompts?.length) delete restored.prompt;
  if (restored.adapterMix?.length) delete restored.adapters;
  return input({ control: { controlId: RESTORE_ID, settings: restored } }, RESTORE_ID, false);
}

function sameSettings(one, other) {
  return JSON.stringify(ordered(one)) === JSON.stringify(ordered(other));
}

function ordered(value) {
  if (Array.isArray(value)) return value.map(ordered);
  if (value && typeof value === "object" && !(value instanceof Uint8Array)) {
    return Object.fromEntries(Object.keys(value).sort().map((key) => [key, ordered(value[key])]));
  }
  return value instanceof Uint8Array ? Buffer.from(value).toString("base64") : value;
}
