// The request of a form as a command or a program, to take away.

import { hasKey } from "./api.js";
import { el } from "./dom.js";

const quoted = (text) => `'${text.replaceAll("'", `'\\''`)}'`;

function curl(url, body) {
  const key = hasKey() ? ` \\\n  -H "Authorization: Bearer $ITEMWISE_API_KEY"` : "";
  return `curl ${quoted(url)} -H 'Content-Type: application/json'${key} \\\n  -d ${quoted(JSON.stringify(body))}\n`;
}

function pythonValue(value, indent = "") {
  const inner = `${indent}    `;
  const lines = (open, parts, close) => {
    if (!parts.length) return open + close;
    return `${open}\n${parts.map((part) => `${inner}${part},\n`).join("")}${indent}${close}`;
  };
  if (value === null) return "None";
  if (value === true) return "True";
  if (value === false) return "False";
  if (Array.isArray(value)) return lines("[", value.map((each) => pythonValue(each, inner)), "]");
  if (typeof value === "object") {
    const pair = ([name, each]) => `${JSON.stringify(name)}: ${pythonValue(each, inner)}`;
    return lines("{", Object.entries(value).map(pair), "}");
  }
  return JSON.stringify(value); // a text or number of JSON is one of Python, too
}

function python(url, body) {
  const key = hasKey() ? `headers["Authorization"] = "Bearer " + os.environ["ITEMWISE_API_KEY"]\n` : "";
  return `import json\n${key ? "import os\n" : ""}import urllib.request

body = ${pythonValue(body)}
headers = {"Content-Type": "application/json"}
${key}request = urllib.request.Request(
    ${JSON.stringify(url)}, json.dumps(body).encode(), headers
)
with urllib.request.urlopen(request) as answer:
    print(json.dumps(json.load(answer), indent=2))
`;
}

/**
 * Adds "Copy as curl" and "Copy as Python" to a form.
 *
 * Where the browser lets no page copy (an address that is neither https nor this machine), the text
 * is shown instead.
 */
export function addCopyButtons(holder, path, bodyOf) {
  const said = el("span", { class: "hint", role: "status" });
  const button = (name, write) => el("button", {
    type: "button",
    class: "quiet",
    onclick: async () => {
      holder.querySelector("textarea")?.remove();
      let text = "";
      try {
        text = write(new URL(path, document.baseURI).href, bodyOf());
      } catch (error) {
        said.textContent = error.message;
        return;
      }
      try {
        await navigator.clipboard.writeText(text);
        said.textContent = "Copied.";
      } catch {
        said.textContent = "Select and copy:";
        const shown = el("textarea", { rows: 8, readonly: true, "aria-label": name });
        shown.value = text;
        holder.append(shown);
        shown.select();
      }
    },
  }, name);
  holder.append(button("Copy as curl", curl), button("Copy as Python", python), said);
}
