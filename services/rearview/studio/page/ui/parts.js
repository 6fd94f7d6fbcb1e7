// Small parts that every panel uses: sliders, choices, fields, dialogs.
import { html } from "../html.js";
import { useEffect, useId, useRef, useState } from "../vendor/hooks.js";
import { countWord } from "../state/words.js";
import { Icon } from "./icons.js";

/** At which frame a control took effect. @param {{frame?: number, waits?: boolean}} props */
export function Effect({ frame, waits }) {
  if (waits) return html`<span class="effect is-waiting" title="on its way">…</span>`;
  if (frame === undefined || frame === 0) return null;
  return html`<span class="effect" title="took effect at frame ${frame}"><span class="sr">in effect </span>from frame #${countWord(frame)}</span>`;
}

/**
 * @param {{label: string, value: number, min: number, max: number, step: number, onInput: (value: number) => void,
 *   show?: (value: number) => string, frame?: number, waits?: boolean, hint?: string, disabled?: boolean}} props
 */
export function Slider({ label, value, min, max, step, onInput, show = String, frame, waits, hint, disabled }) {
  const id = useId();
  // While it is dragged the finger has the last word.
  const [held, setHeld] = useState(/** @type {number | null} */ (null));
  const shown = held ?? value;
  const share = `${(100 * (shown - min)) / (max - min || 1)}%`;
  return html`<div class="field">
    <div class="field-head">
      <label for=${id}>${label}</label>
      <${Effect} frame=${frame} waits=${waits} />
      <output for=${id}>${show(shown)}</output>
    </div>
    <input id=${id} type="range" min=${min} max=${max} step=${step} value=${shown} disabled=${disabled}
      style=${{ "--share": share }} aria-describedby=${hint ? `${id}-hint` : null}
      onInput=${(/** @type {any} */ event) => {
        const next = Number(event.currentTarget.value);
        setHeld(next);
        onInput(next);
      }}
      onChange=${() => setHeld(null)} onBlur=${() => setHeld(null)} />
    ${hint && html`<p class="hint" id="${id}-hint">${hint}</p>`}
  </div>`;
}

/**
 * A choice of few, as radio buttons.
 * @param {{label: string, value: any, options: {value: any, name: string, title?: string}[],
 *   onPick: (value: any) => void, frame?: number, waits?: boolean, hideLabel?: boolean}} props
 */
export function Choice({ label, value, options, onPick, frame, waits, hideLabel }) {
  const name = useId();
  return html`<fieldset class="field choice">
    <legend class=${hideLabel ? "sr" : "field-head"}><span>${label}</span><${Effect} frame=${frame} waits=${waits} /></legend>
    <div class="segments">
      ${options.map(
        (one) => html`<label class="segment" title=${one.title} key=${one.value}>
          <input type="radio" name=${name} checked=${one.value === value} onChange=${() => onPick(one.value)} /><span>${one.name}</span>
        </label>`,
      )}
    </div>
  </fieldset>`;
}

/** @param {{label: string, value: string, options: {value: string, name: string}[], onPick: (value: string) => void, frame?: number, hint?: string}} props */
export function Select({ label, value, options, onPick, frame, hint }) {
  const id = useId();
  return html`<div class="field">
    <div class="field-head"><label for=${id}>${label}</label><${Effect} frame=${frame} /></div>
    <select id=${id} value=${value} onChange=${(/** @type {any} */ event) => onPick(event.currentTarget.value)}>
      ${options.map((one) => html`<option value=${one.value} selected=${one.value === value}>${one.name}</option>`)}
    </select>
    ${hint && html`<p class="hint">${hint}</p>`}
  </div>`;
}

/** @param {{label: string, checked: boolean, onToggle: (checked: boolean) => void, hint?: string}} props */
export function Switch({ label, checked, onToggle, hint }) {
  const id = useId();
  return html`<div class="field switch">
    <label for=${id}>${label}${hint && html`<span class="hint">${hint}</span>`}</label>
    <input id=${id} type="checkbox" role="switch" checked=${checked} onChange=${(/** @type {any} */ event) => onToggle(event.currentTarget.checked)} />
  </div>`;
}

/**
 * @param {{icon: string, label: string, onClick?: () => void, shortcut?: string, pressed?: boolean, text?: string,
 *   filled?: boolean, kind?: string, disabled?: boolean}} props
 */
export function Button({ icon, label, onClick, shortcut, pressed, text, filled, kind = "", disabled }) {
  const title = shortcut ? `${label} (${shortcut})` : label;
  return html`<button type="button" class="button ${kind}" onClick=${onClick} title=${title} disabled=${disabled}
    aria-label=${text === label ? null : label} aria-pressed=${pressed === undefined ? null : String(pressed)}>
    <${Icon} name=${icon} filled=${filled} />${text && html`<span>${text}</span>`}
  </button>`;
}

/** A modal sheet. @param {{title: string, onClose: () => void, children?: any, wide?: boolean}} props */
export function Sheet({ title, onClose, children, wide }) {
  const ref = useRef(/** @type {HTMLDialogElement | null} */ (null));
  const id = useId();
  useEffect(() => ref.current?.showModal(), []);
  return html`<dialog ref=${ref} class="sheet" data-wide=${wide || null} aria-labelledby=${id} onClose=${onClose}
    onClick=${(/** @type {any} */ event) => event.target === ref.current && ref.current?.close()}>
    <div class="sheet-body">
      <header><h2 id=${id}>${title}</h2><${Button} icon="close" label="Close" kind="quiet" onClick=${() => ref.current?.close()} /></header>
      ${children}
    </div>
  </dialog>`;
}
