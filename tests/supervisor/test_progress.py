"""The rows of a run and the figures of its checkpoints, made from reports of shards and workers, without sockets."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import msgpack
import pytest
from support.messages import stats_with
from support.stand_ins import Notices

from zmqrl.config import Config
from zmqrl.observe.metrics import Counters
from zmqrl.ps.shard.optimizer import OptimizerConfig
from zmqrl.ps.wire import messages as m
from zmqrl.recipes import cartpole
from zmqrl.rundir import RunDirectory
from zmqrl.supervisor.progress import Progress

CONFIG = dataclasses.replace(cartpole(), trackers=(), workers=2, external_workers=1)


class Told:
    """A run of two shards as its supervisor sees it."""

    def __init__(self, path: Path, counters: Counters | None = None, config: Config = CONFIG) -> None:
        self.directory, self.console = RunDirectory(path), Notices()
        self.progress = Progress(config, self.directory, counters or Counters(), self.console)
        self.progress.begin(0.0)

    def row(self, *versions: int, generation: int = 1) -> None:
        """Shard i reports ``versions[i]``. Shards without an entry report nothing."""
        told = {shard: stats(shard, version, generation=generation) for shard, version in enumerate(versions)}
        self.progress.on_stats(told, range(2), (0, 1))
        self.progress.show(0.0)

    def report(self, rank: int, incarnation: int, **figures: Any) -> None:
        packed = msgpack.packb({"version": 1, "agent_steps": 0, **figures})
        self.progress.on_report(m.Report(run="r", rank=rank, incarnation=incarnation, figures=packed))

    def rows(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.directory.metrics.read_text().splitlines()]

    def versions(self) -> list[int]:
        return [row["version"] for row in self.rows()]


def stats(shard: int, version: int, **figures: Any) -> m.Stats:
    """The statistics of a shard: each version was made by two ranks, and had one late contribution."""
    seen: dict[str, Any] = {"present": (0, 1), "silent_ms": (0, 0), "totals": (2 * version, version, 0, 0)}
    return stats_with(**{"shard": shard, "version": version, "quorum": 2, **seen, **figures})


@pytest.fixture
def run(tmp_path: Path) -> Told:
    return Told(tmp_path)


def test_a_row_is_written_only_if_its_version_is_the_highest_so_far(run: Told) -> None:
    for version in (3, 3, 5, 4, 5, 6):
        run.row(version, version)
    assert run.versions() == [3, 5, 6]
    assert [row["contributions"]["used"] for row in run.rows()] == [12, 20, 24]


def test_a_row_has_the_learning_rate_that_made_its_version(tmp_path: Path) -> None:
    falling = OptimizerConfig(learning_rate=1.0, final_learning_rate=0.5)
    run = Told(tmp_path, config=dataclasses.replace(CONFIG, optimizer=falling))
    told = {0: stats(0, 4, made_at=600_000), 1: stats(1, 3, made_at=500_000)}
    run.progress.on_stats(told, range(2), (0, 1))
    run.progress.show(0.0)
    (row,) = run.rows()
    assert (row["version"], row["learning_rate"]) == (3, 0.75)


def test_a_row_covers_all_gradients_since_the_previous_row_even_after_a_stall(run: Told) -> None:
    for gradients, loss_sum, version in ((1, 2.0, 3), (2, 5.0, 3), (4, 12.0, 3), (5, 12.0, 4)):
        run.report(0, 10, gradients=gradients, loss_sums={"loss": [loss_sum, gradients]})
        run.row(version, version)
    first, second = run.rows()
    assert (first["loss"], first["gradients"]) == (2.0, 1)
    assert (second["loss"], second["gradients"]) == (2.5, 4)


def test_after_a_rollback_rows_continue_from_the_checkpoint_with_counts_from_the_histories(run: Told) -> None:
    for version in (3, 5, 8):
        run.row(version, version)
    run.progress.undo_rows(5, 2)
    run.row(6)  # the other shard has not reported the rollback yet
    assert run.versions() == [3, 5]
    run.row(7, 7, generation=2)
    assert run.versions() == [3, 5, 7]
    assert run.rows()[-1]["contributions"] == {"used": 28, "late": 14, "duplicate": 0, "rejected": 0, "skipped": 0}
    assert (run.directory.path / "metrics.before-generation-2.jsonl").exists()


def test_no_figure_falls_in_the_rows_after_a_resume(tmp_path: Path) -> None:
    before = Told(tmp_path)
    before.report(0, 10, agent_steps=1000, games=[[1, 4.0, 9]])
    before.row(5, 5)
    checkpoint = before.progress.counters_at(5, captured(5, 5))
    before.report(0, 10, agent_steps=1500, games=[[1, 4.0, 9], [2, 4.0, 9]])
    before.row(6, 6)
    before.progress.close(hurried=True)

    salvaged = dataclasses.replace(Counters.from_json(checkpoint), version=6)
    after = Told(tmp_path, salvaged)
    after.row(6, 6)
    after.row(7, 7)
    assert after.versions() == [5, 6, 7]
    for figure in ("agent_steps", "episodes", "wall_s"):
        assert after.rows()[2][figure] >= after.rows()[1][figure]


def captured(version: int, *versions: int) -> dict[int, m.Stats]:
    """The statistics of shards at ``versions`` that have captured ``version``."""
    totals = (2 * version, version, 0, 0)
    return {
        shard: stats(shard, newest, captured=version, captured_totals=totals) for shard, newest in enumerate(versions)
    }


def test_a_checkpoint_counts_contributions_only_up_to_its_version(run: Told) -> None:
    run.row(9, 12)
    counters = run.progress.counters_at(7, captured(7, 9, 12))
    assert counters["version"] == 7
    assert counters["contributions"] == {"used": 28, "late": 14, "duplicate": 0, "rejected": 0, "skipped": 0}


def test_the_last_row_and_the_last_checkpoint_agree_even_if_a_shard_was_ahead(run: Told) -> None:
    counters = run.progress.end(7, captured(7, 8, 7), (0, 1), 0.0)
    (row,) = run.rows()
    assert (row["version"], row["contributions"]) == (7, counters["contributions"])


def test_an_external_worker_that_takes_over_a_rank_is_reported_once(run: Told) -> None:
    for rank, incarnation in ((0, 50), (0, 51), (1, 50), (1, 50), (1, 49), (1, 50)):
        run.report(rank, incarnation)
    run.report(1, 60, agent_steps=-1)
    run.report(1, 61, agent_steps=-1)
    assert [text.partition(":")[0] for text in run.console.texts] == [
        "another worker has taken over rank 1",
        "reports of worker 1 are ignored because they are malformed",
    ]
