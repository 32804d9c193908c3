"""``zmqrl launch --slurm-login``: submit a run to a Slurm cluster from another machine, and follow it over ssh."""

import contextlib
import re
import shlex
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import tyro

from zmqrl.commands.inspect.follow import follow
from zmqrl.commands.options import parse_known
from zmqrl.commands.output import print_line
from zmqrl.commands.run.train import with_run_dir
from zmqrl.config import Config
from zmqrl.errors import ClusterError, UsageError, require
from zmqrl.hosts.inventory import Host
from zmqrl.hosts.sync import extras_of_game, make_environments
from zmqrl.hosts.ways.login_node import OVER, LoginNode, Submitted, Unanswered, check_login_host, job_script
from zmqrl.hosts.ways.way import command_on
from zmqrl.local.extras import require_extra
from zmqrl.process import interruptible
from zmqrl.recipes import run_name
from zmqrl.rundir import RunDirectory, holds_a_run, new_path
from zmqrl.words import as_text, as_word, is_utf8

# As in launch/slurm/train.sbatch; options of the user come later and win.
SBATCH = ("--ntasks-per-node=1", "--signal=B:USR1@180", "--requeue", "--open-mode=append")


@dataclass(frozen=True, kw_only=True)
class LoginOptions:
    """The options of `zmqrl launch` for a Slurm cluster that is reached over ssh."""

    slurm_login: Annotated[str | None, tyro.conf.arg(metavar="HOST")] = None
    """Submit the run as a Slurm job on this login node, over ssh, and follow it."""
    sbatch: str = ""
    """Options of sbatch, such as --sbatch='--nodes 4 --cpus-per-task 16'."""
    login_dir: str = "runs"
    """Directory on the login node for run directories. All nodes must see it."""


@dataclass(frozen=True, kw_only=True)
class _Here(LoginOptions):
    """The options of `zmqrl launch` that are not passed on to the job."""

    ssh_config: Path | None = None
    sync: Literal["none", "wheel"] = "none"
    offline: bool = False
    run_dir: Path | None = None
    slurm: bool = False
    requeue: bool = False
    detach: bool = False
    dry_run: bool = False


@interruptible()
def submit(arguments: list[str], config: Config) -> int:
    """Submit a run with the settings ``config`` and follow it. Returns its exit status. Raises ZmqrlError."""
    here, rest = parse_known(_Here, with_run_dir(arguments), "zmqrl launch")
    assert here.slurm_login is not None
    require(not (here.slurm or here.requeue), "--slurm-login implies --slurm and --requeue: remove these.")
    check_login_host(here.slurm_login, "--slurm-login")
    require(not here.offline or here.sync == "wheel", "--offline requires --sync wheel.")
    try:
        given = shlex.split(here.sbatch)
    except ValueError as error:
        raise UsageError(f"--sbatch {here.sbatch!r}: {str(error).lower()}.") from error
    is_array = any(re.fullmatch("-a.*|--array(=.*)?", word) for word in given)
    require(not is_array, f"--sbatch {here.sbatch!r}: a run is a single job: remove the array.")
    config.check()
    require(  # the log of the job, which other users of the cluster may be able to read, would have the token
        not config.page,
        "--slurm-login cannot be combined with --page, whose address would be on a node of the cluster: "
        "use `zmqrl serve RUN` here instead.",
    )
    run = here.run_dir or new_path(run_name(config))
    for word in (*rest, run.name, here.login_dir, *given):
        require(is_utf8(word), f"{as_word(word)} cannot be sent to {here.slurm_login}: it is not UTF-8 text.")
    if here.run_dir is not None and RunDirectory(run).config.exists() and not config.resume:
        raise holds_a_run(run)
    if here.dry_run:
        _print_plan(here, given, rest, run.name)
        return 0
    host, python = Host(name=here.slurm_login), sys.executable
    if here.sync == "wheel":
        way = partial(command_on, ssh_config=here.ssh_config)
        for tracker in config.trackers:  # the supervisor runs there
            require_extra(tracker, f"--trackers {tracker} with --sync wheel needs")
        extras = (*extras_of_game(config.env, config.envs), *config.trackers)
        python = make_environments([host], way, print_line, {}, extras=extras, offline=here.offline)[host.name]
    with LoginNode(host.name, here.ssh_config) as node, contextlib.ExitStack() as unused:
        if here.run_dir is None:
            run, directory, name = _new_run(node, run, here.login_dir, unused)
            read = 0
        else:
            _refuse_a_second_job(node, run)
            name = run.name
            directory, read = node.make_directory(here.login_dir, name)
            run.mkdir(parents=True, exist_ok=True)
        script = job_script(python, [*rest, "--run-dir", f"{directory}/{name}"])
        not_submitted = unused.pop_all()  # an interrupted sbatch may have submitted the job
        perhaps = f"The job may have been submitted: `squeue --name {as_word(name)}` on {host.name} shows it."
        try:
            number, cluster = node.submit(sbatch_options(directory, name, given), script)
        except KeyboardInterrupt:
            print_line(perhaps)
            raise
        except Unanswered as error:
            raise Unanswered(f"{error} {perhaps}") from error
        except ClusterError:
            not_submitted.close()
            raise
        job = Submitted(
            host=host.name,
            ssh_config=None if here.ssh_config is None else str(here.ssh_config.absolute()),
            job=number,
            cluster=cluster,
            run_dir=f"{directory}/{name}",
            log=f"{directory}/{name}.log",
            earlier=RunDirectory(run).summary_digest(),
        )
        try:
            job.write(run)
        except BaseException:  # without this file, no command could show or stop the job
            node.ask_to_stop(job, has_begun=False)
            raise
        print_line(f"submitted job {job.job} on {job.host}; run directory: {as_text(run)} here, {job.run_dir} there")
        if here.detach:
            print_line(f"  zmqrl attach {as_word(run)}  # show it, and fetch its files")
            return 0
        return follow(node, job, run, read=read, stops=True)


def _new_run(node: LoginNode, run: Path, login_dir: str, unused: contextlib.ExitStack) -> tuple[Path, str, str]:
    """Take a name for a new run, the same here and there. If another run has that name, add a number to it.

    Returns the new directory here, the absolute path of ``login_dir``, and the name. ``unused`` gets what undoes this.
    """
    run.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as skipped:  # names that are taken here: the login node must not offer them again
        while True:
            directory, name = node.take_name(login_dir, run.name)
            with contextlib.ExitStack() as taken:
                taken.callback(_give_back, node, directory, name)
                numbered = run.with_name(name)
                try:
                    numbered.mkdir()
                except FileExistsError:
                    skipped.push(taken.pop_all())
                    continue
                taken.callback(_remove, numbered)
                unused.push(taken.pop_all())
                return numbered, directory, name


def _give_back(node: LoginNode, directory: str, name: str) -> None:
    with contextlib.suppress(ClusterError):
        node.give_back(directory, name)


def _remove(directory: Path) -> None:
    with contextlib.suppress(OSError):
        directory.rmdir()


def _refuse_a_second_job(node: LoginNode, run: Path) -> None:
    """Raise UsageError if an earlier job of the run has not ended."""
    job = Submitted.read(run)
    if job is not None and job.host == node.host and (state := node.state(job)) not in OVER:
        raise UsageError(
            f"job {job.job} of {as_text(run)} has not ended ({state}): `zmqrl attach {as_word(run)}` shows it, and "
            f"`zmqrl stop {as_word(run)}` ends it."
        )


def sbatch_options(directory: str, name: str, given: list[str]) -> list[str]:
    """The options of sbatch for a run ``name`` below ``directory``. The user's own, ``given``, override the others,
    except the path of the log, which :func:`follow` reads.
    """
    log = f"{directory}/{name}.log".replace("%", "%%")  # Slurm replaces %j and the like
    return [*SBATCH, f"--job-name={name}", f"--chdir={directory}", *given, f"--output={log}"]


def _print_plan(here: _Here, given: list[str], rest: list[str], name: str) -> None:
    """Print a dry run without contacting the login node."""
    script = job_script(sys.executable, [*rest, "--run-dir", f"{here.login_dir}/{name}"])
    command = ["sbatch", *sbatch_options(here.login_dir, name, given)]
    sys.stdout.write(f"on {here.slurm_login}: {shlex.join(command)}\n\n{script}")
