// Fetches the page's libraries from npm into services/rearview/studio/page/vendor: `make vendor`.
// Bare imports become relative ones, so that the page needs neither a build nor an import map.
import { execFileSync } from "node:child_process";
import { createHash } from "node:crypto";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

const VENDOR = join(dirname(fileURLToPath(import.meta.url)), "../services/rearview/studio/page/vendor");

// package, version, licence, and which of its files becomes which of ours.
const PACKAGES = [
  ["preact", "11.2.0", "MIT", { "dist/preact.mjs": "preact.js", "hooks/dist/hooks.mjs": "hooks.js" }],
  ["@preact/signals-core", "1.14.5", "MIT", { "dist/signals-core.mjs": "signals-core.js" }],
  ["@preact/signals", "2.11.4", "MIT", { "dist/signals.mjs": "signals.js" }],
  ["htm", "3.1.1", "Apache-2.0", { "dist/htm.mjs": "htm.js" }],
  ["uplot", "1.6.32", "MIT", { "dist/uPlot.iife.min.js": "uplot.js", "dist/uPlot.min.css": "uplot.css" }],
  ["@fontsource-variable/inter", "5.3.0", "OFL-1.1", { "files/inter-latin-wght-normal.woff2": "inter.woff2" }],
];

const OURS = {
  preact: "./preact.js",
  "preact/hooks": "./hooks.js",
  "@preact/signals-core": "./signals-core.js",
};

/** @param {string} text */
function relative(text) {
  return text
    .replace(/(from|import)\s*"([@a-z][@a-z0-9/-]*)"/g, (_, word, name) => {
      if (!(name in OURS)) throw new Error(`no vendored file for ${name}`);
      return `${word}"${OURS[name]}"`;
    })
    .replace(/\n?\/\/# sourceMappingURL=.*\n?/g, "\n")
    // uPlot's minified file is a script with one variable.
    .replace(/(\bvar uPlot=[^]*)/, "$1\nexport default uPlot;\n");
}

const folder = mkdtempSync(join(tmpdir(), "vendor-"));
const listed = {};
try {
  for (const [name, version, licence, files] of PACKAGES) {
    const packed = execFileSync("npm", ["pack", "--silent", `${name}@${version}`], { cwd: folder, encoding: "utf8" });
    execFileSync("tar", ["xzf", packed.trim()], { cwd: folder });
    for (const [from, to] of Object.entries(files)) {
      const bytes = readFileSync(join(folder, "package", from));
      const ours = to.endsWith(".js") ? Buffer.from(relative(bytes.toString("utf8"))) : bytes;
      writeFileSync(join(VENDOR, to), ours);
      const sha256 = createHash("sha256").update(ours).digest("hex");
      listed[to] = { package: name, version, licence, path: from, bytes: ours.length, sha256 };
    }
    rmSync(join(folder, "package"), { recursive: true });
  }
  writeFileSync(join(VENDOR, "vendor.json"), `${JSON.stringify(listed, null, 2)}\n`);
} finally {
  rmSync(folder, { recursive: true, force: true });
}
