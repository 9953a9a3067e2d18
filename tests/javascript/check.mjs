// Lints and type-checks JavaScript; prints a JSON list of findings.
//   node check.mjs FOLDER       every .js file in the folder and in its admin/ and docs/ folders
//   node check.mjs FOLDER k6    every .js file in the folder, as programs for k6 instead of a browser
import { relative, resolve } from "node:path";
import { ESLint } from "eslint";
import ts from "typescript";

const folder = resolve(process.argv[2]);
const isForK6 = process.argv[3] === "k6";
const patterns = isForK6 ? ["*.js"] : ["*.js", "admin/*.js", "docs/*.js"];
const k6Types = resolve(import.meta.dirname, "node_modules/@types/k6");

async function lint() {
  const eslint = new ESLint({
    cwd: folder,
    errorOnUnmatchedPattern: false, // not every folder has all of them
    overrideConfigFile: resolve(import.meta.dirname, "eslint.config.js"),
    overrideConfig: isForK6 ? { languageOptions: { globals: { __ENV: "readonly" } } } : {},
  });
  const results = await eslint.lintFiles(patterns);
  return results.flatMap(({ filePath, messages }) =>
    messages.map(({ ruleId, message, line }) =>
      `${relative(folder, filePath)}:${line}: ${ruleId}: ${message}`),
  );
}

function checkTypes() {
  const file = resolve(import.meta.dirname, "tsconfig.json");
  const { config } = ts.readConfigFile(file, ts.sys.readFile);
  const { options, fileNames } = ts.parseJsonConfigFileContent(
    { ...config, include: patterns }, ts.sys, folder,
  );
  if (isForK6) {
    Object.assign(options, {
      lib: ["lib.es2024.d.ts"],
      paths: { k6: [k6Types], "k6/*": [`${k6Types}/*`] },
      typeRoots: [resolve(k6Types, "..")],
      types: ["k6"],
    });
  }
  const program = ts.createProgram(fileNames, options);
  return ts.getPreEmitDiagnostics(program).map(({ file: source, start, code, messageText }) => {
    const text = ts.flattenDiagnosticMessageText(messageText, " ");
    if (source === undefined) return `TS${code}: ${text}`;
    const { line } = source.getLineAndCharacterOfPosition(start);
    return `${relative(folder, source.fileName)}:${line + 1}: TS${code}: ${text}`;
  });
}

console.log(JSON.stringify([...(await lint()), ...checkTypes()]));
