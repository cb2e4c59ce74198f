// What the forms of all tabs share: sending, cancelling, showing what comes of it.

import { el } from "./dom.js";
import { errorBox } from "./show.js";

/** The form of a tab, its answer's place, and one request at a time. */
export class Ask {
  constructor(id, hint) {
    this.panel = document.getElementById(id);
    this.form = this.panel.querySelector("form");
    this.answer = this.panel.querySelector(".answer");
    this.fields = this.form.elements;
    this.answer.append(el("p", { class: "empty" }, hint));
    this.fields.cancel.addEventListener("click", () => this.controller?.abort());
  }

  /** Runs `work(signal)` when the form is submitted. */
  onSubmit(work) {
    this.form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.run(work);
    });
  }

  /** Runs `work(signal)`, shows the elements that it gives or how it failed. */
  async run(work) {
    this.controller?.abort();
    const controller = new AbortController();
    this.controller = controller;
    this.busy(true);
    try {
      const shown = await work(controller.signal);
      if (this.controller === controller) this.answer.replaceChildren(...shown);
    } catch (error) {
      if (this.controller !== controller) return;
      const box = error.name === "AbortError" ? el("p", { class: "empty" }, "Cancelled.") : errorBox(error);
      this.answer.replaceChildren(box);
    } finally {
      if (this.controller === controller) this.busy(false);
    }
  }

  busy(is) {
    this.panel.classList.toggle("busy", is);
    this.answer.setAttribute("aria-busy", is);
    this.fields.cancel.hidden = !is;
  }
}

/** A number of a field, or undefined if that is empty. */
export function numberIn(field) {
  const text = field.value.trim();
  if (text === "") return undefined;
  const value = Number(text);
  if (Number.isNaN(value)) throw new Error(`${JSON.stringify(text)} is not a number.`);
  return value;
}

/** The object without the values that are undefined. */
export function without(object) {
  return Object.fromEntries(Object.entries(object).filter(([, value]) => value !== undefined));
}
