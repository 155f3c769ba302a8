// Topics and sessions, by name: rows that changed places all the time could not be read.

import { fill, get, make, sync, write } from "./elements.js";
import { named, rate, time } from "./words.js";

const TOPICS = [["topic", ""], ["messages/s", "number"], ["bytes/s", "number"], ["readers", "number"], ["held back by", "text"]];
const SESSIONS = [["session", ""], ["in B/s", "number"], ["out B/s", "number"], ["queued", "number"], ["dropped", "number"],
  ["heard", "number second"], ["process", "second"]];

const byName = rows => rows.toSorted((one, other) => one.name < other.name ? -1 : one.name > other.name ? 1 : 0);
const some = (shown, open) => shown < open ? `${shown} of ${open}: those in trouble, and the busiest` : `${open}`;

export function tables(event, watch) {
  const now = event.now;
  write(get("topics-count"), some(now.topics.length, now.topics_open));
  fill(get("topics"), TOPICS, byName(now.topics).map(topic => ({
    key: `${topic.tenant} ${topic.name}`,
    name: topic.name,
    tenant: topic.tenant,
    cells: [named(topic), rate(topic.messages_per_s), rate(topic.bytes_per_s), topic.subscriptions,
      topic.held_back_by.length ? [topic.held_back_by.join(", "), "bad"] : "-"],
  })), row => {
    const button = make("button");
    button.type = "button";
    button.addEventListener("click", () => watch(row.name, row.tenant));
    return button;
  });
  write(get("sessions-count"), some(now.sessions.length, now.sessions_open));
  fill(get("sessions"), SESSIONS, byName(now.sessions).map(each => ({
    key: each.session,
    cells: [named({ name: each.name || `(${each.session})`, tenant: each.tenant }), rate(each.received_bytes_per_s), rate(each.sent_bytes_per_s),
      [each.waiting_messages, each.blocks.length ? "bad" : ""], [each.dropped_messages, each.dropped_per_s > 0 ? "bad" : ""],
      time(each.silent_s), `${each.process} on ${each.host}`],
  })));
  sync(get("dropped"), Object.entries(event.dropped_messages), ([policy]) => policy, ([policy]) => {
    const pair = make("div");
    pair.append(make("dt", "", `overflow ${policy}`), make("dd"));
    return pair;
  }, (pair, [, count]) => write(pair.lastChild, count, count ? "warn" : ""));
  sync(get("tap-topics"), byName(now.topics.filter(topic => !topic.tenant)), topic => topic.name, () => make("option"), (option, topic) => { option.value = topic.name; });
}
