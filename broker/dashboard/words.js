// Numbers as words.

// An operation that has not moved for so long is told of.
export const WAITS_S = 0.3;

export function rate(number) {
  for (const [unit, letter] of [[1e12, "T"], [1e9, "G"], [1e6, "M"], [1e3, "k"]])
    if (number >= unit) return (number / unit).toFixed(number < 100 * unit ? 1 : 0) + letter;
  return number >= 10 || Number.isInteger(number) ? number.toFixed(0) : number.toFixed(1);
}

export function time(seconds) {
  if (seconds < 1e-3) return (seconds * 1e6).toFixed(0) + " µs";
  if (seconds < 1) return Number((seconds * 1e3).toPrecision(3)) + " ms";
  if (seconds < 60) return seconds.toFixed(1) + " s";
  if (seconds < 3600) return Math.floor(seconds / 60) + " min";
  if (seconds < 86400) return Math.floor(seconds / 3600) + " h " + Math.floor(seconds % 3600 / 60) + " min";
  return Math.floor(seconds / 86400) + " d " + Math.floor(seconds % 86400 / 3600) + " h";
}

// Of an element of a tensor; null is a number that JSON does not have.
export function figure(number) {
  if (number === null) return "unknown";
  const size = Math.abs(number);
  if (size !== 0 && (size < 1e-3 || size >= 1e6)) return number.toExponential(3);
  return String(Number(number.toPrecision(5)));
}

// The name of a topic, a group or a session, with its tenant's.
export const named = thing => thing.tenant ? `${thing.name} of ${thing.tenant}` : thing.name;

// Ranks in few words: 0-3, 7
export function ranks(numbers) {
  const parts = [];
  for (const rank of [...numbers].sort((one, other) => one - other)) {
    const last = parts.at(-1);
    if (last && rank === last[1] + 1) last[1] = rank;
    else parts.push([rank, rank]);
  }
  const words = parts.map(([from, to]) => from === to ? `${from}` : `${from}-${to}`).join(", ");
  return (numbers.length === 1 ? "rank " : "ranks ") + words;
}

export const where = member => `${member.name || "?"}, process ${member.process} on ${member.host || "an unknown host"}`;
