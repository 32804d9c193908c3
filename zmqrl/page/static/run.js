// One run: its figures, curves with videos, timing, hosts, logs and settings.

import { ask, hurry, poll } from "./api.js";
import { Charts } from "./charts.js";
import { h, number, refill, setting, short, table } from "./dom.js";
import { address, axisControl, stateOf } from "./runs.js";
import { showTiming } from "./timing.js";

const TABS = { curves: showCurves, timing: showTiming, logs: showLogs, settings: showRunSettings };
const LINES_KEPT = 5000;
const choice = { x: "minutes" };

export function showRun(main, signal, name, tab) {
  const title = name === "." ? "This run" : name;
  const state = h("p"), figures = h("dl", { class: "tiles" }), notices = h("div", { role: "alert" }), missing = h("div");
  const place = h("section", { "aria-label": tab });
  const links = Object.keys(TABS).map((each) => h("li", {}, h("a", { href: address("run", name, { tab: each }), "aria-current": each === tab && "page" }, each)));
  main.append(h("h1", {}, title), state, notices, figures, missing, h("nav", { "aria-label": "parts of the run" }, h("ul", {}, links)), place);
  document.title = `zmqrl: ${title}`;
  const listeners = [];

  function show(run) {
    state.textContent = `${stateOf(run)} · ${run.env} · ${run.algo} · seed ${run.seed}`;
    const told = [run.old, run.stalled, run.failure].filter(Boolean);
    if (notices.textContent !== told.join("")) notices.replaceChildren(...told.map((text) => h("p", { class: "notice" }, text)));
    const row = run.row ?? {};
    const tiles = {
      "score (last 50 games)": number(run.score, 1), "agent steps/s": short(run.agent_steps_per_s), "active workers": `${run.workers_present ?? "–"} of ${run.workers ?? "–"}`,
      "needed for an update (K)": number(run.quorum), "version": number(run.version), "updates/s": short(row.updates_per_s), "minutes": number(run.minutes, 1),
      "agent steps": short(run.agent_steps), "games": number(row.episodes), "policy lag (versions)": short(row.policy_lag),
    };
    figures.replaceChildren(...Object.entries(tiles).map(([label, value]) => h("div", {}, h("dt", {}, label), h("dd", {}, value))));
    const key = JSON.stringify(run.missing);
    if (missing.dataset.key !== key) {
      missing.dataset.key = key;
      refill(missing, ...(run.missing.length ? [table("missing or late processes", ["host", "processes"], run.missing.map((each) => [each.host, each.processes]), { class: "data wrap", texts: ["processes"] })] : []));
    }
    for (const listener of listeners) listener(run);
  }

  (TABS[tab] ?? showCurves)(place, signal, name, (listener) => listeners.push(listener));
  poll(signal, () => ["api/run", { run: name }], show);
}

function showCurves(place, signal, name, onRun) {
  const player = h("div"), buttons = h("ul", { class: "videos" }), heading = h("h2", { id: "videos" }, "Videos");
  const beside = h("div", {}, heading, player, buttons), evaluations = h("div");
  const charts = new Charts((mark) => play(mark.video));
  let videos = [], playing = null;
  signal.addEventListener("abort", () => charts.destroy());
  const controls = axisControl(choice, () => { mark(); hurry(); });
  place.append(controls, beside, charts.element, evaluations);
  beside.hidden = true;

  // The first chart is the score: the videos are beside it.
  function arrange() {
    const score = charts.figures.get("score");
    if (score && !beside.hidden && beside.parentElement !== charts.element) score.plot.closest("figure").after(beside);
  }

  function at(video) {
    return choice.x === "minutes" ? video.minutes : video.agent_steps;
  }

  function mark() {
    charts.mark(videos.filter((video) => at(video) !== null).map((video) => ({ x: at(video), video, chosen: video.name === playing })));
  }

  function label(video) {
    return video.minutes === null ? video.name : `minute ${number(video.minutes, 1)}`;
  }

  function play(video, begin = true) {
    playing = video.name;
    const source = `video?${new URLSearchParams({ run: name, name: video.name })}`;
    const told = `${label(video)}, version ${number(video.version)}`;
    player.replaceChildren(
      video.name.endsWith(".gif") ? h("img", { src: source, alt: `video of a game: ${told}` }) : Object.assign(h("video", { src: source, controls: true, playsinline: true, "aria-label": `video of a game: ${told}` }), { muted: true, autoplay: begin }),
      h("p", {}, told));
    drawButtons();
    mark();
  }

  function drawButtons() {
    const focused = document.activeElement?.dataset?.video;
    buttons.replaceChildren(...videos.map((video) => h("li", {}, h("button", { type: "button", "data-video": video.name, "aria-pressed": String(video.name === playing), onclick: () => play(video) }, `▶ ${label(video)}`))));
    if (focused) [...buttons.querySelectorAll("button")].find((each) => each.dataset.video === focused)?.focus();
  }

  onRun((run) => {
    if (JSON.stringify(run.videos) !== JSON.stringify(videos)) {
      videos = run.videos;
      beside.hidden = !videos.length;
      if (playing === null && videos.length) play(videos.at(-1), false);
      drawButtons();
      mark();
      arrange();
    }
    const shown = run.evaluations.map((each) => [number(each.wall_s / 60, 1), number(each.version), short(each.agent_steps), number(each.mean, 1), each.low === null ? "–" : `${number(each.low, 1)} to ${number(each.high, 1)}`, number(each.episodes), actions(each)]);
    const key = JSON.stringify(shown);
    if (evaluations.dataset.key !== key) {
      evaluations.dataset.key = key;
      refill(evaluations, ...(shown.length ? [h("h2", {}, "Evaluations"), table("mean score of full games, with its 95 % interval", ["minute", "version", "agent steps", "mean", "95 % interval", "games", "actions"], shown, { texts: ["actions"] })] : []));
    }
  });
  poll(signal, () => ["api/charts", { run: [name], x: choice.x }], (found) => { charts.show(found, choice.x); arrange(); mark(); });
}

function actions(evaluation) {
  const kind = evaluation.greedy === null ? "–" : evaluation.greedy ? "greedy" : "sampled";
  return evaluation.for_stop_score ? `${kind}, for --stop-score` : kind;
}

function showLogs(place, signal, name, onRun) {
  const select = h("select", { onchange: () => begin() }), follow = h("input", { type: "checkbox", checked: true, onchange: () => scrollDown() });
  const text = h("div", { class: "log", role: "log", tabindex: "0", "aria-label": "log", "aria-live": "off", onscroll: () => { if (text.scrollTop + text.clientHeight < text.scrollHeight - 5) follow.checked = false; } });
  place.append(h("div", { class: "controls" }, h("label", {}, "process ", select), h("label", {}, follow, " follow")), text);
  let after = null, rest = null;

  function begin() {
    after = rest = null;
    text.replaceChildren();
    hurry();
  }

  function scrollDown() {
    if (follow.checked) text.scrollTop = text.scrollHeight;
  }

  onRun((run) => {
    const names = Object.keys(run.logs), key = JSON.stringify(run.logs);
    if (select.dataset.key === key) return;
    select.dataset.key = key;
    const before = select.value;
    const chosen = names.includes(before) ? before : names.includes("supervisor") ? "supervisor" : names[0];
    select.replaceChildren(...names.map((each) => h("option", { value: each, selected: each === chosen }, run.logs[each] ? `${each} on ${run.logs[each]}` : each)));
    if (select.value === before) hurry(); else begin(); // the log of another process
  });
  poll(signal, () => select.value ? ["api/log", { run: name, process: select.value, ...(after === null ? {} : { after }) }] : null, (found) => {
    if (found.process !== select.value) return; // the answer to a question about the process chosen before
    if (after !== null && found.from !== after) text.replaceChildren(); // the file is another one, or much longer
    after = found.to;
    rest?.remove();
    text.append(...found.lines.map((line) => h("div", {}, line || "\u00a0")));
    rest = found.rest ? h("div", {}, found.rest) : null; // a line that is still being written, or has no end
    if (rest) text.append(rest);
    while (text.childElementCount > LINES_KEPT) text.firstElementChild.remove();
    if (rest || found.lines.length) scrollDown();
  });
}

async function showRunSettings(place, signal, name) {
  const other = h("select", { onchange: () => { if (other.value) location.hash = address("settings", [name, other.value]); } });
  const list = h("div");
  place.append(h("p", {}, h("label", {}, "compare with ", other)), list);
  poll(signal, () => ["api/settings", { run: [name] }], (found) => {
    refill(list, table("settings of this run", ["setting", "value"], Object.entries(found.settings).map(([key, [value]]) => [key, setting(value)]), { class: "data wrap", texts: ["value"] }));
  });
  try {
    const { found } = await ask("api/runs");
    other.append(h("option", { value: "" }, "choose a run"), ...found.runs.filter((run) => run.name !== name).map((run) => h("option", { value: run.name }, run.name)));
  } catch { /* the status line already shows the problem */ }
}
