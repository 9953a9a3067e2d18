// Runs a program for k6 in Node, with stand-ins for the modules of k6 that loadtest/k6 uses, and prints its
// counters as JSON. It shows what the program sends and counts, not how k6 schedules it.
//   node k6_in_node.mjs PROGRAM ITERATIONS
import { readFileSync } from "node:fs";
import { registerHooks } from "node:module";
import { resolve } from "node:path";
import { pathToFileURL } from "node:url";
import { MessageChannel, Worker, receiveMessageOnPort } from "node:worker_threads";

const [program, iterations] = [process.argv[2], Number(process.argv[3])];
const counters = {};
const add = (name, number) => { counters[name] = (counters[name] ?? 0) + number; };

class Metric {
  constructor(name) {
    this.name = name;
    add(name, 0);
  }

  add(number) {
    add(this.name, number);
  }
}

// Requests of k6 block. Here a thread sends them while the program waits.
const { port1, port2 } = new MessageChannel();
const signal = new Int32Array(new SharedArrayBuffer(4));
const sender = new Worker(
  `const { workerData: { port, signal } } = require("node:worker_threads");
   port.on("message", async ([url, options]) => {
     try {
       const response = await fetch(url, options);
       port.postMessage({ status: response.status, body: await response.text() });
     } catch (error) {
       port.postMessage({ status: 0, body: String(error) });
     }
     Atomics.store(signal, 0, 1);
     Atomics.notify(signal, 0);
   });`,
  { eval: true, workerData: { port: port2, signal }, transferList: [port2] },
);

function post(url, body, { headers }) {
  Atomics.store(signal, 0, 0);
  port1.postMessage([url, { method: "POST", headers, body }]);
  if (Atomics.wait(signal, 0, 0, 30_000) !== "ok") return { status: 0 };
  const answer = receiveMessageOnPort(port1).message;
  return { ...answer, json: (name) => JSON.parse(answer.body)[name] };
}

class Socket extends WebSocket {
  constructor(url, protocols, { headers }) {
    if (protocols !== null || headers !== undefined) throw new Error("only public boards, here");
    super(url);
  }
}

const execution = { scenario: { iterationInTest: 0 } };
const modules = {
  "k6": { check: (value, checks) => Object.values(checks).forEach((one) => add("checks_failed", one(value) ? 0 : 1)) },
  "k6/data": { SharedArray: class { constructor(_name, make) { return make(); } } },
  "k6/execution": { default: execution },
  "k6/http": { default: { post, expectedStatuses: () => null } },
  "k6/metrics": { Counter: Metric, Trend: Metric },
  "k6/timers": { setTimeout },
  "k6/websockets": { WebSocket: Socket },
};
globalThis.k6Modules = modules;
globalThis.__ENV = process.env;
globalThis.open = (path) => readFileSync(path, "utf8");

registerHooks({
  resolve: (name, context, next) => name in modules ? { url: `k6:${name}`, shortCircuit: true } : next(name, context),
  load(url, context, next) {
    if (!url.startsWith("k6:")) return next(url, { ...context, format: "module" });
    const name = url.slice("k6:".length);
    const lines = Object.keys(modules[name]).map((one) =>
      `const ${one}_ = globalThis.k6Modules["${name}"].${one}; export { ${one}_ as ${one} };`);
    return { format: "module", source: lines.join("\n"), shortCircuit: true };
  },
});

const { default: run, setup, options } = await import(pathToFileURL(resolve(program)));
const data = setup?.();
for (; execution.scenario.iterationInTest < iterations; execution.scenario.iterationInTest += 1) run(data);
process.on("exit", () => console.log(JSON.stringify({ counters, options })));
await sender.terminate();
port1.close();
