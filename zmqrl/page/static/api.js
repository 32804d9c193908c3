// Asks the server, and repeats a request while its view is shown.

const EVERY_MS = 1000;
const LATE_MS = 5000; // without an answer for this long, what is shown may be old
const DEADLINE_MS = 60000; // a connection that was cut may never answer
const status = document.getElementById("status");
const troubles = new Map(); // by `what` of a poll: why its newest request has no good answer

export async function ask(path, parameters = {}, signal = null) {
  const query = new URLSearchParams();
  for (const [name, value] of Object.entries(parameters))
    for (const each of [value].flat()) query.append(name, each);
  const answer = await fetch(`${path}?${query}`, { signal });
  if (!answer.ok) throw Object.assign(new Error((await answer.text()).trim() || answer.statusText), { answered: true });
  return { tag: answer.headers.get("etag"), found: await answer.json() };
}

// Calls `show` with each new answer until `signal` is aborted. `what()` gives the path and parameters, or null for none.
export async function poll(signal, what, show) {
  let known = null;
  signal.addEventListener("abort", () => troubles.delete(what));
  while (!signal.aborted) {
    const began = performance.now(), attempt = new AbortController(), end = () => attempt.abort();
    let isAnswered = true;
    const isHidden = document.hidden && known !== null, asked = isHidden ? null : what();
    if (asked) {
      signal.addEventListener("abort", end);
      const late = setTimeout(() => say(what, "no answer yet: the figures may be old"), LATE_MS), deadline = setTimeout(end, DEADLINE_MS);
      try {
        const [path, parameters] = asked;
        const { tag, found } = await ask(path, parameters, attempt.signal);
        if (signal.aborted) return;
        if (JSON.stringify(what()) !== JSON.stringify(asked)) continue; // the user has chosen something else meanwhile
        const key = JSON.stringify(asked) + tag;
        if (key !== known) display(show, found);
        known = key;
        say(what, "");
      } catch (error) {
        if (signal.aborted) return;
        isAnswered = Boolean(error.answered);
        say(what, isAnswered ? error.message : "no answer: the page's server may have ended");
      } finally {
        clearTimeout(late);
        clearTimeout(deadline);
        signal.removeEventListener("abort", end);
      }
    } else if (!isHidden) troubles.delete(what);
    const took = performance.now() - began;
    // Ask less often if answers are slow.
    await pause(signal, Math.max(EVERY_MS, isAnswered ? 3 * took : Math.min(took, LATE_MS)));
  }
}

function display(show, found) {
  try {
    show(found);
  } catch (error) {
    throw Object.assign(error, { answered: true });
  }
}

// One request must not hide the trouble of another.
function say(what, text) {
  if (text) troubles.set(what, text); else troubles.delete(what);
  const shown = [...new Set(troubles.values())].join("; ") || "live";
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
