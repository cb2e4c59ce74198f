// The tab Decide: typed questions about one state, in the format of System One.

import { post } from "./api.js";
import { bar, el } from "./dom.js";
import { Ask, numberIn, without } from "./form.js";
import { duration, plural, score, timing, tokenFacts } from "./show.js";
import { addCopyButtons } from "./snippets.js";

const PATH = "v1/systemone";
const KINDS = [["noul", "Yes or no"], ["choice", "Choice"], ["score", "Score"]];
const CRITERIA = {
  choice: ["Options, one a line", "A description may follow a colon: refund: money back"],
  score: ["Levels, one a line, lowest first", "2 to 10 levels"],
};
const EXAMPLE = {
  state:
    "Ticket: The parcel arrived broken. The customer wants the money back and writes for the second time.",
  questions: [
    ["noul", "Is the customer unhappy?", []],
    [
      "choice",
      "What does the customer want?",
      ["refund: the money back", "replacement: the same article again", "information"],
    ],
    ["score", "How urgent is it?", ["can wait", "this week", "today"]],
  ],
};

let ask;
let numbered = 0;

export function startDecide() {
  ask = new Ask("decide", "Ask typed questions about a state, and see a probability for each answer.");
  ask.fields.state.value = EXAMPLE.state;
  for (const question of EXAMPLE.questions) addQuestion(...question);
  ask.fields.add.addEventListener("click", () => addQuestion("noul", "", []).querySelector("input").focus());
  ask.onSubmit(decide);
  addCopyButtons(ask.form.querySelector(".copies"), PATH, body);
}

const holder = () => ask.form.querySelector("#decide-questions");

function addQuestion(kind, instructions, criteria) {
  const id = `question-${++numbered}`;
  const name = el("legend");
  const kinds = KINDS.map(([value, text]) => el("option", { value }, text));
  const type = el("select", { id: `${id}-type` }, kinds);
  const asked = el("input", { id: `${id}-text`, autocomplete: "off" });
  const options = el("textarea", { id: `${id}-options`, rows: 3, "aria-describedby": `${id}-hint` });
  const label = el("label", { for: options.id });
  const hint = el("p", { class: "hint", id: `${id}-hint` });
  const optionsField = el("div", { class: "field" }, label, options, hint);
  const onRemove = () => {
    field.remove();
    rename();
    ask.fields.add.focus();
  };
  const remove = el("button", { type: "button", onclick: onRemove }, "Remove");
  const field = el("fieldset", { class: "question" }, name,
    el("div", { class: "field" }, el("label", { for: asked.id }, "Question"), asked),
    el("div", { class: "row" },
      el("div", { class: "field" }, el("label", { for: type.id }, "Kind"), type),
      remove),
    optionsField);
  const adapt = () => {
    optionsField.hidden = type.value === "noul";
    [label.textContent, hint.textContent] = CRITERIA[type.value] ?? ["", ""];
  };
  type.addEventListener("input", adapt);
  [type.value, asked.value, options.value] = [kind, instructions, criteria.join("\n")];
  adapt();
  field.read = () => ({
    kind: type.value,
    instructions: asked.value.trim(),
    criteria: options.value.split("\n").map((line) => line.trim()).filter(Boolean),
  });
  holder().append(field);
  rename();
  return field;
}

function rename() {
  [...holder().children].forEach((field, i) => {
    field.querySelector("legend").textContent = `Question ${i + 1}`;
    field.querySelector("button").setAttribute("aria-label", `Remove question ${i + 1}`);
  });
}

/** JSON where the state is an object or a list, else its text. */
function stateOf(text) {
  if (/^\s*[[{]/.test(text)) {
    try {
      return JSON.parse(text);
    } catch {
      return text;
    }
  }
  return text;
}

function questionOf({ kind, instructions, criteria }) {
  const question = without({ type: kind, instructions: instructions || undefined });
  if (kind === "score") question.criteria = criteria;
  if (kind === "choice") {
    question.criteria = Object.fromEntries(criteria.map((line) => {
      const [name, ...rest] = line.split(":");
      return [name.trim(), rest.join(":").trim() || null];
    }));
  }
  return question;
}

const asked = () => [...holder().children].map((field) => field.read());

function body() {
  const named = asked().map((each, i) => [`question_${i + 1}`, questionOf(each)]);
  const questions = Object.fromEntries(named);
  return without({
    state: stateOf(ask.fields.state.value),
    questions,
    x_rotations: numberIn(ask.fields.rotations),
    x_label_mass: ask.fields.mass.checked || undefined,
  });
}

async function decide(signal) {
  const questions = asked();
  const sent = body();
  let answer;
  try {
    answer = await post(PATH, sent, signal);
  } catch (error) {
    if (error.status === 404) throw new Error("This server does not decide: it has no path /v1/systemone.");
    throw error;
  }
  const found = Object.values(answer.body.answers);
  return [
    el("p", { class: "facts" }, el("b", {}, plural(found.length, "answer")),
      ` in ${duration(answer.stages.total ?? answer.milliseconds)}. `, tokenFacts(answer, 1)),
    timing(answer),
    ...Object.keys(sent.questions).map((id, i) => decision(questions[i], answer.body.answers[id])),
  ];
}

function decision(question, answer) {
  const head = el("h3", {}, question.instructions || "No instructions");
  return el("div", { class: "decision" }, head, optionsOf(answer).map(([name, share, best]) =>
    el("div", { class: best ? "option best" : "option" },
      el("span", { class: "name" }, name), el("span", { class: "number" }, score(share)), bar(share))),
    el("p", { class: "hint" }, remarks(answer)));
}

/** Each option's name, its probability, and whether it is the answer. */
function optionsOf(answer) {
  if (answer.type === "noul") {
    const yes = answer.noul;
    return [["yes", yes, yes >= 0.5], ["no", 1 - yes, yes < 0.5]];
  }
  const shares = Object.entries(answer.probabilities);
  const most = Math.max(...shares.map(([, share]) => share));
  const isBest = (name, share) => answer.type === "choice" ? name === answer.choice : share === most;
  return shares.map(([name, share]) => [answer.legend?.[name] ?? name, share, isBest(name, share)]);
}

function remarks(answer) {
  const mass = answer.x_label_mass;
  return [
    answer.score !== undefined && `Score ${score(answer.score)}`,
    answer.confidence !== undefined && `confidence ${score(answer.confidence)}`,
    typeof mass === "number" && `label mass ${score(mass)}`,
  ].filter(Boolean).join(", ");
}
