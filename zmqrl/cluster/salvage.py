"""What a killed run has left in the slots of its shards: the newest version that all of them hold, as a checkpoint."""

import contextlib
import dataclasses
import json
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from zmqrl.checkpoint import Checkpoint
from zmqrl.cluster.agents import Agents
from zmqrl.cluster.checkpointer import Checkpointer
from zmqrl.cluster.deployment import Deployment, Site, on_this_machine
from zmqrl.cluster.launcher import Exited, Said
from zmqrl.cluster.link import Link
from zmqrl.cluster.mirror import Mirror
from zmqrl.cluster.plan import Plan
from zmqrl.cluster.ssh import connect
from zmqrl.config import Config
from zmqrl.errors import ClusterError, UsageError
from zmqrl.observe.metrics import SCORES_KEPT, Counters
from zmqrl.observe.records import RunRecord
from zmqrl.ps import messages as m
from zmqrl.ps.control import ShardControl
from zmqrl.rundir import RunDirectory

START_WITHIN_S = 60.0
GREET_WITHIN_S = 20.0
HOME_WITHIN_S = 30.0
COUNTED_BY_SHARDS = ("late", "duplicate", "rejected")


def salvage(directory: RunDirectory, checkpoint: Checkpoint, notice: Callable[[str], None]) -> Checkpoint:
    """A checkpoint of the newest version that all shards of a run that could not end still hold.

    It is ``checkpoint``, the newest there is, where that is no older, and where the state of the shards cannot be had;
    ``notice`` is told of either.
    """
    if not directory.left.exists():
        return checkpoint
    try:
        newest = _newest(directory, checkpoint)
    except (ClusterError, UsageError) as error:
        notice(f"what was learned after version {checkpoint.version} is lost: {error}")
        return checkpoint
    directory.left.unlink()
    if newest is not checkpoint:
        notice(f"all shards still held version {newest.version}: it is a checkpoint now")
    return newest


def _newest(directory: RunDirectory, checkpoint: Checkpoint) -> Checkpoint:
    """Let the shards come up once more, under the id of their run, and take a checkpoint of what they hold."""
    try:
        left = json.loads(directory.left.read_text(encoding="utf-8"))
        run, config = left["run"], dataclasses.replace(Config.from_json(left["config"]), profile=None)
        deployment = _where_it_was(left, config, directory)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ClusterError(f"{directory.left} cannot be read: {error!r}.") from error
    with contextlib.closing(deployment.launcher) as launcher:

        def look() -> None:
            _look(launcher)

        plan = Plan(config, directory, checkpoint.layout, deployment, run=run)
        with _shards_up(plan, launcher) as control:
            generation, version = in_common(control.greet(range(checkpoint.layout.shards), within_s=GREET_WITHIN_S))
            if version <= checkpoint.version:
                return checkpoint
            if away := deployment.files.bring_home(launcher.take_in, within_s=HOME_WITHIN_S):
                raise ClusterError(f"the histories of the shards cannot be brought home from {', '.join(away)}.")
            counters = counters_at(version, checkpoint, directory).to_json()
            checkpointer = Checkpointer(
                control, directory, checkpoint, every_s=0, keep=config.checkpoint.keep, due_at=0
            )
            return checkpointer.take_now(
                dict.fromkeys(range(checkpoint.layout.shards), version), generation, counters, time.monotonic(), look
            )


def _where_it_was(left: Mapping[str, Any], config: Config, directory: RunDirectory) -> Deployment:
    """The hosts that have the state of the shards. Raises ClusterError that names those which cannot be reached."""
    if all(each["lease_s"] is None for each in left["hosts"]):
        return on_this_machine(config, directory)
    hosts = {each["host"]: each for each in left["hosts"]}
    shards = {f"shard-{each['shard']}": each for each in left["shards"]}
    host_of = {name: each["host"] for name, each in shards.items()}
    links = {host: Link.from_dict(hosts[host]) for host in sorted(set(host_of.values()))}
    failed = connect(list(links.values()))
    if failed:
        for link in links.values():
            link.cut()
        raise ClusterError("; ".join(f"{host}: {why}" for host, why in failed.items()))
    places = {host: RunDirectory(Path(link.up["work"])) for host, link in links.items() if link.up is not None}
    sites = {
        name: Site(host=each["host"], directory=places[each["host"]], address=str(urlsplit(each["control"]).hostname))
        for name, each in shards.items()
    }
    files = Mirror(links, directory, host_of)
    launcher = Agents(links, lambda name: host_of[name], files=files)
    return Deployment(launcher=launcher, sites=sites, threads=dict.fromkeys(shards, 1), files=files)


@contextlib.contextmanager
def _shards_up(plan: Plan, launcher: Agents) -> Iterator[ShardControl]:
    """All shards of ``plan``, started and bound. Raises ClusterError."""
    shards = range(plan.layout.shards)
    for shard in shards:
        launcher.start(plan.shard_task(shard, None))
    endpoints: dict[str, str] = {}
    deadline = time.monotonic() + START_WITHIN_S
    while len(endpoints) < len(shards):
        endpoints |= _look(launcher)
        if time.monotonic() >= deadline:
            missing = ", ".join(f"shard {shard}" for shard in shards if f"shard-{shard}" not in endpoints)
            raise ClusterError(f"{missing} did not come up within {START_WITHIN_S:g} s.")
        time.sleep(0.02)
    with contextlib.closing(plan.control([endpoints[f"shard-{shard}"] for shard in shards])) as control:
        yield control


def _look(launcher: Agents) -> dict[str, str]:
    """The control endpoints of the shards that have come up. Raises ClusterError when one has died."""
    endpoints = {}
    for event in launcher.poll():
        match event:
            case Said(facts={"endpoints": {"control": str(endpoint)}}):
                endpoints[event.name] = endpoint
            case Exited():
                raise ClusterError(f"{event.name} died ({event.how()}): {' '.join(event.log_tail.splitlines()[-1:])}")
    return endpoints


def in_common(welcomes: Mapping[int, m.Welcome]) -> tuple[int, int]:
    """Generation and version that all shards hold. Raises ClusterError when there is none."""
    empty = [f"shard {shard}" for shard, welcome in sorted(welcomes.items()) if welcome.state == "empty"]
    if empty:
        raise ClusterError(f"{', '.join(empty)} of {len(welcomes)} found no state of this run.")
    if len({welcome.generation for welcome in welcomes.values()}) > 1:
        raise ClusterError("the shards were on their way back to a checkpoint.")
    versions = [welcome.version for welcome in welcomes.values()]
    if max(versions) - min(versions) > 1:  # a shard holds its newest version and the one before
        raise ClusterError(f"the shards hold no version in common: they are at {min(versions)} to {max(versions)}.")
    return next(iter(welcomes.values())).generation, min(versions)


def counters_at(version: int, checkpoint: Checkpoint, directory: RunDirectory) -> Counters:
    """The figures of the run at ``version``, after ``checkpoint``, as far as its files tell them.

    Contributions are counted in the histories. The rest is of the newest row of ``metrics.jsonl``, a second old at
    most; steps and time are carried on to ``version`` at their mean per version. Of the last games only the mean score
    is known: it stands for each of them.
    """
    start = Counters.from_json(checkpoint.counters) if checkpoint.counters else Counters()
    contributions = dict(start.contributions)
    for shard in range(checkpoint.layout.shards):
        for line in _lines(directory.history(shard)):
            if checkpoint.version < line["version"] <= version:
                contributions["used"] += len(line["ranks"])
                for outcome in COUNTED_BY_SHARDS:
                    contributions[outcome] += line[outcome]
    rows = [row for row in RunRecord.read(directory.path).rows if checkpoint.version < row["version"] <= version]
    last = rows[-1] if rows else start.to_json()
    carry_on = version / last["version"] if last["version"] else 1.0
    scores = start.scores
    if rows and last["score_mean_50"] is not None:
        scores = (last["score_mean_50"],) * min(SCORES_KEPT, last["episodes"])
    return Counters(
        version=version,
        agent_steps=round(last["agent_steps"] * carry_on),
        abandoned_steps=last["abandoned_steps"],
        episodes=last["episodes"],
        wall_s=last["wall_s"] * carry_on,
        contributions=contributions | {"skipped": last["contributions"]["skipped"]},
        scores=scores,
    )


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    """The whole lines of a history; none if it is not here."""
    with contextlib.suppress(FileNotFoundError):
        yield from map(json.loads, path.read_bytes().rpartition(b"\n")[0].splitlines())
