// Makes and finds elements. Text is always set as text: nothing here, or anywhere in this page,
// parses a string as markup.

const SVG = "http://www.w3.org/2000/svg";

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return node;
}

/** An HTML element; children are elements or texts, lists of them, or null. */
export function el(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

/** An SVG element. */
export function svg(tag, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, tag), attributes, children);
}

/** The element with an id. */
export const byId = (id) => document.getElementById(id);

/** A bar that fills a share of its track, 0 to 1. Its number stands beside it as text. */
export function bar(share) {
  const inner = el("span");
  inner.style.width = `${100 * Math.min(1, Math.max(0, share))}%`;
  return el("span", { class: "track", "aria-hidden": "true" }, inner);
}
