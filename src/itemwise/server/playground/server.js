// The tab Server: what runs, how it is, and its load over the last minutes.

import { getJson, getText, hasKey } from "./api.js";
import { Chart } from "./chart.js";
import { byId, el } from "./dom.js";
import { parseMetrics, quantile, rate } from "./metrics.js";
import { count, duration, errorBox, plural } from "./show.js";

const EVERY_MS = 2000;
const SPAN_MS = 5 * 60 * 1000;
const SMOOTH = 5; // readings over which rates and quantiles are taken

const bytes = (size) => size >= 1 << 30 ? `${(size / (1 << 30)).toFixed(1)} GiB` : `${(size / (1 << 20)).toFixed(size < 10 << 20 ? 1 : 0)} MiB`;
const seconds = (value) => duration(1000 * value);
const percent = (value) => `${Math.round(100 * value)}%`;

// Each chart: title, unit, its value from two readings, and how that is written.
const few = (value) => (value < 10 ? value.toFixed(1) : count.format(Math.round(value)));
const CHARTS = [
  ["Scored requests", "a second", (a, b) => rate('itemwise_scores_ended_total{outcome="finished"}', a, b), few],
  ["Items", "a second", (a, b) => rate("itemwise_items_total", a, b), few],
  ["Tokens computed", "a second", (a, b) => rate("itemwise_computed_tokens_total", a, b), few],
  ["Time of a request, median", "", (a, b) => quantile("itemwise_request_seconds", 0.5, a, b), seconds],
  ["Time of a request, 95%", "", (a, b) => quantile("itemwise_request_seconds", 0.95, a, b), seconds],
  ["Waiting and open requests", "", (_, b) => (b.samples.get("itemwise_queue_requests") ?? 0) + (b.samples.get("itemwise_open_requests") ?? 0)],
  ["Steps", "a second", (a, b) => rate("itemwise_steps_total", a, b), few],
  ["Query tokens from the cache", "", share("itemwise_shared_tokens_total", "itemwise_computed_tokens_total"), percent],
];

function share(part, rest) {
  return (a, b) => {
    const [found, computed] = [rate(part, a, b), rate(rest, a, b)];
    return found + computed > 0 ? found / (found + computed) : null;
  };
}

let readings = [];
let timer = null;
let charts = [];
let holder;
let factsHolder;
let errorHolder;

export function startServer() {
  holder = byId("server-answer");
  errorHolder = el("div");
  factsHolder = el("div");
  charts = CHARTS.map(([title, unit, value, write]) => ({ value, chart: new Chart(title, unit, write) }));
  holder.append(errorHolder, factsHolder, el("h2", {}, "Last five minutes"), el("div", { class: "charts" }, charts.map(({ chart }) => chart.element)));
  document.addEventListener("visibilitychange", () => watch(!byId("server").hidden));
}

/** Begins or ends reading; nothing is read while nobody looks. */
export function watch(wanted) {
  clearTimeout(timer);
  timer = null;
  if (wanted && !document.hidden) {
    showFacts();
    tick();
  }
}

async function tick() {
  const mine = setTimeout(tick, EVERY_MS);
  timer = mine;
  try {
    const samples = parseMetrics(await getText("metrics"));
    const at = Date.now();
    readings = [...readings.filter((each) => each.at > at - SPAN_MS), { at, samples }];
    draw(at);
    errorHolder.replaceChildren();
  } catch (error) {
    errorHolder.replaceChildren(errorBox(error));
  }
}

function draw(now) {
  for (const { value, chart } of charts) {
    const points = readings.slice(1).map((after, i) => ({ at: after.at, value: value(readings[Math.max(0, i + 1 - SMOOTH)], after) }));
    chart.draw(points, now - SPAN_MS, now);
  }
}

async function showFacts() {
  try {
    factsHolder.replaceChildren(facts(await getJson("server_info")));
  } catch (error) {
    factsHolder.replaceChildren(errorBox(error));
  }
}

function facts(info) {
  const engine = info.engine ?? {};
  const fact = (name, value, more) => value === undefined || value === null || value === "" ? null
    : el("div", {}, el("dt", {}, name), el("dd", {}, String(value), more ? el("small", {}, more) : null));
  const list = el("dl", { class: "facts-grid" },
    fact("Model", info.served_model_name, modelFacts(engine)),
    fact("Profile", engine.profile?.name ?? (engine.profile && "none: it cannot rank"), engine.profile?.why),
    fact("Device", engine.device && deviceFacts(engine.device), [engine.jax_version && `JAX ${engine.jax_version}`, `Itemwise ${info.version}`].filter(Boolean).join(", ")),
    fact("Kernels", engine.attention, engine.cpu_level && `CPU level ${engine.cpu_level}, activations ${engine.activations}`),
    fact("Self-check", engine.self_check?.status ?? info.state, checkFacts(engine.self_check)),
    fact("Step", engine.step_shape && `${count.format(engine.step_shape.tokens)} tokens`, stepFacts(engine)),
    fact("Cache", engine.pages && cacheFacts(engine.pages), engine.pages && `${plural(engine.pages.hits, "page")} found, ${count.format(engine.pages.misses)} computed, ${count.format(engine.pages.evictions)} evicted`),
    fact("Queue", info.scheduler && `${count.format(info.scheduler.queued)} waiting, ${count.format(info.scheduler.running)} open`, info.scheduler && `${count.format(info.scheduler.finished)} finished, ${count.format(info.scheduler.failed + info.scheduler.refused + info.scheduler.expired)} failed or refused`),
  );
  return el("div", {}, list, reports(info.reports ?? []));
}

function modelFacts(engine) {
  const { model_config: model, weight_bytes: weights } = engine;
  if (!model) return "";
  return `${model.family}, ${model.num_layers} layers, ${engine.dtype}, ${bytes(weights)}; up to ${count.format(engine.max_seq_len)} tokens`;
}

const deviceFacts = ({ platform, kind }) => platform === kind ? platform.toUpperCase() : `${platform.toUpperCase()}, ${kind}`;

function checkFacts({ checks, checked_at: at } = {}) {
  if (!checks) return "";
  const when = at ? `, ${new Date(at).toLocaleString([], { dateStyle: "medium", timeStyle: "short" })}` : "";
  return `${plural(Object.keys(checks).length, "check")} that no bit depends on batch composition${when}`;
}

function stepFacts({ small_steps: small = [], steps }) {
  const sizes = small.length ? `also ${small.map((each) => each.tokens).join(" and ")}; ` : "";
  return `${sizes}${plural(steps, "step")} run`;
}

function cacheFacts(pages) {
  return `${plural(pages.cached, "page")} of ${count.format(pages.total)}, ${bytes(pages.bytes)}`;
}

/** Links to reports of `itemwise validate`; with a key they are fetched, since links carry none. */
function reports(names) {
  if (!names.length) return null;
  const link = (name) => {
    const at = `reports/${encodeURIComponent(name)}/`;
    return el("li", {}, el("a", { href: at, onclick: hasKey() ? (event) => save(event, at, name) : null }, name));
  };
  return el("div", {}, el("h2", {}, "Validation reports"), el("ul", {}, names.map(link)));
}

async function save(event, at, name) {
  event.preventDefault();
  try {
    const file = new Blob([await getText(at)], { type: "text/html" });
    const address = URL.createObjectURL(file);
    el("a", { href: address, download: `${name}.html` }).click();
    setTimeout(() => URL.revokeObjectURL(address), 60_000);
  } catch (error) {
    errorHolder.replaceChildren(errorBox(error));
  }
}
