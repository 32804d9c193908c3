// All runs: a table to choose from, and the curves of the chosen runs.

import { hurry, poll } from "./api.js";
import { Charts } from "./charts.js";
import { counted, h, number, scroll, short } from "./dom.js";

const CHOSEN_AT_FIRST = 12;
const COLUMNS = ["draw", "run", "state", "score", "agent steps/s", "minutes", "agent steps", "version", "workers", "environment", "seed"];
const TEXTS = ["run", "state", "environment"];
const choice = { names: null, x: "minutes", fold: true, filter: "" }; // kept while other views are shown

export function address(view, names, more = {}) {
  const query = new URLSearchParams(more);
  for (const name of [names].flat()) query.append("run", name);
  return `#/${view}?${query}`;
}

export function stateOf(run) {
  return run.exit_reason ? `${run.state}: ${run.exit_reason.replace("_", " ")}` : run.state;
}

export function axisControl(state, changed) {
  const option = (value, label) => h("label", {}, h("input", { type: "radio", name: "x", value, checked: state.x === value, onchange: () => { state.x = value; changed(); } }), ` ${label}`);
  return h("fieldset", { class: "controls" }, h("legend", {}, "over"), option("minutes", "minutes"), option("agent_steps", "agent steps"));
}

export function showRuns(main, signal) {
  const charts = new Charts(), rows = new Map();
  signal.addEventListener("abort", () => charts.destroy());
  const body = h("tbody"), count = h("span", { class: "soft" });
  const compare = h("a", { href: "#/" }, "compare settings");
  const filter = h("input", { type: "search", value: choice.filter, oninput: () => { choice.filter = filter.value; filterRows(); } });
  const fold = h("input", { type: "checkbox", checked: choice.fold, onchange: () => { choice.fold = fold.checked; hurry(); } });
  const nothing = h("p", { class: "soft" }, "loading");
  charts.element.hidden = true;
  main.append(
    h("h1", {}, "Runs"),
    h("div", { class: "controls" }, axisControl(choice, hurry), h("label", {}, fold, " fold seeds into mean and spread"), compare),
    nothing, charts.element,
    h("div", { class: "controls" },
      h("label", {}, "filter ", filter),
      h("button", { type: "button", onclick: () => choose(true) }, "draw all shown"),
      h("button", { type: "button", onclick: () => choose(false) }, "draw none"), count),
    scroll("runs", h("table", { class: "data" }, h("caption", { class: "hidden" }, "all runs"),
      h("thead", {}, h("tr", {}, COLUMNS.map((name) => h("th", { scope: "col", class: TEXTS.includes(name) && "text" }, name)))), body), "runs"),
  );

  function matches(run) {
    const text = `${run.name} ${run.env} ${run.recipe} ${run.state} ${run.exit_reason ?? ""}`.toLowerCase();
    return choice.filter.toLowerCase().split(/\s+/).every((word) => text.includes(word));
  }

  function filterRows() {
    for (const { run, element } of rows.values()) element.hidden = !matches(run);
  }

  function choose(is) {
    for (const { run, box, element } of rows.values()) if (!is || !element.hidden) { box.checked = is; note(run.name, is); }
    chosenChanged();
  }

  function note(name, is) {
    if (is) choice.names.add(name); else choice.names.delete(name);
  }

  function chosenChanged() {
    const names = [...(choice.names ?? [])].filter((name) => rows.has(name));
    compare.hidden = names.length < 2;
    compare.href = address("settings", names);
    compare.textContent = names.length === 2 ? "compare the settings of these two runs" : `compare the settings of ${names.length} runs`;
    nothing.hidden = names.length > 0;
    charts.element.hidden = !names.length;
    hurry();
  }

  function row(run) {
    const box = h("input", { type: "checkbox", "aria-label": `draw ${run.name}`, onchange: () => { note(run.name, box.checked); chosenChanged(); } });
    const cells = COLUMNS.slice(2).map((name) => h("td", { class: TEXTS.includes(name) && "text" }));
    const element = h("tr", {}, h("td", {}, box), h("th", { scope: "row", class: "text" }, h("a", { href: address("run", run.name) }, run.name)), cells);
    return { run, box, cells, element };
  }

  function show({ root, runs }) {
    document.getElementById("root").textContent = root;
    document.title = "zmqrl: runs";
    nothing.textContent = "no run is chosen";
    runs.sort((one, other) => other.begun_at - one.begun_at || (one.name < other.name ? -1 : 1));
    if (runs.length) choice.names ??= new Set(runs.slice(0, CHOSEN_AT_FIRST).map((run) => run.name));
    const names = new Set(runs.map((run) => run.name));
    let changed = false;
    for (const [name, { element }] of rows) if (!names.has(name)) { element.remove(); rows.delete(name); changed = true; }
    runs.forEach((run, index) => {
      if (!rows.has(run.name)) { rows.set(run.name, row(run)); changed = true; }
      const each = rows.get(run.name);
      each.run = run;
      each.box.checked = choice.names.has(run.name);
      const texts = [stateOf(run), number(run.score, 1), short(run.agent_steps_per_s), number(run.minutes, 1), short(run.agent_steps), number(run.version),
        run.workers === null ? "–" : `${run.workers_present ?? "–"}/${run.workers}`, `${run.env}`, `${run.seed}`];
      each.cells.forEach((cell, i) => { if (cell.textContent !== texts[i]) cell.textContent = texts[i]; });
      if (body.children[index] !== each.element) body.insertBefore(each.element, body.children[index] ?? null);
    });
    const running = runs.filter((run) => run.state === "running").length;
    count.textContent = `${counted(runs.length, "run")}, ${running} running`;
    filterRows();
    if (changed) chosenChanged();
  }

  poll(signal, () => ["api/runs"], show);
  poll(signal, () => {
    const names = [...(choice.names ?? [])].filter((name) => rows.has(name));
    return names.length ? ["api/charts", { run: names, x: choice.x, fold: choice.fold ? "yes" : "no" }] : null;
  }, (found) => charts.show(found, choice.x));
}
