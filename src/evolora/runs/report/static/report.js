"use strict";
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = head.textContent;
    head.replaceChildren(button);
    button.addEventListener("click", () => {
      const up = head.getAttribute("aria-sort") !== "ascending";
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
    });
  });
}

const data = document.getElementById("film-data");
if (data) {
  const film = JSON.parse(data.textContent);
  const [box, prompt, full, time, who, reward, text] =
    ["box", "prompt", "full", "time", "who", "reward", "text"].map(name => document.getElementById(`film-${name}`));
  film.forEach((each, index) => prompt.add(new Option(each.prompt.slice(-60), index)));
  const show = () => {
    const frame = film[prompt.value].frames[time.value];
    who.textContent = frame.who;
    reward.textContent = frame.reward;
    text.textContent = frame.text || "(empty)";
    time.setAttribute("aria-valuetext", frame.who);
  };
  const choose = () => {
    full.textContent = film[prompt.value].prompt;
    time.max = film[prompt.value].frames.length - 1;
    time.value = time.max;
    show();
  };
  time.addEventListener("input", show);
  prompt.addEventListener("change", choose);
  box.hidden = false;
  choose();
}

// What is folded is printed too.
addEventListener("beforeprint", () => document.querySelectorAll("details").forEach(each => { each.open = true; }));
