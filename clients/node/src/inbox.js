// Answers between the server and the user, and the credit that the server has for more. A slow reader is
// bounded twice: the server may send `window` answers more than were taken, and nothing is read while so many
// are waiting.

const ACK_EVERY_ANSWERS = 4;

export class Inbox {
  #window;
  #waiting = [];
  #taken = 0;
  #toldReceived = 0;
  #toldTaken = 0;

  constructor(window) {
    if (!Number.isInteger(window) || window < 1) throw new RangeError(`answerWindow must be at least 1, not ${window}`);
    this.#window = window;
  }

  get length() {
    return this.#waiting.length;
  }

  get hasRoom() {
    return this.#waiting.length < this.#window;
  }

  put(answer) {
    this.#waiting.push(answer);
  }

  take() {
    const answer = this.#waiting.shift();
    if (answer && (answer.kind === "frame" || answer.kind === "dropped")) this.#taken += 1;
    return answer;
  }

  isCreditDue(receivedAnswers) {
    return (
      receivedAnswers - this.#toldReceived >= ACK_EVERY_ANSWERS ||
      this.#taken - this.#toldTaken >= Math.max(1, Math.floor(this.#window / 4))
    );
  }

  /** How many answers in all the server may send. Counts as told. */
  tellCredit(receivedAnswers) {
    this.#toldReceived = receivedAnswers;
    this.#toldTaken = this.#taken;
    return this.#taken + this.#window;
  }
}
