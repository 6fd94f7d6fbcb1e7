// The start of the studio.
import { start } from "./actions.js";
import { html } from "./html.js";
import { pressed } from "./keys.js";
import { recallMidi } from "./midi.js";
import { recallPresets } from "./presets.js";
import { readTheme } from "./theme.js";
import { Studio } from "./ui/studio.js";
import { render } from "./vendor/preact.js";
import "./vendor/signals.js";

readTheme();
recallPresets();
recallMidi();
render(html`<${Studio} />`, /** @type {HTMLElement} */ (document.getElementById("studio")));
addEventListener("keydown", pressed);
start();
