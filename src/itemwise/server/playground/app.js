// The page as a whole: its tabs, the server's state, the key.

import { getJson, useKey, whenKeyIsWanted } from "./api.js";
import { startDecide } from "./decide.js";
import { byId } from "./dom.js";
import { startRank } from "./rank.js";
import { offerTemplate, startScore } from "./score.js";
import { startServer, watch } from "./server.js";

const RETRY_MS = 2000;
const tabs = [...document.querySelectorAll('[role="tab"]')];
const panelOf = (tab) => byId(tab.getAttribute("aria-controls"));

function select(tab) {
  for (const each of tabs) {
    each.setAttribute("aria-selected", each === tab);
    each.tabIndex = each === tab ? 0 : -1;
    panelOf(each).hidden = each !== tab;
  }
  history.replaceState(null, "", `#${panelOf(tab).id}`);
  watch(panelOf(tab).id === "server");
}

/** Arrow keys, Home and End move between tabs, as screen readers expect. */
function onTabKey(event) {
  const at = tabs.indexOf(event.target);
  const to = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: tabs.length - 1 }[event.key];
  if (to === undefined) return;
  event.preventDefault();
  const tab = tabs[(to + tabs.length) % tabs.length];
  select(tab);
  tab.focus();
}

function startTabs() {
  for (const tab of tabs) {
    tab.addEventListener("click", () => select(tab));
    tab.addEventListener("keydown", onTabKey);
  }
  const named = () => tabs.find((tab) => `#${panelOf(tab).id}` === location.hash);
  window.addEventListener("hashchange", () => named() && select(named()));
  select(named() ?? tabs[0]);
}

function startKey() {
  const [form, input] = [byId("key-form"), byId("key")];
  whenKeyIsWanted(() => {
    if (form.hidden) {
      form.hidden = false;
      input.focus();
    }
  });
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    useKey(input.value.trim());
    input.value = "";
    form.hidden = true;
    showState();
    watch(!byId("server").hidden);
  });
}

/** Shows the model that is served, and tries again while there is none. */
async function showState() {
  const say = (kind, text) => {
    document.querySelector(".dot").className = `dot ${kind}`;
    byId("state-text").textContent = text;
  };
  try {
    const [{ id, profile }] = (await getJson("v1/models")).data;
    // Without a profile the model is still loading; only then is there a reason to ask for more.
    if (profile) {
      offerTemplate(profile.name === "prompt-template");
      return say("ready", id);
    }
    say("", `${id} is loading`);
  } catch (error) {
    if (error.status === 401) return say("failed", "waiting for the API key");
    say("failed", error.status ? error.message : "the server does not answer");
  }
  setTimeout(showState, RETRY_MS);
}

startKey();
startRank();
startDecide();
startScore();
startServer();
startTabs();
showState();
