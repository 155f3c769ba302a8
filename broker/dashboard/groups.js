// Collective groups: who is in, who came when, who is late.

import { draw, fill, get, make, sync, write } from "./elements.js";
import { timeline } from "./timeline.js";
import { WAITS_S, named, ranks, time } from "./words.js";

const MEMBERS_SHOWN = 16;
const COLUMNS = [["rank", ""], ["client", ""], ["process", "second"], ["heard", "number"], ["usually behind", "number"],
  ["last message", "text second"]];
const LEGEND = ["the stronger, the later a rank came", "○ came last", "red: did not come",
  "bars: from the first to the last, 10 µs to 10 s", "right: in progress"];

function create(group) {
  const box = make("section", "group"), about = make("p", "about dim"), chart = draw("svg", { class: "timeline", role: "img" });
  const title = make("h2"), legend = make("p", "legend"), wide = make("div", "wide"), table = make("table");
  chart.setAttribute("aria-label", "when each rank came to the last operations");
  title.append(make("span"), " ", make("span", "dim"));
  legend.append(...LEGEND.map(words => make("span", "", words)));
  table.append(make("thead"), make("tbody"));
  wide.append(table);
  box.append(title, chart, about, legend, wide);
  box.show = timeline(chart, about);
  return box;
}

function update(box, group) {
  const [title, chart, about, legend, wide] = box.children, [name, state] = title.querySelectorAll("span");
  write(name, named(group));
  const there = group.generation ? `generation ${group.generation}, ${group.ranks.length} of ${group.world_size} ranks, ` +
    group.schedule : `forming, ${group.newcomers.length} of ${group.world_size} ranks`;
  const gone = group.missing_ranks.length ? `, without ${ranks(group.missing_ranks)}` : "";
  const counted = `, ${group.recorded_operations} operations` + (group.failed_operations ? `, ${group.failed_operations} failed` : "");
  write(state, there + gone + counted, gone ? "warn" : "dim");
  for (const part of [chart, about, legend]) part.toggleAttribute("hidden", !group.recent.length && !group.operations.length);
  box.show(group);
  fill(wide.firstChild, COLUMNS, members(group));
}

function members(group) {
  const late = new Map(group.stragglers.map(each => [each.rank, each.lateness_s]));
  const waited = new Set(group.operations.flatMap(operation => operation.unmoved_s >= WAITS_S ? operation.missing_ranks : []));
  const all = [...group.members, ...group.newcomers];
  // Of many members, those that somebody waits for and those that are late.
  if (all.length > MEMBERS_SHOWN) all.sort((one, other) => weight(other) - weight(one));
  function weight(member) { return (waited.has(member.rank) ? 1e9 : 0) + (late.get(member.rank) ?? 0); }
  return all.slice(0, MEMBERS_SHOWN).map(member => ({
    key: member.session,
    cells: [
      [member.rank ?? "any", waited.has(member.rank) ? "bad" : ""], member.name, `${member.process} on ${member.host}`,
      [time(member.silent_s), member.silent_s > 10 ? "warn" : ""],
      late.has(member.rank) ? [time(late.get(member.rank)), "warn"] : "-",
      member.last_message ? `${member.last_message.topic} ${member.last_message.text}` : "-",
    ],
  }));
}

export function groups(event) {
  sync(get("groups"), event.groups.toSorted((one, other) => one.number - other.number), group => group.number, create, update);
}
