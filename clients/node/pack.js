// The package carries a copy of the proto; in a checkout the repository's own is read.
import { cpSync, rmSync } from "node:fs";

const copy = new URL("proto/", import.meta.url);
rmSync(copy, { recursive: true, force: true });
if (process.argv[2] !== "clean") {
  cpSync(new URL("../../proto/rearview/", import.meta.url), new URL("rearview/", copy), { recursive: true });
}
