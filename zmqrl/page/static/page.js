// Shows the view that the address names: #/ all runs, #/run?run=NAME&tab=TAB one run, #/settings?run=A&run=B.

import { hurry } from "./api.js";
import { showRun } from "./run.js";
import { showRuns } from "./runs.js";
import { showSettings } from "./settings.js";

const main = document.getElementById("main");
let shown = null;

function show() {
  const [path, query = ""] = (location.hash.slice(1) || "/").split("?");
  shown?.abort();
  shown = new AbortController();
  main.replaceChildren();
  const parameters = new URLSearchParams(query);
  if (path === "/run") showRun(main, shown.signal, parameters.get("run") ?? ".", parameters.get("tab") ?? "curves");
  else if (path === "/settings") showSettings(main, shown.signal, parameters.getAll("run"));
  else showRuns(main, shown.signal);
}

document.querySelector(".skip").addEventListener("click", (event) => { event.preventDefault(); main.focus(); }); // the address names the view
addEventListener("hashchange", () => { show(); main.focus(); });
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { show(); hurry(); });
show();
