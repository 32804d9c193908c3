import io
import json
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from support.profiles import (
    ACCUMULATE_S,
    SHARD_S,
    TRANSFER_S,
    USUAL_S,
    asynchronous_run,
    ending_at,
    resumed,
    synthetic_run,
)

from zmqrl.observe.metrics import SHARD_OUTCOMES
from zmqrl.process_id import shard_id, worker_id
from zmqrl.profile.accounts import traffic
from zmqrl.profile.difference import changes, grown
from zmqrl.profile.machine_use import MachineUse
from zmqrl.profile.report import Analysis, print_report
from zmqrl.profile.run_tables import ProcessTables, RunTables
from zmqrl.profile.tables import COLUMNS, NO_CONTRIBUTION
from zmqrl.words import numbered

VERSIONS = 40
UPDATE_S = 2 * TRANSFER_S + sum(USUAL_S.values()) + ACCUMULATE_S + sum(SHARD_S.values())


def report(processes: Iterable[ProcessTables]) -> dict[str, Any]:
    return Analysis.of(RunTables(tuple(processes))).to_json()


def profile(**planted: Any) -> dict[str, Any]:
    return report(synthetic_run(versions=VERSIONS, **planted))


def printed(found: dict[str, Any]) -> str:
    text = io.StringIO()
    print_report(found, Console(file=text, width=120), processes=False)
    return text.getvalue()


def test_without_trouble_the_times_add_up_and_no_process_is_blamed() -> None:
    found = profile()
    assert found["updates"] == VERSIONS
    assert found["update_ms"]["mean"] == pytest.approx(1e3 * UPDATE_S, abs=0.01)
    assert sum(found["path_ms"].values()) == pytest.approx(1e3 * UPDATE_S, abs=0.01)
    assert found["path_ms"]["gradient"] == pytest.approx(100, abs=0.01)
    assert found["path_ms"]["gradient_transfer"] == pytest.approx(3, abs=0.01)
    assert found["path_ms"]["weights_transfer"] == pytest.approx(3, abs=0.01)
    assert sum(row["seconds"] for row in found["blame"]) < 1e-3
    assert list(found["inclusion"].values()) == pytest.approx([1.0, 1.0, 1.0])
    assert found["budget_ms"]["worker"]["gradient"] == pytest.approx(100)
    assert found["budget_ms"]["shard"]["optimize"] == pytest.approx(4 * VERSIONS / (VERSIONS + 1))


@pytest.mark.parametrize("every", [1, 4])
@pytest.mark.parametrize(
    ("span", "rank"), [("env_step", 1), ("act", 0), ("gradient", 2), ("push", 1), ("gradient_transfer", 2)]
)
def test_the_seconds_of_a_slow_worker_are_exact(span: str, rank: int, every: int) -> None:
    found = profile(worker_extra_s={(span, rank): 0.25}, every=every)
    first, *rest = found["blame"]
    assert (first["cause"], first["rank"], first["shard"], first["host"]) == (span, rank, None, f"w{rank}")
    assert first["seconds"] == pytest.approx(0.25 * VERSIONS / every, rel=1e-3)
    assert first["share"] == pytest.approx(first["seconds"] / (VERSIONS * (UPDATE_S + 0.25 / every)), rel=1e-3)
    assert sum(row["seconds"] for row in rest) < 1e-2
    assert found["kth"][str(rank)] >= 1 / every - 1e-9


@pytest.mark.parametrize("every", [1, 5])
@pytest.mark.parametrize(("span", "number"), [("optimize", 1), ("commit", 0), ("gradient_transfer", 1)])
def test_the_seconds_of_a_slow_shard_are_exact(span: str, number: int, every: int) -> None:
    hosts = {"shard-0": "s0", "shard-1": "s1"}
    found = profile(shard_extra_s={(span, number): 0.08}, every=every, hosts=hosts)
    first, *rest = found["blame"]
    assert (first["cause"], first["rank"], first["shard"], first["host"]) == (span, None, number, f"s{number}")
    assert first["seconds"] == pytest.approx(0.08 * VERSIONS / every, rel=2e-3)
    assert sum(row["seconds"] for row in rest) < 1e-2


@pytest.mark.parametrize("every", [1, 4])
@pytest.mark.parametrize("shards", [1, 2, 3])
def test_the_delay_of_all_slices_on_a_slow_link_is_blamed_on_its_worker(shards: int, every: int) -> None:
    found = profile(shards=shards, link_extra_s={2: 0.1}, every=every)
    first, *rest = found["blame"]
    assert (first["cause"], first["rank"], first["host"]) == ("gradient_transfer", 2, "w2")
    assert first["seconds"] == pytest.approx(0.1 * shards * VERSIONS / every, rel=1e-3)
    assert sum(row["seconds"] for row in rest) < 1e-2


def test_links_equally_slow_for_all_workers_are_not_blamed_on_a_shard() -> None:
    found = profile(link_extra_s=dict.fromkeys(range(3), 0.1))
    assert [row for row in found["blame"] if row["shard"] is not None and row["seconds"] > 1e-2] == []


@pytest.mark.parametrize("every", [1, 4])
@pytest.mark.parametrize("shards", [1, 2])
def test_a_wait_for_a_busy_shard_is_blamed_on_the_shard(shards: int, every: int) -> None:
    last = shards - 1
    found = profile(shards=shards, busy_s={(1, last): 0.05}, every=every)
    first, *rest = found["blame"]
    assert (first["cause"], first["shard"], first["rank"]) == ("gradient_transfer", last, None)
    assert first["seconds"] == pytest.approx(0.05 * VERSIONS / every, rel=1e-3)
    assert sum(row["seconds"] for row in rest) < 1e-2


def test_a_worker_that_is_always_late_is_not_blamed_but_reported_as_left_out() -> None:
    found = profile(workers=4, quorum=3, worker_extra_s={("env_step", 3): 10.0})
    assert sum(row["seconds"] for row in found["blame"]) < 1e-2
    assert found["inclusion"]["3"] == 0.0
    assert found["ranks"]["3"]["wasted_s"] > 10
    assert found["warnings"] == [
        "the run learns little from rank 3, whose contributions count in at most 0% of the versions (100% is usual)"
    ]


def test_the_gain_of_the_last_backup_is_predicted() -> None:
    found = profile(workers=4, quorum=3, worker_extra_s={("env_step", 3): 0.03}, every=20)
    # Twice in 40 versions, the fourth worker is 30 ms late. In each of the next versions, the worker reduces its delay
    # by the time of one update. Without one of the other three workers, the updates of these versions would wait for
    # the fourth.
    way_s = 2 * TRANSFER_S + ACCUMULATE_S + sum(SHARD_S.values())
    late_s = sum(0.03 - i * way_s for i in range(3))
    assert found["backup_gain_s"] == pytest.approx(2 * late_s / VERSIONS * 3 / 4, rel=0.01)
    assert profile()["backup_gain_s"] is None


@pytest.mark.parametrize(("fewer", "verdict"), [(25.0, "it costs 10.00 ms"), (10.0, "it saves 50.00 ms")])
def test_the_gain_of_a_backup_agrees_with_the_prediction(fewer: float, verdict: str) -> None:
    found = profile(workers=4, quorum=3, worker_extra_s={("env_step", 3): 0.03}, every=20)
    assert "In the replay" not in printed(found)
    rates = {"as it was": 20.0, "one backup fewer": fewer}
    found["what_if"] = [{"change": name, "updates_per_s": rate, "replay_error": 0.0} for name, rate in rates.items()]
    text = " ".join(printed(found).split())
    assert f"With cores of its own, it saves {1e3 * found['backup_gain_s']:.2f} ms." in text
    assert f"In the replay, with the cores of this run, {verdict}" in text


def test_a_process_with_an_unknown_clock_is_left_out_and_named() -> None:
    profiles = synthetic_run(versions=VERSIONS)
    profiles[-1].clock = "other"
    found = Analysis.of(RunTables(tuple(profiles))).to_json()
    assert found["left_out"] == ["the timeline leaves out worker 2 on w2: the profile has no PING to compare clocks"]
    assert "2" not in found["ranks"] or found["ranks"]["2"]["contributions"] == 0
    assert found["clocks"]["h1"] == {"offset_ms": 0.0, "drift_ppm": 0.0, "error_ms": 0.0}


@pytest.mark.parametrize(
    ("versions", "line"), [(5, "p90 -, p99 -"), (40, "p90 186.00, p99 -"), (100, "p90 186.00, p99 186.00")]
)
def test_the_report_leaves_out_percentiles_of_few_updates(versions: int, line: str) -> None:
    text = printed(report(synthetic_run(versions=versions)))
    (first, *_) = text.splitlines()
    assert first.startswith(f"{versions} updates: mean ")
    assert first.endswith(line)


def test_a_session_after_a_reboot_is_reported_too() -> None:
    before, later = synthetic_run(versions=10), synthetic_run(versions=VERSIONS)
    found = report([*before, *resumed(later, at=10, clock="booted again")])
    assert (found["updates"], found["left_out"], found["without_path"]) == (10 + VERSIONS, [], {})
    assert found["update_ms"]["mean"] == pytest.approx(1e3 * UPDATE_S, abs=0.01)
    assert found["ranks"]["0"]["contributions"] == 10 + VERSIONS


def test_a_delay_is_blamed_on_the_host_where_it_happened_although_a_resumed_run_is_on_others() -> None:
    processes = [f"{role}-{number}" for role in ("worker", "shard") for number in range(2)]
    slow: dict[str, Any] = {"worker_extra_s": {("gradient", 1): 0.3}, "shard_extra_s": {("commit", 0): 0.2}}
    before = synthetic_run(workers=2, versions=10, hosts={name: f"old-{name}" for name in processes}, **slow)
    later = synthetic_run(workers=2, versions=VERSIONS, hosts={name: f"new-{name}" for name in processes})
    found = report([*before, *resumed(later, at=10, later_s=100)])
    assert [(row["cause"], row["host"]) for row in found["blame"][:2]] == [
        ("gradient", "old-worker-1"),
        ("commit", "old-shard-0"),
    ]
    assert {rank: each["host"] for rank, each in found["ranks"].items()} == {"0": "new-worker-0", "1": "new-worker-1"}


def test_a_rank_that_records_nothing_has_its_share_of_contributions_and_k_th_places() -> None:
    turns = {1: 0.05, 2: 0.05}
    *recorded, external = synthetic_run(quorum=2, versions=VERSIONS, in_turn_s=turns)
    assert external.process == worker_id(2)
    found = report(recorded)
    assert (found["updates"], found["without_path"]) == (VERSIONS // 2, {"2": VERSIONS // 2})
    assert found["inclusion"] == pytest.approx({"0": 1.0, "1": 0.5, "2": 0.5})
    assert found["kth"] == pytest.approx({"0": 0.0, "1": 0.5, "2": 0.5})
    assert [warning for warning in found["warnings"] if "learns little" in warning] == []


@pytest.mark.parametrize("early", [{"shard-0", "shard-1"}, {"shard-1"}, {"worker-2"}, {"shard-0", "worker-2"}])
def test_versions_that_some_processes_have_not_written_yet_are_left_out(early: set[str]) -> None:
    processes = synthetic_run(versions=VERSIONS)
    found = report(ending_at(each, 30) if str(each.process) in early else each for each in processes)
    assert (found["updates"], found["without_path"]) == (30, {})
    assert [(each["skipped"], each["wasted_s"]) for each in found["ranks"].values()] == [(0, 0.0)] * 3
    assert list(found["inclusion"].values()) == pytest.approx([1.0, 1.0, 1.0])
    assert found["budget_ms"]["worker"]["gradient"] == pytest.approx(100)


@pytest.mark.parametrize("written", [10, 8])
def test_the_versions_after_the_death_of_a_worker_are_reported(written: int) -> None:
    processes = synthetic_run(quorum=2, versions=5 * VERSIONS)
    for each in processes:
        for rows in each.tables.get("arrivals", []):  # the worker died after 10 versions
            rank, version = (rows[:, COLUMNS["arrivals"].index(name)] for name in ("rank", "version"))
            each.tables["arrivals"] = [rows[(rank != 2) | (version < 10)]]
    *others, dead = processes
    found = report([*others, ending_at(dead, written)])
    assert (found["updates"], found["without_path"]) == (5 * VERSIONS, {})


def test_a_profile_that_ended_early_leaves_out_only_the_updates_that_waited_for_its_worker() -> None:
    *others, failed = synthetic_run(versions=5 * VERSIONS, in_turn_s={0: 0.1, 1: 0.1, 2: 0.1, 3: 0.0}, workers=4)
    found = report([*others[:-1], ending_at(others[-1], 10), failed])
    assert found["without_path"] == {"2": 5 * VERSIONS // 4 - 2}
    assert found["updates"] == 5 * VERSIONS - found["without_path"]["2"]


def test_an_update_that_a_smaller_quorum_completed_is_not_blamed_on_a_rank() -> None:
    processes = synthetic_run(quorum=2, versions=VERSIONS)
    late_us = 10_000_000
    for each in processes:
        for name in {"cycles", "arrivals", "versions"} & each.tables.keys():
            columns, (rows,) = COLUMNS[name], each.tables[name]
            later = rows[:, columns.index("version")] > 19 + (name == "versions")
            for column in (i for i, one in enumerate(columns) if one.endswith("_at_us")):
                rows[later, column] += late_us
            if name == "versions":
                waited = rows[:, columns.index("version")] == 20
                rows[waited, columns.index("closed_at_us")] += late_us
                rows[waited, columns.index("published_at_us")] += late_us
                rows[waited, columns.index("closing_rank")] = NO_CONTRIBUTION
    found = report(processes)
    assert (found["updates"], found["without_path"], found["without_kth"]) == (VERSIONS - 1, {}, 1)
    assert sum(row["seconds"] for row in found["blame"]) < 1e-2
    assert sum(found["kth"].values()) == pytest.approx((VERSIONS - 1) / VERSIONS)
    text = printed(found).replace("\n", " ")
    assert f"{VERSIONS - 1} of {VERSIONS} updates: mean" in text
    assert "leaves out 1 update that no contribution completed: the quorum became smaller" in text


@pytest.mark.parametrize(("late", "late_ms"), [*(("push", ms) for ms in (2, 8, 20)), ("clock", 20), ("clock", -20)])
def test_the_times_of_updates_add_up_if_a_push_is_recorded_late_or_a_clock_is_wrong(late: str, late_ms: int) -> None:
    processes = synthetic_run(versions=VERSIONS, worker_extra_s={("gradient", 2): 0.05})
    for each in processes:
        for rows in each.tables.get("cycles", []):
            late_us, names = 1000 * late_ms, COLUMNS["cycles"]
            rows[:, names.index("pushed_at_us")] += late_us
            rows[1:, names.index("began_at_us")] += late_us
            if late == "clock":  # all times of the worker are wrong
                rows[0, names.index("began_at_us")] += late_us
                rows[:, names.index("pulled_at_us")] += late_us
            else:
                rows[:, names.index("push")] += late_us
                rows[1:, names.index("wait")] -= late_us
    analysis = Analysis.of(RunTables(tuple(processes)))
    published = [each.table("versions")["published_at_us"] for each in processes if each.process.role == "shard"]
    last_us = np.max(published, axis=0)
    found = analysis.to_json()
    assert found["update_ms"]["mean"] == pytest.approx(np.diff(last_us).mean() / 1e3)
    assert sum(found["path_ms"].values()) == pytest.approx(found["update_ms"]["mean"])
    assert all(part.seconds > 0 for path in analysis.paths for part in path.parts)
    assert sum(path.seconds for path in analysis.paths) == pytest.approx((last_us[-1] - last_us[0]) / 1e6)


@pytest.mark.parametrize("missing", [0, 1, 2])
@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_shard_without_a_profile_is_named_and_no_update_gets_a_path(missing: int, asynchronous: bool) -> None:
    slow = {("optimize", 1): 0.2}  # so that updates wait for this shard
    planted = asynchronous_run() if asynchronous else synthetic_run(shards=3, versions=VERSIONS, shard_extra_s=slow)
    processes = tuple(each for each in planted if each.process != shard_id(missing))
    analysis = Analysis.of(RunTables(processes), shards=3, asynchronous=asynchronous)
    found = analysis.to_json()
    assert (found["path_ms"], found["blame"], found["without_path"]) == ({}, [], {})
    (warning,) = found["warnings"]
    lacking = sorted({missing, 2}) if asynchronous else [missing]
    assert warning.startswith(f"{numbered('shard', lacking)} recorded nothing. Each process saves its profile every 5 ")
    assert warning in printed(found).replace("\n", " ")
    assert set(traffic(analysis.timeline, 10)) == {0, 1, 2} - set(lacking)


@pytest.mark.parametrize("external", [True, False])
def test_updates_that_waited_for_an_unrecorded_worker_are_counted_and_named(external: bool) -> None:
    profiles = synthetic_run(versions=VERSIONS, worker_extra_s={("env_step", 0): 0.3}, every=4)
    (late,) = (each for each in profiles if each.process == worker_id(0))
    if external:
        profiles.remove(late)
    else:
        late.clock = "other"
    found = Analysis.of(RunTables(tuple(profiles))).to_json()
    assert found["without_path"] == {"0": VERSIONS // 4}
    assert found["updates"] == VERSIONS - VERSIONS // 4
    words = f"leaves out {VERSIONS // 4} updates that waited for rank 0, whose work is not in the profile"
    assert words in printed(found).replace("\n", " ")
    assert f"{VERSIONS - VERSIONS // 4} of {VERSIONS} updates: mean" in printed(found)
    assert profile()["without_path"] == {}


def test_a_run_that_always_waited_for_an_unrecorded_worker_says_so() -> None:
    profiles = synthetic_run(versions=VERSIONS, worker_extra_s={("env_step", 2): 0.3})[:-1]
    found = Analysis.of(RunTables(tuple(profiles))).to_json()
    assert (found["updates"], found["without_path"]) == (0, {"2": VERSIONS})
    assert f"0 of {VERSIONS} updates\n! the report leaves out {VERSIONS} updates" in printed(found)


@pytest.mark.parametrize("asynchronous", [False, True])
def test_slices_that_arrived_twice_are_counted_and_a_longer_need_s_is_advised(asynchronous: bool) -> None:
    processes = synthetic_run(versions=VERSIONS)
    (rows,) = processes[1].tables["arrivals"]
    twice = rows[rows[:, COLUMNS["arrivals"].index("rank")] == 2][:30].copy()
    twice[:, COLUMNS["arrivals"].index("outcome")] = SHARD_OUTCOMES.index("duplicate")
    processes[1].tables["arrivals"].append(twice)
    made = Analysis.of(RunTables(tuple(processes)), asynchronous=asynchronous)
    found = made.to_json()
    assert [each["again"] for each in found["ranks"].values()] == [0, 0, 30]
    assert [warning for warning in found["warnings"] if "need-s" in warning] == [
        "shards asked rank 2 to resend 30 of 80 slices, although these were already on the way: set --wire.need-s to "
        "more than the time that a slice takes"
    ]
    assert traffic(made.timeline, 10)[1].received == 10 * (3 * VERSIONS + 30)
    assert traffic(made.timeline, 10)[0].received == 10 * 3 * VERSIONS
    assert [warning for warning in profile()["warnings"] if "need-s" in warning] == []


def test_the_machine_use_of_each_process_is_printed_with_the_processes() -> None:
    found = profile()
    found["machine"] = {
        "shard-0": asdict(MachineUse("h1", None, 0.02, 0.01, 0.0)),
        "worker-1": asdict(MachineUse("w1", 0.5, 0.3, 0.01, 0.2, 41.26, 7.0)),
    }
    text = io.StringIO()
    print_report(found, Console(file=text, width=120), processes=True)
    rows = [line.split() for line in text.getvalue().partition("use of the machine")[2].splitlines()]
    assert ["shard-0", "h1", "2.0%", "1.0%", "0.0%"] in rows
    assert ["worker-1", "w1", "50.0%", "30.0%", "1.0%", "20.0%", "41.3", "7.0"] in rows
    assert "use of the machine" not in printed(found)


def test_an_asynchronous_run_has_inclusion_and_staleness_and_no_critical_path() -> None:
    found = Analysis.of(RunTables(tuple(asynchronous_run())), asynchronous=True).to_json()
    assert (found["mode"], found["updates"]) == ("async", 32)
    assert (found["path_ms"], found["blame"], found["what_if"], found["backup_gain_s"]) == ({}, [], [], None)
    assert found["inclusion"] == {"0": 0.75, "1": 0.25}
    assert [(each["staleness"], each["most_stale"]) for each in found["ranks"].values()] == [(0.0, 0), (3.0, 3)]
    assert found["budget_ms"]["worker"]["gradient"] == pytest.approx(1e3 * (3 * 0.1 + 0.31) / 4, abs=0.01)
    assert json.loads(json.dumps(found)) == found


def test_the_report_of_an_asynchronous_run_says_what_is_not_available() -> None:
    found = Analysis.of(RunTables(tuple(asynchronous_run())), asynchronous=True).to_json()
    text = printed(found)
    assert text.count("there is no critical path, no blame table and no what-if") == 1
    assert "each shard made at most 32 versions" in text
    assert ["1", "w1", "25.0%", "3.0", "3"] in [line.split()[:5] for line in text.splitlines()]
    assert not any(words in text for words in ("waited for", "K-th", "no update", "what if\n"))


def test_the_difference_of_two_runs_names_the_span_that_grew() -> None:
    before, after = profile(), profile(worker_extra_s={("act", 0): 0.06, ("act", 1): 0.06, ("act", 2): 0.06})
    found = changes(before, after)
    assert found[0].span == "update"
    assert found[0].growth == pytest.approx(0.06 / UPDATE_S, rel=1e-3)
    assert {(each.role, each.span) for each in found[1:3]} == {("path", "act"), ("worker", "act")}
    for each in found[1:3]:
        assert each.after_ms - each.before_ms == pytest.approx(60, abs=0.1)
    assert [each.span for each in grown(found, 0.1)] == ["update", "act", "act"]
    assert grown(changes(before, before), 0.0) == []
    assert grown(changes(after, before), 1e-5) == []  # times are recorded in microseconds


def test_the_difference_of_two_runs_names_the_transfers_that_grew() -> None:
    found = grown(changes(profile(), profile(link_extra_s=dict.fromkeys(range(3), 0.1))), 0.1)
    assert [(each.role, each.span) for each in found] == [("", "update"), ("path", "gradient_transfer")]
    assert found[1].after_ms - found[1].before_ms == pytest.approx(200, abs=0.1)  # two slices


def test_the_difference_of_two_runs_names_the_span_of_one_slow_worker_of_many() -> None:
    before, after = profile(workers=20), profile(workers=20, worker_extra_s={("act", 7): 0.06})
    assert [(each.role, each.span) for each in grown(changes(before, after), 0.1)] == [("", "update"), ("path", "act")]


@pytest.mark.parametrize("planted", [{}, {"worker_extra_s": {("act", 0): 0.06}}, {"versions": 0}])
def test_the_report_is_text_and_the_data_is_json(planted: dict[str, Any]) -> None:
    found = Analysis.of(RunTables(tuple(synthetic_run(**{"versions": VERSIONS} | planted)))).to_json()
    assert json.loads(json.dumps(found)) == found
    text = printed(found)
    assert ("no complete update was recorded" in text) == (found["updates"] == 0)
    if planted.get("worker_extra_s"):
        row = next(line for line in text.partition("causes of delay")[2].splitlines() if line.startswith("act"))
        assert row.split()[:4] == ["act", "rank", "0", "w0"]
