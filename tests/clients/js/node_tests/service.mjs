// An api whose answers a test states, in the order of the requests.
import { once } from "node:events";
import { createServer } from "node:http";

/** Cut the connection in place of an answer. */
export const LOST = Symbol("lost");
/** Never answer. */
export const SILENT = Symbol("silent");

export function problem(status, name, headers = {}) {
  return {
    status,
    headers: { "Content-Type": "application/problem+json", ...headers },
    body: JSON.stringify({
      type: `/docs/problems/${name}`,
      title: "A title.",
      status,
      detail: "A detail.",
      request_id: "request-1",
    }),
  };
}

export function json(value, headers = {}) {
  return { status: 200, headers, body: JSON.stringify(value) };
}

/** Serve the answers, one for each request; a function gets the request. The test closes it. */
export async function serve(t, ...answers) {
  const requests = [];
  const server = createServer(async (request, response) => {
    let body = "";
    for await (const part of request) body += part;
    const { method, url, headers } = request;
    const got = { method, url, headers, body, atMs: performance.now() };
    const stated = answers[Math.min(requests.length, answers.length - 1)];
    requests.push(got);
    const answer = typeof stated === "function" ? stated(got) : stated;
    if (answer === SILENT) return;
    if (answer === LOST) {
      request.socket.destroy();
      return;
    }
    response.writeHead(answer.status, answer.headers).end(answer.body);
  });
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  t.after(() => {
    server.closeAllConnections();
    server.close();
  });
  return { url: `http://127.0.0.1:${server.address().port}`, requests };
}
