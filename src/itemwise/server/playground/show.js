// Parts that the answers of all tabs share: errors, times, long lists.

import { ApiError } from "./api.js";
import { el } from "./dom.js";

const STAGES = ["read", "tokenize", "queue", "prefill", "extend", "encode"];
const CHUNK = 200; // rows that are made at a time

export const count = new Intl.NumberFormat("en");

/** A number and its noun: 1 item, 2 items. */
export const plural = (n, noun) => `${count.format(n)} ${noun}${n === 1 ? "" : "s"}`;

/** A duration in milliseconds, or in seconds from one on. */
export function duration(ms) {
  return ms < 1000 ? `${ms.toFixed(ms < 10 ? 1 : 0)} ms` : `${(ms / 1000).toFixed(2)} s`;
}

/** A probability or score, with four decimals; very small and large ones with an exponent. */
export function score(value) {
  if (!Number.isFinite(value)) return "-";
  const size = Math.abs(value);
  return size !== 0 && (size < 5e-5 || size >= 1e5) ? value.toExponential(2) : value.toFixed(4);
}

/** An error as the API tells it: its message, its stable code, its status and field. */
export function errorBox(error) {
  if (!(error instanceof ApiError)) {
    const gone = error instanceof TypeError; // what `fetch` throws without an answer
    const text = gone ? "The server did not answer. Is it still running?" : error.message;
    return el("p", { class: "error", role: "alert" }, text);
  }
  const facts = [error.code, `status ${error.status}`, error.param && `field ${error.param}`];
  return el("p", { class: "error", role: "alert" },
    error.message, el("br"), el("code", {}, facts.filter(Boolean).join(", ")));
}

/** Where the time of a request went, as a bar with its legend. */
export function timing(answer) {
  const total = answer.stages.total ?? answer.milliseconds;
  const known = STAGES.filter((name) => answer.stages[name] !== undefined);
  const rest = Math.max(0, total - known.reduce((sum, name) => sum + answer.stages[name], 0));
  const parts = [...known.map((name) => [name, answer.stages[name]]), ["other", rest]];
  const bars = parts.map(([name, ms]) => {
    const part = el("span", { class: `stage-${name}` });
    part.style.flexGrow = ms;
    return part;
  });
  const legend = parts.map(([name, ms]) => {
    const colour = el("i", { class: `stage-${name}`, "aria-hidden": "true" });
    return el("li", {}, colour, `${name} `, el("span", { class: "number" }, duration(ms)));
  });
  return el("div", { class: "timing" },
    el("div", { class: "stages", "aria-hidden": "true" }, bars),
    el("ul", { class: "legend" }, legend));
}

/** A sentence on the tokens of an answer, and on what sharing them saved. */
export function tokenFacts({ tokens }, items) {
  if (!Number.isFinite(tokens.prompt)) return null;
  const apart = tokens.prompt + tokens.shared * (items - 1);
  const cached = tokens.cached > 0 ? ` (${count.format(tokens.cached)} from the cache)` : "";
  const saved = items > 1 ? ` instead of ${count.format(apart)}` : "";
  return `${count.format(tokens.prompt)} tokens${saved}: ${count.format(tokens.shared)} shared by all${cached}.`;
}

/** Fills `list` with a row for each of `values`, some now and more as they come into view. */
export function fillLongList(list, values, rowOf) {
  let next = 0;
  const end = el("div", { "aria-hidden": "true" });
  const more = () => {
    list.append(...values.slice(next, next + CHUNK).map((value, i) => rowOf(value, next + i)));
    next += CHUNK;
    if (next >= values.length) {
      observer.disconnect();
      end.remove();
    }
  };
  const observer = new IntersectionObserver((seen) => {
    if (seen.some((each) => each.isIntersecting)) {
      more();
      if (next < values.length) {
        // Ask anew, since an end that stays in view is not reported again.
        observer.unobserve(end);
        observer.observe(end);
      }
    }
  }, { rootMargin: "1500px" });
  list.after(end);
  more();
  if (next < values.length) observer.observe(end);
}
