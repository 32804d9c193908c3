"""The supervisor or a shard is killed at a system call. The run then ends bit for bit like a run without kills."""

import signal
import traceback
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest
from support.killing import Call, Hunt, Outcome, Role, Supervisors, run, supervisors

pytestmark = [pytest.mark.processes, pytest.mark.timeout(0)]

MOST_SENDS = 10  # of the calls that send a message, the hunt samples this many
EVERY: list[tuple[Role, bool]] = [("supervisor", False), ("shard", False), ("supervisor", True), ("shard", True)]
SAMPLE: list[tuple[Role, bool, list[Call]]] = [
    (
        "supervisor",
        False,
        [
            Call("write .config.json.N.unfinished", 1, half=True),
            Call("rename checkpoints/.vN", 1),
            Call("rename checkpoints/.vN", 2),
            Call("write metrics.jsonl", 1, half=True),
            Call("unlink state/shard-1.slots", 1),
        ],
    ),
    (
        "shard",
        False,
        [
            Call("0 rename state/shard-0.slots.new", 1),
            Call("0 write history/shard-0.jsonl", 3, half=True),
            Call("0 write history/shard-1.jsonl", 5),
            Call("0 map state/shard-0.slots.new", 8, half=True),
            Call("0 send", 40),
        ],
    ),
    ("supervisor", True, [Call("rename checkpoints/.vN", 1), Call("unlink left.json", 1)]),
    ("shard", True, [Call("0 send", 5), Call("1 map state/shard-1.slots.new", 4)]),
]


@pytest.fixture(scope="module")
def forks() -> Iterator[Supervisors]:
    with supervisors() as forks:
        yield forks


@pytest.fixture(scope="module")
def undisturbed(forks: Supervisors, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    path = tmp_path_factory.mktemp("undisturbed") / "run"
    running = run(forks, path, None)
    assert running.wait() == 0, running.told()
    return Outcome.of(path)


@pytest.fixture(scope="module")
def half_done(forks: Supervisors, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was killed when it had made three versions."""
    path = tmp_path_factory.mktemp("half_done") / "run"

    history = path / "history" / "shard-1.jsonl"
    running = run(forks, path, None, kill_when=lambda: history.exists() and history.read_bytes().count(b"\n") >= 3)
    assert running.wait() == -signal.SIGKILL, running.told()
    return path


def hunt(calls: Iterable[Call], at: Hunt) -> None:
    """Kill at each of ``calls``. All failures are reported together.

    Every run makes the first call of each name. It may not reach a later call, whose number depends on the timing.
    """
    failures, kills = list[str](), 0
    for call in calls:
        try:
            was_killed = at.kill_at(call)
            assert was_killed or call.nth > 1, "no process was killed"
            kills += was_killed
        except (AssertionError, OSError):
            failures.append(f"killed at {call}:\n{traceback.format_exc()}")
    assert not failures, "\n\n".join(failures)
    assert kills > 0, "no run made any of the calls"


def sampled(calls: list[Call]) -> list[Call]:
    """``calls``, but only a sample of the calls that send a message."""
    sends = [call for call in calls if call.name.endswith("send")]
    kept = set(sends[:: max(1, len(sends) // MOST_SENDS)])
    return [call for call in calls if call in kept or not call.name.endswith("send")]


@pytest.fixture
def start(forks: Supervisors, undisturbed: Outcome, half_done: Path, tmp_path: Path) -> Callable[[Role, bool], Hunt]:
    """Make a hunt that kills processes of a role. The run is new or, if ``resumed``, was killed before."""
    return lambda role, resumed: Hunt(forks, tmp_path, role, half_done if resumed else None, undisturbed)


@pytest.mark.slow
@pytest.mark.parametrize(("role", "resumed", "calls"), SAMPLE)
def test_a_run_killed_at_a_call_ends_like_one_without_kills(
    start: Callable[[Role, bool], Hunt], role: Role, resumed: bool, calls: list[Call]
) -> None:
    hunt(calls, start(role, resumed))


@pytest.mark.soak
@pytest.mark.parametrize(("role", "resumed"), EVERY)
def test_a_run_killed_at_any_call_ends_like_one_without_kills(
    start: Callable[[Role, bool], Hunt], role: Role, resumed: bool
) -> None:
    at = start(role, resumed)
    hunt(sampled(at.calls()), at)
