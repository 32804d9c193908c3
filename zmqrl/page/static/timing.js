// Where the time of the newest versions went: rank × span, which rank was K-th, blame, and the hosts.

import { poll } from "./api.js";
import { caption, counted, h, number, refill, scroll, short, table } from "./dom.js";

const milliseconds = (seconds) => number(1e3 * seconds, seconds < 0.1 ? 2 : 0);
const percent = (share) => `${number(100 * share, 1)} %`;

export function showTiming(main, signal, name, onRun) {
  const place = h("div", {}, h("p", { class: "soft" }, "loading")), placement = h("div");
  main.append(place, placement);
  onRun(({ hosts }) => {
    const key = JSON.stringify(hosts);
    if (placement.dataset.key === key) return;
    placement.dataset.key = key;
    const rows = hosts.map((each) => [each.host, each.processes || "none", each.cores, each.zmqrl, each.python, each.torch].map((cell) => cell ?? "–"));
    refill(placement, ...(rows.length ? [table("processes and versions of each host", ["host", "processes", "cores", "zmqrl", "Python", "torch"], rows, { texts: ["processes"] })] : []));
  });
  poll(signal, () => ["api/timing", { run: name }], (found) => {
    const before = place.querySelector(".newest"), isAtEnd = !before || before.scrollLeft + before.clientWidth > before.scrollWidth - 5;
    refill(place, ...parts(found));
    const newest = place.querySelector(".newest");
    if (newest && isAtEnd) newest.scrollLeft = newest.scrollWidth;
  });
}

function parts(found) {
  const ranks = Object.keys(found.spans);
  if (!ranks.length) return [h("p", {}, "The run has recorded no times yet. A process writes its times every 5 s, and ZMQRL_PROFILE=off turns this off.")];
  const shown = [];
  if (found.update_ms.p50 !== undefined && found.versions_covered) {
    shown.push(h("p", {}, `The last ${counted(found.versions_covered, "version")}, ${short(found.update_ms.p50)} ms each (median).`));
  }
  shown.push(...found.warnings.map((text) => h("p", { class: "notice" }, text)), heatMap(found, ranks));
  if (found.versions.length) shown.push(strip(found, ranks));
  if (found.blame.length) {
    shown.push(table("what updates waited for beyond the usual time", ["cause", "process", "host", "seconds", "share"],
      found.blame.map((each) => [each.cause.replaceAll("_", " "), each.rank === null ? `shard ${each.shard}` : `rank ${each.rank}`, each.host, short(each.seconds), percent(each.share)]), { texts: ["process", "host"] }));
  }
  shown.push(hosts(found.hosts));
  return shown;
}

// A cell is darker the more its time exceeds the median of its span.
function heatMap(found, ranks) {
  const spans = [...new Set(ranks.flatMap((rank) => Object.keys(found.spans[rank])))];
  const newest = found.versions.at(-1)?.kth;
  const median = (span) => { // the lower one of two: otherwise, half of the ranks could not stand out
    const all = ranks.map((rank) => found.spans[rank][span] ?? 0).sort((one, other) => one - other);
    return all[(all.length - 1) >> 1];
  };
  const medians = Object.fromEntries(spans.map((span) => [span, median(span)]));
  const usual = Object.values(medians).reduce((sum, each) => sum + each, 0) || 1;
  const rows = ranks.map((rank) => h("tr", {}, h("th", { scope: "row" }, `rank ${rank}${Number(rank) === newest ? " ◆" : ""}`),
    spans.map((span) => {
      const seconds = found.spans[rank][span] ?? 0;
      // The wait for weights is the time that others took. It is not a cause.
      const excess = span === "wait" ? 0 : Math.min(0.6, Math.max(0, (2 * (seconds - medians[span])) / usual));
      return h("td", { style: { background: `rgba(${heat()}, ${0.55 * excess})` } }, milliseconds(seconds));
    }),
    h("td", {}, found.kth[rank] === undefined ? "–" : percent(found.kth[rank])), h("td", {}, found.inclusion[rank] === undefined ? "–" : percent(found.inclusion[rank]))));
  const head = h("tr", {}, ["", ...spans.map((span) => span.replaceAll("_", " ")), "was K-th", "counted"].map((text) => h(text ? "th" : "td", text ? { scope: "col" } : {}, text)));
  const title = "milliseconds of each rank per contribution, by span; ◆ was the K-th worker of the newest version";
  return scroll(title, h("table", { class: "heat" }, caption(title), h("thead", {}, head), h("tbody", {}, rows)));
}

function strip(found, ranks) {
  const all = ranks.flatMap((rank) => found.work[rank]).filter((seconds) => seconds !== null);
  const most = Math.max(...all, 1e-9);
  const rows = ranks.map((rank) => h("tr", {}, h("th", { scope: "row" }, `rank ${rank}`), found.work[rank].map((seconds, i) => {
    const isKth = String(found.versions[i].kth) === rank;
    const told = `version ${found.versions[i].version}: ${seconds === null ? "no contribution" : `${milliseconds(seconds)} ms`}${isKth ? ", K-th" : ""}`;
    return h("td", { title: told, style: { background: seconds === null ? "transparent" : `rgba(${heat()}, ${0.06 + 0.5 * (seconds / most)})` } }, h("span", { class: "hidden" }, told), isKth ? "◆" : "");
  })));
  const [first, last] = [found.versions[0].version, found.versions.at(-1).version];
  const title = `work of each rank in versions ${number(first)} to ${number(last)}; ◆ is the K-th worker of a version`;
  return scroll(title, h("table", { class: "strip" }, caption(title), h("tbody", {}, rows)), "newest");
}

function hosts(found) {
  const rows = Object.entries(found).flatMap(([host, { cores, memory_kb, processes }]) => {
    const used = Object.values(processes).map((each) => each.cores ?? 0).reduce((sum, each) => sum + each, 0);
    const memory = Object.values(processes).map((each) => each.memory_kb ?? 0).reduce((sum, each) => sum + each, 0);
    const whole = { class: "differs", cells: [host, counted(Object.keys(processes).length, "process", "processes"), `${number(used, 2)} of ${counted(cores, "core")}`, memory ? `${mebibytes(memory)} of ${mebibytes(memory_kb)}` : "–"] };
    return [whole, ...Object.entries(processes).map(([process, use]) => ["", process, use.cores === null ? "–" : `${number(use.cores, 2)} cores`, mebibytes(use.memory_kb)])];
  });
  return table("hosts", ["host", "process", "CPU", "memory"], rows, { texts: ["process"] });
}

function mebibytes(kibibytes) {
  return kibibytes === null || kibibytes === undefined ? "–" : `${number(kibibytes / 1024)} MiB`;
}

function heat() {
  return getComputedStyle(document.documentElement).getPropertyValue("--heat");
}
