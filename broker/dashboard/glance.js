// The broker at a glance: figures, and what the quick ones were in the last minute.

import { draw, get, make, sync, write } from "./elements.js";
import { rate } from "./words.js";

const KEPT = 150;
const history = new Map();

function figures(event) {
  const now = event.now;
  return [
    { name: "messages in /s", value: now.published_per_s, line: true },
    { name: "messages out /s", value: now.delivered_per_s, line: true },
    { name: "bytes in /s", value: now.published_bytes_per_s, line: true },
    { name: "dropped /s", value: now.dropped_per_s, line: true, bad: now.dropped_per_s > 0 },
    { name: "sessions", value: now.sessions_open },
    { name: "topics", value: now.topics_open },
    { name: "groups", value: event.groups_open },
    { name: "publishers waiting", value: waiting(now), bad: waiting(now) > 0 },
  ];
}

const waiting = now => now.topics.reduce((sum, topic) => sum + topic.held_back_publishers, 0);

function line(name, value) {
  const values = history.get(name) ?? [];
  values.push(value);
  if (values.length > KEPT) values.shift();
  history.set(name, values);
  const top = Math.max(1, ...values);
  return values.map((each, index) => `${KEPT - values.length + index},${(21 - 20 * each / top).toFixed(1)}`).join(" ");
}

export function glance(event) {
  sync(get("glance"), figures(event), figure => figure.name, figure => {
    const box = make("div", "figure");
    box.append(make("span", "", figure.name), make("b"));
    if (figure.line) {
      const chart = draw("svg", { viewBox: `0 0 ${KEPT} 22`, preserveAspectRatio: "none", "aria-hidden": "true" });
      chart.append(draw("polyline"));
      box.append(chart);
    }
    return box;
  }, (box, figure) => {
    write(box.children[1], rate(figure.value), figure.bad ? "bad" : "");
    if (figure.line) box.querySelector("polyline").setAttribute("points", line(figure.name, figure.value));
  });
}
