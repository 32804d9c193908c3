"""What can be had of a killed run from the slots of its shards, and with what figures. Whole runs: test_run_faults."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from record_rig import row, run_directory

from zmqrl.checkpoint import Checkpoint
from zmqrl.cluster.salvage import counters_at, in_common, salvage
from zmqrl.errors import ClusterError
from zmqrl.observe.metrics import OUTCOMES, SCORES_KEPT, Counters
from zmqrl.ps import messages as m
from zmqrl.ps.partition import Layout
from zmqrl.recipes import cartpole
from zmqrl.rundir import RunDirectory, write_json

LAYOUT = Layout.of([("w", (40,))], 2)


def checkpoint(version: int, counters: dict[str, Any]) -> Checkpoint:
    return Checkpoint(
        layout=LAYOUT,
        generation=1,
        version=version,
        optimizer="sgd",
        state_names=(),
        states=tuple(np.zeros(cut.count, "<f4").tobytes() for cut in LAYOUT.slices),
        counters=counters,
    )


def welcome(shard: int, version: int, **fields: Any) -> m.Welcome:
    about: dict[str, Any] = {"run": "r", "incarnation": 1, "generation": 2, "view": 1, "quorum": 1, "members": (0,)}
    about |= {"codec": "f32", "state": "open", "published": True, **fields}
    return m.Welcome(shard=shard, version=version, **about)


def test_the_newest_version_in_common_is_the_lower_of_two_that_follow_each_other() -> None:
    assert in_common({0: welcome(0, 7), 1: welcome(1, 7)}) == (2, 7)
    assert in_common({0: welcome(0, 8), 1: welcome(1, 7)}) == (2, 7)


@pytest.mark.parametrize(
    ("other", "why"),
    [
        (welcome(1, 0, state="empty"), "shard 1 of 2 found no state of this run."),
        (welcome(1, 8, generation=1), "the shards were on their way back to a checkpoint."),
        (welcome(1, 5), "the shards hold no version in common: they are at 5 to 7."),
    ],
)
def test_without_a_version_in_common_it_is_said_why(other: m.Welcome, why: str) -> None:
    with pytest.raises(ClusterError, match=why):
        in_common({0: welcome(0, 7), 1: other})


def test_the_figures_are_those_of_the_histories_and_of_the_newest_row(tmp_path: Path) -> None:
    directory = RunDirectory(run_directory(tmp_path / "run", [row(1), row(2), row(4, episodes=30, abandoned_steps=5)]))
    (directory.path / "history").mkdir()
    for shard in range(2):
        lines = [{"version": v, "ranks": [0, 1], "late": shard, "duplicate": 0, "rejected": 1} for v in range(1, 45)]
        directory.history(shard).write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"version": 4')
    before = dict(dict.fromkeys(OUTCOMES, 0), used=80, late=3)
    start = Counters(version=20, agent_steps=2000, wall_s=2.0, contributions=before, scores=(1.0, 2.0))
    counters = counters_at(42, checkpoint(20, start.to_json()), directory)
    assert counters.contributions == {"used": 80 + 2 * 2 * 22, "late": 3 + 22, "duplicate": 0, "rejected": 44} | {
        "skipped": 0
    }
    assert (counters.version, counters.agent_steps, counters.abandoned_steps, counters.episodes) == (42, 4200, 5, 30)
    assert counters.wall_s == pytest.approx(4.2)
    assert counters.scores == (4.0,) * 30
    assert len(counters_at(40, checkpoint(20, {}), directory).scores) <= SCORES_KEPT


def test_without_a_row_since_the_checkpoint_its_own_figures_are_carried_on(tmp_path: Path) -> None:
    directory = RunDirectory(run_directory(tmp_path / "run", [row(1), row(2)]))
    start = Counters(version=20, agent_steps=2000, wall_s=2.0, scores=(1.0, 2.0))
    counters = counters_at(21, checkpoint(20, start.to_json()), directory)
    assert (counters.version, counters.agent_steps, counters.scores) == (21, 2100, (1.0, 2.0))
    assert counters_at(3, checkpoint(0, {}), RunDirectory(run_directory(tmp_path / "new"))).agent_steps == 0


@pytest.mark.parametrize("left", ["{", "[]", "{}", '{"run": "r", "config": {"nonsense": 1}}'])
def test_what_cannot_be_read_of_a_killed_run_costs_the_versions_after_the_checkpoint(tmp_path: Path, left: str) -> None:
    directory, news = RunDirectory(tmp_path), list[str]()
    newest = checkpoint(20, {})
    assert salvage(directory, newest, news.append) is newest
    assert news == []
    directory.left.write_text(left)
    assert salvage(directory, newest, news.append) is newest
    assert news[0].startswith("what was learned after version 20 is lost: ")


def test_a_host_that_cannot_be_reached_any_more_is_named_and_what_leads_to_it_stays(tmp_path: Path) -> None:
    directory, news = RunDirectory(tmp_path), list[str]()
    host = {"host": "h9", "command": ["false"], "work": "run", "lease_s": 8.0}
    shards = [{"shard": shard, "host": "h9", "control": f"tcp://10.0.0.1:{9000 + shard}"} for shard in range(2)]
    write_json(directory.left, {"run": "r", "config": cartpole().to_json(), "hosts": [host], "shards": shards})
    newest = checkpoint(20, {})
    assert salvage(directory, newest, news.append) is newest
    assert news == ["what was learned after version 20 is lost: h9: exit status 1"]
    assert directory.left.exists()


def test_what_leads_to_the_state_of_a_killed_run_stays_when_it_is_taken_up(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path)
    directory.cluster.write_text("of a killed run")
    for _ in range(2):  # the first time, its hosts may not be reached
        directory.claim()
        directory.release()
        assert (directory.cluster.exists(), directory.left.read_text()) == (False, "of a killed run")
