// On a server, where pages are rendered: nothing connects, and nothing needs a document.
import assert from "node:assert/strict";
import test from "node:test";
import { useScoreboard } from "@scoreboard/client/react";
import { createElement } from "react";
import { renderToString } from "react-dom/server";

test("the hook renders without rows on a server", () => {
  function Board() {
    const { rows, place, status } = useScoreboard({ url: "/ws/scoreboard", user: "alice" });
    return createElement("p", null, `${rows.length} ${place} ${status.state}`);
  }

  assert.equal(renderToString(createElement(Board)), "<p>0 null connecting</p>");
});

test("the element can be imported on a server", async () => {
  const { ScoreBoardElement } = await import("@scoreboard/client/element");

  assert.equal(typeof ScoreBoardElement, "function");
});
