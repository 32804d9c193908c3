// Builds elements. Texts of runs become text nodes, never HTML.

export function h(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === false || value === null || value === undefined) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "style") Object.assign(element.style, value);
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined));
  return element;
}

export function table(title, columns, rows, options = {}) {
  const head = h("tr", {}, columns.map((column) => h("th", { scope: "col", class: options.texts?.includes(column) && "text" }, column)));
  const body = rows.map((cells) => h("tr", { class: cells.class }, (cells.cells ?? cells).map((cell, i) =>
    cell instanceof Element && /^T[DH]$/.test(cell.tagName) ? cell
      : h(i || !cell ? "td" : "th", { scope: i || !cell ? null : "row", class: options.texts?.includes(columns[i]) && "text" }, cell))));
  return scroll(title, h("table", { class: options.class ?? "data" }, caption(title), h("thead", {}, head), h("tbody", {}, body)));
}

// Stays in view, and is not cut off, while the columns of its table scroll.
export function caption(title) {
  return h("caption", {}, h("span", {}, title));
}

// A part that scrolls on its own can be reached by the keyboard.
export function scroll(label, child, extra = "") {
  return h("div", { class: `scroll ${extra}`, tabindex: "0", role: "region", "aria-label": label }, child);
}

// Shows other parts in `place`. Those that scroll keep their position and the focus.
export function refill(place, ...parts) {
  const key = (each) => each.getAttribute("aria-label").replace(/[\d,]+/g, ""); // titles can contain version numbers
  const before = new Map([...place.querySelectorAll(".scroll")].map((each) => [key(each), { left: each.scrollLeft, top: each.scrollTop, focused: each === document.activeElement }]));
  place.replaceChildren(...parts);
  for (const each of place.querySelectorAll(".scroll")) {
    const { left, top, focused } = before.get(key(each)) ?? {};
    if (focused) each.focus({ preventScroll: true });
    if (left || top) each.scrollTo(left, top);
  }
}

export function number(value, digits = 0) {
  if (value === null || value === undefined) return "–";
  return value.toLocaleString("en", { minimumFractionDigits: digits, maximumFractionDigits: digits });
}

export function counted(value, noun, plural = `${noun}s`) {
  return `${number(value)} ${value === 1 ? noun : plural}`;
}

export function short(value) {
  if (value === null || value === undefined) return "–";
  return value.toLocaleString("en", { maximumSignificantDigits: 4, notation: Math.abs(value) >= 1e5 ? "compact" : "standard" });
}

export function colour(index) {
  return getComputedStyle(document.documentElement).getPropertyValue(`--c${index % 8}`).trim();
}

export function setting(value) {
  if (value === null || value === undefined) return "–";
  if (Array.isArray(value)) return value.map((each) => (each !== null && typeof each === "object" ? JSON.stringify(each) : each)).join(", ") || "none";
  return String(value);
}
