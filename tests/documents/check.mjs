// Lints an OpenAPI and an AsyncAPI document; prints a JSON list of what is wrong.
//   node check.mjs openapi.json asyncapi.yaml
// No network: both documents are whole, and neither library reports home.
import { readFile } from 'node:fs/promises';
import { Parser } from '@asyncapi/parser';
import { createConfig, lint } from '@redocly/openapi-core';

const [openapi, asyncapi] = process.argv.slice(2);

async function ofOpenapi() {
  const config = await createConfig({ extends: ['recommended'] });
  const found = await lint({ ref: openapi, config });
  return found.map(({ ruleId, message, location }) => `${ruleId}: ${message} (${location?.[0]?.pointer})`);
}

async function ofAsyncapi() {
  const WARNING = 1; // 0 is an error, 2 information, such as a newer version of the specification
  const text = await readFile(asyncapi, 'utf8');
  const { document, diagnostics } = await new Parser().parse(text);
  const found = diagnostics.filter(({ severity }) => severity <= WARNING);
  const lines = found.map(({ code, message, path }) => `${code}: ${message} (${path.join('/')})`);
  return document || lines.length ? lines : ['the parser made no document'];
}

console.log(JSON.stringify([...(await ofOpenapi()), ...(await ofAsyncapi())]));
