// The tab Score: labels and raw numbers, and the tokens as the model reads them.

import { post } from "./api.js";
import { el } from "./dom.js";
import { Ask, numberIn, without } from "./form.js";
import { duration, fillLongList, plural, timing, tokenFacts } from "./show.js";
import { addCopyButtons } from "./snippets.js";

const PATH = "v1/score";
const LISTED = 200; // items up to which tokens are asked for

let ask;

export function startScore() {
  ask = new Ask("score", "Give a query, items and labels, and see the model's own numbers.");
  const { fields } = ask;
  fields.query.value = "desk lamps";
  fields.items.value = "Brass lamp for the desk\nDesk with drawers\nTea kettle";
  fields.labels.value = " yes\n no";
  fields.template.checked = true;
  fields.softmax.checked = true;
  ask.onSubmit(score);
  addCopyButtons(ask.form.querySelector(".copies"), PATH, () => body(asked()));
}

/** Without a prompt template, a model takes texts as they are. */
export function offerTemplate(isThere) {
  const { template } = ask.fields;
  template.disabled = !isThere;
  template.checked &&= isThere;
}

function linesOf(text) {
  const lines = text.split(/\r\n|\r|\n/);
  while (lines.length && lines.at(-1) === "") lines.pop(); // the end of the text; others may be empty items
  return lines;
}

/** Token ids written with spaces, commas or brackets around them. */
function idsOf(text) {
  return text.split(/[\s,[\]]+/).filter(Boolean).map((word) => {
    if (!/^-?\d+$/.test(word)) throw new Error(`${JSON.stringify(word)} is not a token id; ids are whole numbers.`);
    return Number(word);
  });
}

function asked() {
  const { fields } = ask;
  const ids = fields.kind.value === "ids";
  const items = linesOf(fields.items.value);
  const labels = linesOf(fields.labels.value).filter((line) => line !== "");
  const byId = ids || (labels.length > 0 && labels.every((label) => /^\d+$/.test(label)));
  return {
    query: ids ? idsOf(fields.query.value) : fields.query.value,
    items: ids ? items.map(idsOf) : items,
    labels,
    byId,
  };
}

function body({ query, items, labels, byId }) {
  const { fields } = ask;
  const flag = (field) => field.checked || undefined;
  return without({
    query,
    items,
    labels: labels.length && !byId ? labels : undefined,
    label_token_ids: labels.length && byId ? labels.flatMap(idsOf) : undefined,
    apply_template: flag(fields.template),
    apply_softmax: flag(fields.softmax),
    return_token_logprobs: flag(fields.logprobs),
    temperature: numberIn(fields.temperature),
    return_tokens: items.length <= LISTED || undefined,
  });
}

async function score(signal) {
  const sent = asked();
  const answer = await post(PATH, body(sent), signal);
  const { scores, token_logprobs: logprobs, tokens } = answer.body;
  const names = scores.length ? scores[0].map((_, i) => nameOf(sent, i)) : [];
  const nameItem = (i) => (typeof sent.items[i] === "string" ? sent.items[i] : sent.items[i].join(" ")) || "(empty)";
  const tables = [table("Score", scores, names, nameItem)];
  if (logprobs) tables.push(el("h2", {}, "Log-probabilities"), table("Log-probability", logprobs, names, nameItem));
  return [
    el("p", { class: "facts" }, el("b", {}, plural(scores.length, "item")),
      ` in ${duration(answer.stages.total ?? answer.milliseconds)}. `, tokenFacts(answer, scores.length)),
    timing(answer),
    ...tables,
    el("h2", {}, "As the model reads it"),
    tokens ? tokenLists(tokens) : el("p", { class: "hint" }, `Tokens are shown for up to ${LISTED} items.`),
  ];
}

function nameOf({ labels }, i) {
  return labels.length ? JSON.stringify(labels[i]) : `label ${i + 1}`;
}

function table(what, rows, names, nameItem) {
  const body = el("tbody");
  const columns = names.map((name) => el("th", { scope: "col", class: "number" }, name));
  const head = el("thead", {}, el("tr", {}, el("th", { scope: "col" }, "Item"), columns));
  const region = { class: "scroll", tabindex: "0", role: "region", "aria-label": `${what} of each item` };
  const holder = el("div", region, el("table", {}, head, body));
  fillLongList(body, rows, (row, i) => el("tr", {},
    el("th", { scope: "row" }, nameItem(i)),
    row.map((value) => el("td", { class: "number" }, String(value)))));
  return holder;
}

function tokenLists({ shared, items }) {
  const list = el("div");
  const marked = `Marked: the ${plural(shared.ids.length, "token")} that all prompts share, computed once.`;
  const holder = el("div", {}, el("p", { class: "hint" }, marked), list);
  fillLongList(list, items, (item) => el("p", { class: "tokens" },
    chips(shared, "token shared"), chips(item, "token")));
  return holder;
}

function chips({ ids, texts }, kind) {
  return ids.map((id, i) => {
    const text = texts[i];
    const shown = text === "" ? String(id) : text.replaceAll("\n", "\u21b5").replaceAll("\t", "\u21e5");
    return el("span", { class: text === "" ? `${kind} odd` : kind, title: `id ${id}` }, shown);
  });
}
