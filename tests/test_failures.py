"""A run that fails names the death that began it, not one that followed from it."""

from pathlib import Path

import pytest

from zmqrl.cluster.failures import TOLD_WITHIN_S, Failures, explained
from zmqrl.cluster.launcher import Exited
from zmqrl.errors import ClusterError, UsageError

LATE_S = TOLD_WITHIN_S + 0.1


def died(name: str, status: int = 3, tail: str = "one\ntwo", why: str | None = None) -> Exited:
    return Exited(name, status, tail, 1.0, why)


def test_when_a_shard_dies_for_good_and_then_all_workers_the_shard_was_first() -> None:
    failures = Failures()
    failures.made(7, 0.0)
    for turn in range(4):
        for name in ("shard-1", "worker-0", "worker-1"):
            failures.died(died(name, tail=str(turn)), 1.0 + turn)
        failures.made(7, 10.0 + turn)  # by the other shard, which waits
    assert failures.first is not None
    assert (failures.first.name, failures.first.log_tail) == ("shard-1", "0")


def test_a_death_that_the_run_has_survived_began_nothing() -> None:
    failures = Failures()
    failures.died(died("worker-3"), 1.0)
    failures.made(5, 1.0 + LATE_S)
    assert failures.first is None
    failures.died(died("shard-0"), 20.0)
    assert failures.first == died("shard-0")


def test_versions_that_were_made_before_a_death_but_told_after_it_prove_nothing() -> None:
    failures = Failures()
    failures.made(5, 0.0)
    failures.died(died("worker-0"), 1.0)
    failures.made(9, 1.2)
    failures.made(9, 1.0 + LATE_S)
    assert failures.first is not None
    failures.made(10, 2.0 + LATE_S)
    assert failures.first is None


def test_a_kill_that_nobody_explains_is_told_only_if_there_is_nothing_else() -> None:
    failures = Failures()
    failures.died(died("worker-0", -9), 1.0)
    assert failures.first == died("worker-0", -9)
    lost = died("shard-0", -9, why="host h1 is lost: nothing was heard for 8 s")
    failures.died(lost, 1.5)
    failures.died(died("worker-1", 1), 2.0)
    assert failures.first == lost


@pytest.mark.parametrize(
    ("status", "begun", "kind"),
    [
        *((status, True, kind) for status, kind in ((1, ClusterError), (2, UsageError), (3, ClusterError))),
        *((status, False, kind) for status, kind in ((1, ClusterError), (2, UsageError), (3, UsageError))),
        (-9, False, ClusterError),
    ],
)
def test_the_first_failure_ends_the_message_and_decides_the_exit_status(
    status: int, begun: bool, kind: type[Exception]
) -> None:
    """A shard that refuses to work before the run has begun was told to do what cannot be done."""
    log = Path("logs/shard-1.log")
    error = explained(ClusterError("worker-3 died."), died("shard-1", status), "h2", log, begun=begun)
    assert type(error) is kind
    first, last, *tail = str(error).splitlines()
    assert first == "worker-3 died."
    assert last.startswith("The first to fail was shard-1 on h2 (")
    assert last.endswith("); its log logs/shard-1.log ended with")
    assert tail == ["  | one", "  | two"]


def test_a_lost_host_is_the_reason_that_is_told() -> None:
    lost = died("shard-0", -9, tail="", why="host h1 is lost: nothing was heard for 8 s")
    text = str(explained(ClusterError("waited 60 s for shard 0."), lost, "h1", Path("logs/shard-0.log"), begun=True))
    assert text == (
        "waited 60 s for shard 0.\nThe first to fail was shard-0 on h1 (host h1 is lost: nothing was heard for 8 s); "
        "its log logs/shard-0.log was empty."
    )
