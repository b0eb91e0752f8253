// Elements made of values. Whatever comes from outside becomes text or the value of a harmless attribute:
// there is no way here, and by the page's Content-Security-Policy none in the browser, to have it read as HTML.

const SVG = "http://www.w3.org/2000/svg";

/** An HTML element. `on`: listeners by event; `key`: what it is called when it is made anew (see `fill`). */
export function el(tag, attributes = {}, ...children) {
  return made(document.createElement(tag), attributes, children);
}

export function svg(tag, attributes = {}, ...children) {
  return made(document.createElementNS(SVG, tag), attributes, children);
}

function made(node, { on = {}, key = "", ...attributes }, children) {
  set(node, attributes);
  for (const [event, listener] of Object.entries(on)) node.addEventListener(event, listener);
  if (key) node.dataset.key = key;
  node.append(...wanted(children));
  return node;
}

/** Set attributes; null and false take one away. */
export function set(node, attributes) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === false || value === undefined) node.removeAttribute(name);
    else {
      const text = value === true ? "" : String(value);
      if (node.getAttribute(name) !== text) node.setAttribute(name, text);
    }
  }
  return node;
}

/** Put other children into a node. What had the focus has it again, if something of its key is there. */
export function fill(node, ...children) {
  const focused = node.contains(document.activeElement) ? document.activeElement.dataset.key : undefined;
  node.replaceChildren(...wanted(children));
  if (focused) node.querySelector(`[data-key="${CSS.escape(focused)}"]`)?.focus({ preventScroll: true });
  return node;
}

export function link(hash, text, attributes = {}) {
  return el("a", { href: hash, key: hash, ...attributes }, text);
}

export function button(text, act, attributes = {}) {
  return el("button", { type: "button", key: text, on: { click: act }, ...attributes }, text);
}

/** Rows of two: what it is, and the value. */
export function fields(rows) {
  const shown = rows.filter(([, value]) => value !== "" && value !== null && value !== undefined);
  return el("dl", {}, ...shown.flatMap(([name, value]) => [el("dt", {}, name), el("dd", {}, value)]));
}

const MOST = 500;

/** A table of at most MOST rows, each a list of cells. `none`: what is said when there are no rows. */
export function table(caption, heads, rows, none) {
  if (!rows.length) return el("p", { class: "none" }, none);
  const body = rows.slice(0, MOST).map((cells) => el("tr", {}, ...cells.map((cell) => el("td", {}, cell))));
  const more = rows.length > MOST ? el("p", { class: "none" }, `${MOST} of ${rows.length} are shown.`) : null;
  const drawn = el(
    "table",
    {},
    el("caption", {}, caption),
    el("thead", {}, el("tr", {}, ...heads.map((head) => el("th", { scope: "col" }, head)))),
    el("tbody", {}, ...body),
  );
  return el("div", { class: "wide", tabindex: 0, role: "region", "aria-label": caption }, drawn, more);
}

function wanted(children) {
  return children
    .flat()
    .filter((child) => child !== null && child !== undefined && child !== false)
    .map((child) => (child instanceof Node ? child : document.createTextNode(String(child))));
}
