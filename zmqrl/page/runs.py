"""The runs below a directory. Each file is read again only after a change."""

import contextlib
import os
import re
import stat
import time
from collections.abc import Callable, Container, Hashable, Iterable, Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Final, TypeVar

import numpy as np

from zmqrl.errors import UsageError
from zmqrl.hostd.inspection import is_here, state_of
from zmqrl.json_lines import open_file, sample_lines
from zmqrl.observe.folding import by_number, ranges
from zmqrl.observe.forms import EVALUATION, HOSTS, SETTINGS, SUMMARY, parsed_rows, read_object, readable_lines
from zmqrl.observe.live.figures import Live, age_words, newest_figures, read_live, state_of_run
from zmqrl.observe.live.presence import Presence, by_host
from zmqrl.observe.provenance import VERSIONS
from zmqrl.observe.records import Evaluation, RunRecord, evaluations, flat, last_row, lineage, with_saved
from zmqrl.observe.stalls import Stall
from zmqrl.page.charts import COLUMNS
from zmqrl.rundir import LOCK, RunDirectory, is_locked
from zmqrl.words import escaped

DEEPEST = 4  # levels of directories below the root
LOOK_EVERY_S = 0.5
LOOK_SHARE = 10  # after a slow search of directories, wait this many times as long as the search took
STARTING_S = 300.0
POINTS = 300  # rows of metrics.jsonl in a curve
KEPT: Final = (
    *("version", "wall_s", "agent_steps", "episodes", "gradients", "updates_per_s", "contributions"),
    *(column for _, column in COLUMNS.values()),
)
VIDEOS: Final = {".mp4": "video/mp4", ".gif": "image/gif"}
VIDEO_VERSION = re.compile(r"(?:.*-)?v(\d+)", re.ASCII)
STAMP = r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\S* "  # begins each notice of a supervisor, perhaps with an offset from UTC
SESSION = re.compile(STAMP + "run directory ", re.MULTILINE)
FAILED = re.compile(STAMP + "failed: ", re.MULTILINE)
AFTER_FAILURE = re.compile(f"{STAMP}|^zmqrl: ", re.MULTILINE)  # a detached run also prints its failure to the log

T = TypeVar("T")
Stamp = tuple[int, ...]
"""Changes whenever a file changes: inode, size and time of change. Empty if the file does not exist."""


def stamp(path: Path) -> Stamp:
    try:
        found = path.stat()
    except OSError:
        return ()
    return found.st_ino, found.st_size, found.st_mtime_ns


def text_of(name: str) -> str:
    r"""The name of a file as text for JSON and addresses: ``\xff`` is a byte that is not UTF-8, ``\\`` is a backslash.

    So different names have different texts.
    """
    return escaped(name.replace("\\", r"\\"))


class UnknownRun(KeyError):
    """No run has this name now."""


class Runs:
    """The runs at and below ``root``, by name. The name of a run is its path relative to ``root``, as text.

    Only runs that a search has found have names, so that no name leads out of ``root``. Any thread may call any method.
    """

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()
        self._found: dict[str, RunDirectory] = {}
        self._look_at = 0.0
        self._kept: dict[tuple[str, Hashable], tuple[Hashable, Any]] = {}

    def found(self) -> dict[str, RunDirectory]:
        began = time.monotonic()
        if began >= self._look_at:
            found = {name: RunDirectory(path) for name, path in self._search()}
            self._found = found
            self._forget(found)
            now = time.monotonic()
            self._look_at = now + max(LOOK_EVERY_S, LOOK_SHARE * (now - began))
        return self._found

    def _forget(self, found: Container[object]) -> None:
        """Drop what is kept about runs and configurations that are gone."""
        for kind, key in list(self._kept):
            if not (stamp(key) if isinstance(key, Path) else key in found):
                self._kept.pop((kind, key), None)

    def find(self, name: str) -> RunDirectory:
        """The run of this name. Raises UnknownRun if the newest search has not found it."""
        run = self.found().get(name)
        if run is None:
            raise UnknownRun(name)
        return run

    def kept(self, kind: str, key: Hashable, changed: Hashable, make: Callable[[], T]) -> T:
        """The result of ``make``, which is called again only if ``changed`` differs from the last call."""
        known = self._kept.get((kind, key))
        if known is None or known[0] != changed:
            known = self._kept[kind, key] = changed, make()
        made: T = known[1]
        return made

    def stamp(self, name: str) -> Hashable:
        """A value that changes whenever the settings, metrics, evaluations or summary of a run change."""
        run = self.find(name)
        return tuple(map(stamp, (run.config, run.metrics, run.evaluation, run.evaluations, run.summary)))

    def state(self, name: str) -> str:
        """``running``, ``stopped``, ``ended``, ``killed``, ``starting`` or ``submitted``, as ``zmqrl status`` says.

        Only an estimate tells a run that starts from one that was killed before its session was up.
        """
        run = self.find(name)
        if run.cluster.exists() or run.summary.exists() or run.left.exists():
            # Test a dead run only once: the test takes the lock, and could stop a session that resumes. A session
            # writes to these files when it begins.
            written = run.cluster, run.config, run.log("supervisor"), run.path / LOCK
            begun = tuple(map(stamp, written))
            dead = self._kept.get(("dead", name)) == (begun, None)
            supervisor = _supervisor(_object(run.cluster, SETTINGS) or {})
            if not dead and is_locked(run.path / LOCK):
                return state_of_run(None if supervisor is None else state_of(*supervisor)) if begun[0] else "starting"
            if tuple(map(stamp, written)) == begun:
                self._kept["dead", name] = begun, None
                if begun[0] and not _is_plain(run.summary):
                    # The lock of a supervisor on another machine may not be visible here.
                    is_alive = supervisor and not is_here(supervisor[0], supervisor[2]) and self._live(name).is_new
                    return "running" if is_alive else "killed"
        if run.awaits_job():
            return "submitted"
        if run.summary.exists():
            return "ended"
        if run.submitted.exists():
            return "killed"
        newest = max((each[2] for each in (stamp(run.config), stamp(run.metrics)) if each), default=0)
        is_new = abs(time.time() - newest / 1e9) < STARTING_S  # a clock that was set back must not make it new
        return "starting" if is_new and not run.left.exists() else "killed"

    def record(self, name: str) -> RunRecord:
        """The settings, about ``POINTS`` rows, the evaluations and the summary of a run.

        Leaves out damaged lines, and metrics that the page does not show.
        """
        run = self.find(name)

        def read() -> RunRecord:
            # Without the other metrics, a hundred runs take little time and memory.
            rows = lineage(parsed_rows(sample_lines(run.metrics, POINTS), KEPT))
            return RunRecord(
                path=run.path,
                settings=self._settings(name),
                rows=rows,
                evaluations=self._evaluations(run, rows),
                summary=_object(run.summary, SUMMARY),
            )

        return self.kept("record", name, self.stamp(name), read)

    def overviews(self) -> Iterator[dict[str, Any]]:
        """One line about each run. Skips unreadable runs, which the user may be deleting."""
        for name in self.found():
            with contextlib.suppress(UnknownRun, OSError):
                yield self.overview(name)

    def overview(self, name: str) -> dict[str, Any]:
        run = self.find(name)
        changed = tuple(map(stamp, (run.config, run.metrics, run.summary)))

        def read() -> tuple[dict[str, Any], dict[str, Any], dict[str, Any] | None]:
            settings, summary = self._settings(name), _object(run.summary, SUMMARY)
            workers, backups = settings.get("workers"), settings.get("backups", 0)
            about = {
                "name": name,
                **{key: settings.get(key) for key in ("recipe", "env", "algo", "seed", "shards")},
                "workers": workers + backups if isinstance(workers, int) and isinstance(backups, int) else None,
                "quorum": 1 if settings.get("mode") == "async" else settings.get("quorum") or workers,
                "exit_reason": None if summary is None else summary["exit_reason"],
                "begun_at": changed[0][2] / 1e9 if changed[0] else 0.0,
            }
            return about, last_row(run.metrics), summary

        about, last, summary = self.kept("overview", name, changed, read)
        state = self.state(name)
        row = newest_figures(state, last, self._live(name), summary)
        return about | {
            "state": state,
            "exit_reason": about["exit_reason"] if state == "ended" else None,
            "quorum": row.get("quorum", about["quorum"]),
            **{key: row.get(key) for key in ("version", "agent_steps", "agent_steps_per_s", "workers_present")},
            "score": row.get("score_mean_50"),
            "minutes": row["wall_s"] / 60 if row else None,
        }

    def _live(self, name: str) -> Live:
        path = self.find(name).live

        def read() -> Live:
            found = read_live(path) if _is_plain(path) else Live()
            return replace(found, row={key: found.row[key] for key in (*KEPT, "quorum") if key in found.row})

        return self.kept("live", name, stamp(path), read)

    def details(self, name: str) -> dict[str, Any]:
        """Everything about one run except its curves."""
        run, record = self.find(name), self.record(name)
        found = self.overview(name)
        live = self._live(name) if found["state"] == "running" else Live()
        last: Mapping[str, Any] = record.rows[-1] if record.rows else {}
        is_now = found["state"] == "running" and not live.is_old
        stall = _object(run.stalled, SETTINGS) if is_now else None
        failed = found["state"] == "killed" or found["exit_reason"] == "failed"
        hosts = (_object(run.hosts, HOSTS) or {"hosts": []})["hosts"]
        host_of = {process: each["host"] for each in hosts for process in each["processes"]}
        host_of |= {str(each.process): each.host for each in live.processes}
        return found | {
            "row": newest_figures(found["state"], last, live, record.summary) or None,
            "old": age_words(live.age_s),
            "stalled": _sentence(stall),
            "missing": _missing(live.processes) if is_now else [],
            "failure": failure(run.log("supervisor")) if failed else None,
            "evaluations": [asdict(each) for each in record.evaluations],
            "videos": list(_videos(run.path / "videos", record)),
            "logs": {process: host_of.get(process) for process in logs(run.path)},
            "hosts": [
                {key: each.get(key) for key in ("host", *VERSIONS)}
                | {"processes": ranges(each["processes"], short=True)}
                for each in hosts
            ],
        }

    def _settings(self, name: str) -> dict[str, Any]:
        config = self._config(self.find(name).config)
        return dict(flat(config))

    def _config(self, path: Path) -> dict[str, Any]:
        return self.kept("config", path, stamp(path), lambda: _object(path, SETTINGS) or {})

    def _search(self) -> Iterator[tuple[str, Path]]:
        """The name and path of each run. Does not look inside runs, hidden directories and symbolic links."""
        for directory, names, files in os.walk(self.root):
            path = Path(directory)
            below = path.relative_to(self.root)
            if "config.json" in files and self._is_run(path / "config.json"):
                yield text_of(str(below)), path
                names.clear()
            elif len(below.parts) >= DEEPEST:
                names.clear()
            names[:] = sorted(name for name in names if not name.startswith("."))

    def _is_run(self, config: Path) -> bool:
        """Whether a ``config.json`` belongs to a run: other programs also write files with this name."""
        return {"env", "workers"} <= self._config(config).keys()

    def _evaluations(self, run: RunDirectory, rows: list[dict[str, Any]]) -> list[Evaluation]:
        path = run.evaluations
        lines = readable_lines(path, EVALUATION, lambda notice: None) if _is_plain(path) else []
        return evaluations(with_saved(_object(run.evaluation, EVALUATION), lines), rows)


def _object(path: Path, form: Any) -> dict[str, Any] | None:
    """The object in a file. None if the file is missing, damaged, being written, or a symbolic link."""
    try:
        return read_object(path, form, "") if _is_plain(path) else None
    except UsageError:
        return None


def _is_plain(path: Path) -> bool:
    """Whether ``path`` is a file, and not a symbolic link."""
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except OSError:
        return False


def _sentence(stall: dict[str, Any] | None) -> str | None:
    try:
        return None if stall is None else Stall.from_json(stall).sentence()
    except (ArithmeticError, AttributeError, KeyError, TypeError, ValueError):
        return None


def _supervisor(cluster: dict[str, Any]) -> tuple[str, int, str | None] | None:
    """Host, process id and PID namespace of the supervisor in ``cluster.json``. None if they are unknown."""
    match cluster.get("supervisor"):
        case {"host": str(host), "pid": int(pid), "pid_space": str(space)}:
            return host, pid, space
        case {"host": str(host), "pid": int(pid)}:  # of an older zmqrl
            return host, pid, None
    return None


def _missing(presences: Iterable[Presence]) -> list[dict[str, str]]:
    """The hosts with missing or late processes."""
    return [{"host": line.host, "processes": line.remarks} for line in by_host(presences) if line.remarks]


def failure(log: Path) -> str | None:
    """The last failure in the log of a supervisor: its reason, and the first process that failed."""
    if log not in files_in(log.parent):
        return None
    try:
        with open_file(log) as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - (1 << 18)))  # quoted lines can be long
            text = file.read().decode(errors="replace")
    except OSError:
        return None
    text = SESSION.split(text)[-1]  # of the last session
    told = FAILED.split(text)[1:]
    return AFTER_FAILURE.split(told[-1])[0].strip() if told else None


def logs(run: Path) -> dict[str, Path]:
    """The logs of a run, by process."""
    return {text_of(path.stem): path for path in files_in(run / "logs") if path.suffix == ".log"}


def files_in(directory: Path) -> list[Path]:
    """The files in a directory, without symbolic links and hidden files, in the order of names and numbers.

    Empty if the directory itself is a symbolic link.
    """
    try:
        if directory.is_symlink():
            return []
        with os.scandir(directory) as found:
            names = [each.name for each in found if each.is_file(follow_symlinks=False) and each.name[0] != "."]
    except OSError:
        return []
    return [directory / name for name in sorted(names, key=by_number)]


def _videos(directory: Path, record: RunRecord) -> Iterator[dict[str, Any]]:
    """Each video with the time of its version, which is unknown if its name has no version."""
    known = [[0.0, *record.column(key).tolist()] for key in ("version", "wall_s", "agent_steps")]
    for path in files_in(directory):
        if path.suffix in VIDEOS:
            named = VIDEO_VERSION.fullmatch(path.stem)
            version = int(named[1]) if named else None
            wall_s, agent_steps = (
                None if version is None else float(np.interp(version, known[0], y)) for y in known[1:]
            )
            minutes = None if wall_s is None else wall_s / 60
            yield {"name": text_of(path.name), "version": version, "minutes": minutes, "agent_steps": agent_steps}
