// Asks the server, and repeats a request while its view is shown.

const EVERY_MS = 1000;
const status = document.getElementById("status");

export async function ask(path, parameters = {}) {
  const query = new URLSearchParams();
  for (const [name, value] of Object.entries(parameters))
    for (const each of [value].flat()) query.append(name, each);
  const answer = await fetch(`${path}?${query}`);
  if (!answer.ok) throw Object.assign(new Error((await answer.text()).trim() || answer.statusText), { answered: true });
  return { tag: answer.headers.get("etag"), found: await answer.json() };
}

// Calls `show` with each new answer until `signal` is aborted. `what()` gives the path and parameters, or null for none.
export async function poll(signal, what, show) {
  let known = null;
  while (!signal.aborted) {
    const began = performance.now();
    try {
      const asked = document.hidden && known !== null ? null : what();
      if (asked) {
        const { tag, found } = await ask(...asked);
        if (signal.aborted) return;
        const key = JSON.stringify(asked) + tag;
        if (key !== known) show(found);
        known = key;
        say("");
      }
    } catch (error) {
      if (signal.aborted) return;
      say(error.answered ? error.message : "no answer: the page's server may have ended");
    }
    // Ask less often if answers are slow.
    await pause(signal, Math.max(EVERY_MS, 3 * (performance.now() - began)));
  }
}

function say(text) {
  const shown = text || "live";
  if (status.textContent !== shown) status.textContent = shown;
}

function pause(signal, ms) {
  return new Promise((resolve) => {
    const timer = setTimeout(done, ms);
    function done() { clearTimeout(timer); signal.removeEventListener("abort", done); again.delete(done); resolve(); }
    signal.addEventListener("abort", done);
    again.add(done);
  });
}

const again = new Set();

// Ask at once: the user has chosen something else.
export function hurry() {
  for (const each of [...again]) each();
}
document.addEventListener("visibilitychange", () => { if (!document.hidden) hurry(); });
