// A small chart of one number over the last minutes.

import { el, svg } from "./dom.js";
import { count } from "./show.js";

const [WIDTH, HEIGHT] = [300, 56];

/** A title, the current value and its line; `write` makes a value's text. */
export class Chart {
  constructor(title, unit, write = (value) => count.format(Math.round(value))) {
    this.write = write;
    this.title = title;
    this.value = el("span", {}, "-");
    this.area = svg("path", { class: "area" });
    this.line = svg("path");
    this.most = el("span");
    const axis = svg("line", { x1: 0, x2: WIDTH, y1: HEIGHT, y2: HEIGHT });
    const box = { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", role: "img" };
    this.picture = svg("svg", { ...box, "aria-label": title }, axis, this.area, this.line);
    this.element = el("div", { class: "chart" },
      el("h3", {}, title),
      el("output", { "aria-live": "off" }, this.value, el("small", {}, unit ? ` ${unit}` : "")),
      this.picture,
      el("p", { class: "hint" }, el("span", {}, "5 min ago"), this.most));
  }

  /** Draws points of `at` (milliseconds) and `value` (null for a gap) between two times. */
  draw(points, from, to) {
    const values = points.map((point) => point.value).filter((value) => value !== null);
    const last = values.at(-1);
    const most = Math.max(...values, 1e-9);
    this.value.textContent = last === undefined ? "-" : this.write(last);
    this.most.textContent = values.length ? `highest ${this.write(most)}` : "";
    const said = values.length ? `now ${this.write(last)}, highest ${this.write(most)}` : "nothing yet";
    this.picture.setAttribute("aria-label", `${this.title}: ${said}`);
    const x = (at) => ((WIDTH * (at - from)) / (to - from)).toFixed(1);
    const y = (value) => (HEIGHT - 2 - ((HEIGHT - 4) * value) / most).toFixed(1);
    const known = points.filter((point) => point.value !== null);
    const path = known.map(({ at, value }, i) => `${i ? "L" : "M"}${x(at)} ${y(value)}`).join("");
    this.line.setAttribute("d", path);
    const closed = () => `${path}L${x(known.at(-1).at)} ${HEIGHT}L${x(known[0].at)} ${HEIGHT}Z`;
    this.area.setAttribute("d", known.length ? closed() : "");
  }
}
