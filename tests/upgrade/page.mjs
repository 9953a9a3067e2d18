// The browser client of a version, as an open page uses it: prints a line of JSON per board and error.
//
//     node page.mjs /path/to/web/scoreboard-client.js ws://127.0.0.1:8001/ws/scoreboard

import { pathToFileURL } from "node:url";

const [client, url] = process.argv.slice(2);
const { connect } = await import(pathToFileURL(client));
const print = (line) => console.log(JSON.stringify(line));
connect({
  url,
  onBoard: ({ epoch, seq, leaderboard }) => print({ epoch, seq, leaderboard }),
  onError: (error) => print({ error }),
});
