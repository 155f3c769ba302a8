// The tap: a message of one topic now and then; of a tensor its shape, its range and a histogram.

import { draw, get, make, write } from "./elements.js";
import { figure, rate, time } from "./words.js";

const WIDTH = 420, HEIGHT = 92, FOOT = 18;
let source = null, watched = "", tenant = "", before = null;

export function watch(topic, owner = "") {
  close();
  tenant = owner;
  get("tap-topic").value = watched = topic;
  get("tap-shown").hidden = true;
  get("tap-stop").hidden = !topic;
  write(get("tap-state"), topic ? "looking ..." : "shows a message of one topic now and then");
  open();
}

export function open() {
  if (!watched || source) return;
  source = new EventSource(`/api/v1/tap?topic=${encodeURIComponent(watched)}&tenant=${encodeURIComponent(tenant)}`);
  source.onmessage = message => show(JSON.parse(message.data));
  source.onerror = () => {
    if (source && source.readyState === EventSource.CLOSED)
      write(get("tap-state"), "this cannot be watched: no topic is called so, or too many are watched");
  };
}

export function close() {
  source?.close();
  source = before = null;
}

function show(told) {
  if (!told.exists) write(get("tap-state"), "nobody has published there yet");
  else write(get("tap-state"), `${told.messages} messages so far` + (before === null ? "" : `, ${rate(told.messages - before)} since the last look`));
  before = told.messages;
  const seen = told.message;
  if (!seen) return;
  get("tap-shown").hidden = false;
  const headers = Object.entries(seen.headers).map(([name, value]) => `; ${name}: ${value}`).join("");
  write(get("tap-about"), `${seen.kind} ${seen.sequence} from ${seen.sender}, ${seen.size_bytes} bytes, lane ${seen.lane}, ` +
    `published ${time(seen.ago_s)} ago${headers}`);
  write(get("tap-text"), seen.text);
  get("tap-tensor").replaceChildren(...(seen.tensor ? tensor(seen.tensor) : []));
}

function tensor(told) {
  const facts = make("dl", "facts"), parts = [facts];
  const all = told.sampled === told.elements ? `${told.elements}` : `${told.sampled} of ${told.elements} looked at`;
  for (const [name, value] of [["dtype", told.dtype], ["shape", `[${told.shape.join(", ")}]`], ["elements", all],
    ["least", figure(told.low)], ["greatest", figure(told.high)], ["mean", figure(told.mean)],
    ["deviation", figure(told.deviation)], ["NaN or infinite", told.not_finite]]) {
    const pair = make("div");
    pair.append(make("dt", "", name), make("dd", name.startsWith("NaN") && value ? "bad" : "", String(value)));
    facts.append(pair);
  }
  if (told.counts.length) parts.push(histogram(told));
  return parts;
}

function histogram(told) {
  const chart = draw("svg", { class: "histogram", viewBox: `0 0 ${WIDTH} ${HEIGHT}`, width: WIDTH, height: HEIGHT, role: "img" });
  const step = WIDTH / told.counts.length, top = Math.max(...told.counts);
  chart.append(draw("title", {}, `histogram from ${figure(told.low)} to ${figure(told.high)}`));
  told.counts.forEach((count, index) => {
    const height = count ? Math.max(1, (HEIGHT - FOOT) * count / top) : 0;
    chart.append(draw("rect", { x: index * step, y: HEIGHT - FOOT - height, width: Math.max(1, step - 1.5), height, rx: 1 }));
  });
  chart.append(draw("text", { x: 0, y: HEIGHT - 4 }, figure(told.low)),
    draw("text", { x: WIDTH, y: HEIGHT - 4, "text-anchor": "end" }, figure(told.high)));
  return chart;
}
