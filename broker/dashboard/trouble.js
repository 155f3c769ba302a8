// What is wrong now, in sentences: who waits for whom, what has failed, who is late, what is lost.

import { get, make, sync, write } from "./elements.js";
import { WAITS_S, named, ranks, rate, time, where } from "./words.js";

const STUCK_S = 1, FAILURE_TOLD_S = 600;
const SHOWN = 12, NAMED = 4;

function waited(group, operation) {
  const about = group.members.filter(member => operation.missing_ranks.includes(member.rank)).slice(0, NAMED)
    .map(member => `Rank ${member.rank} is ${where(member)}, last heard of ${time(member.silent_s)} ago` +
      (member.last_message ? `, last message: ${member.last_message.topic} ${member.last_message.text}` : ""));
  return {
    key: `waits ${named(group)} ${operation.schedule} ${operation.sequence}`,
    kind: operation.unmoved_s < STUCK_S ? "warn" : "bad",
    text: `${named(group)}: ${operation.claim || "an operation"} has not moved for ${time(operation.unmoved_s)}, and waits ` +
      `for ${ranks(operation.missing_ranks)}. ${about.join(". ")}`,
  };
}

function ofGroup(group) {
  const found = group.operations.filter(each => each.unmoved_s >= WAITS_S && each.missing_ranks.length)
    .map(operation => waited(group, operation));
  if (group.newcomers.length && group.missing_ranks.length) found.push({
    key: `forms ${named(group)}`, kind: "warn",
    text: `${named(group)} waits for ${ranks(group.missing_ranks)} to join.`,
  });
  const failure = group.last_failure;
  if (failure && failure.ago_s < FAILURE_TOLD_S) found.push({
    key: `failed ${named(group)} ${failure.generation} ${failure.sequence}`, kind: "bad",
    text: `${named(group)}: ${failure.failure} (${time(failure.ago_s)} ago)`,
  });
  for (const late of group.stragglers.slice(0, NAMED)) found.push({
    key: `late ${named(group)} ${late.rank}`, kind: "warn",
    text: `${named(group)}: rank ${late.rank} (${where(late)}) is usually ${time(late.lateness_s)} behind the others, in ` +
      `${late.late_operations} of ${late.operations} operations.`,
  });
  return found;
}

function ofPressure(now) {
  const held = now.topics.filter(topic => topic.held_back_by.length).map(topic => ({
    key: `held ${named(topic)}`, kind: "warn",
    text: `${named(topic)}: ${topic.held_back_publishers} of its publishers wait for ${topic.held_back_by.join(", ")}.`,
  }));
  const losing = now.sessions.filter(each => each.dropped_per_s > 0).map(each => ({
    key: `loses ${each.session}`, kind: "warn",
    text: `${named(each)}, process ${each.process} on ${each.host}, loses ${rate(each.dropped_per_s)} messages a second.`,
  }));
  return [...held, ...losing];
}

function ofGone(failures) {
  return failures.filter(failure => failure.ago_s < FAILURE_TOLD_S).map(failure => ({
    key: `gone ${failure.tenant} ${failure.failure}`, kind: "bad",
    text: `${failure.failure} (${failure.tenant ? `tenant ${failure.tenant}, ` : ""}${time(failure.ago_s)} ago; its ranks have left since)`,
  }));
}

export function trouble(event) {
  const found = [...event.groups.flatMap(ofGroup), ...ofGone(event.failures), ...ofPressure(event.now)];
  found.sort((one, other) => (one.kind === "bad" ? 0 : 1) - (other.kind === "bad" ? 0 : 1));
  const shown = found.slice(0, SHOWN);
  if (found.length > SHOWN) shown.push({ key: "more", kind: "warn", text: `and ${found.length - SHOWN} more` });
  sync(get("troubles"), shown, each => each.key, () => make("li"), (line, each) => write(line, each.text, each.kind));
}
