// The tab Server: what runs, how it is, and its load over the last minutes.

import { getJson, getText, hasKey } from "./api.js";
import { Chart } from "./chart.js";
import { byId, el } from "./dom.js";
import { parseMetrics, quantile, rate } from "./metrics.js";
import { count, duration, errorBox, plural } from "./show.js";

const EVERY_MS = 2000;
const SPAN_MS = 5 * 60 * 1000;
const SMOOTH = 5; // readings over which rates and quantiles are taken

function bytes(size) {
  const mebi = size / (1 << 20);
  return mebi >= 1024 ? `${(mebi / 1024).toFixed(1)} GiB` : `${mebi.toFixed(mebi < 10 ? 1 : 0)} MiB`;
}

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
  ["Waiting and open requests", "", (_, b) => now("itemwise_queue_requests", b) + now("itemwise_open_requests", b)],
  ["Steps", "a second", (a, b) => rate("itemwise_steps_total", a, b), few],
  ["Query tokens from the cache", "", share("itemwise_shared_tokens_total", "itemwise_computed_tokens_total"), percent],
];

const now = (name, { samples }) => samples.get(name) ?? 0;

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
  const pictures = el("div", { class: "charts" }, charts.map(({ chart }) => chart.element));
  holder.append(errorHolder, factsHolder, el("h2", {}, "Last five minutes"), pictures);
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

function draw(at) {
  const pairs = readings.slice(1).map((after, i) => [readings[Math.max(0, i + 1 - SMOOTH)], after]);
  for (const { value, chart } of charts) {
    const points = pairs.map(([before, after]) => ({ at: after.at, value: value(before, after) }));
    chart.draw(points, at - SPAN_MS, at);
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
  const shown = [
    ["Model", info.served_model_name, modelNote(engine)],
    ["Profile", profileOf(engine.profile), engine.profile?.why],
    ["Device", deviceOf(engine.device), versions(info, engine)],
    ["Kernels", engine.attention, engine.cpu_level && `CPU level ${engine.cpu_level}, activations ${engine.activations}`],
    ["Self-check", engine.self_check?.status ?? info.state, checkNote(engine.self_check)],
    ["Step", engine.step_shape && plural(engine.step_shape.tokens, "token"), stepNote(engine)],
    ...(engine.pages ? [cacheFact(engine.pages)] : []),
    ...(info.scheduler ? [queueFact(info.scheduler)] : []),
  ];
  const list = shown.filter(([, value]) => value).map(([name, value, note]) => el("div", {},
    el("dt", {}, name),
    el("dd", {}, value, note ? el("small", {}, note) : null)));
  return el("div", {}, el("dl", { class: "facts-grid" }, list), reports(info.reports ?? []));
}

function modelNote(engine) {
  const { model_config: model, weight_bytes: weights, max_seq_len: most } = engine;
  if (!model) return "";
  return `${model.family}, ${model.num_layers} layers, ${engine.dtype}, ${bytes(weights)}; up to ${plural(most, "token")}`;
}

const profileOf = (profile) => profile && (profile.name ?? "none: it cannot rank");

function deviceOf(device) {
  if (!device) return "";
  const platform = device.platform.toUpperCase();
  return device.kind === device.platform ? platform : `${platform}, ${device.kind}`;
}

function versions(info, engine) {
  return [engine.jax_version && `JAX ${engine.jax_version}`, `Itemwise ${info.version}`].filter(Boolean).join(", ");
}

function checkNote({ checks, checked_at: at } = {}) {
  if (!checks) return "";
  const style = { dateStyle: "medium", timeStyle: "short" };
  const when = at ? `, ${new Date(at).toLocaleString([], style)}` : "";
  return `${plural(Object.keys(checks).length, "check")} that no bit depends on batch composition${when}`;
}

function stepNote({ small_steps: small = [], steps = 0 }) {
  const sizes = small.length ? `also ${small.map((each) => each.tokens).join(" and ")}; ` : "";
  return `${sizes}${plural(steps, "step")} run`;
}

function cacheFact(pages) {
  const [computed, evicted] = [count.format(pages.misses), count.format(pages.evictions)];
  const value = `${count.format(pages.cached)} of ${plural(pages.total, "page")}, ${bytes(pages.bytes)}`;
  return ["Cache", value, `${plural(pages.hits, "page")} found, ${computed} computed, ${evicted} evicted`];
}

function queueFact({ queued, running, finished, failed, refused, expired }) {
  const note = `${count.format(finished)} finished, ${count.format(failed + refused + expired)} failed or refused`;
  return ["Queue", `${count.format(queued)} waiting, ${count.format(running)} open`, note];
}

/** Links to reports of `itemwise validate`; with a key they are fetched, since links carry none. */
function reports(names) {
  if (!names.length) return null;
  const link = (name) => {
    const at = `reports/${encodeURIComponent(name)}/`;
    return el("li", {}, el("a", { href: at, onclick: hasKey() ? (event) => save(event, at, name) : null }, name));
  };
  return el("div", {}, el("h2", {}, "Validation reports"), el("ul", { class: "reports" }, names.map(link)));
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
