// The tab Rank: items by how well they match a query.

import { post } from "./api.js";
import { bitsOf, shuffled } from "./bits.js";
import { bar, byId, el } from "./dom.js";
import { Ask, numberIn, without } from "./form.js";
import { isHeader, likelyColumn, looksLikeCsv, parseCsv, parseLines } from "./items.js";
import { count, duration, fillLongList, plural, score, timing, tokenFacts } from "./show.js";
import { addCopyButtons } from "./snippets.js";

const PATH = "v2/rerank";
const ALONE = 5; // items that are sent alone
const SHOWN = 50; // rows of the comparison
const EXAMPLE = {
  query: "waterproof hiking boots",
  items: [
    "Wireless keyboard with number pad",
    "Hiking boot, waterproof, wide fit",
    "Rubber boots for children",
    "Cotton bath towels, set of 4",
    "Waterproof jacket for hiking",
    "Hiking boots in brown leather",
    "Boots for winter hiking, warm and waterproof",
    "Waterproof hiking boots with ankle support",
  ],
};

let ask;
let parsed = { text: null }; // of the text that was read last, since that can be long

export function startRank() {
  ask = new Ask("rank", "Give a query and items, and see how well each matches.");
  const { fields } = ask;
  fields.query.value = EXAMPLE.query;
  fields.items.value = EXAMPLE.items.join("\n");
  fields.items.addEventListener("paste", () => setTimeout(chooseFormat));
  for (const name of ["items", "format", "column", "header"]) fields[name].addEventListener("input", showCount);
  ask.onSubmit(rank);
  fields.compare.addEventListener("click", () => ask.run(compare));
  addCopyButtons(ask.form.querySelector(".copies"), PATH, body);
  showCount();
}

/** Reads a pasted table as one. */
function chooseFormat() {
  const { fields } = ask;
  fields.format.value = looksLikeCsv(fields.items.value) ? "csv" : "lines";
  parsed = { text: null };
  showCount();
}

function readItems() {
  const { fields } = ask;
  if (fields.format.value === "lines") return parseLines(fields.items.value);
  readTable();
  const rows = fields.header.checked ? parsed.rows.slice(1) : parsed.rows;
  const column = Number(fields.column.value);
  return rows.map((row) => (row[column] ?? "").trim()).filter((text) => text !== "");
}

function readTable() {
  const { fields } = ask;
  const text = fields.items.value;
  if (parsed.text !== text) {
    const rows = parseCsv(text);
    const header = rows.length > 1 && isHeader(rows[0], rows[1]);
    parsed = { text, rows };
    fields.header.checked = header;
    nameColumns(likelyColumn(header ? rows.slice(1) : rows));
  }
}

function nameColumns(chosen) {
  const { fields } = ask;
  const width = Math.max(1, ...parsed.rows.slice(0, 1000).map((row) => row.length));
  const names = Array.from({ length: Math.min(width, 200) }, (_, i) =>
    (fields.header.checked && parsed.rows[0]?.[i]) || `Column ${i + 1}`);
  fields.column.replaceChildren(...names.map((name, i) => el("option", { value: i }, name)));
  fields.column.value = Math.min(chosen, names.length - 1);
}

function showCount(event) {
  const { fields } = ask;
  const items = readItems();
  const table = fields.format.value === "csv";
  if (table && event?.target === fields.header) nameColumns(Number(fields.column.value));
  byId("rank-column-field").hidden = !table;
  byId("rank-header-field").hidden = !table;
  byId("rank-count").textContent = plural(items.length, "item");
}

function body() {
  const { fields } = ask;
  return without({
    query: fields.query.value,
    documents: readItems(),
    top_n: numberIn(fields.top),
    instruction: fields.instruction.value.trim() || undefined,
  });
}

async function rank(signal) {
  const asked = body();
  const answer = await post(PATH, asked, signal);
  const { results, usage } = answer.body;
  const items = asked.documents.length;
  const some = results.length < items ? `${count.format(results.length)} of ` : "";
  const facts = [
    el("b", {}, some + plural(items, "item")),
    ` in ${duration(answer.stages.total ?? answer.milliseconds)}. `,
    tokenFacts(answer, items) ?? `${plural(usage.total_tokens, "token")}.`,
  ];
  const list = el("ol", { class: "ranking" });
  list.style.setProperty("--digits", String(results.length).length);
  const box = el("div", {}, el("p", { class: "facts" }, facts), timing(answer), list);
  const scale = scaleOf(results);
  fillLongList(list, results, (result, i) => row(result, i, asked.documents, scale));
  return [box];
}

/** Shares of the bar: of 1 for probabilities, else of the largest score. */
function scaleOf(results) {
  const values = results.map((result) => result.relevance_score);
  const least = values.reduce((a, b) => Math.min(a, b), 0);
  const most = values.reduce((a, b) => Math.max(a, b), 1);
  return (value) => (value - least) / (most - least);
}

function row(result, i, documents, scale) {
  const cut = result.truncated ? el("span", { class: "tag" }, "cut") : null;
  return el("li", {},
    el("span", { class: "place" }, `${i + 1}`),
    el("span", { class: "text" }, documents[result.index], cut),
    el("span", { class: "value" }, score(result.relevance_score)),
    bar(scale(result.relevance_score)));
}

/** Asks for margins by the items' places in the form; those of `order` alone, in that order. */
async function margins(asked, order, signal) {
  const documents = order.map((index) => asked.documents[index]);
  const { body: found } = await post(PATH, { ...asked, documents, raw_scores: true }, signal);
  return new Map(found.results.map((result) => [order[result.index], result.relevance_score]));
}

async function compare(signal) {
  const { top_n: _, ...asked } = body();
  const places = asked.documents.map((_, i) => i);
  const given = await margins(asked, places, signal);
  const another = await margins(asked, shuffled(places.length), signal);
  const alone = new Map();
  for (const index of shuffled(places.length).slice(0, ALONE)) {
    for (const [place, value] of await margins(asked, [index], signal)) alone.set(place, value);
  }
  // Half of the items, while another request is in the server, so that they share its steps.
  const half = shuffled(places.length).slice(0, Math.ceil(places.length / 2));
  const others = { ...asked, query: `${asked.query} and others` };
  const [company] = await Promise.all([margins(asked, half, signal), margins(others, shuffled(places.length), signal)]);
  return comparison(asked.documents, given, [
    ["Other order", another],
    ["Alone", alone],
    ["Company", company],
  ]);
}

function comparison(documents, given, runs) {
  const same = (run, index) => bitsOf(run.get(index)) === bitsOf(given.get(index));
  const checks = runs.flatMap(([, run]) => [...run.keys()].map((index) => same(run, index)));
  const wrong = checks.filter((equal) => !equal).length;
  const counts = { "data-differing": String(wrong), "data-compared": String(checks.length) };
  const all = `All ${count.format(checks.length)} scores have equal bits`;
  const verdict = el("div", { class: wrong ? "verdict bad" : "verdict", ...counts },
    el("b", {}, wrong ? `${plural(wrong, "score")} differ` : all),
    "Each item was scored in the order given and in another order; half of them in other company, ",
    `beside another request; ${plural(runs[1][1].size, "item")} alone. `,
    "Compared are all 64 bits of the margin that rankings sort by.");
  const cell = (run, index) => {
    if (!run.has(index)) return el("td", { class: "soft" }, "not sent");
    const bits = bitsOf(run.get(index));
    return el("td", { class: "bits" }, same(run, index) ? "equal" : bits);
  };
  // Those that were sent alone first: their rows say most.
  const order = documents.map((_, i) => i).sort((a, b) => runs[1][1].has(b) - runs[1][1].has(a));
  const rows = order.slice(0, SHOWN).map((index) => el("tr", {},
    el("th", { scope: "row" }, documents[index]),
    el("td", { class: "bits" }, bitsOf(given.get(index))),
    runs.map(([, run]) => cell(run, index))));
  const head = ["Item", "Bits as given", ...runs.map(([name]) => name)];
  const left = documents.length - rows.length;
  return [
    verdict,
    el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Compared bits" },
      el("table", {},
        el("thead", {}, el("tr", {}, head.map((name) => el("th", { scope: "col" }, name)))),
        el("tbody", {}, rows))),
    left > 0 ? el("p", { class: "hint" }, `And ${plural(left, "item")} more, compared alike.`) : "",
  ];
}
