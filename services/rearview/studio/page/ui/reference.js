// The reference image: dropped or chosen, shown, and how much it is followed.
import { html } from "../html.js";
import { useId, useState } from "../vendor/hooks.js";
import { MOST, QUALITIES, SIDE, base64Of, followed, middle, shown, unfollowed } from "../state/reference.js";
import * as store from "../store.js";
import { control } from "../tiles.js";
import { Dial } from "./dial.js";
import { Button, Effect } from "./parts.js";

export function Reference() {
  const tile = /** @type {import("../state/tile.js").Tile} */ (store.tile.value);
  const settings = store.settings.value;
  const [trouble, setTrouble] = useState("");
  const id = useId();
  const picture = shown(settings);

  /** @param {File | undefined} file */
  const take = async (file) => {
    if (!file) return;
    try {
      control(followed(settings, await encoded(file)));
      setTrouble("");
    } catch {
      setTrouble(`${file.name} cannot be read as a picture.`);
    }
  };
  return html`<section class="card" aria-label="Reference"
    onDragOver=${(/** @type {DragEvent} */ event) => event.preventDefault()}
    onDrop=${(/** @type {DragEvent} */ event) => {
      event.preventDefault();
      void take(event.dataTransfer?.files[0]);
    }}>
    <div class="card-head"><h2>Reference</h2><${Effect} frame=${tile.tookEffect.reference} /></div>
    <div class="row between">
      ${picture ? html`<img src=${picture} alt="The picture that is followed" width="72" height="72" />` : html`<p class="hint">Drop a picture here: its face, style or look is followed.</p>`}
      <label class="button quiet" for=${id}>${picture ? "Another" : "Choose"}
        <input class="sr" id=${id} type="file" accept="image/*" aria-label="Choose a reference picture"
          onChange=${(/** @type {any} */ event) => {
            void take(event.currentTarget.files?.[0]);
            event.currentTarget.value = "";
          }} />
      </label>
      ${picture && html`<${Button} icon="close" label="Follow it no more" kind="quiet" onClick=${() => control(unfollowed())} />`}
    </div>
    ${trouble && html`<p class="note is-bad">${trouble}</p>`}
    ${picture && html`<${Dial} name="reference_scale" label="How much" value=${settings.reference_scale ?? 1}
      show=${(/** @type {number} */ value) => (value === 0 ? "off" : value.toFixed(2))} frame=${tile.tookEffect.reference_scale}
      onInput=${(/** @type {number} */ reference_scale) => control({ reference_scale })} />`}
  </section>`;
}

/** The square in its middle as a JPEG that a control has room for. @param {File} file */
async function encoded(file) {
  const image = await createImageBitmap(file);
  const { x, y, side } = middle(image.width, image.height);
  const canvas = new OffscreenCanvas(SIDE, SIDE);
  const context = /** @type {OffscreenCanvasRenderingContext2D} */ (canvas.getContext("2d"));
  context.fillStyle = "white";
  context.fillRect(0, 0, SIDE, SIDE);
  context.imageSmoothingQuality = "high";
  context.drawImage(image, x, y, side, side, 0, 0, SIDE, SIDE);
  image.close();
  let text = "";
  for (const quality of QUALITIES) {
    const blob = await canvas.convertToBlob({ type: "image/jpeg", quality });
    text = base64Of(new Uint8Array(await blob.arrayBuffer()));
    if (text.length <= MOST) break;
  }
  return text;
}
