// Builds what mesh-agent/src/map/page.rs embeds: `node build.mjs DIRECTORY`. Called by `cargo xtask ui`.
import { copyFile, mkdir } from "node:fs/promises";
import { join } from "node:path";
import { build } from "esbuild";

const out = process.argv[2] ?? "dist";
await mkdir(out, { recursive: true });
await build({
  entryPoints: { map: "src/main.tsx" },
  bundle: true,
  minify: true,
  format: "esm",
  target: ["es2022"],
  jsx: "automatic",
  jsxImportSource: "preact",
  legalComments: "eof",
  outdir: out,
});
await build({ entryPoints: { map: "src/map.css" }, minify: true, outdir: out });
for (const file of ["index.html", "login.html", "icon.svg"]) {
  await copyFile(join("src", file), join(out, file));
}
