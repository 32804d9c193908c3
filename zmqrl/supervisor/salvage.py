"""Salvages a killed run: makes a checkpoint of the newest version that all shards still hold in their slots."""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

from zmqrl.checkpoint import Checkpoint
from zmqrl.config import Config
from zmqrl.errors import ClusterError, UsageError, ZmqrlError
from zmqrl.hostd.messages import SAME_MACHINE
from zmqrl.hosts.daemons import DaemonLauncher
from zmqrl.hosts.deployment import Deployment, Site, connected, on_this_machine
from zmqrl.hosts.events import Exited, Said
from zmqrl.hosts.inventory import read_hosts
from zmqrl.hosts.link import Link
from zmqrl.hosts.mirror import Mirror
from zmqrl.hosts.ways.slurm import is_over
from zmqrl.json_lines import read_json
from zmqrl.observe.forms import HOSTS, ROW, read_object, readable_lines
from zmqrl.observe.metrics import SCORES_KEPT, Counters, summed
from zmqrl.observe.records import lineage
from zmqrl.process_id import ProcessId, shard_id, worker_id
from zmqrl.ps.control import ShardControl, bring_up
from zmqrl.ps.shard import START_WITHIN_S
from zmqrl.ps.shard.history import damaged_originals, last_version, missing_lines, read_lines, removed_lines
from zmqrl.ps.wire import messages as m
from zmqrl.ps.wire.sockets import ShardUp
from zmqrl.rundir import RunDirectory
from zmqrl.supervisor.checkpointer import Checkpointer
from zmqrl.supervisor.tasks import RunTasks

TRIES = 3
PAUSE_S = 1.0
GREET_WITHIN_S = 20.0
OLD_HOST_UP_WITHIN_S = 10.0  # for a host that is needed only to copy and remove its old files

TellUser = Callable[[str], None]


class Gone(ClusterError):
    """The state of a shard no longer exists."""


class Damaged(ClusterError):
    """The state of the shards exists, but cannot become a checkpoint here. Another try would fail, too."""


def salvage(directory: RunDirectory, checkpoint: Checkpoint, notice: TellUser) -> Checkpoint:
    """Make a checkpoint of the newest version that all shards of a killed run still hold.

    Returns ``checkpoint``, the newest so far, if the shards hold nothing newer. If the state of a shard no longer
    exists, calls ``notice`` and returns ``checkpoint``, too. Raises ClusterError if the state may exist but cannot be
    read now. The state then stays untouched for another try.
    """
    if not directory.left.exists():
        return checkpoint
    for tries_left in reversed(range(TRIES)):
        try:
            return _newest(directory, checkpoint, notice)
        except Gone as gone:
            shards = range(checkpoint.layout.shards)
            if any(last_version(directory.history(shard)) != checkpoint.version_of(shard) for shard in shards):
                notice(f"everything after version {checkpoint.version} is lost: {gone}")
            _forget_state(directory)
            break
        except (ZmqrlError, OSError) as error:
            if tries_left == 0 or isinstance(error, Damaged):
                again = "" if isinstance(error, Damaged) else "try --resume again, or "
                raise ClusterError(
                    f"cannot read the state of the killed run: {str(error).rstrip('.')}. The state is kept "
                    f"{_whereabouts(directory)}: {again}remove {directory.left} to resume from "
                    f"checkpoint {checkpoint.name} and lose everything after it."
                ) from error
            notice(f"cannot read the state of the killed run yet: {error}")
            time.sleep(PAUSE_S)
    return checkpoint


def _forget_state(directory: RunDirectory) -> None:
    """Remove ``left.json``: the state of the shards is no longer needed.

    If the run had other hosts, keep the file as ``old-hosts.json``: those hosts may still have files of the run.
    """
    with contextlib.suppress(ClusterError):
        if not _Left.read(directory.left).is_here:
            directory.left.replace(directory.old_hosts)
            return
    directory.left.unlink()


def remove_files(directory: RunDirectory, notice: TellUser, but: Mapping[str, Link] | None = None) -> None:
    """Remove the files of the killed run from all its hosts. Call this after :func:`salvage`.

    Leaves out the directories that the links ``but`` of the resumed run use. First copies files that this machine
    lacks, such as videos. ``notice`` reports hosts that keep files.
    """
    try:
        left = _Left.read(directory.old_hosts)
    except (ClusterError, OSError):
        return
    used = but or {}
    links = {host: link for host, link in left.links.items() if host not in used or not _is_same(link, used[host])}
    for link in links.values():
        link.up_within_s = OLD_HOST_UP_WITHIN_S
    files = Mirror(links, directory, left.host_of)
    with connected(links, left.host_of, files) as hosts:
        away = files.copy_back(hosts.launcher.receive)
        files.clean(whole=True, but=away)
        for text in files.take_news():
            notice(text)
        for host in away:
            why = hosts.failed.get(host, "they could not be copied to this machine")
            # A node of a job that has ended, or the second name of a host, needs no notice.
            if not (is_over(why) or SAME_MACHINE in why):
                notice(f"{host}: files of the killed run are still in {links[host].to_dict()['work']}: {why}")
    directory.old_hosts.unlink()


def _is_same(old: Link, new: Link) -> bool:
    """Whether two links to a host use the same directory there. A link to a lost host has only its name."""
    ours, theirs = Path(old.work), Path(new.to_dict()["work"])
    return ours == theirs if ours.is_absolute() and theirs.is_absolute() else ours.name == theirs.name


def _newest(directory: RunDirectory, checkpoint: Checkpoint, notice: TellUser) -> Checkpoint:
    """Start frozen shards under the id of the old run, and make a checkpoint of the versions that they hold."""
    left = _Left.read(directory.left)
    originals = {shard: damaged_originals(directory.history(shard)) for shard in range(checkpoint.layout.shards)}
    config = left.config
    with _where_it_was(left, directory) as deployment:
        launcher = deployment.launcher

        def look() -> None:
            _look(launcher)

        tasks = RunTasks(config, directory, checkpoint.layout, deployment, run=left.run)
        with _frozen_shards(tasks, launcher, notice) as control:
            shards = range(checkpoint.layout.shards)
            welcomes = control.greet(shards, within_s=GREET_WITHIN_S, meanwhile=look)
            if away := deployment.files.copy_back(launcher.receive):
                raise ClusterError(f"cannot copy the histories of the shards from {', '.join(away)}.")
            for shard in shards:
                _tell_of_history(directory.history(shard), originals[shard], notice)
            made = {shard: last_version(directory.history(shard)) for shard in shards}
            found, versions = checkpoint, to_save(welcomes, made, checkpoint, together=config.mode == "sync")
            for shard, version in made.items():
                if version > welcomes[shard].version and versions is not None:
                    notice(f"version {version} of shard {shard} is lost: its state was damaged")
            if versions is not None:
                checkpointer = Checkpointer(
                    control=control, directory=directory, model=checkpoint, keep=config.checkpoint.keep
                )
                stats = checkpointer.capture(versions, look)
                counters = counters_at(min(versions.values()), stats, checkpoint, directory, notice).to_json()
                found = checkpointer.write(versions, welcomes[0].generation, counters)
                low, high = min(versions.values()), max(versions.values())
                which = f"version {low}" if low == high else f"versions {low} to {high}"
                notice(f"saved {which} of the shards as a checkpoint")
            _forget_state(directory)
            deployment.files.remove_state()
    return found


def _tell_of_history(history: Path, originals: Collection[Path], notice: TellUser) -> None:
    """Report missing and unreadable lines of a history to the user. The shard writes them only to its own log."""
    for original in sorted(damaged_originals(history) - set(originals)):
        notice(f"{history}: {removed_lines(original)}")
    after = 0
    for line in read_lines(history):
        version = line["version"]
        if version > after + 1:
            notice(f"{history}: {missing_lines(after + 1, version - 1)}")
        after = version


@dataclass(frozen=True, slots=True, kw_only=True)
class _Left:
    """The contents of ``left.json``, which a killed run leaves.

    ``launched_on`` is the name of the supervisor's machine, if known. ``shards`` has the host and the address of each
    shard, ``host_of`` the host of every process.
    """

    run: str
    config: Config
    links: Mapping[str, Link]
    launched_on: str | None
    shards: Mapping[ProcessId, tuple[str, str]]
    host_of: Mapping[ProcessId, str]

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read the file. Raises OSError, or Damaged."""
        try:
            data = read_json(path)
            shards = {
                shard_id(each["shard"]): (each["host"], str(urlsplit(each["control"]).hostname))
                for each in data["shards"]
            }
            found = cls(
                run=str(data["run"]),
                config=dataclasses.replace(Config.from_json(data["config"]), profile=None),
                links={each["host"]: Link.from_dict(each) for each in data["hosts"]},
                launched_on=data.get("supervisor", {}).get("host"),
                shards=shards,
                host_of={shard: host for shard, (host, _) in shards.items()}
                | {worker_id(each["rank"]): each["host"] for each in data.get("workers", [])}
                | {ProcessId.parse(each["name"]): each["host"] for each in data.get("followers", [])},
            )
            if found.config.shards != len(shards) or set(shards) != set(map(shard_id, range(len(shards)))):
                raise ValueError("it does not list all shards")
            if not (found.is_here or {host for host, _ in found.shards.values()} <= set(found.links)):
                raise ValueError("it does not list all hosts")
        except (ValueError, KeyError, TypeError, AttributeError, UsageError) as error:
            why = f"it has no valid {error}" if isinstance(error, KeyError) else str(error).rstrip(".")
            raise Damaged(f"{path} is damaged: {why}.") from error
        return found

    @property
    def is_here(self) -> bool:
        """Whether all processes of the run were on this machine."""
        return all(link.lease_s is None for link in self.links.values())


def _whereabouts(directory: RunDirectory) -> str:
    """Where the state of the shards is, as far as known, in words."""
    here = f"in {directory.path / 'state'}"
    with contextlib.suppress(ClusterError, OSError):
        left = _Left.read(directory.left)
        return here if left.is_here else f"on {', '.join(dict.fromkeys(host for host, _ in left.shards.values()))}"
    return f"{here}, or on the hosts of the run"


@contextlib.contextmanager
def _where_it_was(left: _Left, directory: RunDirectory) -> Iterator[Deployment]:
    """Deploy to the hosts with the state of the shards. Raises ClusterError, which names unreachable hosts."""
    if left.is_here:
        deployment = on_this_machine(left.config, directory)
        with contextlib.closing(deployment.launcher):
            yield deployment
        return
    host_of = {shard: left.host_of[shard] for shard in left.shards}
    links = {host: left.links[host] for host in dict.fromkeys(host_of.values())}
    variables = _variables(directory)
    for host, link in links.items():
        if link.is_elsewhere(left.launched_on):
            raise Damaged(f"{host} was the machine {left.launched_on}, which launched the run: resume it there.")
        link.environment |= variables.get(host, {})
    files = Mirror(links, directory, host_of)
    with connected(links, host_of, files) as hosts:
        if failed := hosts.failed:
            why = "; ".join(f"{host}: {words}" for host, words in failed.items())
            # The nodes of a Slurm job cannot be reached after its end.
            raise (Gone if all(map(is_over, failed.values())) else ClusterError)(why)
        directories = {host: RunDirectory(Path(link.up.work)) for host, link in links.items() if link.up is not None}
        sites = {
            shard: Site(host=host, directory=directories[host], address=address)
            for shard, (host, address) in left.shards.items()
        }
        yield Deployment(launcher=hosts.launcher, sites=sites, threads=dict.fromkeys(host_of, 1), files=files)


def _variables(directory: RunDirectory) -> dict[str, Mapping[str, str]]:
    """The environment variables in the hosts file of the killed run, by host. Nothing if the file cannot be read."""
    with contextlib.suppress(UsageError, LookupError, TypeError):
        given = (read_object(directory.hosts, HOSTS, "") or {})["given"]
        if given["variables"]:
            return {host.name: host.env for host in read_hosts(given["options"]["hosts"])}
    return {}


@contextlib.contextmanager
def _frozen_shards(tasks: RunTasks, launcher: DaemonLauncher, notice: TellUser) -> Iterator[ShardControl]:
    """Start all shards of ``tasks`` as frozen shards, which make no versions, and connect. Raises ClusterError."""
    up = bring_up(
        range(tasks.layout.shards),
        lambda shard: launcher.start(tasks.shard_task(shard, None, frozen=True)),
        lambda: _look(launcher),
        within_s=START_WITHIN_S,
    )
    with contextlib.closing(tasks.control([each.endpoints["control"] for each in up.values()], notice)) as control:
        yield control


def _look(launcher: DaemonLauncher) -> dict[int, ShardUp]:
    """The shards that came up since the last call. Raises ClusterError if a shard died."""
    up = {}
    for event in launcher.poll():
        match event:
            case Said(facts={"missing": str(path)}):
                raise Gone(f"there is no state in {path} on {launcher.host_of(event.process)}.")
            case Said():
                up[event.process.number] = ShardUp.from_json(event.facts)
            case Exited():
                last_line = " ".join(event.log_tail.splitlines()[-1:])
                raise ClusterError(f"{event.process} died ({event.how()}): {last_line}")
    return up


def to_save(
    welcomes: Mapping[int, m.Welcome], made: Mapping[int, int], checkpoint: Checkpoint, *, together: bool
) -> dict[int, int] | None:
    """The version of each shard to save as a checkpoint, or None if the shards hold nothing newer than ``checkpoint``.

    If ``together``, this is the newest version that all shards hold, else the newest of each shard. ``made`` has the
    last version in the history of each shard. Raises Damaged if newer versions existed but cannot be saved, and Gone if
    the run was rolling back to ``checkpoint``.
    """
    stands = {shard: made[shard] if each.state == "empty" else each.version for shard, each in welcomes.items()}
    if all(version <= checkpoint.version_of(shard) for shard, version in stands.items()):
        return None
    empty = [shard for shard, each in sorted(welcomes.items()) if each.state == "empty"]
    if empty:
        latest = made[empty[0]]
        newer = f"it had made version {latest}" if latest else f"other shards have made version {max(stands.values())}"
        raise Damaged(f"shard {empty[0]} has no intact version, but {newer}.")
    newest = max(each.generation for each in welcomes.values())
    if any(each.generation < newest for each in welcomes.values()):
        loaded = {shard: each.version for shard, each in welcomes.items() if each.generation == newest}
        if all(version == checkpoint.version_of(shard) for shard, version in loaded.items()):
            raise Gone(f"the shards were going back to version {checkpoint.version} when the run was killed.")
        raise Damaged("only some of its shards had gone back to a checkpoint when it was killed.")
    if not together:
        return stands
    lowest, highest = min(stands.values()), max(stands.values())
    if highest - lowest > 1:  # a shard holds only its newest version and the version before
        raise Damaged(f"the shards hold no version in common: they are at {lowest} to {highest}.")
    return dict.fromkeys(stands, lowest) if lowest > checkpoint.version else None


def counters_at(
    version: int, stats: Mapping[int, m.Stats], checkpoint: Checkpoint, directory: RunDirectory, notice: TellUser
) -> Counters:
    """Estimate the counters of the run at ``version``, after ``checkpoint``.

    Contributions come from the shards and are exact. All other counters come from the newest row of ``metrics.jsonl``,
    written at most a second before the end of the run. Steps and time are extrapolated to ``version`` with their means
    per version. Of the last games, only the mean score is known, so each gets this score.
    """
    start = Counters.from_json(checkpoint.counters)
    rows = lineage(readable_lines(directory.metrics, ROW, notice))
    since = [row for row in rows if checkpoint.version < row["version"] <= version]
    newest: dict[str, Any] = since[-1] if since else {}
    told = {name: value for name, value in newest.items() if isinstance(value, int | float)}
    last = start.to_json() | told
    carry_on = version / last["version"] if last["version"] else 1.0
    scores = start.scores
    if "score_mean_50" in told:
        scores = (told["score_mean_50"],) * min(SCORES_KEPT, int(last["episodes"]))
    contributions = summed(each.captured_totals for each in stats.values())
    skipped = newest.get("contributions", start.contributions).get("skipped", start.contributions["skipped"])
    return Counters(
        version=version,
        agent_steps=round(last["agent_steps"] * carry_on),
        abandoned_steps=int(last["abandoned_steps"]),
        episodes=int(last["episodes"]),
        wall_s=last["wall_s"] * carry_on,
        contributions=contributions | {"skipped": int(skipped)},
        scores=scores,
        compute=start.compute,
    )
