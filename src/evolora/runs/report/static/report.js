"use strict";
const byId = name => document.getElementById(name);
// What the reader has done to a page that is loaded again while its run goes on.
const kept = (document.body.dataset.written && history.state) || {};
const keepers = {};
let playing = () => false;

// --- tables -----------------------------------------------------------------------------------------------------
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  const sort = (column, up) => {
    const head = heads[column];
    heads.forEach(each => each.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
    const numeric = "number" in head.dataset;
    const worth = row => {
      const text = row.cells[column].textContent;
      return numeric ? parseFloat(text.replace("\u2212", "-")) : text;
    };
    const rows = [...table.tBodies[0].rows].map(row => [worth(row), row]);
    // What was not measured comes last, whichever way.
    rows.sort(([a], [b]) => {
      if (numeric && (isNaN(a) || isNaN(b))) return isNaN(a) - isNaN(b);
      return (up ? 1 : -1) * (numeric ? a - b : a.localeCompare(b));
    });
    table.tBodies[0].append(...rows.map(([, row]) => row));
  };
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = head.textContent;
    head.replaceChildren(button);
    button.addEventListener("click", () => sort(column, head.getAttribute("aria-sort") !== "ascending"));
  });
}

// --- charts: what is under the pointer, or where the arrow keys are -------------------------------------------------
const short = value => {
  const size = Math.abs(value);
  const [by, unit] = [[1e15, "P"], [1e12, "T"], [1e9, "G"], [1e6, "M"], [1e4, "k"]].find(([from]) => size >= from) || [1, ""];
  const scaled = value / (unit === "k" ? 1e3 : by);
  return `${scaled.toLocaleString("en", {maximumSignificantDigits: 4})} ${unit}`.trim().replace("-", "\u2212");
};
const made = (name, kind, text) => {
  const element = document.createElement(name);
  element.className = kind;
  if (text !== undefined) element.textContent = text;
  return element;
};
for (const plot of document.querySelectorAll("[data-chart]")) {
  const chart = JSON.parse(plot.dataset.chart);
  const [left, right, low, high] = chart.box;
  const across = x => (x - left) / (right - left) * 100;
  const down = y => (high - y) / (high - low) * 100;
  const lines = chart.lines.map(([name, color, values, own]) => ({
    name, color, points: values.map((y, index) => [(own || chart.x)[index], y]).filter(([, y]) => y !== null),
  }));
  const stops = lines.flatMap(line => line.points.map(([x, y]) => ({x, y})));
  const ways = [...new Set(stops.map(stop => stop.x))].sort((a, b) => a - b);
  const [rule, tip] = [made("div", "rule"), made("div", "tip")];
  let shown = [];
  let at = null;
  const hide = () => {
    [rule, tip, ...shown].forEach(each => each.remove());
    at = null;
  };
  const show = (x, y) => {
    hide();
    at = x;
    const label = chart.labels[chart.x.findIndex((each, index) => each === x && (y === undefined || chart.lines[0][2][index] === y))];
    tip.replaceChildren(made("b", "", label || `${chart.name} ${short(x)}`));
    if (label) tip.append(made("div", "", `${chart.name} ${short(x)}`));
    shown = [];
    for (const line of lines) {
      const near = line.points.reduce((best, point) => Math.abs(point[0] - x) < Math.abs(best[0] - x) ||
        (point[0] === x && point[1] === y) ? point : best, line.points[0] || [Infinity, 0]);
      // Lines that share their points have none where nothing was measured; of others the nearest one says enough.
      if (near[0] !== x && (chart.lines.every(each => each.length < 4) || near[0] === Infinity)) continue;
      const row = made("div", `c-${line.color}`);
      row.append(made("span", "spot"), made("span", "", line.name), made("b", "", short(near[1])));
      tip.append(row);
      const dot = made("div", `mark c-${line.color}`);
      dot.style.left = `${across(near[0])}%`;
      dot.style.top = `${down(near[1])}%`;
      shown.push(dot);
    }
    rule.style.left = `${across(x)}%`;
    plot.append(rule, ...shown, tip);
    const room = plot.clientWidth - tip.offsetWidth;
    const from = across(x) / 100 * plot.clientWidth;
    tip.style.left = `${Math.max(0, Math.min(room, from + 14 + tip.offsetWidth > plot.clientWidth ? from - 14 - tip.offsetWidth : from + 14))}px`;
  };
  plot.addEventListener("pointermove", event => {
    const area = plot.getBoundingClientRect();
    const [x, y] = [(event.clientX - area.left) / area.width * 100, (event.clientY - area.top) / area.height * 100];
    const far = stop => Math.abs(across(stop.x) - x) + (chart.labels.length ? Math.abs(down(stop.y) - y) : 0);
    const near = stops.reduce((best, stop) => far(stop) < far(best) ? stop : best, stops[0]);
    if (near) show(near.x, chart.labels.length ? near.y : undefined);
  });
  plot.addEventListener("pointerleave", hide);
  plot.addEventListener("blur", hide);
  plot.addEventListener("keydown", event => {
    const step = {ArrowLeft: -1, ArrowRight: 1}[event.key];
    if (event.key === "Escape") hide();
    if (!step || !ways.length) return;
    event.preventDefault();
    const now = at === null ? (step > 0 ? -1 : ways.length) : ways.indexOf(at);
    show(ways[Math.max(0, Math.min(ways.length - 1, now + step))]);
  });
}

// --- the film -------------------------------------------------------------------------------------------------------
const data = byId("film-data");
if (data) {
  const film = JSON.parse(data.textContent);
  const [box, prompt, full, time, who, reward, text, play] =
    ["box", "prompt", "full", "time", "who", "reward", "text", "play"].map(name => byId(`film-${name}`));
  let timer = null;
  film.forEach((each, index) => prompt.add(new Option(each.label, index)));
  const show = () => {
    const frame = film[prompt.value].frames[time.value];
    who.textContent = frame.who;
    reward.textContent = frame.reward;
    text.textContent = frame.text || "(empty)";
    time.setAttribute("aria-valuetext", frame.who);
  };
  const choose = (frame = Infinity) => {
    full.textContent = film[prompt.value].prompt;
    time.max = film[prompt.value].frames.length - 1;
    time.value = Math.min(frame, time.max);
    show();
  };
  const stop = () => {
    clearInterval(timer);
    timer = null;
    play.textContent = "Play";
  };
  play.addEventListener("click", () => {
    if (timer !== null) return stop();
    if (time.value === time.max) time.value = 0;
    show();
    play.textContent = "Stop";
    timer = setInterval(() => {
      time.stepUp();
      show();
      if (time.value === time.max) stop();
    }, 700);
  });
  time.addEventListener("input", () => { stop(); show(); });
  prompt.addEventListener("change", () => { stop(); choose(); });
  playing = () => timer !== null;
  box.hidden = false;
  if (kept.film && film[kept.film[0]]) prompt.value = kept.film[0];
  choose(kept.film && kept.film[1] !== null ? kept.film[1] : Infinity);
  keepers.film = () => [prompt.value, time.value === time.max ? null : Number(time.value)];
}

// What is folded is printed too.
addEventListener("beforeprint", () => document.querySelectorAll("details").forEach(each => { each.open = true; }));

// --- a run that goes on ---------------------------------------------------------------------------------------------
const {written, again} = document.body.dataset;
if (written) {
  const seconds = () => (Date.now() - Number(written)) / 1000;
  const words = time => time < 100 ? `${Math.round(time)} seconds` : `${Math.round(time / 60)} minutes`;
  const folds = [...document.querySelectorAll("details")];
  const scrolls = [document.scrollingElement, ...document.querySelectorAll(".scroll")];
  const patient = Math.max(60, 10 * Number(again));
  history.scrollRestoration = "manual";
  (kept.folds || []).forEach((open, index) => { if (folds[index]) folds[index].open = open; });
  (kept.scrolls || []).forEach(([x, y], index) => { if (scrolls[index]) scrolls[index].scrollTo(x, y); });
  const keep = () => {
    const state = {folds: folds.map(each => each.open), scrolls: scrolls.map(each => [each.scrollLeft, each.scrollTop])};
    for (const [name, value] of Object.entries(keepers)) state[name] = value();
    history.replaceState(state, "");
  };
  let pressed = false;
  addEventListener("pagehide", keep);
  addEventListener("pointerdown", () => { pressed = true; });
  for (const end of ["pointerup", "pointercancel"]) addEventListener(end, () => { pressed = false; });
  let next = Math.min(30, Math.max(2, Number(again)));
  const loaded = Date.now();
  setInterval(() => {
    byId("age").textContent = `Written ${words(seconds())} ago; this page follows the run.`;
    if (seconds() > patient) {
      byId("silent").hidden = false;
      byId("silent").querySelector("span").textContent = words(seconds());
      next = 30;
    }
    const reading = playing() || pressed || document.querySelector(".tip") || !getSelection().isCollapsed ||
      (document.activeElement && document.activeElement.matches("select"));
    if (Date.now() - loaded > next * 1000 && !document.hidden && !reading) {
      keep();
      location.reload();
    }
  }, 1000);
}
