// Elements of the page. Whatever comes from the broker goes in as text: names are strangers' words.

export const get = id => document.getElementById(id);

export function make(tag, kind = "", text = "") {
  const element = document.createElement(tag);
  if (kind) element.className = kind;
  if (text !== "") element.textContent = text;
  return element;
}

export function draw(tag, attributes = {}, text = "") {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  if (text !== "") element.textContent = text;
  return element;
}

// Writes only what has changed, so that what somebody has selected stays selected.
export function write(element, text, kind) {
  const words = String(text);
  if (element.textContent !== words) element.textContent = words;
  if (kind !== undefined && element.className !== kind) element.className = kind;
}

const known = new WeakMap();

// Gives a parent one child for each item, in their order. A child stays the same for as long as its item's key is
// there, so that a button can be pressed and keeps the focus while numbers around it change.
export function sync(parent, items, keyOf, create, update) {
  const before = known.get(parent) ?? new Map(), now = new Map();
  for (const item of items) now.set(keyOf(item), item);
  for (const [key, child] of before) if (!now.has(key)) child.remove();
  let next = parent.firstChild;
  for (const [key, item] of now) {
    const child = before.get(key) ?? create(item);
    now.set(key, child);
    if (child === next) next = next.nextSibling;
    else parent.insertBefore(child, next);
    update(child, item);
  }
  known.set(parent, now);
}

// A table: a line for each row, {key, cells}, whose cells are texts or [text, kind]. `first` makes what holds the text of
// the first cell.
export function fill(table, columns, rows, first) {
  if (!table.tHead.firstChild) {
    const head = make("tr");
    for (const [name, kind] of columns) head.append(make("th", kind, name));
    table.tHead.append(head);
  }
  sync(table.tBodies[0], rows, row => row.key, row => {
    const line = make("tr");
    columns.forEach(([, kind]) => line.append(make("td", kind)));
    if (first) line.cells[0].append(first(row));
    return line;
  }, (line, row) => row.cells.forEach((cell, index) => {
    const [text, kind] = Array.isArray(cell) ? cell : [cell, ""];
    const where = index === 0 && first ? line.cells[0].firstChild : line.cells[index];
    write(where, text);
    if (String(text).length > 24 && where.title !== text) where.title = text;
    const kinds = `${columns[index][1]} ${kind}`.trim();
    if (line.cells[index].className !== kinds) line.cells[index].className = kinds;
  }));
}
