"""Finds versions that stall: the missing processes, since when, and what they are doing. Pure: no clock, no files."""

import re
import statistics
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Self

from zmqrl.observe.folding import printable, ranges
from zmqrl.process_id import ProcessId
from zmqrl.words import counted

LEAST_PATIENCE_S = 5.0
FIRST_PATIENCE_S = 20.0  # limit until the usual time is known: at first, processes import modules and play a rollout
USUAL_TIMES = 3.0
ITERATIONS_KEPT = 5
ASK_AGAIN_S = 30.0
LONGEST_PAUSE_S = 600.0  # longest time between two rounds of questions: each question adds a stack to a log
MOST_ASKED = 4  # processes in one round
ANSWER_WITHIN_S = 5.0
SHOW_EVERY_S = 1.0
SILENT_S = 3.0  # limit for a worker, which sends a PING every second
GROUPS_TOLD = 3
FRAMES_TOLD = 5
MOST_WRITTEN = 32
FRAME = re.compile(r'File "(?:.*/)?(?P<file>[^"]*)", line (?P<line>\d+) in (?P<function>.*)')
STATES_TOLD = {
    "stopped": "stopped by a signal",
    "traced": "stopped by a debugger",
    "blocked": "blocked in the kernel, perhaps by a disk or network file system",
    "dead": "dead",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Doing:
    """A host's report on what a process is doing: see :class:`zmqrl.hostd.inspection.Sight`.

    ``stack`` has the frames of its main thread, innermost first, such as ``File "game.py", line 12 in step``.
    """

    state: str
    kernel: str = ""
    stack: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Awaited:
    """A process that a version waits for, and what is known about the process.

    - ``is_external``: the supervisor did not start the process, and cannot ask its host.
    - ``is_there``: the process is connected, or has sent a message before.
    - ``unreachable_s``: how long its host has been unreachable, or None.
    - ``span``: the span that a worker reports, or empty. ``span_s``: how long the worker has been in that span.
    """

    process: ProcessId
    host: str = ""
    is_external: bool = False
    is_running: bool = True
    is_there: bool = True
    silent_s: float = 0.0
    unreachable_s: float | None = None
    span: str = ""
    span_s: float = 0.0
    doing: Doing | None = None

    def what(self) -> str:
        """What the process is doing, in words."""
        if self.unreachable_s is not None:
            return f"its host has been unreachable for {self.unreachable_s:.0f} s"
        if not self.is_running:
            return "it is being restarted"
        words = [STATES_TOLD[self.doing.state]] if self.doing and self.doing.state in STATES_TOLD else []
        if not self.is_there:
            words.append("not connected")
        elif self.silent_s >= SILENT_S:
            words.append(f"silent for {self.silent_s:.0f} s")
        if self.span:
            words.append(f"in {self.span} for {self.span_s:.1f} s")
        elif self.process.role == "worker" and not words:
            words.append("in no named span")
        stack = " < ".join(_short(frame) for frame in self.doing.stack[:FRAMES_TOLD]) if self.doing else ""
        return ", ".join(words or ["it makes no progress"]) + (f"; stack: {stack}" if stack else "")

    def likeness(self) -> object:
        """A key that is equal for processes that do the same thing, no matter for how long."""
        silent = self.is_there and self.silent_s >= SILENT_S
        doing = (self.doing.state, self.doing.stack[:FRAMES_TOLD]) if self.doing else None
        is_away = self.unreachable_s is not None
        return self.process.role, self.is_external, is_away, self.is_running, self.is_there, silent, self.span, doing

    def to_json(self) -> dict[str, Any]:
        doing = asdict(self.doing) | {"stack": list(self.doing.stack)} if self.doing else None
        return asdict(self) | {"process": str(self.process), "doing": doing}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Inverse of :meth:`to_json`. Raises KeyError, TypeError or ValueError for other ``data``."""
        doing = data["doing"]
        if doing is not None:
            doing = Doing(**{**doing, "stack": tuple(doing["stack"])})
        return cls(**{**data, "process": ProcessId.parse(data["process"]), "doing": doing})


@dataclass(frozen=True, slots=True, kw_only=True)
class Stall:
    """A version that has waited ``waited_s`` seconds for the processes ``awaited``.

    ``awaited`` is sorted by the time in a span, longest first. ``others`` counts the processes that it leaves out.
    """

    version: int
    waited_s: float
    awaited: tuple[Awaited, ...]
    others: int = 0

    def sentence(self) -> str:
        """The sentence for the user, which groups processes that do the same thing."""
        groups: dict[object, list[Awaited]] = {}
        for each in self.awaited:
            groups.setdefault(each.likeness(), []).append(each)
        told, left = list(groups.values())[:GROUPS_TOLD], list(groups.values())[GROUPS_TOLD:]
        texts = [f"for {_names(group)}: {group[0].what()}" for group in told]
        more = self.others + sum(map(len, left))
        if more:
            texts.append(f"for {counted(more, 'more process', 'more processes')}")
        return printable(f"version {self.version} has waited {self.waited_s:.0f} s {', and '.join(texts)}")

    def placed(self, host_of: Callable[[ProcessId], str]) -> Self:
        """The same stall, with the host of each process that is not external."""
        awaited = [each if each.is_external else replace(each, host=host_of(each.process)) for each in self.awaited]
        return replace(self, awaited=tuple(awaited))

    def to_json(self) -> dict[str, Any]:
        """Plain data, as in ``stalled.json``."""
        about = {"version": self.version, "waited_s": self.waited_s, "others": self.others}
        return about | {"awaited": [each.to_json() for each in self.awaited]}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Inverse of :meth:`to_json`. Raises KeyError, TypeError or ValueError for other ``data``."""
        return cls(**{**data, "awaited": tuple(map(Awaited.from_json, data["awaited"]))})


@dataclass(frozen=True, slots=True, kw_only=True)
class News:
    """What to do about stalls.

    ``ask``: the processes whose hosts must report what they are doing. ``stall``: a stall to show. ``over``: a stall
    that has ended. ``tell``: whether to notify the user about ``stall`` or ``over``.
    """

    ask: Sequence[ProcessId] = ()
    stall: Stall | None = None
    tell: bool = False
    over: Stall | None = None


NOTHING = News()


class Stalls:
    """Finds stalls, and decides which processes to ask, and when.

    A version stalls when it takes longer than 5 s and longer than three times the usual time. The usual time is the
    median, over the last iterations, of the longest time for one version. The first version of an iteration can include
    a whole rollout, and a single stall does not change a median. Until the usual time is known, the limit is 20 s.

    ``per_iteration`` is the number of versions learned from one rollout.
    """

    def __init__(self, per_iteration: int) -> None:
        self.per_iteration = per_iteration
        self.stall: Stall | None = None
        self._version = -1
        self._at: float | None = None  # time at which the version was made
        self._was_told = False
        self._is_whole = False  # whether this object has seen all versions of this iteration
        self._longest_s = 0.0  # the longest time for one version in this iteration
        self._usual_s: deque[float] = deque(maxlen=ITERATIONS_KEPT)
        self._asked_at: dict[ProcessId, float] = {}
        self._answers: dict[ProcessId, Doing] = {}
        self._spans: dict[ProcessId, tuple[str, float]] = {}  # the last reported span and its start
        self._told_of: set[ProcessId] = set()  # processes reported in this stall
        self._unanswered: set[ProcessId] = set()
        self._tell_by: float | None = None
        self._next_round_at = self._shown_at = 0.0
        self._pause_s = ASK_AGAIN_S

    def made(self, version: int, now: float) -> None:
        """All shards have made ``version``, or have gone back to ``version``."""
        if version == self._version:
            return
        if version > self._version >= 0 and self._at is not None:
            self._longest_s = max(self._longest_s, now - self._at)
            if version // self.per_iteration > self._version // self.per_iteration:
                if self._is_whole:
                    self._usual_s.append(self._longest_s)
                self._is_whole, self._longest_s = True, 0.0
        self._version, self._at = version, now

    def pardon(self, seconds: float) -> None:
        """Do not count ``seconds`` in which the supervisor itself did not run."""
        self._at = None if self._at is None else self._at + seconds

    def answered(self, process: ProcessId, doing: Doing) -> None:
        self._unanswered.discard(process)
        self._answers[process] = doing

    def forget(self, process: ProcessId) -> None:
        """A process has died: discard its data."""
        self._unanswered.discard(process)
        for known in (self._asked_at, self._answers, self._spans):
            known.pop(process, None)

    def patience_s(self) -> float:
        """The seconds after which a version counts as stalled."""
        if not self._usual_s:
            return FIRST_PATIENCE_S
        return max(LEAST_PATIENCE_S, USUAL_TIMES * statistics.median(self._usual_s))

    def waited_s(self, now: float) -> float:
        """Seconds that a stalled version has taken so far. 0 without a stall."""
        return 0.0 if self.stall is None or self._at is None else now - self._at

    def is_stopped(self, process: ProcessId) -> bool:
        """Whether a signal has stopped a process that a version waits for, according to its host."""
        doing = self._answers.get(process)
        return doing is not None and doing.state == "stopped"

    def look(self, awaited: Sequence[Awaited], now: float) -> News:
        """Check the processes that the open version waits for now. Without any, no version stalls."""
        if self._at is None or not awaited:
            self._at = now
        waited_s = now - self._at
        if waited_s < self.patience_s():
            return self._end()
        begins = self.stall is None
        known = sorted((self._with_answer(each, now) for each in awaited), key=lambda each: -each.span_s)
        written = tuple(known[:MOST_WRITTEN])
        self.stall = Stall(version=self._version, waited_s=waited_s, awaited=written, others=len(known) - len(written))
        ask: list[ProcessId] = []
        others = {each.process for each in known} - self._told_of
        if begins or now >= self._next_round_at or (others and self._tell_by is None):
            self._told_of |= others
            self._pause_s = ASK_AGAIN_S if others else min(2 * self._pause_s, LONGEST_PAUSE_S)
            self._next_round_at, self._tell_by = now + self._pause_s, now + ANSWER_WITHIN_S
            ask = self._whom_to_ask(known, now)
        tell = self._tell_by is not None and (not self._unanswered or now >= self._tell_by)
        if tell:
            self._tell_by, self._was_told = None, True
        if not (begins or tell or now - self._shown_at >= SHOW_EVERY_S):
            return News(ask=ask)
        self._shown_at = now
        return News(ask=ask, stall=self.stall, tell=tell)

    def _end(self) -> News:
        if self.stall is None:
            return NOTHING
        news = News(over=self.stall, tell=self._was_told)
        self.stall, self._was_told, self._tell_by = None, False, None
        for known in (self._told_of, self._unanswered, self._answers, self._spans):
            known.clear()
        return news

    def _whom_to_ask(self, known: Sequence[Awaited], now: float) -> list[ProcessId]:
        ours = [each.process for each in known if each.is_running and not each.is_external]
        ask = [each for each in ours if now - self._asked_at.get(each, -ASK_AGAIN_S) >= ASK_AGAIN_S][:MOST_ASKED]
        self._asked_at |= dict.fromkeys(ask, now)
        self._unanswered = set(ask)
        return ask

    def _with_answer(self, awaited: Awaited, now: float) -> Awaited:
        """Add the report of the host and, if the process has gone silent, its last known span."""
        process, span, span_s = awaited.process, awaited.span, awaited.span_s
        if span:
            self._spans[process] = span, now - span_s
        elif (awaited.silent_s >= SILENT_S or not awaited.is_there) and process in self._spans:
            span, since = self._spans[process]
            span_s = now - since
        return replace(awaited, span=span, span_s=span_s, doing=self._answers.get(process))


def _short(frame: str) -> str:
    """A frame in few words: ``step (game.py:12)``."""
    found = FRAME.match(frame)
    return frame if found is None else f"{found['function']} ({found['file']}:{found['line']})"


def _names(group: Sequence[Awaited]) -> str:
    names = ranges((str(each.process) for each in group), short=True)
    hosts = {each.host for each in group if each.host}
    where = "external" if group[0].is_external else f"host{'s' if len(hosts) > 1 else ''} {ranges(hosts)}"
    return f"{names} ({where})" if hosts or group[0].is_external else names
