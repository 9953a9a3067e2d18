// Lints and type-checks JavaScript; prints a JSON list of findings.
//   node check.mjs FOLDER       every .js file in the folder and in its docs/ folder
import { relative, resolve } from "node:path";
import { ESLint } from "eslint";
import ts from "typescript";

const folder = resolve(process.argv[2]);
const patterns = ["*.js", "docs/*.js"];

async function lint() {
  const eslint = new ESLint({
    cwd: folder,
    overrideConfigFile: resolve(import.meta.dirname, "eslint.config.js"),
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
  const program = ts.createProgram(fileNames, options);
  return ts.getPreEmitDiagnostics(program).map(({ file: source, start, code, messageText }) => {
    const text = ts.flattenDiagnosticMessageText(messageText, " ");
    if (source === undefined) return `TS${code}: ${text}`;
    const { line } = source.getLineAndCharacterOfPosition(start);
    return `${relative(folder, source.fileName)}:${line + 1}: TS${code}: ${text}`;
  });
}

console.log(JSON.stringify([...(await lint()), ...checkTypes()]));
