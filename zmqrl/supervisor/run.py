"""One training run: checks the settings and the machine, then starts the supervisor."""

import contextlib
import dataclasses
import errno
import os
import shutil
import signal
import socket as host_socket
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, TypeAlias

from zmqrl.checkpoint import Checkpoint, checkpoints
from zmqrl.config import Config
from zmqrl.errors import INTERRUPTED, TIME_IS_UP, ClusterError, UsageError, ZmqrlError, cannot_listen, naming, refusal
from zmqrl.hosts.deployment import Deployment, on_this_machine
from zmqrl.hosts.preflight import LOW_DISK_BYTES, size
from zmqrl.learner.games import is_ale_id
from zmqrl.local.extras import require_extra
from zmqrl.observe.console import Console, LoggedConsole, console_for
from zmqrl.observe.exporter import Exporter, exporter_at
from zmqrl.observe.metrics import Counters
from zmqrl.observe.provenance import commit
from zmqrl.observe.screen import never_waiting
from zmqrl.page.beside import page_beside
from zmqrl.process import interruptible
from zmqrl.process_id import shard_id
from zmqrl.profile.run_tables import RunTables
from zmqrl.profile.trace import write_trace
from zmqrl.ps.shard.store import store_bytes
from zmqrl.recipes import remarks, run_name
from zmqrl.rundir import ANOTHER, RunDirectory, holds_a_run, new_path, write_json
from zmqrl.start.initial import Preparation
from zmqrl.start.stages import Stages
from zmqrl.supervisor import resume
from zmqrl.supervisor.ending import correcting, write_summary
from zmqrl.supervisor.events import Reason
from zmqrl.supervisor.salvage import remove_files, salvage
from zmqrl.supervisor.supervisor import Supervisor
from zmqrl.supervisor.tasks import prepare
from zmqrl.words import as_text, as_word

Deploy: TypeAlias = Callable[[Config, RunDirectory, Stages], Deployment]

LOGS_BYTES = 10_000_000  # logs, metrics, histories and profiles of a short run


def train(config: Config, on_up: Callable[[RunDirectory], None] | None = None) -> int:
    """Train on this machine, like :func:`train_on`. Raises ZmqrlError."""
    check_here(config)
    with never_waiting():
        return train_on(config, _deploy_here, on_up, is_here=True)


def _deploy_here(config: Config, directory: RunDirectory, stages: Stages) -> Deployment:
    return on_this_machine(config, directory)


def check_here(config: Config) -> None:
    """Raise UsageError for an invalid setting, for a port that cannot be used here, or for a missing package."""
    config.check()
    if config.recorder:
        require_extra("video", "--recorder needs")
    check_ports(config)


def check_extras(config: Config) -> None:
    """Raise UsageError for the first missing package that the launcher of a run needs here."""
    if is_ale_id(config.env):  # other ids of Atari games are known only once the games are imported
        require_extra("atari", f"{config.env} needs")
    for tracker in config.trackers:
        require_extra(tracker, f"--trackers {tracker} needs")
    if config.page:
        require_extra("page", "--page needs")


def train_on(
    config: Config,
    deploy: Deploy,
    on_up: Callable[[RunDirectory], None] | None = None,
    *,
    is_here: bool = False,
    in_total: bool = False,
) -> int:
    """Train on a deployment. Raises ZmqrlError. ``is_here``: whether the deployment is this machine.

    ``in_total``: whether ``config.minutes`` limits all sessions of the run together, instead of this one.
    Returns 0 if the run reached a limit. Returns INTERRUPTED or TIME_IS_UP if an interrupt ended the run with a
    checkpoint. If ``on_up`` is given, calls it once the run is up, and prints nothing more.
    """
    config.check()
    given, config = config, config.with_schedule()
    check_extras(config)
    path = config.run_dir or new_path(run_name(config))
    directory = RunDirectory(path, new=config.run_dir is None)
    with contextlib.ExitStack() as stack:
        stack.enter_context(interruptible())
        console = stack.enter_context(contextlib.closing(console_for(sys.stdout)))
        stages = stack.enter_context(Stages(console))
        stages.at("game", f"checking the game {config.env}")
        needs_cuda, draws = is_here and config.device == "cuda", is_here and config.recorder
        preparation = stack.enter_context(Preparation(config, needs_cuda=needs_cuda, draws=draws))
        flavour = preparation.flavour()
        exporter = stack.enter_context(exporter_at(config.metrics_endpoint()))
        page = stack.enter_context(contextlib.ExitStack())  # an open page shows the end, once the lock is released
        stack.enter_context(_claimed(directory))
        config = dataclasses.replace(config, run_dir=path.with_name(directory.path.name))
        news = [f"run directory {as_text(directory.path)}; game: {config.env}, {flavour}"]
        news += filter(None, (preparation.notice, *remarks(config)))
        checkpoint: Checkpoint | None = None
        minutes = config.minutes
        if config.resume:
            stored = Config.read(directory.config)
            resume.check_task(stored, config, flavour, directory.path)
            stages.at("earlier session", "looking for the last version of the earlier session")
            newest = resume.newest_checkpoint(directory, preparation.checkpoint())
            checkpoint = salvage(directory, newest, news.append)
            trained_s = Counters.from_json(checkpoint.counters).wall_s
            if not in_total:
                config = dataclasses.replace(config, schedule=given.with_schedule(trained_s).schedule)
            elif minutes is not None:
                minutes -= trained_s / 60
            end = resume.end_of(config, checkpoint, directory.path, in_total=in_total)
            if end is not None and resume.is_summarized(directory, checkpoint):
                raise UsageError(end[1])
            resume.check_mode(config, checkpoint, directory.path)
            if end is not None:
                remove_files(directory, news.append)
                return _summarize(config, directory, checkpoint, flavour, news, end[0], console)
            news.append(f"resuming from version {checkpoint.version}")
            if changed := resume.changed_settings(stored, config):
                news.append(f"settings changed from here on: {', '.join(changed)}")
        elif directory.config.exists():
            raise holds_a_run(path)
        if exporter is not None:
            news.append(f"figures for Prometheus: {exporter.url}")
        deployment = deploy(config, directory, stages)
        stack.enter_context(contextlib.closing(deployment.launcher))
        if checkpoint is None:
            prepare(deployment)  # not in a resumed run, where remove_files must reach the hosts first
            stages.at("parameters", "drawing the initial parameters")
            checkpoint = _first(preparation, deployment)
        is_here = deployment.sites[shard_id(0)].directory.path == directory.path
        news += check_room(directory, checkpoint, config.checkpoint.keep, holds_state=is_here)
        if not config.resume:
            with naming(directory.checkpoints):
                checkpoint.write(directory.checkpoints)
        for replaced in (directory.summary, directory.trace):
            if replaced.is_dir():
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(replaced))
        remove_files(directory, news.append, but=deployment.files.links)
        write_json(directory.config, dataclasses.replace(config, resume=False).to_json())
        write_json(directory.hosts, deployment.to_json())
        if config.page:
            page.enter_context(_page(directory, None if on_up is not None else console.notice))
        notices = [*news, *deployment.notices]
        config = dataclasses.replace(config, minutes=minutes)  # what is left for this session
        return _supervise(config, directory, checkpoint, flavour, deployment, notices, exporter, on_up, console, stages)


@contextlib.contextmanager
def _page(directory: RunDirectory, notice: Callable[[str], None] | None) -> Iterator[None]:
    """Serve the page of the run during the block. Without ``notice``, the run prints nothing once it is up."""
    with page_beside(directory, notice or (lambda text: None)) as url:
        # Not a notice, which would also go to the log: the URL contains a secret token. Others may read a job's output.
        if sys.stdout.isatty():
            sys.stdout.write(f"live page: {url}\n")
        else:
            write_json(directory.page, {"url": url}, mode=0o600)
            sys.stdout.write(f"live page: its address is in {as_text(directory.page)}\n")
        try:
            yield
        finally:
            if notice is not None:
                sys.stdout.write(f"page: zmqrl serve {as_word(directory.path)} shows this run again\n")


def _first(preparation: Preparation, deployment: Deployment) -> Checkpoint:
    """Version 0 of a new run.

    If the settings are wrong, remove the files of the deployment from the hosts.
    """
    try:
        return preparation.checkpoint()
    except ZmqrlError:
        deployment.files.clean(whole=True)
        raise


@contextlib.contextmanager
def _claimed(directory: RunDirectory) -> Iterator[None]:
    """Lock the run directory during the block, and turn errors into ZmqrlErrors."""
    directory.claim()
    try:
        yield
    except (ZmqrlError, KeyboardInterrupt):
        raise
    except OSError as error:  # an error before the run; _supervise handles later errors
        raise UsageError(refusal(error, directory.path, ANOTHER)) from error
    except Exception as error:
        raise ClusterError(f"the supervisor failed: {error!r}{_logged(directory.log('supervisor'))}.") from error
    finally:
        directory.release()


def _summarize(
    config: Config,
    directory: RunDirectory,
    checkpoint: Checkpoint,
    flavour: str,
    news: Sequence[str],
    reason: Reason,
    screen: Console,
) -> int:
    """Write the summary of a run that reached its end, but could not write its summary or its last checkpoint."""
    write_summary(directory.summary, reason, 0, config, checkpoint, flavour)
    for shard in range(checkpoint.layout.shards):
        directory.state(shard).unlink(missing_ok=True)
    with contextlib.closing(LoggedConsole(screen, directory.log("supervisor"))) as console:
        for text in (*news, f"ended ({reason}) at version {checkpoint.version}; see {as_text(directory.summary)}"):
            console.notice(text)
    return 0


def _logged(path: Path) -> str:
    """Log the traceback of the current error. Returns the end of an error sentence, which names the log."""
    try:
        path.parent.mkdir(exist_ok=True)
        with path.open("a", encoding="utf-8", errors="backslashreplace") as log:
            log.write(traceback.format_exc())
    except OSError:
        return ""
    return f"; the traceback is in {path}"


def check_room(directory: RunDirectory, checkpoint: Checkpoint, keep: int, *, holds_state: bool) -> list[str]:
    """Check that the disk of a run directory has enough space. Returns warnings. Raises UsageError if it has not.

    The run keeps ``keep`` checkpoints of the size of ``checkpoint``. ``holds_state``: whether the shards store their
    state here.
    """
    free = shutil.disk_usage(directory.path).free
    needed = needed_bytes(directory, checkpoint, keep, holds_state=holds_state)
    if free < needed:
        raise UsageError(
            f"the disk of {directory.path} has {size(free)} left, but this run needs {size(needed)}: free some space, "
            f"or {ANOTHER}."
        )
    return [f"the disk of {directory.path} has only {size(free)} left"] if free < needed + LOW_DISK_BYTES else []


def needed_bytes(directory: RunDirectory, checkpoint: Checkpoint, keep: int, *, holds_state: bool) -> int:
    """The bytes that a run will write to its directory: checkpoints, the state of shards, and logs."""
    # A new checkpoint is written before the oldest one is removed.
    new = max(1, keep + 1 - len(checkpoints(directory.checkpoints)))
    needed = new * sum(map(len, checkpoint.states)) + LOGS_BYTES
    if holds_state:
        needed += sum(store_bytes(cut.count, checkpoint.state_names) for cut in checkpoint.layout.slices)
    return needed


def check_ports(config: Config) -> None:
    """Raise UsageError for the first port that is in use, or for an address that this machine does not have."""
    for port in (config.ports() or range(1))[: 3 * config.shards]:
        if not config.wire.tcp:
            return
        with host_socket.socket() as probe:
            probe.setsockopt(host_socket.SOL_SOCKET, host_socket.SO_REUSEADDR, 1)
            try:
                probe.bind((config.wire.address, port))
            except OSError as error:
                why = cannot_listen(error, config.wire.address, port)
                raise UsageError(f"{why}: choose another --wire.port-range or address.") from error


def _supervise(
    config: Config,
    directory: RunDirectory,
    checkpoint: Checkpoint,
    flavour: str,
    deployment: Deployment,
    news: Sequence[str],
    exporter: Exporter | None,
    on_up: Callable[[RunDirectory], None] | None,
    screen: Console,
    stages: Stages,
) -> int:
    console = LoggedConsole(screen, directory.log("supervisor"))
    commit()  # cached for the summary: the files can change later
    supervisor = None

    def leave() -> None:
        if on_up is not None:
            console.hide()
            on_up(directory)

    try:
        with _tracebacks_to(console.log):
            for text in news:
                console.notice(text)
            session = supervisor = Supervisor(
                config, directory, checkpoint, flavour, console, deployment, exporter, leave, stages
            )
            with correcting(directory.summary, lambda: session.is_connected):
                with _interrupts(supervisor):
                    reason = supervisor.run()
                if config.profile:
                    _trace(config, directory, checkpoint, supervisor.tasks.run, console.notice)
        console.notice(f"ended ({reason}) at version {supervisor.checkpoint.version}; see {as_text(directory.summary)}")
    except KeyboardInterrupt:  # a second Ctrl-C while the run was ending
        if supervisor is not None and supervisor.saved:
            console.notice(
                f"ended (interrupted) at version {supervisor.checkpoint.version}; see {as_text(directory.summary)}"
            )
        raise
    except ZmqrlError as error:  # the caller prints it
        console.log(f"failed: {error}")
        raise
    except OSError as error:
        console.log(traceback.format_exc())
        if supervisor is None or not supervisor.is_up:
            raise
        raise ClusterError(refusal(error, directory.path)) from error
    finally:
        console.close()
    if reason != "interrupted":
        return 0
    return TIME_IS_UP if supervisor.asked_to_end == {signal.SIGUSR1} else INTERRUPTED


def _trace(config: Config, directory: RunDirectory, start: Checkpoint, run: str, notice: Callable[[str], None]) -> None:
    """Write the trace of the first versions of the session with the id ``run``, from the checkpoint ``start``."""
    assert config.profile is not None
    traced = range(start.version, start.version + config.profile)
    tables = RunTables.read(directory.profile, traced).of_session(run)
    for text in write_trace(tables, directory.trace, traced, arrows=config.mode == "sync"):
        notice(text)
    notice(f"trace written to {as_text(directory.trace)}: open it in https://ui.perfetto.dev")


@contextlib.contextmanager
def _tracebacks_to(log: Callable[[str], None]) -> Iterator[None]:
    """Write errors in threads of libraries, such as a tracker's, to the log instead of standard error."""

    def keep(failed: Any) -> None:
        log("".join(traceback.format_exception(failed.exc_type, failed.exc_value, failed.exc_traceback)))

    before = threading.excepthook, sys.unraisablehook
    threading.excepthook = sys.unraisablehook = keep
    try:
        yield
    finally:
        threading.excepthook, sys.unraisablehook = before


@contextlib.contextmanager
def _interrupts(supervisor: Supervisor) -> Iterator[None]:
    """Handle signals in the block. The first Ctrl-C requests a checkpoint and a clean end.

    The second Ctrl-C ends everything at once. Further ones are ignored, because they would disturb the clean-up. TERM,
    HUP and USR1 act like a single Ctrl-C, even if repeated. HUP stays ignored if it was ignored when zmqrl started.
    """

    def interrupt(number: int, frame: FrameType | None) -> None:
        supervisor.asked_to_end.add(number)
        if number != signal.SIGINT and supervisor.interrupts:
            return
        supervisor.interrupts += 1
        if supervisor.interrupts == 2:
            raise KeyboardInterrupt

    hang_ups = () if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN else (signal.SIGHUP,)
    old = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM, *hang_ups)}
    try:
        yield
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
