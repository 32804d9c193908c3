"""``zmqrl launch``: ``zmqrl train`` on several hosts, over ssh, through another command, or on the nodes of a job."""

import dataclasses
import hashlib
import shlex
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from zmqrl.commands.options import asks_for_help, parse_known
from zmqrl.commands.output import print_line
from zmqrl.commands.run import help
from zmqrl.commands.run.detach import detach, on_up
from zmqrl.commands.run.submit import LoginOptions, submit
from zmqrl.commands.run.train import RECIPE, config_from, default_of
from zmqrl.config import Config
from zmqrl.errors import UsageError
from zmqrl.hosts import preflight
from zmqrl.hosts.deployment import Deployment, Site, connect_and_place
from zmqrl.hosts.placement import place_run
from zmqrl.hosts.reach import HostOptions, Reach, check, over_tcp
from zmqrl.hosts.sync import PYTHON
from zmqrl.hosts.ways.login_node import Submitted
from zmqrl.hosts.ways.way import LOCALHOST
from zmqrl.observe.forms import HOSTS, read_object
from zmqrl.observe.provenance import VERSIONS
from zmqrl.observe.screen import never_waiting
from zmqrl.process import CORES, interruptible
from zmqrl.rundir import RunDirectory
from zmqrl.start.stages import Stages
from zmqrl.supervisor import requeue
from zmqrl.words import counted

OF_ONE_START: Final = ("requeue", "dry_run", "preflight")  # options that a bare --resume does not repeat
# A lease is renewed each second. A new daemon waits at most 20 s for the old one to end.
LEAST_LEASE_S, LONGEST_LEASE_S = 3.0, 12.0


@dataclass(frozen=True, kw_only=True)
class Options(HostOptions, LoginOptions):
    """Train on several hosts: the hosts of -H, the nodes of this job, or the nodes of a Ray cluster."""

    requeue: bool = False
    """Requeue the job when Slurm sends USR1 before the time limit. Its next start resumes the run."""
    dry_run: bool = False
    """Print what would start on which host, and start nothing. Does not check the game."""
    preflight: bool = True
    """Check the hosts first, as `zmqrl doctor` does, but not the bandwidth."""
    lease_s: float = 8.0
    """Seconds without contact after which a host ends its processes."""


def command(arguments: list[str]) -> int:
    if asks_for_help(arguments):
        groups = (*help.HOSTS, *help.RUN)
        default = over_tcp(default_of(arguments, Options))
        help.show(Options, default, f"zmqrl launch {RECIPE}", groups, help.LAUNCH)
        return 0
    options, rest = parse_known(Options, arguments, f"zmqrl launch {RECIPE}")
    settings = partial(config_from, adapt=over_tcp, program="zmqrl launch", own=Options)
    config = settings(rest)
    if options.slurm_login is not None:
        if any((options.hosts, options.ray, options.via, options.pbs, options.lsf)):
            raise UsageError("--slurm-login cannot be combined with -H, --via, --pbs, --lsf or --ray: remove these.")
        return submit(arguments, config)
    if options.sbatch or options.login_dir != LoginOptions.login_dir:
        raise UsageError("--sbatch and --login-dir require --slurm-login.")
    if options.requeue and not config.resume and requeue.is_begun(config):
        config = settings([*rest, "--resume"])
    if config.resume and not options.names_hosts:
        options = _as_before(options, config)
    if config.detach and options.requeue:
        raise UsageError("--detach and --requeue cannot be combined: the job ends with its script. Remove --detach.")
    return detach("launch", arguments) if config.detach else run(options, config)


@interruptible()
def run(options: Options, config: Config) -> int:
    if options.requeue and not options.slurm:
        raise UsageError("--requeue needs --slurm.")
    if options.ray is not None and config.device == "cuda":
        raise UsageError("--ray reserves no GPUs: use --device cpu.")
    if not LEAST_LEASE_S <= options.lease_s <= LONGEST_LEASE_S:
        raise UsageError(f"--lease-s {options.lease_s}: must be from {LEAST_LEASE_S:g} to {LONGEST_LEASE_S:g} seconds.")
    options = options.read()
    reach = options.reach()
    check(config, reach.hosts)
    job = None
    if options.requeue and reach.job is not None:
        job = requeue.check(reach.job, config)
    if options.dry_run:
        _print_plan(options, reach, config)
        return 0
    from zmqrl.supervisor.run import train_on  # errors, help and dry runs do not need it

    train = partial(train_on, config, partial(on_hosts, options, reach), on_up(), in_total=options.requeue)
    with never_waiting(), reach.reserved(config):
        return train() if reach.job is None else requeue.requeued(job, train)


def on_hosts(options: Options, reach: Reach, config: Config, directory: RunDirectory, stages: Stages) -> Deployment:
    """Connect to all hosts, and place the processes. Raises ClusterError, which names each failed host."""
    of_all = counted(len(reach.hosts), "host")
    if options.sync != "none":
        stages.at("installing", f"installing zmqrl on {of_all}")
    reach = options.bring(reach, config, print_line)
    with connect_and_place(
        reach,
        config,
        work=directory_name(directory, reach.home),
        lease_s=options.lease_s,
        home=directory,
        whole=False,
        clean=not config.resume,
        show=lambda connected: stages.at("connecting", f"connecting to {of_all}", connected, len(reach.hosts)),
        ending=lambda: stages.at("ending", f"ending the daemons on {of_all}"),
    ) as hosts:
        assert hosts.files is not None
        preflight.Judgement(hosts.unknown).check()
        if not config.resume:
            hosts.files.clean(whole=False)  # an earlier run may have used a directory of this name
        notices = hosts.placement.notices
        if options.preflight:
            stages.at("checking", f"checking {of_all}")
            judgement = preflight.judge(preflight.survey(hosts), config, hosts.placement)
            judgement.check()
            notices += tuple(judgement.warnings)
        directories = {name: RunDirectory(Path(up.work)) for name, up in hosts.up.items()}
        sites = {
            process: Site(host=host, directory=directories[host], address=hosts.addresses.get(host, host))
            for process, host in hosts.placement.host_of.items()
        }
        deployment = Deployment(
            launcher=hosts.launcher,
            sites=sites,
            threads=hosts.placement.threads,
            files=hosts.files,
            versions={name: {key: getattr(up, key) for key in VERSIONS} for name, up in hosts.up.items()},
            given=options.to_json(but=OF_ONE_START),
            notices=notices,
        )
        hosts.at_end.pop_all()  # from here on, the deployment has the launcher
        return deployment


def _as_before(options: Options, config: Config) -> Options:
    """The host options of an earlier session of the run, overridden by ``options``."""
    assert config.run_dir is not None
    if job := Submitted.read(config.run_dir):  # the record is from its login node, which must not choose hosts here
        raise UsageError(
            f"{config.run_dir} was submitted on {job.host}: add --slurm-login {job.host} to resume it there, "
            "or name hosts with -H."
        )
    path = RunDirectory(config.run_dir).hosts
    found = read_object(path, HOSTS, "name the hosts with -H")
    return options if found is None or found["given"] is None else options.resumed(found["given"], path)


def directory_name(directory: RunDirectory, home: str) -> str:
    """The name of a run's directory on every host, the same for all its sessions, and different for other runs.

    ``home`` is that of :class:`zmqrl.hosts.reach.Reach`.
    """
    identity = f"{home}:{directory.path}"
    return f"{directory.path.name}-{hashlib.sha256(identity.encode(errors='surrogateescape')).hexdigest()[:12]}"


def _print_plan(options: Options, reach: Reach, config: Config) -> None:
    """Print a dry run without contacting hosts.

    Assume a core for each given slot of a host, or else the cores of this machine.
    """
    cores = {host.name: reach.cores_given.get(host.name, host.slots or CORES) for host in reach.hosts}
    placement = place_run(config, reach.hosts, cores)
    hosts, first = reach.hosts, list[str]()
    if options.sync == "wheel":
        hosts = tuple(
            host if host.name == LOCALHOST else dataclasses.replace(host, python=host.python or PYTHON)
            for host in hosts
        )
        first = ["--sync makes an environment on each other host first; the commands there then use the Python in it:"]
    commands = [shlex.join(reach.command(host)) for host in hosts]
    lines = [placement.table(), *placement.notices, "", *first, *commands]
    sys.stdout.write("\n".join(lines) + "\n")
