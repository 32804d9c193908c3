"""The evaluator and the recorder: processes that get checkpoints and answer with an evaluation or a video."""

import contextlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from zmqrl.config import Config
from zmqrl.errors import ClusterError
from zmqrl.hosts.events import Said
from zmqrl.hosts.mirror import Mirror
from zmqrl.json_lines import JsonLines
from zmqrl.observe.console import Console
from zmqrl.observe.forms import EVALUATION, readable_lines
from zmqrl.observe.records import FIRST_NEW_SEED
from zmqrl.process_id import EVALUATOR, RECORDER, ProcessId
from zmqrl.rundir import RunDirectory
from zmqrl.start.jobs import (
    Evaluated,
    EvaluationRequest,
    FollowerRequest,
    Recorded,
    RecordingRequest,
    Skipped,
    answer_from,
)
from zmqrl.words import counted, figure

FINISH_WITHIN_S = 1800.0
SCORES_TO_CONFIRM = 50  # games in the mean score of training, and games in the evaluation that must confirm it


class Runner(Protocol):
    """What :class:`Followers` needs to control processes."""

    def start(self, process: ProcessId) -> None:
        """Start a process now."""

    def tell(self, process: ProcessId, message: FollowerRequest) -> None:
        """Send a message to a process."""

    def worked(self, process: ProcessId) -> None:
        """Forget the earlier deaths of a process, which has done its work."""


class Followers:
    """The followers of a run. The successor of a dead follower gets the unanswered messages, ``pending``, again.

    ``files`` copies checkpoints to the hosts of the followers. ``confirmed_score`` is the mean score of the last
    evaluation for ``stop_score``, or -inf without one.
    """

    def __init__(
        self,
        config: Config,
        directory: RunDirectory,
        runner: Runner,
        console: Console,
        files: Mirror,
    ) -> None:
        self.config, self.runner, self.console, self.files = config, runner, console, files
        self.directory = directory
        self.rows = JsonLines(directory.evaluations) if config.needs_evaluator else None
        self.confirmed_score = float("-inf")
        self.wants_to_confirm = False
        self.confirming: int | None = None  # the version that is being evaluated for ``stop_score``
        self.episodes, self.confirm_from = 0, 0  # ended games, and how many are needed before the next try to confirm
        self.evaluate_at_s, self.evaluated = 0.0, _last_version(directory.evaluations, console.notice)
        self.to_record = sorted(config.recording.minutes) if config.recorder else []
        wanted = {EVALUATOR: config.needs_evaluator, RECORDER: config.recorder}
        self.pending: dict[ProcessId, list[FollowerRequest]] = {name: [] for name in wanted if wanted[name]}

    def undo_rows(self, version: int, generation: int) -> None:
        """The run resumes from ``version``: move the evaluations of later versions to a separate file."""
        path = self.directory.evaluations
        if all(row["version"] <= version for row in readable_lines(path, EVALUATION, lambda _: None)):
            return
        try:
            with contextlib.closing(JsonLines(path)) as rows:
                rows.rewind(version, generation)
            if self.rows is not None:
                self.rows.reopen()
        except OSError as error:
            self.console.notice(f"{path} still has evaluations that the resume has undone: {error.strerror}")
        self.evaluated = _last_version(path, self.console.notice)

    def start(self, trained_s: float) -> None:
        """Start the followers. Skip recordings that were due before ``trained_s``, the training time so far."""
        self.to_record = [minute for minute in self.to_record if 60 * minute >= trained_s]
        for name in self.pending:
            self.runner.start(name)

    def wants_checkpoint(self, trained_s: float) -> bool:
        return self.wants_to_confirm or self._is_recording_due(trained_s)

    def _is_recording_due(self, trained_s: float) -> bool:
        return bool(self.to_record) and 60 * self.to_record[0] <= trained_s

    def on_scores(self, mean_score: float, episodes: int) -> None:
        """Note the mean score of the last games in training, and how many games have ended.

        The best of many means is too high by chance. So ``stop_score`` is reached only when new games with one
        checkpoint confirm it. Their actions are sampled, because greedy games of different seeds can be the same. After
        an evaluation that does not confirm it, the next one waits for ``SCORES_TO_CONFIRM`` more games.
        """
        self.episodes, wanted = episodes, self.config.stop_score
        if (
            wanted is not None
            and self.confirming is None
            and self.confirmed_score < wanted
            and EVALUATOR in self.pending
        ):
            self.wants_to_confirm = mean_score >= wanted and episodes >= self.confirm_from

    def on_checkpoint(self, version: int, trained_s: float, *, last: bool = False) -> None:
        """Tell the followers about checkpoint ``version``, written after ``trained_s`` seconds of training."""
        if self.wants_to_confirm and not last:
            self.wants_to_confirm, self.confirming = False, version
            new_seed = FIRST_NEW_SEED + SCORES_TO_CONFIRM * (version % 2**24)
            self._tell(EVALUATOR, EvaluationRequest(version, SCORES_TO_CONFIRM, new_seed, samples=True))
        elif self.config.evaluator and self.confirming is None and (last or trained_s >= self.evaluate_at_s):
            self.evaluate_at_s = trained_s + 60 * self.config.evaluation.every_minutes
            if version != self.evaluated:  # an earlier session can have evaluated it
                self.evaluated = version
                self._tell(EVALUATOR, EvaluationRequest(version))
        while self._is_recording_due(trained_s):
            self._tell(RECORDER, RecordingRequest(version, f"minute-{self.to_record.pop(0):03g}"))

    def on_answer(self, said: Said) -> None:
        """Show an answer of a follower. An unknown answer counts as a skip.

        The recorder skips its oldest pending version. The evaluator skips all, because it works on the newest.
        """
        try:
            answer = answer_from(said.facts)
        except ClusterError as error:
            if not (told := self.pending[said.process]):
                return self.console.notice(f"{said.process}: {error}")
            answer = Skipped(told[0 if said.process == RECORDER else -1].version, str(error))
        match answer:
            case Evaluated(row):
                assert self.rows is not None
                self.rows.write_or_tell(row, self.console.notice)
                low, high = row["ci95"]
                interval = f", 95% interval {low:.1f} to {high:.1f}" if row["episodes"] > 1 else ""
                games = f"; games: {row['flavour']}" if row.get("flavour") else ""
                self.console.notice(
                    f"evaluation of version {answer.version} ({row['wall_s'] / 60:.1f} min): "
                    f"mean {row['mean']:.1f}{interval}, {counted(row['episodes'], 'game')}{games}"
                )
                if answer.version == self.confirming:
                    self._on_confirmation(row["mean"])
            case Recorded(about):
                self.console.notice(f"recorded {about['path']}: score {figure(about['score'])}")
            case Skipped(version, reason):
                why = self.files.why_missing(said.process, version) or reason  # the follower sees only the consequence
                self.console.notice(f"{said.process} skipped version {version}: {why}")
                if version == self.confirming:
                    self.confirming = None
        return self._settle(said.process, answer.version)

    def _on_confirmation(self, mean: float) -> None:
        wanted, version = self.config.stop_score, self.confirming
        assert wanted is not None
        self.confirmed_score, self.confirming, self.confirm_from = mean, None, self.episodes + SCORES_TO_CONFIRM
        if mean < wanted:
            self.console.notice(f"version {version} does not confirm --stop-score {wanted:g}: the run continues")

    def give_up(self, process: ProcessId) -> None:
        self.pending.pop(process, None)
        if process == EVALUATOR and self.config.stop_score is not None:
            self.console.notice("without the evaluator, --stop-score cannot end the run")

    def finish(
        self, version: int, trained_s: float, look_after: Callable[[], None], hurried: Callable[[], bool]
    ) -> None:
        """Send the last checkpoint, and wait up to ``FINISH_WITHIN_S`` for answers, or until ``hurried()`` is true.

        Calls ``look_after`` repeatedly while waiting. Does not wait for an evaluation for ``stop_score``: the run has
        already ended.
        """
        if self.confirming is not None:
            self.confirming = None
            if not self.config.evaluator:
                self.pending[EVALUATOR] = []
        self.on_checkpoint(version, trained_s, last=True)
        give_up_at, told = time.monotonic() + FINISH_WITHIN_S, False
        while (busy := self._busy()) and not hurried():
            if time.monotonic() >= give_up_at:
                return self.console.notice(f"no longer waiting for {busy}")
            if not told:
                self.console.notice(f"waiting for {busy}; Ctrl-C ends the wait")
                told = True
            look_after()
            time.sleep(0.05)
        return None

    def _busy(self) -> str:
        at_work = [f"the {name} (version {told[-1].version})" for name, told in self.pending.items() if told]
        return " and ".join(at_work)

    def close(self) -> None:
        if self.rows is not None:
            self.rows.close()

    def _tell(self, process: ProcessId, message: FollowerRequest) -> None:
        if process in self.pending:
            self.files.put_checkpoint(process, message.version)
            self.pending[process].append(message)
            self.runner.tell(process, message)

    def _settle(self, process: ProcessId, version: int) -> None:
        """Remove the messages that an answer settles.

        The recorder answers each message, but the evaluator skips old ones.
        """
        told = self.pending[process]
        left = told[1:] if process == RECORDER else [message for message in told if message.version > version]
        self.pending[process] = left
        needed = {message.version for told in self.pending.values() for message in told}
        for settled in {message.version for message in told} - needed:
            for each in self.pending:
                self.files.drop_checkpoint(each, settled)
        self.runner.worked(process)


def _last_version(evaluations: Path, notice: Callable[[str], None]) -> int | None:
    lines = readable_lines(evaluations, EVALUATION, notice)
    return int(lines[-1]["version"]) if lines else None
