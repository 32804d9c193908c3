"""A long run of real workers: memory, descriptors and threads of the supervisor, shards and workers stay bounded."""

import json
import sys
from functools import reduce
from pathlib import Path

import pytest
from support.rig import Use
from support.run_rig import Run, training

pytestmark = [pytest.mark.processes, pytest.mark.slow]

UPDATES, SAMPLES = 100_000, 40
# A checkpoint opens files, and may need a thread.
MOST_MB, MOST_DESCRIPTORS, MOST_THREADS = 8.0, 4, 1


def newest(run: Run) -> int:
    """The version in the last complete row of the metrics. Reads only the end of the file."""
    path = run.files.path / "metrics.jsonl"
    if not path.exists():
        return 0
    with path.open("rb") as rows:
        rows.seek(max(0, path.stat().st_size - (1 << 14)))
        complete = rows.read().rpartition(b"\n")[0].splitlines()
    return int(json.loads(complete[-1])["version"]) if complete else 0


@pytest.mark.timeout(3600)
def test_the_supervisor_and_real_workers_do_not_grow(tmp_path: Path) -> None:
    with training(tmp_path / "run", "--workers", "2", "--shards", "2", "--updates", str(UPDATES)) as run:
        run.eventually(lambda: newest(run) and len(run.pids()) == 4, "all processes")
        cluster = run.files.cluster()
        pids = {"supervisor": run.process.pid}
        pids |= {f"shard {shard['shard']}": shard["pid"] for shard in cluster["shards"]}
        pids |= {f"worker {worker['rank']}": worker["pid"] for worker in cluster["workers"]}

        def most_until(first: int, last: int) -> dict[str, Use]:
            """The most that each process uses, at some versions from ``first`` to ``last``."""
            seen: dict[str, list[Use]] = {name: [] for name in pids}
            for version in range(first, last, UPDATES // SAMPLES):
                while (reached := newest(run)) < version:  # a loaded machine needs longer
                    run.eventually(lambda old=reached: newest(run) > old, f"a version after {reached}")
                for name, pid in pids.items():
                    seen[name].append(Use.of(pid))
            return {name: reduce(Use.most, uses) for name, uses in seen.items()}

        # Not to the end, because the processes must still live.
        before = most_until(UPDATES // 8, UPDATES // 4)
        after = most_until(UPDATES // 4, UPDATES * 9 // 10)
        sys.stdout.write(f"{UPDATES} updates: {before} -> {after}\n")
        for name, old in before.items():
            new = after[name]
            assert new.threads <= old.threads + MOST_THREADS, name
            assert new.descriptors <= old.descriptors + MOST_DESCRIPTORS, name
            assert new.memory_mb < old.memory_mb + MOST_MB, name
        assert run.wait(3000) == 0, run.said()
    run.files.assert_summary_exact("updates")
