// The dashboard: what the broker tells, shown as it comes. It asks the broker that it is from and nobody else.

import { get, write } from "./elements.js";
import { glance } from "./glance.js";
import { groups } from "./groups.js";
import { tables } from "./tables.js";
import * as tap from "./tap.js";
import { trouble } from "./trouble.js";
import { time } from "./words.js";

const SILENCE_MS = 3000, AGAIN_MS = 3000;
let source = null, heard = performance.now();

function show(event) {
  const now = event.now;
  heard = performance.now();
  document.title = now.broker;
  write(get("name"), now.broker);
  write(get("state"), `${event.draining ? "is about to end, " : ""}up ${time(now.uptime_s)}, tensorbus ${event.version}`, "live");
  trouble(event);
  glance(event);
  groups(event);
  tables(event, tap.watch);
}

function open() {
  if (source) return;
  const mine = source = new EventSource("/api/v1/events");
  source.onmessage = message => show(JSON.parse(message.data));
  source.onerror = () => {
    write(get("state"), "the broker is gone, or has too many pages open; looking for it ...", "lost");
    // An answer that is no stream ends it for good, a lost connection does not.
    if (mine.readyState === EventSource.CLOSED) setTimeout(() => { if (source === mine) { source = null; open(); } }, AGAIN_MS);
  };
}

function close() {
  source?.close();
  source = null;
}

// A page that nobody sees costs the broker nothing.
document.addEventListener("visibilitychange", () => {
  for (const part of [{ open, close }, tap]) document.hidden ? part.close() : part.open();
});
setInterval(() => {
  const silent = performance.now() - heard;
  if (silent > SILENCE_MS && !document.hidden && get("state").className === "live")
    write(get("state"), "no word from the broker for some seconds", "lost");
}, 1000);
get("tap-form").addEventListener("submit", event => {
  event.preventDefault();
  tap.watch(get("tap-topic").value.trim());
});
get("tap-stop").addEventListener("click", () => tap.watch(""));
open();
