// Makes static/vendor and its manifest out of what package-lock.json pins. Run by `make dashboard-assets`.
import { build } from "esbuild";
import { createHash } from "node:crypto";
import { mkdir, readFile, rm, writeFile } from "node:fs/promises";

const out = new URL("../static/vendor/", import.meta.url);
const modules = new URL("./node_modules/", import.meta.url);
const packages = ["htmx.org", "@noble/curves", "@noble/hashes"];

await rm(out, { recursive: true, force: true });
await mkdir(out, { recursive: true });
await build({
  entryPoints: [new URL("./crypto.js", import.meta.url).pathname],
  outfile: new URL("crypto.js", out).pathname,
  bundle: true, minify: true, format: "esm", target: "es2022", legalComments: "none",
});
await writeFile(new URL("htmx.js", out), await readFile(new URL("htmx.org/dist/htmx.min.js", modules)));

const digest = (bytes) => createHash("sha256").update(bytes).digest("hex");
const manifest = { packages: {}, files: {} };
for (const name of packages) {
  const { version, license } = JSON.parse(await readFile(new URL(`${name}/package.json`, modules)));
  const text = await readFile(new URL(`${name}/LICENSE`, modules));
  const file = `${name.replace("@", "").replace("/", "-")}.LICENSE.txt`;
  await writeFile(new URL(file, out), text);
  manifest.packages[name] = { version, license, text: file };
}
for (const file of ["crypto.js", "htmx.js", ...Object.values(manifest.packages).map((p) => p.text)].sort()) {
  manifest.files[file] = digest(await readFile(new URL(file, out)));
}
await writeFile(new URL("manifest.json", out), JSON.stringify(manifest, null, 2) + "\n");
