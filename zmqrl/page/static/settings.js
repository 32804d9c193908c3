// The settings of runs side by side.

import { poll } from "./api.js";
import { h, refill, setting, table } from "./dom.js";

export function showSettings(main, signal, names) {
  const place = h("div"), only = h("input", { type: "checkbox", checked: true, onchange: () => draw() });
  let known = null;
  document.title = "zmqrl: settings";
  main.append(h("h1", {}, "Settings side by side"), h("p", {}, h("label", {}, only, " only settings that differ")), place);

  function draw() {
    if (!known) return;
    const differ = new Set(known.differ);
    const rows = Object.entries(known.settings).filter(([name]) => !only.checked || differ.has(name))
      .map(([name, values]) => ({ class: !only.checked && differ.has(name) && "differs", cells: [name, ...values.map(setting)] }));
    refill(place, rows.length ? table("settings", ["setting", ...known.runs], rows, { class: "data wrap", texts: known.runs })
      : h("p", {}, "All settings are equal."));
  }

  poll(signal, () => ["api/settings", { run: names }], (found) => { known = found; draw(); });
}
