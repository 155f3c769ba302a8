// A group's last operations: a row for each rank, a column for each operation, the newest on the right.
//
//        |  how far the last rank was behind the first one, as a bar, from 10 µs to 10 s
//   0    ## ## ## ##  []       # the stronger, the later this rank came; o the last one
//   1    ## o# ## ##  []
//   2    o# ## o# o#  !!       the last column is in progress: [] has come, !! is waited for, red from 0.3 s on
//
// What a column says is written below when one points at it; else the newest one's.

import { draw, write } from "./elements.js";
import { WAITS_S, ranks, time } from "./words.js";

const ROWS_MAX = 64, ROW = 16, BARS = 26, LABEL = 46, GAP = 10, NARROW = 9, WIDE = 26, COLUMNS_MAX = 32;

// From 0 at 10 µs to 1 at 10 s: what is late is so by very different times.
const strength = seconds => Math.min(1, Math.max(0, Math.log10(Math.max(seconds, 1e-9) / 1e-5) / 6));

function lastOf(operation) {
  let last = null, behind = -1;
  for (const [rank, seconds] of Object.entries(operation.behind_s))
    if (seconds > behind) [last, behind] = [Number(rank), seconds];
  return Object.keys(operation.behind_s).length > 1 ? { rank: last, behind } : { rank: null, behind: 0 };
}

export function sentence(operation) {
  const { rank, behind } = lastOf(operation);
  const words = [`operation ${operation.sequence}`];
  if (operation.claim) words[0] += `, ${operation.claim}`;
  if (operation.missing_ranks) {
    words.push(`in progress for ${time(operation.waiting_s)}`);
    words.push(operation.missing_ranks.length ? `waits for ${ranks(operation.missing_ranks)}` : "waits for nobody");
    return words.join("; ");
  }
  if (rank !== null) words.push(`rank ${rank} came last, ${time(behind)} after the first`);
  if (operation.duration_s !== null) words.push(`took ${time(operation.duration_s)}`);
  words.push(operation.outcome === "done" ? `done ${time(operation.ago_s)} ago` : operation.failure || operation.outcome);
  return words.join("; ");
}

function column(chart, operation, x, width, rows) {
  const { rank: last, behind } = lastOf(operation), inProgress = Boolean(operation.missing_ranks);
  const missing = operation.unmoved_s < WAITS_S ? "awaited" : "waited";
  if (!inProgress) {
    const height = Math.max(1.5, (BARS - 4) * strength(behind));
    const kind = operation.outcome === "done" ? "skew" : "failed";
    chart.append(draw("rect", { class: kind, x, y: BARS - 3 - height, width, height, rx: 1 }));
  }
  rows.forEach((rank, row) => {
    const y = BARS + row * ROW + 1.5, height = ROW - 3, seconds = operation.behind_s[rank];
    const place = { x, y, width, height, rx: 2 };
    if (inProgress) chart.append(draw("rect", { ...place, class: operation.missing_ranks.includes(rank) ? missing : "there" }));
    else if (seconds === undefined) chart.append(draw("rect", { ...place, class: "none" }));
    else {
      chart.append(draw("rect", { ...place, class: "came", "fill-opacity": (0.12 + 0.88 * strength(seconds)).toFixed(2) }));
      if (rank === last) chart.append(draw("circle", { class: "last", cx: x + width / 2, cy: y + height / 2, r: 2.6 }));
    }
  });
}

// One group's timeline, which `show` brings up to date.
export function timeline(chart, about) {
  let drawn = "", columns = [], pointed = null;

  const point = event => {
    const x = event.clientX - chart.getBoundingClientRect().left;
    const found = columns.find(each => x >= each.x && x < each.x + each.step);
    pointed = found ? found.key : null;
    mark();
  };
  function mark() {
    const chosen = columns.find(each => each.key === pointed) ?? columns.at(-1);
    if (chosen) write(about, sentence(chosen.operation));
    const area = chart.querySelector(".chosen");
    if (!area) return;
    const shown = columns.find(each => each.key === pointed);
    area.setAttribute("width", shown ? shown.step : 0);
    if (shown) area.setAttribute("x", shown.x - 1);
  }
  chart.addEventListener("pointermove", point);
  chart.addEventListener("pointerdown", point);
  chart.addEventListener("pointerleave", () => { pointed = null; mark(); });

  return function show(group) {
    const width = Math.max(200, chart.parentElement.clientWidth - 28), rows = group.ranks.slice(0, ROWS_MAX);
    const going = group.operations.slice(0, 1), room = width - LABEL - GAP - WIDE;
    const many = Math.max(4, Math.min(COLUMNS_MAX, Math.floor(room / NARROW)));
    const past = group.recent.slice(-many), step = Math.min(WIDE, room / many), start = LABEL + (many - past.length) * step;
    columns = past.map((operation, index) => ({ operation, step, x: start + index * step }));
    for (const operation of going) columns.push({ operation, step, x: LABEL + many * step + GAP });
    for (const each of columns) each.key = `${each.operation.generation} ${each.operation.schedule} ${each.operation.sequence}`;
    const now = `${width} ${rows} ${going.map(each => [each.missing_ranks, each.unmoved_s < WAITS_S])} ${columns.map(each => each.key)}`;
    if (now !== drawn) {
      drawn = now;
      const height = BARS + rows.length * ROW;
      chart.setAttribute("width", LABEL + many * step + GAP + step);
      chart.setAttribute("height", height);
      chart.replaceChildren(draw("rect", { class: "chosen", y: 0, height, width: 0, x: 0 }));
      rows.forEach((rank, row) => chart.append(draw("text", { x: 0, y: BARS + row * ROW + 12 }, `rank ${rank}`)));
      for (const each of columns) column(chart, each.operation, each.x, Math.max(2, step - 2), rows);
    }
    mark();
  };
}
