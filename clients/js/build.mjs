// Makes the package: its modules, their types, and what else npm packs.
//   node build.mjs [FOLDER]      default: build/
// The live client has one home, web/; the types of the HTTP API are made from docs/openapi.json.
import { copyFile, mkdir, readdir, readFile, rm, writeFile } from "node:fs/promises";
import { resolve } from "node:path";
import openapiTS, { astToString } from "openapi-typescript";
import ts from "typescript";

const here = import.meta.dirname;
const root = resolve(here, "../..");
const folder = resolve(process.argv[2] ?? resolve(here, "build"));
const out = resolve(folder, "dist");
const SHARED = ["scoreboard-client.js", "scoreboard-protocol.js", "names.js"];

/** Return an OpenAPI document with the schemas that callers other than administrators use. */
async function openapi() {
  const document = JSON.parse(await readFile(resolve(root, "docs/openapi.json"), "utf8"));
  const paths = Object.entries(document.paths).filter(
    ([path]) => path.startsWith("/api/") && !path.startsWith("/api/admin/"),
  );
  const { schemas } = document.components;
  const used = new Set();
  const visit = (part) => {
    for (const [, name] of JSON.stringify(part).matchAll(/"#\/components\/schemas\/(\w+)"/g)) {
      if (used.has(name)) continue;
      used.add(name);
      visit(schemas[name]);
    }
  };
  visit(paths);
  const kept = Object.entries(schemas).filter(([name]) => used.has(name));
  const { openapi: version, info } = document;
  return { openapi: version, info, paths: {}, components: { schemas: Object.fromEntries(kept) } };
}

/** Write the types of the modules; return what the type checker finds. */
function writeTypes(modules) {
  const { config } = ts.readConfigFile(resolve(here, "tsconfig.json"), ts.sys.readFile);
  const { options } = ts.parseJsonConfigFileContent({ ...config, files: [] }, ts.sys, here);
  // React's types are found from here, also if the folder is elsewhere.
  const paths = { react: [resolve(here, "node_modules/@types/react")] };
  const program = ts.createProgram(
    modules.map((name) => resolve(out, name)),
    { ...options, paths, rootDirs: undefined, rootDir: out, outDir: out, typeRoots: [] },
  );
  program.emit();
  return ts.getPreEmitDiagnostics(program);
}

/** Write the package.json of users, without what only the build needs. */
async function writeManifest() {
  const manifest = JSON.parse(await readFile(resolve(here, "package.json"), "utf8"));
  delete manifest.devDependencies;
  delete manifest.overrides;
  await writeFile(resolve(folder, "package.json"), `${JSON.stringify(manifest, null, 2)}\n`);
}

await rm(folder, { recursive: true, force: true });
await mkdir(out, { recursive: true });
const own = await readdir(resolve(here, "src"));
for (const name of own) await copyFile(resolve(here, "src", name), resolve(out, name));
for (const name of SHARED) await copyFile(resolve(root, "web", name), resolve(out, name));
await copyFile(resolve(here, "README.md"), resolve(folder, "README.md"));
await copyFile(resolve(root, "LICENSE"), resolve(folder, "LICENSE"));
await writeManifest();
const types = astToString(await openapiTS(await openapi(), { alphabetize: true }));
await writeFile(
  resolve(out, "openapi.d.ts"),
  `// Made from the OpenAPI document of the service by openapi-typescript.\n${types}`,
);

const found = writeTypes([...own, ...SHARED].filter((name) => name.endsWith(".js")));
if (found.length > 0) {
  const host = {
    getCanonicalFileName: (name) => name,
    getCurrentDirectory: () => out,
    getNewLine: () => "\n",
  };
  console.error(ts.formatDiagnostics(found, host));
  process.exit(1);
}
