"""One training run: checks the settings and the machine, then starts the supervisor."""

import contextlib
import dataclasses
import errno
import os
import signal
import socket as host_socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from zmqrl.checkpoint import Checkpoint
from zmqrl.config import Config
from zmqrl.errors import ClusterError, UsageError, ZmqrlError, naming, refusal
from zmqrl.hosts.deployment import Deployment, on_this_machine
from zmqrl.learner.envs import EnvSpec, try_env
from zmqrl.learner.networks import make_model
from zmqrl.learner.plugin import load_loss
from zmqrl.observe.console import LoggedConsole, console_for
from zmqrl.observe.exporter import Exporter, exporter_at
from zmqrl.observe.screen import never_waiting
from zmqrl.observe.trackers import check_installed
from zmqrl.page.beside import page_beside
from zmqrl.page.server import check_installed as check_page_installed
from zmqrl.process import interruptible, staying_here
from zmqrl.profile.recording import Recording
from zmqrl.profile.trace import write_trace
from zmqrl.ps.flat import FlatParameters
from zmqrl.ps.shard.optimizer import Optimizer
from zmqrl.recipes import remark
from zmqrl.rundir import ANOTHER, RunDirectory, write_json
from zmqrl.supervisor import resume
from zmqrl.supervisor.requeue import INTERRUPTED, TIME_IS_UP
from zmqrl.supervisor.salvage import salvage
from zmqrl.supervisor.supervisor import Supervisor


def train(config: Config) -> int:
    """Train on this machine. Returns the same exit statuses as :func:`train_on`. Raises ZmqrlError."""
    config.check()
    check_ports(config)
    if config.device == "cuda" and not torch.cuda.is_available():
        raise UsageError("--device cuda: torch sees no CUDA device on this machine.")
    with never_waiting():
        return train_on(config, on_this_machine)


def train_on(config: Config, deploy: Callable[[Config, RunDirectory], Deployment]) -> int:
    """Train on a deployment. Raises ZmqrlError.

    Returns 0 if the run reached a limit. Returns INTERRUPTED or TIME_IS_UP if an interrupt ended the run with a
    checkpoint.
    """
    config.check()
    config = config.with_schedule()
    check_installed(config.trackers)
    if config.page:
        check_page_installed()
    with staying_here():
        spec = try_env(config.env, config.envs)
        initial = initial_checkpoint(config, spec)
    path = config.run_dir or Path("runs") / f"{config.recipe}-{time.strftime('%Y%m%d-%H%M%S')}"
    directory = RunDirectory(path, new=config.run_dir is None)
    with exporter_at(config.metrics_place()) as exporter, _claimed(directory):
        config = dataclasses.replace(config, run_dir=path.with_name(directory.path.name))
        news = [f"run directory {directory.path}; scores: {config.env}, {spec.flavour}"]
        if told := remark(config):
            news.append(told)
        if config.resume:
            stored = Config.read(directory.config)
            resume.check_task(stored, config, spec.flavour, directory.path)
            checkpoint = salvage(directory, resume.newest_checkpoint(directory, initial), news.append)
            resume.check_unfinished(config, checkpoint, directory.path)
            resume.check_mode(config, checkpoint, directory.path)
            news.append(f"resuming from version {checkpoint.version}")
            if changes := resume.changes(stored, config):
                news.append(f"settings changed from here on: {', '.join(changes)}")
        elif directory.config.exists():
            raise UsageError(f"{path} already holds a run: choose another --run-dir, or add --resume to continue it.")
        else:
            checkpoint = initial
        if exporter is not None:
            news.append(f"figures for Prometheus: {exporter.url}")
        deployment = deploy(config, directory)
        with contextlib.closing(deployment.launcher):
            if not config.resume:
                with naming(directory.checkpoints):
                    initial.write(directory.checkpoints)
            for replaced in (directory.summary, directory.trace):
                if replaced.is_dir():
                    raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(replaced))
            write_json(directory.config, dataclasses.replace(config, resume=False).to_json())
            with page_beside(directory) if config.page else contextlib.nullcontext() as url:
                if url is not None:  # not a notice: the log of a run can have more readers than this screen
                    sys.stdout.write(f"live page: {url}\n")
                return _supervise(config, directory, checkpoint, deployment, [*news, *deployment.notices], exporter)


@contextlib.contextmanager
def _claimed(directory: RunDirectory) -> Iterator[None]:
    """Lock the run directory during the block, and turn errors into sentences. Raises ZmqrlError."""
    with interruptible():
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


def _logged(path: Path) -> str:
    """Log the traceback of the current error. Returns the last part of an error sentence, which names the log."""
    try:
        path.parent.mkdir(exist_ok=True)
        with path.open("a", encoding="utf-8", errors="backslashreplace") as log:
            log.write(traceback.format_exc())
    except OSError:
        return ""
    return f"; the traceback is in {path}"


def initial_checkpoint(config: Config, spec: EnvSpec) -> Checkpoint:
    """Version 0 of a run, with parameters drawn from its seed. Raises UsageError for contradictory settings."""
    config.algorithm.minibatch_samples(config.envs.num_envs)
    if config.loss is not None:
        load_loss(config.loss, config.algorithm)
    torch.manual_seed(config.seed)
    parameters = FlatParameters(make_model(config.model, spec.observation_shape, spec.num_actions, config.network))
    optimizer = Optimizer(config.optimizer)
    layout = parameters.layout(config.shards)
    return Checkpoint.initial(layout, parameters.vector(), config.optimizer.name, optimizer.state_names)


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
                in_use = error.errno == errno.EADDRINUSE
                what = f"port {port} is in use" if in_use else f"cannot bind {config.wire.address}:{port}"
                raise UsageError(f"{what} ({error.strerror}): choose another --wire.port-range or address.") from error


def _supervise(
    config: Config,
    directory: RunDirectory,
    checkpoint: Checkpoint,
    deployment: Deployment,
    news: Sequence[str],
    exporter: Exporter | None,
) -> int:
    console = LoggedConsole(console_for(sys.stdout), directory.log("supervisor"))
    supervisor = None
    try:
        for text in news:
            console.notice(text)
        supervisor = Supervisor(config, directory, checkpoint, console, deployment, exporter)
        with _interrupts(supervisor), _tracebacks_to(console.log):
            reason = supervisor.run()
        if config.profile:
            traced = range(checkpoint.version, checkpoint.version + config.profile)
            arrows = config.mode == "sync"
            recording = Recording.read(directory.profile, traced)
            for text in write_trace(recording, directory.trace, traced, arrows=arrows):
                console.notice(text)
            console.notice(f"trace written to {directory.trace}: open it in https://ui.perfetto.dev")
        console.notice(f"ended ({reason}) at version {supervisor.checkpoint.version}; see {directory.summary}")
    except KeyboardInterrupt:  # a second Ctrl-C while the run was ending
        if supervisor is not None and supervisor.saved:
            console.notice(f"ended (interrupted) at version {supervisor.checkpoint.version}; see {directory.summary}")
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


@contextlib.contextmanager
def _tracebacks_to(log: Callable[[str], None]) -> Iterator[None]:
    """Write errors in threads of libraries, such as a tracker's thread, to the log instead of standard error."""

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
    """Handle signals in the block. The first Ctrl-C requests a checkpoint and a clean end. The second Ctrl-C ends
    everything at once. A third Ctrl-C is ignored, because it would disturb that end. TERM and USR1 act like a single
    Ctrl-C, even when repeated.
    """

    def interrupt(number: int, frame: FrameType | None) -> None:
        supervisor.asked_to_end.add(number)
        if number != signal.SIGINT and supervisor.interrupts:
            return
        supervisor.interrupts += 1
        if supervisor.interrupts == 2:
            raise KeyboardInterrupt

    old = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
