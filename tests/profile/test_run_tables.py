"""Parts of profiles."""

from pathlib import Path

import numpy as np
import pytest
from support.profiles import US, ending_at, resumed, rolled_back, synthetic_run

from zmqrl.observe.histogram import Histogram
from zmqrl.observe.spans import Spans
from zmqrl.profile import run_tables as run_tables_module
from zmqrl.profile.machine_use import grown_s, machine_use
from zmqrl.profile.profiler import Profiler, ProfilerJob
from zmqrl.profile.report import Analysis
from zmqrl.profile.run_tables import RunTables, newest_version

VERSIONS = 40
PER_S = {
    "cpu_us": 0.3,
    "queued_us": 0.2,
    "process_cpu_us": 0.4,
    "stolen_us": 0.0,
    "throttled_us": 0.0,
    "memory_kb": 0.0,
}


def recorded(busy_until_s: float = 0.0) -> RunTables:
    """A run with totals of the machine every 0.5 s. The totals grow faster until ``busy_until_s``."""
    processes = synthetic_run(versions=VERSIONS)
    for each in processes:
        at_s = np.arange(0.0, 12.0, 0.5)
        used_s = at_s + 20 * np.minimum(at_s, busy_until_s)
        rows = np.stack([at_s, *(share * used_s for share in PER_S.values())], axis=1)
        each.tables["machine"] = [(US * rows).astype(np.int64)]
    return RunTables(tuple(processes))


@pytest.mark.parametrize("version", [10, 20, 35])
def test_a_part_of_a_profile_has_the_machine_use_of_its_own_time(version: int) -> None:
    whole = recorded(busy_until_s=2.0)
    part = whole.after((1, version))
    for use in machine_use(part).values():
        assert use.queued_share == pytest.approx(0.2, abs=1e-3)
    for before, after in zip(whole.of_role("worker"), part.of_role("worker"), strict=True):
        cycles, machine = after.table("cycles"), after.table("machine")
        assert cycles["version"].tolist() == list(range(version + 1, VERSIONS))
        assert machine["at_us"][0] == cycles["began_at_us"][0]
        assert machine["at_us"][-1] == before.table("machine")["at_us"][-1]
        beside_s = grown_s(machine, "process_cpu_us") - grown_s(machine, "cpu_us")
        assert beside_s == pytest.approx(0.1 * grown_s(machine, "at_us"), rel=1e-3)


def test_the_whole_profile_is_after_version_minus_one() -> None:
    whole = recorded()
    for one, other in zip(whole.processes, whole.after((1, -1)).processes, strict=True):
        assert one.table("machine")["at_us"].tolist() == other.table("machine")["at_us"].tolist()


def test_a_part_of_a_profile_begins_with_its_first_new_version() -> None:
    assert Analysis.of(recorded()).first_version() == 1
    assert Analysis.of(recorded().after((1, 20))).first_version() == 21


@pytest.fixture
def long_run(tmp_path: Path) -> Path:
    """The files of a run with 40 versions, in several blocks and files."""
    for each in synthetic_run(versions=VERSIONS):
        one = Profiler(ProfilerJob(tmp_path, each.host), each.process, Spans(), run="r", incarnation=1)
        for start in range(0, VERSIONS + 1, 7):
            for name in ("cycles", "versions", "arrivals"):
                rows = each.table(name)
                for row in np.stack(list(rows.values()), axis=1)[np.isin(rows["version"], range(start, start + 7))]:
                    one.add(name, *map(int, row))
            one.spans.keep(("act", start, 1, start))
            one.flush(float(start))
        one.close()
    return tmp_path


def test_a_long_profile_is_read_from_its_newest_versions(long_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert newest_version(long_run) == (1, VERSIONS)
    whole = RunTables.newest(long_run)
    assert (whole.left_out, len(Analysis.of(whole).paths)) == (-1, VERSIONS)
    monkeypatch.setattr(run_tables_module, "MOST_CYCLES", 3 * 10)
    part = RunTables.newest(long_run)
    analysis = Analysis.of(part)
    assert part.left_out == VERSIONS - 10
    assert [path.version for path in analysis.paths] == list(range(VERSIONS - 9, VERSIONS))
    assert [each.histograms()["act"].count for each in part.processes] == [6] * 5
    assert "the report covers only versions after 30" in analysis.to_json()["warnings"][0]
    assert sum(len(each.table("cycles")["version"]) for each in part.processes) <= 30


def test_only_the_requested_versions_are_read(long_run: Path) -> None:
    for each in RunTables.read(long_run, range(5, 9)).processes:
        for name in ("cycles", "versions", "arrivals"):
            assert set(each.table(name)["version"]) <= set(range(5, 9))
    assert newest_version(long_run / "nothing") == (-1, -1)


def test_the_last_seconds_end_with_the_newest_version_of_all_shards() -> None:
    whole = RunTables(tuple(synthetic_run(versions=VERSIONS)))
    for seconds in (0.5, 1.0, 3.0):
        paths = Analysis.of(whole.last(seconds)).paths
        assert paths[-1].version == VERSIONS - 1
        assert sum(path.seconds for path in paths) <= seconds
        assert sum(path.seconds for path in paths) > seconds - 3 * paths[0].seconds
    assert len(Analysis.of(whole.last(1e6)).paths) == VERSIONS
    assert RunTables(()).last(1.0).processes == ()


def covered(tables: RunTables) -> list[tuple[int, int]]:
    """Generation and version of each update."""
    return [(path.generation, path.version + 1) for path in Analysis.of(tables).paths]


@pytest.mark.parametrize("session", ["resumed", "r"])
def test_a_part_of_a_profile_has_no_versions_that_a_resume_or_rollback_has_undone(session: str) -> None:
    before, after = synthetic_run(versions=40), resumed(synthetic_run(versions=20), at=10, run=session, later_s=60)
    whole = RunTables(tuple(rolled_back(before, after) if session == "r" else [*before, *after]))
    assert covered(whole.last(100)) == [(2, version) for version in range(11, 31)]
    assert covered(whole.last(100).after((1, 15))) == [(2, version) for version in range(11, 31)]
    assert covered(whole.last(100).after((2, 15))) == [(2, version) for version in range(17, 31)]
    assert [generation for generation, _ in covered(whole.last(1))] == [2] * len(covered(whole.last(1)))
    assert covered(whole.newest_generation()) == [(2, version) for version in range(11, 31)]
    assert len(covered(whole)) == 60
    assert len(whole.newest_generation().processes) == 5


def test_the_newest_version_is_that_of_the_newest_generation(tmp_path: Path) -> None:
    before, after = synthetic_run(versions=40), resumed(synthetic_run(versions=20), at=10, run="r", later_s=60)
    for each in rolled_back(before, after):
        one = Profiler(ProfilerJob(tmp_path, each.host), each.process, Spans(), run="r", incarnation=1)
        for row in np.stack(list(each.table("versions").values()), axis=1):
            one.add("versions", *map(int, row))
        one.close()
    assert newest_version(tmp_path) == (2, 30)


def test_the_last_seconds_end_with_the_newest_version_that_every_worker_has_written() -> None:
    processes = synthetic_run(versions=VERSIONS)
    processes[-1] = ending_at(processes[-1], 30)
    found = covered(RunTables(tuple(processes)).last(1.0))
    assert found[-1] == (1, 30)
    assert len(found) == len(covered(RunTables(tuple(synthetic_run(versions=VERSIONS))).last(1.0)))


def test_a_part_of_a_profile_has_the_histograms_of_its_own_blocks() -> None:
    whole = RunTables(tuple(synthetic_run(versions=VERSIONS)))
    for each in whole.processes:
        each.earlier = {"act": Histogram().to_json()}
        for end_s in range(1, 12):
            durations = Histogram()
            durations.add([end_s])
            each.parts.append((US * end_s, {"act": durations.to_json()}))
    for each in whole.after((1, 20)).of_role("worker"):
        began_s = each.table("cycles")["began_at_us"][0] / US
        assert each.histograms()["act"].total == sum(end_s for end_s in range(1, 12) if end_s > began_s)
    assert {row["who"] for row in Analysis.of(whole.after((1, 20))).to_json()["spans"]} >= {"all workers", "worker-0"}
