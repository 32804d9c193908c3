"""The evaluator and the recorder: processes that are told of checkpoints and answer with what they made of them."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from zmqrl.cluster.keeper import Keeper
from zmqrl.cluster.launcher import EVALUATOR, RECORDER, Exited, Said
from zmqrl.cluster.mirror import Mirror
from zmqrl.config import Config
from zmqrl.observe.console import Console
from zmqrl.observe.forms import EVALUATION, readable_lines
from zmqrl.observe.metrics import JsonLines
from zmqrl.rundir import RunDirectory

FINISH_WITHIN_S = 1800.0


class Followers:
    """Those that were asked for. What one that dies has not answered, the process in its place is told again."""

    def __init__(
        self,
        config: Config,
        directory: RunDirectory,
        keeper: Keeper,
        console: Console,
        files: Mirror,
    ) -> None:
        """``files`` brings checkpoints to where they find them."""
        self.config, self.keeper, self.console, self.files = config, keeper, console, files
        self.rows = JsonLines(directory.evaluations) if config.evaluator else None
        self.evaluate_at_s, self.evaluated = 0.0, _last_version(directory.evaluations, console.notice)
        self.to_record = sorted(config.recording.minutes) if config.recorder else []
        wanted = {EVALUATOR: config.evaluator, RECORDER: config.recorder}
        self.pending: dict[str, list[dict[str, Any]]] = {name: [] for name in wanted if wanted[name]}

    def start(self, trained_s: float) -> None:
        """Start them in a run that has trained for ``trained_s`` already: what was due before is past."""
        self.to_record = [minute for minute in self.to_record if 60 * minute >= trained_s]
        for name in self.pending:
            self.keeper.start(name)

    def wants_checkpoint(self, trained_s: float) -> bool:
        """Whether a game is to be recorded now."""
        return bool(self.to_record) and 60 * self.to_record[0] <= trained_s

    def on_checkpoint(self, version: int, trained_s: float, *, last: bool = False) -> None:
        """Checkpoint ``version`` was written after so many seconds of training."""
        if self.config.evaluator and (last or trained_s >= self.evaluate_at_s):
            self.evaluate_at_s = trained_s + 60 * self.config.evaluation.every_minutes
            if version != self.evaluated:  # as the first one of a resumed run is
                self.evaluated = version
                self._tell(EVALUATOR, {"version": version})
        while self.wants_checkpoint(trained_s):
            self._tell(RECORDER, {"version": version, "name": f"minute-{self.to_record.pop(0):03g}"})

    def on_answer(self, answer: Said) -> None:
        """Take a result."""
        facts = answer.facts
        if evaluation := facts.get("evaluation"):
            assert self.rows is not None
            self.rows.write_or_tell(evaluation, self.console.notice)
            low, high = evaluation["ci95"]
            self.console.notice(
                f"evaluation of version {evaluation['version']} ({evaluation['wall_s'] / 60:.1f} min): "
                f"mean {evaluation['mean']:.1f}, 95% interval {low:.1f} to {high:.1f}, {evaluation['episodes']} games"
            )
            self._settle(answer.name, evaluation["version"])
        elif recording := facts.get("recording"):
            self.console.notice(f"recorded {recording['path']}: score {recording['score']:g}")
            self._settle(answer.name, recording["version"])
        elif "skipped" in facts:
            self.console.notice(f"{answer.name} skipped version {facts['skipped']}: {facts['reason']}")
            self._settle(answer.name, facts["skipped"])

    def on_exit(self, exited: Exited) -> None:
        """Start one again that died, unless there is no hope: the run goes on without it."""
        self.keeper.start_again(exited)
        if exited.name in self.keeper.restarts.hopeless:
            self.keeper.give_up(exited.name)
            self.console.notice(f"{exited.name} is given up after {self.keeper.restarts.deaths(exited.name)} deaths")
            del self.pending[exited.name]

    def finish(
        self, version: int, trained_s: float, look_after: Callable[[], None], hurried: Callable[[], bool]
    ) -> None:
        """Wait for what they make of the last checkpoint, looking after them, until the user is in a hurry."""
        self.on_checkpoint(version, trained_s, last=True)
        give_up_at, told = time.monotonic() + FINISH_WITHIN_S, False
        while (busy := self._busy()) and not hurried():
            if time.monotonic() >= give_up_at:
                return self.console.notice(f"not waiting any longer for {busy}")
            if not told:
                self.console.notice(f"waiting for {busy}; Ctrl-C ends that")
                told = True
            look_after()
            time.sleep(0.05)
        return None

    def _busy(self) -> str:
        at_work = [f"{name} with version {told[-1]['version']}" for name, told in self.pending.items() if told]
        return " and ".join(at_work)

    def close(self) -> None:
        """Close the files."""
        if self.rows is not None:
            self.rows.close()

    def _tell(self, name: str, message: dict[str, Any]) -> None:
        if name in self.pending:
            self.files.put_checkpoint(name, message["version"])
            self.pending[name].append(message)
            self.keeper.launcher.tell(name, message)

    def _settle(self, name: str, version: int) -> None:
        """A message is answered: the recorder takes one after the other, the evaluator leaves out what is overtaken."""
        told = self.pending[name]
        left = told[1:] if name == RECORDER else [message for message in told if message["version"] > version]
        self.pending[name] = left
        needed = {message["version"] for told in self.pending.values() for message in told}
        for settled in {message["version"] for message in told} - needed:
            for each in self.pending:
                self.files.drop_checkpoint(each, settled)
        self.keeper.restarts.worked(name)


def _last_version(evaluations: Path, notice: Callable[[str], None]) -> int | None:
    """The version that was evaluated last in an earlier sitting."""
    lines = readable_lines(evaluations, EVALUATION, notice)
    return int(lines[-1]["version"]) if lines else None
