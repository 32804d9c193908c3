"""Follows a run that was submitted to a Slurm cluster over ssh: shows its log, and fetches its files."""

import contextlib
import dataclasses
import time
from collections.abc import Iterator
from pathlib import Path

from zmqrl.checkpoint import prune
from zmqrl.commands.inspect.living import exit_status_of
from zmqrl.commands.output import print_line
from zmqrl.config import Config
from zmqrl.errors import INTERRUPTED, ClusterError, UsageError
from zmqrl.hosts.ways.login_node import OVER, LoginNode, Submitted
from zmqrl.observe.folding import printable
from zmqrl.rundir import RunDirectory
from zmqrl.words import as_word

LOOK_EVERY_S = 3.0
FETCH_EVERY_S = 20.0
PAUSE_SHARE = 10  # a pause is this many times as long as the copy before it, because all files that grew are copied
QUEUED = ("PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD", "SPECIAL_EXIT")


def attach(job: Submitted, run: Path) -> int:
    """Follow a job that was submitted earlier. Ctrl-C does not affect it."""
    with contextlib.ExitStack() as connection:
        with _naming(job, run):
            node = connection.enter_context(_login_node(job))
        return follow(node, job, run, stops=False)


def follow(node: LoginNode, job: Submitted, run: Path, *, read: int = 0, stops: bool) -> int:
    """Show the log of a job, after its first ``read`` bytes, until the job ends. Returns the exit status of the run.

    With ``stops``, the first Ctrl-C ends the run with a checkpoint. Any other Ctrl-C only ends the view. Raises
    ClusterError if the connection is lost or the run has no result. The summary of an earlier job does not count.
    """
    following = _Following(node, job, run, read)
    with _naming(job, run):
        while True:
            try:
                following.until_the_end()
                break
            except KeyboardInterrupt:
                if not stops:
                    print_line(f"left the view; job {job.job} continues, and {_command('stop', run)} ends it")
                    return INTERRUPTED
                stops = False
                following.stop()
        following.fetch(again=True)
        node.fetch_summary(job, run)
    if not RunDirectory(run).has_result(job.earlier):
        dataclasses.replace(job, ended=following.state).write(run)
        if following.has_removed:
            print_line(f"job {job.job} was removed from the queue")
            return INTERRUPTED
        raise ClusterError(
            f"job {job.job} ended ({following.state}) without a result: its log is {job.log} on {job.host}."
        )
    return exit_status_of(RunDirectory(run))


def stop(job: Submitted) -> None:
    """End a run with a checkpoint, or remove its job from the queue. Raises ClusterError."""
    with _login_node(job) as node:
        state = node.state(job)
        if state not in OVER:
            node.ask_to_stop(job, has_begun=state not in QUEUED)
    print_line(f"job {job.job} has ended ({state})" if state in OVER else f"job {job.job} was asked to end")


class _Following:
    """What has been shown and fetched so far."""

    def __init__(self, node: LoginNode, job: Submitted, run: Path, read: int) -> None:
        self.node, self.job, self.run, self.read = node, job, run, read
        self.state = self._shown = ""
        self.has_removed = False
        self._fetched, self._fetch_at = 0, 0.0

    def until_the_end(self) -> None:
        """Show the states and the log of the job."""
        while True:
            self.state, reason, news = self.node.look(self.job, self.read)
            shown = f"job {self.job.job}: {self.state}" + (f" ({reason})" if reason not in ("", "None") else "")
            if shown != self._shown:
                self._shown = shown
                print_line(shown)
            whole = news if self.state in OVER else news[: news.rfind(b"\n") + 1]
            self.read += len(whole)
            for line in whole.decode(errors="replace").splitlines():
                print_line(printable(line))
            if self.state in OVER:
                return
            if time.monotonic() >= self._fetch_at:
                self.fetch(again=False)
            time.sleep(LOOK_EVERY_S)

    def fetch(self, *, again: bool) -> None:
        """Copy new files of the run, and remove the copies of old checkpoints.

        If ``again``, copy all files. The clock of a file server can be wrong by minutes.
        """
        began = time.monotonic()
        fetched = self.node.fetch(self.job, self.run, 0 if again else self._fetched)
        ended = time.monotonic()
        self._fetch_at = ended + max(FETCH_EVERY_S, PAUSE_SHARE * (ended - began))
        if fetched is not None:  # otherwise, the run may write to this very directory
            self._fetched = fetched
            directory = RunDirectory(self.run)
            with contextlib.suppress(UsageError, OSError):  # too many copies do no harm
                prune(directory.checkpoints, Config.read(directory.config).checkpoint.keep)

    def stop(self) -> None:
        self.has_removed = self.state in ("", *QUEUED)
        what = "removing the job from the queue" if self.has_removed else "ending the run with a checkpoint"
        print_line(f"{what}; Ctrl-C again leaves the view")
        self.node.ask_to_stop(self.job, has_begun=not self.has_removed)


@contextlib.contextmanager
def _naming(job: Submitted, run: Path) -> Iterator[None]:
    """Add to an error the command that shows the job again."""
    try:
        yield
    except ClusterError as error:
        raise ClusterError(
            f"{error} Job {job.job} is not affected: {_command('attach', run)} shows it again."
        ) from error


def _command(name: str, run: Path) -> str:
    return f"zmqrl {name} {as_word(run)}"


def _login_node(job: Submitted) -> LoginNode:
    return LoginNode(job.host, None if job.ssh_config is None else Path(job.ssh_config))
