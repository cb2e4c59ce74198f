// Talks to the server that sent this page. Paths are relative, so that it also works below a path
// that a proxy removes.

let key = "";
let onKeyWanted = () => {};

/** Keeps the key in memory, and there alone. */
export function useKey(text) {
  key = text;
}

/** Whether a key is in use. */
export const hasKey = () => key !== "";

/** Calls `listener` whenever the server refuses a request for lack of the right key. */
export function whenKeyIsWanted(listener) {
  onKeyWanted = listener;
}

/** An answer that is an error, in the API's own words. */
export class ApiError extends Error {
  constructor(status, body) {
    super(messageOf(body) || "the server gave no reason");
    this.status = status;
    this.code = body?.error?.code ?? body?.detail?.error_type ?? "";
    this.param = body?.error?.param ?? "";
  }
}

function messageOf(body) {
  const detail = body?.detail;
  if (body?.error?.message) return body.error.message;
  if (body?.message) return body.message;
  if (detail?.message) return detail.message;
  if (Array.isArray(detail)) {
    return detail.map((fault) => `${(fault.loc ?? []).join(".")}: ${fault.msg}`).join("; ");
  }
  return typeof detail === "string" ? detail : "";
}

/** Milliseconds by stage, from a `Server-Timing` header. */
export function stagesOf(header) {
  const found = {};
  for (const part of (header ?? "").split(",")) {
    const [name, duration] = part.trim().split(";dur=");
    if (duration) found[name] = Number(duration);
  }
  return found;
}

/** The text of a page of the server. */
export async function getText(path, signal) {
  return (await send(path, undefined, signal)).text;
}

/** The JSON of a page of the server. */
export async function getJson(path, signal) {
  return JSON.parse(await getText(path, signal));
}

/** Posts `body`: its answer, and how long what took and how many tokens it had. */
export async function post(path, body, signal) {
  const started = performance.now();
  const { response, text } = await send(path, JSON.stringify(body), signal);
  const count = (name) => Number(response.headers.get(`X-${name}-Tokens`) ?? NaN);
  return {
    body: JSON.parse(text),
    milliseconds: performance.now() - started,
    stages: stagesOf(response.headers.get("Server-Timing")),
    tokens: { prompt: count("Prompt"), shared: count("Shared"), cached: count("Cached") },
  };
}

async function send(path, body, signal) {
  const headers = {};
  if (body !== undefined) headers["Content-Type"] = "application/json";
  if (key) headers.Authorization = `Bearer ${key}`;
  const method = body === undefined ? "GET" : "POST";
  const response = await fetch(path, { method, headers, body, signal, cache: "no-store" });
  const text = await response.text();
  if (response.ok) return { response, text };
  if (response.status === 401) onKeyWanted();
  let found = null;
  try {
    found = JSON.parse(text);
  } catch {
    found = { message: text.slice(0, 500) };
  }
  throw new ApiError(response.status, found);
}
