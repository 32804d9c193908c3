// Charts of several runs on one axis: mean as a line, spread as a band, evaluations as points with their intervals.

import uPlot from "./uplot/uPlot.esm.js";
import { colour, h, short } from "./dom.js";

const HEIGHT = 240;
const observer = new ResizeObserver((entries) => {
  for (const { target, contentRect } of entries)
    if (target.plot && Math.abs(target.plot.width - contentRect.width) > 1) target.plot.setSize({ width: contentRect.width, height: HEIGHT });
});

export class Charts {
  constructor(onMark = () => {}) {
    this.loading = h("p", { class: "soft" }, "loading");
    this.element = h("div", { class: "charts" }, this.loading);
    this.onMark = onMark;
    this.figures = new Map();
    this.marks = [];
  }

  // `found` is the answer to api/charts.
  show(found, axis) {
    this.loading.remove();
    this.found = found;
    this.axis = axis;
    for (const chart of found.charts) {
      let figure = this.figures.get(chart.name);
      if (!figure) {
        figure = { caption: h("figcaption"), plot: h("div", { class: "plot" }) };
        this.element.append(h("figure", { class: "chart", id: `chart-${chart.name}` }, figure.caption, figure.plot));
        this.figures.set(chart.name, figure);
        observer.observe(figure.plot);
      }
      figure.caption.textContent = chart.title;
      this.draw(figure, chart);
    }
  }

  // Marks of videos: [{x, video, chosen}].
  mark(marks) {
    const changed = JSON.stringify(marks) !== JSON.stringify(this.marks);
    this.marks = marks;
    const plot = this.figures.get("score")?.plot.plot;
    if (changed && plot?.status) plot.redraw(false, false); // a new plot draws itself, with its marks
  }

  draw(figure, chart) {
    const { x, groups } = this.found;
    figure.lines = chart.lines;
    figure.at = []; // the series of each line
    const data = [x], series = [{ label: this.axis === "minutes" ? "minutes" : "agent steps", value: (_, v) => short(v) }], bands = [];
    chart.lines.forEach((line, index) => {
      const stroke = colour(index), dash = index >= 8 ? [6, 3] : undefined;
      data.push(line.mean);
      figure.at.push(series.length);
      series.push({ label: line.label, stroke, dash, width: 2, spanGaps: false, points: { show: line.mean.filter((v) => v !== null).length < 2 }, value: (_, v, __, i) => short(v) + seedsAt(figure.lines[index], i) });
      const hidden = { label: "", stroke: "transparent", width: 0, points: { show: false }, band: series.length - 1 };
      if (line.low) {
        data.push(line.high, line.low);
        series.push({ ...hidden }, { ...hidden });
        bands.push({ series: [series.length - 2, series.length - 1], fill: `${stroke}2e` });
      }
    });
    const evaluations = chart.name === "score" ? groups.flatMap((group, index) => group.evaluations.map((each) => ({ ...each, index }))) : [];
    figure.evaluations = evaluations;
    const key = JSON.stringify([series.map((each) => [each.label, each.stroke, each.width, each.points?.show]), bands.length, this.axis]);
    if (figure.plot.plot && figure.key === key) update(figure.plot.plot, data);
    else {
      figure.plot.plot?.destroy();
      figure.key = key;
      const plot = new uPlot(this.options(figure, chart, series, bands), data, figure.plot);
      figure.plot.plot = plot;
      // The bands need no entry in the legend.
      series.forEach((each, i) => { if (each.band) plot.root.querySelectorAll(".u-legend .u-series")[i].hidden = true; });
      for (const each of plot.root.querySelectorAll(".u-legend th")) each.setAttribute("scope", "row");
      plot.root.querySelector(".u-wrap").setAttribute("role", "img");
    }
    figure.plot.querySelectorAll(".u-series:not([hidden]) .u-label").forEach((label, i) => { if (i) label.textContent = named(chart.lines[i - 1]); });
    figure.plot.querySelector(".u-wrap").setAttribute("aria-label", told(chart));
  }

  options(figure, chart, series, bands) {
    const style = getComputedStyle(document.documentElement);
    const axis = { stroke: style.getPropertyValue("--front"), grid: { stroke: style.getPropertyValue("--grid"), width: 1 }, ticks: { show: false } };
    const fromZero = chart.name !== "score";
    const evaluations = (plot) => figure.evaluations.filter((each) => plot.series[figure.at[each.index]].show);
    return {
      width: figure.plot.clientWidth || 300,
      height: HEIGHT,
      series,
      bands,
      cursor: { drag: { x: true, y: false }, points: { size: 6 } },
      scales: {
        x: { time: false },
        y: {
          range: (plot, low, high) => {
            const all = [low, high, ...evaluations(plot).flatMap((each) => [each.low, each.mean, each.high])].filter((v) => v !== null && v !== undefined);
            if (!all.length) return [0, 1];
            const [least, most] = [Math.min(...all, fromZero ? 0 : Infinity), Math.max(...all)];
            return least === most ? [least - (fromZero ? 0 : 1), most + 1] : uPlot.rangeNum(least, most, 0.08, true);
          },
        },
      },
      axes: [{ ...axis, size: 30, values: (_, all) => all.map(short) }, { ...axis, size: 56, values: (_, all) => all.map(short) }],
      hooks: {
        draw: [(plot) => { drawEvaluations(plot, evaluations(plot)); if (chart.name === "score") this.drawMarks(plot); }],
        // A band is hidden and shown with its line.
        setSeries: [(plot, _, { show }) => plot.series.forEach((each, i) => {
          const line = plot.series[each.band];
          if (show !== undefined && line && each.show !== line.show) plot.setSeries(i, { show: line.show });
        })],
        ready: [(plot) => plot.over.addEventListener("click", (event) => {
          if (chart.name !== "score" || !this.marks.length) return;
          const at = (each) => Math.abs(plot.valToPos(each.x, "x") - event.offsetX);
          const nearest = this.marks.reduce((best, each) => (at(each) < at(best) ? each : best));
          if (at(nearest) < 12) this.onMark(nearest);
        })],
      },
    };
  }

  drawMarks(plot) {
    const { ctx, bbox } = plot;
    ctx.save();
    ctx.fillStyle = ctx.strokeStyle = getComputedStyle(document.documentElement).getPropertyValue("--front");
    ctx.font = `${12 * devicePixelRatio}px system-ui`;
    for (const each of this.marks.filter(within(plot))) {
      const x = plot.valToPos(each.x, "x", true);
      ctx.lineWidth = (each.chosen ? 2 : 1) * devicePixelRatio;
      ctx.setLineDash(each.chosen ? [] : [4, 4]);
      ctx.beginPath();
      ctx.moveTo(x, bbox.top);
      ctx.lineTo(x, bbox.top + bbox.height);
      ctx.stroke();
      ctx.fillText("▶", x + 2 * devicePixelRatio, bbox.top + 12 * devicePixelRatio);
    }
    ctx.restore();
  }

  destroy() {
    for (const { plot } of this.figures.values()) {
      observer.unobserve(plot);
      plot.plot?.destroy();
    }
  }
}

// New data, in the part of the axis that the user has zoomed into.
function update(plot, data) {
  const [before, { min, max }] = [plot.data[0], plot.scales.x];
  const zoomed = before.length > 1 && (min > before[0] || max < before.at(-1));
  plot.setData(data, !zoomed);
  if (zoomed) plot.redraw();
}

// Whether something is in the part of the axis that is shown.
function within({ scales: { x } }) {
  return (each) => each.x >= x.min && each.x <= x.max;
}

function drawEvaluations(plot, evaluations) {
  const { ctx } = plot, scale = devicePixelRatio;
  ctx.save();
  for (const each of evaluations.filter(within(plot))) {
    const x = plot.valToPos(each.x, "x", true), y = (value) => plot.valToPos(value, "y", true);
    ctx.strokeStyle = ctx.fillStyle = colour(each.index);
    if (each.low !== null) {
      ctx.lineWidth = scale;
      ctx.beginPath();
      ctx.moveTo(x, y(each.low));
      ctx.lineTo(x, y(each.high));
      ctx.stroke();
    }
    ctx.beginPath();
    ctx.arc(x, y(each.mean), 4 * scale, 0, 2 * Math.PI);
    ctx.fill();
  }
  ctx.restore();
}

function named(line) {
  return line.note ? `${line.label} (${line.note})` : line.label;
}

// The number of seeds in the mean at a point, if these are not all.
function seedsAt(line, i) {
  const seeds = line.seeds?.[i];
  return seeds && seeds < line.runs ? ` (${seeds} of ${line.runs} seeds)` : "";
}

// The chart in words, for those who cannot see it.
function told(chart) {
  const lines = chart.lines.slice(0, 12).map((line) => {
    const known = line.mean.filter((value) => value !== null);
    return known.length ? `${named(line)}: now ${short(known.at(-1))}, lowest ${short(Math.min(...known))}, highest ${short(Math.max(...known))}` : `${line.label}: nothing yet`;
  });
  return `${chart.title}. ${lines.join(". ")}`;
}
