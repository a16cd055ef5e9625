// Votes and waits without reloading. The page works without this file: here its own forms are sent and its own HTML
// is fetched, and only what has changed is exchanged.
"use strict";

const WAITING_MS = 1500; // between looks while there is no question
const READING_MS = 20000; // while there is one: keeps it for this rater, and the progress fresh
const GUARD_MS = 250; // the second click of a double click does not vote on the next question
const KEYS = {
  "1": "choose-left", ArrowLeft: "choose-left", "2": "choose-right", ArrowRight: "choose-right",
  t: "choose-tie", b: "choose-bad", s: "choose-skip", u: "undo",
};

let busy = false;
let timer = 0;
const byId = (id) => document.getElementById(id);

function setBusy(value) {
  busy = value;
  byId("work").setAttribute("aria-busy", String(value));
}

function problem(text) {
  const place = byId("problem");
  if (place.textContent !== text) place.textContent = text;
  place.hidden = !text;
}

function announce() {
  const work = byId("work");
  const parts = [byId("note")?.textContent ?? ""];
  if (work.dataset.state === "question") {
    for (const id of ["prompt", "left", "right"]) {
      parts.push(`${byId(id + "-title").innerText}: ${byId(id).textContent}.`);
    }
  } else {
    parts.push(...[...work.querySelectorAll("h1, p:not(.note)")].map((element) => element.innerText));
  }
  byId("announcement").textContent = parts.filter(Boolean).join(" ");
}

// Exchange the parts of the page that differ. Returns whether another question, or none, is shown now.
function show(html) {
  const fresh = new DOMParser().parseFromString(html, "text/html");
  const before = byId("work");
  const state = before.dataset.state + before.dataset.question;
  const focused = document.activeElement?.id;
  const wasInside = before.contains(document.activeElement);
  for (const id of ["progress", "work"]) {
    const next = fresh.getElementById(id);
    if (!next) throw new Error("not the page");
    next.setAttribute("aria-busy", byId(id).getAttribute("aria-busy") ?? "false");
    if (next.outerHTML !== byId(id).outerHTML) byId(id).replaceWith(document.adoptNode(next));
  }
  document.title = fresh.title;
  const work = byId("work");
  const changed = work.dataset.state + work.dataset.question !== state;
  if (wasInside && !work.contains(document.activeElement)) {
    const again = focused && byId(focused);
    (again && !again.disabled ? again : byId("heading")).focus({ preventScroll: true });
  }
  if (changed) {
    announce();
    window.scrollTo({ top: 0 });
  }
  return changed;
}

async function load(address, options) {
  const response = await fetch(address, { ...options, credentials: "same-origin" });
  if (response.status === 403) throw new Error("This address is no longer valid: open the one that the run printed.");
  if (!response.ok) throw new Error(`Not saved: ${await response.text()}`);
  return response.text();
}

function say(error) {
  // A TypeError is what fetch throws when nobody answers.
  problem(error instanceof TypeError ? "The run does not answer. All votes given so far are saved; this page keeps trying." : error.message);
}

async function send(button) {
  if (busy || button.disabled) return;
  const form = button.form;
  const body = new URLSearchParams(new FormData(form, button));
  setBusy(true);
  clearTimeout(timer);
  try {
    show(await load(button.getAttribute("formaction") ?? form.getAttribute("action"), { method: "POST", body }));
    problem("");
    await new Promise((resolve) => setTimeout(resolve, GUARD_MS));
  } catch (error) {
    say(error);
  } finally {
    setBusy(false);
    wait();
  }
}

async function look() {
  if (busy) return;
  try {
    const html = await load("/");
    if (busy) return; // a vote went out meanwhile and brings its own answer
    show(html);
    problem("");
  } catch (error) {
    say(error);
  }
  wait();
}

function wait() {
  clearTimeout(timer);
  const reading = byId("work").dataset.state === "question" && byId("problem").hidden;
  timer = setTimeout(look, reading ? READING_MS : WAITING_MS);
}

document.addEventListener("submit", (event) => {
  event.preventDefault();
  if (event.submitter) send(event.submitter);
});

document.addEventListener("keydown", (event) => {
  if (event.repeat || event.ctrlKey || event.altKey || event.metaKey || !byId("shortcuts").checked) return;
  const button = byId(KEYS[event.key.length === 1 ? event.key.toLowerCase() : event.key] ?? "");
  if (!button) return;
  event.preventDefault();
  send(button);
});

document.addEventListener("visibilitychange", () => {
  if (!document.hidden) look();
});

const shortcuts = byId("shortcuts");
shortcuts.closest(".script-only").hidden = false;
shortcuts.checked = localStorage.getItem("shortcuts") !== "off";
shortcuts.addEventListener("change", () => {
  localStorage.setItem("shortcuts", shortcuts.checked ? "on" : "off");
  document.documentElement.classList.toggle("no-shortcuts", !shortcuts.checked);
});
document.documentElement.classList.toggle("no-shortcuts", !shortcuts.checked);
if (location.search) history.replaceState(null, "", "/");
wait();
