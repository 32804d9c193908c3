"""Workers send reports, and the supervisor makes rows of them. A lost report does not lose a gradient."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import cast

import msgpack
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zmqrl.learner.games import Game
from zmqrl.observe.metrics import Counters, RunMetrics
from zmqrl.observe.reports import MOST_FIGURES, WorkerReport
from zmqrl.observe.spans import WORKER_SPANS, Spans
from zmqrl.ps.wire.messages import MAX_REPORT_BYTES
from zmqrl.ps.worker.connection import Connection, PulledWeights
from zmqrl.ps.worker.known_shard import Tally
from zmqrl.reporter import Reporter


@dataclass
class Sent:
    """A connection that keeps the reports of one process as the supervisor would receive them."""

    rank: int = 0
    incarnation: int = 1
    spans: Spans = field(default_factory=Spans)
    packed: list[bytes] = field(default_factory=list)

    def tally(self) -> Tally:
        return Tally()

    def report(self, figures: Mapping[str, object]) -> None:
        self.packed.append(msgpack.packb(figures))

    def reports(self) -> list[WorkerReport]:
        about = {"rank": self.rank, "incarnation": self.incarnation}
        return [WorkerReport.parse(msgpack.unpackb(each) | about) for each in self.packed]


def reporter(sent: Sent) -> Reporter:
    return Reporter(cast(Connection, sent), steps_per_rollout=10, version=0)


def learned(tested: Reporter, losses: Mapping[str, float], lag: int = 0) -> None:
    weights = PulledWeights(1, (tested.version + 1,), np.zeros(1, np.float32))
    tested.learned(weights, dict(losses), lag=lag)


@dataclass
class Worker:
    """The gradients of a process between its reports: a loss and a policy lag for each gradient."""

    reported: list[list[tuple[float, int]]]

    def sent(self, rank: int, incarnation: int) -> Sent:
        sent = Sent(rank, incarnation)
        tested = reporter(sent)
        for gradients in self.reported:
            tested.sent_at = math.inf  # no report before the test asks for one
            for loss, lag in gradients:
                learned(tested, {"loss": loss}, lag)
            tested.send()
        return sent


gradients = st.lists(st.tuples(st.integers(-1000, 1000).map(float), st.integers(0, 127)), max_size=6)
workers = st.builds(Worker, st.lists(gradients, min_size=1, max_size=5))


@given(st.lists(st.lists(workers, min_size=1, max_size=2), min_size=1, max_size=3), st.data())
def test_rows_count_every_gradient_even_if_reports_are_lost_repeated_or_reordered(
    ranks: list[list[Worker]], data: st.DataObject
) -> None:
    arriving: list[WorkerReport | None] = [None] * data.draw(st.integers(0, 4))  # None stands for a row
    for rank, processes in enumerate(ranks):
        for incarnation, worker in enumerate(processes):
            *some, last = worker.sent(rank, incarnation).reports()
            # The last report of a process arrives. Others may be lost, repeated or reordered.
            arriving += [last, *data.draw(st.lists(st.sampled_from([*some, last]), max_size=6))]
    metrics, rows = RunMetrics(start=Counters()), []
    for report in data.draw(st.permutations(arriving)):
        if report is None:
            rows.append(metrics.row(1.0))
        else:
            metrics.on_report(report)
    rows.append(metrics.row(1.0))
    pushed = [each for processes in ranks for worker in processes for block in worker.reported for each in block]
    assert sum(row["gradients"] for row in rows) == len(pushed)
    for name, values in (("loss", [loss for loss, _ in pushed]), ("policy_lag", [lag for _, lag in pushed])):
        found = [row[name] * row["gradients"] for row in rows if row["gradients"]]
        assert math.fsum(found) == pytest.approx(math.fsum(values), abs=1e-6)
    for row in rows:
        assert (row["loss"] is None) == (row["policy_lag"] is None) == (row["gradients"] == 0)
        assert row["gradients"] == 0 or row["policy_lag_min"] <= row["policy_lag"] <= row["policy_lag_max"]


def test_a_row_that_is_not_written_leaves_its_gradients_to_the_next_one() -> None:
    sent, metrics = Sent(), RunMetrics(start=Counters())
    tested = reporter(sent)
    learned(tested, {"loss": 1.0}, lag=4)  # the first gradient is reported at once
    metrics.on_report(sent.reports()[-1])
    assert metrics.row(1.0, written=False)["loss"] == 1.0
    learned(tested, {"loss": 4.0})
    tested.send()
    metrics.on_report(sent.reports()[1])
    row = metrics.row(2.0)
    assert (row["loss"], row["policy_lag"], row["policy_lag_max"], row["gradients"]) == (2.5, 2.0, 4, 2)
    assert metrics.row(3.0)["loss"] is None


def test_the_first_gradient_and_each_abandoned_rollout_are_reported_as_work() -> None:
    sent = Sent()
    tested = reporter(sent)
    tested.played([], 0)
    learned(tested, {})
    tested.abandoned()
    tested.played([], 0)
    assert [each.done for each in sent.reports()] == [0, 1, 11]


def test_time_is_split_over_all_gradients_even_if_reports_are_lost() -> None:
    sent, metrics = Sent(), RunMetrics(start=Counters())
    tested = reporter(sent)
    tested.sent_at = math.inf
    for _ in range(4):
        sent.spans("act").total_ns += 500_000_000
        learned(tested, {})
        tested.send()
    metrics.on_report(sent.reports()[3])
    metrics.on_report(sent.reports()[1])  # an outdated report
    assert metrics.row(1.0)["split_s"] == {"act": 0.5}


def test_the_number_format_of_the_network_is_reported() -> None:
    sent = Sent()
    Reporter(cast(Connection, sent), steps_per_rollout=10, version=0, compute="bfloat16").send()
    assert sent.reports()[-1].compute == "bfloat16"


def test_a_loss_that_is_not_finite_is_left_out_and_the_others_count() -> None:
    sent, metrics = Sent(), RunMetrics(start=Counters())
    tested = reporter(sent)
    for loss in (1.0, math.nan, math.inf, 3.0):
        learned(tested, {"loss": loss, "entropy": 0.5})
    tested.send()
    metrics.on_report(sent.reports()[-1])
    row = metrics.row(1.0)
    assert (row["loss"], row["entropy"], row["gradients"]) == (2.0, 0.5, 4)


def test_the_largest_report_stays_far_below_the_limit() -> None:
    sent = Sent()
    tested = reporter(sent)
    for name in WORKER_SPANS:
        sent.spans(name).total_ns = 2**62
    tested.played([cast(Game, SimpleNamespace(score=1.0 / 3, agent_steps=2**40))] * 100, 0)
    tested.gradients = tested.lag_sum = 2**52
    tested.losses.update({f"{index:_>40}": (1e30, 2**52) for index in range(MOST_FIGURES)})
    tested.send()
    assert len(sent.packed[-1]) < MAX_REPORT_BYTES / 2
