// What controllers may turn: a slider whose range is the gateway's, and a frame around what is no slider.
import { html } from "../html.js";
import { pick } from "../midi.js";
import { keyOf, keyWord } from "../state/midi.js";
import * as store from "../store.js";
import { Slider } from "./parts.js";

/** While a controller is taught, a touch chooses this instead of moving it. @param {{name: string, children?: any}} props */
export function Turnable({ name, children }) {
  const learning = store.learning.value;
  const key = keyOf(store.mapping.value, name);
  const choose = (/** @type {Event} */ event) => {
    if (!learning) return;
    event.preventDefault();
    pick(name);
  };
  return html`<div class="dial" data-learning=${learning !== null || null} data-picked=${learning?.target === name || null} data-key=${key && keyWord(key)}
    onPointerDownCapture=${choose} onClickCapture=${choose} onFocusInCapture=${choose}>${children}</div>`;
}

/** @param {any} props a Slider's, without its range; `name`: of the dial */
export function Dial({ name, ...props }) {
  const { low, high, step } = store.model.value.dials[name.split("/")[0]];
  return html`<${Turnable} name=${name}><${Slider} ...${props} min=${low} max=${high} step=${step} /></${Turnable}>`;
}
