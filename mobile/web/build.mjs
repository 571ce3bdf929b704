// Builds dist/: index.js for the page, worker.js with what runs in the worker, ONNX Runtime's WebAssembly beside them, and
// types, and playground/, the page of `tapeout playground`; --out FOLDER: there instead. With --tests: build/tests/*.mjs for
// `node --test`.
import { build } from "esbuild";
import { copyFileSync, mkdirSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { createHash } from "node:crypto";
import { spawnSync } from "node:child_process";
import { fileURLToPath } from "node:url";

const here = fileURLToPath(new URL(".", import.meta.url));
process.chdir(here);
const common = { bundle: true, format: "esm", target: "es2022", sourcemap: false, logLevel: "warning", legalComments: "none", define: { TAPEOUT_BUILD: JSON.stringify(identity()) } };

if (process.argv.includes("--tests")) {
  rmSync("build/tests", { recursive: true, force: true });
  const tests = readdirSync("tests").filter((name) => name.endsWith(".test.ts"));
  await build({
    ...common,
    platform: "node",
    packages: "external",
    entryPoints: tests.map((name) => `tests/${name}`),
    outdir: "build/tests",
    outExtension: { ".js": ".mjs" },
  });
} else {
  const place = process.argv.indexOf("--out");
  const out = place < 0 ? "dist" : process.argv[place + 1];
  rmSync(out, { recursive: true, force: true });
  mkdirSync(out, { recursive: true });
  await build({
    ...common,
    platform: "browser",
    minify: true,
    splitting: true,
    entryPoints: ["src/index.ts", "src/worker.ts"],
    outdir: out,
    chunkNames: "[name]-[hash]",
    conditions: ["onnxruntime-web-use-extern-wasm"],
  });
  for (const variant of ["ort-wasm-simd-threaded", "ort-wasm-simd-threaded.asyncify"])
    for (const kind of ["mjs", "wasm"])
      copyFileSync(`node_modules/onnxruntime-web/dist/${variant}.${kind}`, `${out}/${variant}.${kind}`);
  copyFileSync("src/engine/static/ort-module.mjs", `${out}/ort-module.mjs`);
  await page(`${out}/playground`);
  const declarations = ["--declaration", "--emitDeclarationOnly", "--noEmit", "false", "--outDir", out, "--rootDir", "src"];
  const result = spawnSync("node", ["node_modules/typescript/bin/tsc", "-p", "tsconfig.build.json", ...declarations], { stdio: "inherit" });
  if (result.status) process.exit(result.status);
}

/** The same for the same sources: page and worker of one build know each other by it. */
function identity() {
  const hash = createHash("sha256");
  const sources = readdirSync("src", { recursive: true }).filter((name) => /\.(ts|mjs)$/.test(name));
  for (const name of ["../package.json", ...sources.sort()]) hash.update(`${name.replaceAll("\\", "/")}\0`).update(readFileSync(`src/${name}`));
  return hash.digest("hex").slice(0, 16);
}

/** The playground's page: app.js with the page's half of the SDK, its service worker, and what is copied. */
async function page(outdir) {
  const settings = { ...common, platform: "browser", minify: true, outdir };
  await build({ ...settings, entryPoints: ["playground/app.ts"] });
  await build({ ...settings, entryPoints: ["playground/sw.ts"], format: "iife" });
  for (const name of ["index.html", "style.css", "icon.svg"]) copyFileSync(`playground/${name}`, `${outdir}/${name}`);
}
