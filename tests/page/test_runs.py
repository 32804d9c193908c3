"""The runs that the page finds, and their states."""

import json
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.record_rig import row, run_directory, summary
from support.rig import ending, eventually

from zmqrl.commands.inspect import status
from zmqrl.observe.live.figures import LiveMetrics
from zmqrl.observe.live.presence import Presence
from zmqrl.page import runs as runs_module
from zmqrl.page.runs import Runs, UnknownRun, text_of
from zmqrl.process_id import worker_id
from zmqrl.rundir import RunDirectory, is_locked


@pytest.fixture
def root(tmp_path: Path) -> Path:
    run_directory(tmp_path / "ended", [row(1), row(2)], summary=summary())
    run_directory(tmp_path / "pong" / "deep", [row(1)])
    return tmp_path


@pytest.fixture
def living(root: Path) -> Iterator[RunDirectory]:
    """A run whose supervisor is this process."""
    directory = RunDirectory(run_directory(root / "living", [row(1)]))
    directory.claim()
    directory.cluster.write_text("{}")
    try:
        yield directory
    finally:
        directory.release()


def test_runs_are_found_below_a_directory_by_their_paths(root: Path) -> None:
    (root / ".hidden").mkdir()
    run_directory(root / ".hidden" / "run")
    run_directory(root / "ended" / "videos" / "inner")
    (root / "model").mkdir()
    (root / "model" / "config.json").write_text('{"architectures": []}')
    (root / "link").symlink_to(root / "ended")
    assert sorted(Runs(root).found()) == ["ended", "pong/deep"]
    assert list(Runs(root / "ended").found()) == ["."]


@pytest.mark.parametrize("name", ["..", "../x", "/etc", "ended/../ended", "", "pong"])
def test_no_other_name_leads_to_a_run(root: Path, name: str) -> None:
    with pytest.raises(KeyError):
        Runs(root / "ended").find(name)
    with pytest.raises(KeyError):
        Runs(root).find(name)


def test_the_state_of_a_run_follows_from_its_files(root: Path, living: RunDirectory) -> None:
    runs = Runs(root)
    assert runs.state("ended") == "ended"
    assert runs.state("living") == "running"
    assert runs.overview("living")["state"] == "running"
    assert runs.state("pong/deep") == "starting"
    long_ago = (1e9, 1e9)
    for name in ("config.json", "metrics.jsonl"):
        os.utime(root / "pong" / "deep" / name, long_ago)
    assert runs.state("pong/deep") == "killed"


def test_a_run_on_another_cluster_is_submitted_until_its_summary_is_copied(root: Path) -> None:
    directory = RunDirectory(root / "pong" / "deep")
    directory.submitted.write_text("{}")
    os.utime(directory.metrics, (1e9, 1e9))
    os.utime(directory.config, (1e9, 1e9))
    assert Runs(root).state("pong/deep") == "submitted"
    directory.summary.write_text(json.dumps(summary()))
    assert Runs(root).state("pong/deep") == "ended"
    directory.submitted.write_text(json.dumps({"earlier": directory.summary_digest()}))
    assert Runs(root).state("pong/deep") == "submitted", "the summary is that of an earlier job"
    directory.submitted.write_text(json.dumps({"earlier": directory.summary_digest(), "ended": "NODE_FAIL"}))
    assert Runs(root).state("pong/deep") == "ended"
    directory.summary.unlink()
    assert Runs(root).state("pong/deep") == "killed"


def test_a_clock_that_was_set_back_does_not_make_an_old_run_start(root: Path) -> None:
    in_future = (time.time() + 1e6,) * 2
    for name in ("config.json", "metrics.jsonl"):
        os.utime(root / "pong" / "deep" / name, in_future)
    assert Runs(root).state("pong/deep") == "killed"


def test_nothing_is_kept_about_runs_that_are_gone(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs_module, "LOOK_EVERY_S", 0.0)
    monkeypatch.setattr(runs_module, "LOOK_SHARE", 0)
    runs = Runs(root)
    first = {name: (runs.record(name), runs.overview(name)) for name in runs.found()}
    (root / "pong" / "deep").rename(root / "pong" / "renamed")
    assert {*runs.found()} == {"ended", "pong/renamed"}
    assert not [key for key in runs._kept if "deep" in str(key)]
    assert runs.record("ended") is first["ended"][0]


@pytest.mark.parametrize(
    "stall",
    [
        {"awaited": []},
        {"version": 1, "waited_s": 10**400, "awaited": []},
        {"version": 1, "waited_s": 9.0, "awaited": [{"process": 5, "doing": None}]},
    ],
    ids=["incomplete", "too long", "no process"],
)
def test_a_damaged_stall_is_not_shown(root: Path, living: RunDirectory, stall: dict[str, Any]) -> None:
    living.stalled.write_text(json.dumps(stall))
    shown = Runs(root).details("living")
    assert (shown["state"], shown["stalled"]) == ("running", None)


def live(*presences: Presence, **figures: Any) -> str:
    """The contents of ``live.json``, with changed ``figures``."""
    return json.dumps(LiveMetrics(row=row(1, **figures), about={}, processes=presences, quorum=3).to_json())


def test_a_stalled_run_shows_its_present_figures_although_it_writes_no_row(root: Path, living: RunDirectory) -> None:
    with living.metrics.open("a") as file:
        file.write(json.dumps(row(2, workers_present=2)) + "\n")
    runs, now = Runs(root), {"version": 20, "wall_s": 90.0, "agent_steps": 2000, "policy_lag": None}
    assert runs.overview("living")["workers_present"] == 2
    living.live.write_text(live(workers_present=1, agent_steps_per_s=0.25, updates_per_s=0.5, **now))
    for shown in (runs.overview("living"), runs.details("living")):
        assert (shown["workers_present"], shown["agent_steps_per_s"], shown["minutes"]) == (1, 0.25, 1.5)
        assert (shown["version"], shown["agent_steps"], shown["quorum"]) == (20, 2000, 3)
    shown = runs.details("living")["row"]
    assert (shown["updates_per_s"], shown["policy_lag"]) == (0.5, 4.0), "the last lag that is known"
    living.live.write_text(live(workers_present=2, **now))
    assert runs.overview("living")["workers_present"] == 2


def test_an_update_needs_the_quorum_that_the_settings_mean_unless_the_run_has_lowered_it(
    root: Path, living: RunDirectory
) -> None:
    run_directory(root / "sync", workers=5)
    run_directory(root / "some", workers=5, quorum=4)
    run_directory(root / "async", mode="async", workers=5)
    runs = Runs(root)
    assert {name: runs.overview(name)["quorum"] for name in ("sync", "some", "async")} == {
        "sync": 5,
        "some": 4,
        "async": 1,
    }
    assert runs.overview("living")["quorum"] == 2
    living.live.write_text(live())
    assert runs.overview("living")["quorum"] == 3


def test_a_run_that_is_not_running_has_no_present_speed_and_no_active_workers(root: Path) -> None:
    run_directory(root / "over", [row(9, workers_present=2)], summary=summary())
    (root / "over" / "live.json").write_text(live(workers_present=2))  # left by a session that was killed
    shown = Runs(root).details("over")
    assert (shown["state"], shown["workers_present"], shown["agent_steps_per_s"]) == ("ended", None, None)
    assert shown["row"]["updates_per_s"] is None


def test_an_ended_run_has_the_figures_of_its_summary_as_status_says(root: Path) -> None:
    path = run_directory(root / "over", [row(9)], summary=summary(episodes=61))
    shown, found = Runs(root).details("over"), status.status(path)
    assert (shown["version"], shown["agent_steps"], shown["minutes"], shown["score"]) == (60, 6000, 0.2, 5.5)
    assert {key: shown["row"][key] for key in ("version", "wall_s", "episodes")} == {
        "version": 60,
        "wall_s": 12.0,
        "episodes": 61,
    }
    for key in ("version", "wall_s", "agent_steps", "score_mean_50", "episodes", "updates_per_s"):
        assert found[key] == shown["row"][key], key


@pytest.mark.parametrize("damage", [None, [], {"host": 5, "pid": 1}, {"host": socket.gethostname(), "pid": "1"}])
def test_a_run_whose_supervisor_is_unknown_is_running(root: Path, living: RunDirectory, damage: Any) -> None:
    living.cluster.write_text(json.dumps({"supervisor": damage}))
    assert Runs(root).state("living") == "running"


@pytest.mark.processes
def test_a_run_whose_supervisor_is_suspended_is_stopped_as_status_says(root: Path, living: RunDirectory) -> None:
    with ending(subprocess.Popen(["sleep", "600"])) as supervisor:
        here = {"host": socket.gethostname(), "pid": supervisor.pid}
        living.cluster.write_text(json.dumps({"supervisor": here, "shards": [], "workers": [], "followers": []}))
        runs = Runs(root)
        assert runs.state("living") == "running"
        supervisor.send_signal(signal.SIGSTOP)
        eventually(lambda: status.status(living.path)["state"] == "stopped", "it is stopped")
        shown = runs.details("living")
        assert (shown["state"], shown["agent_steps_per_s"], shown["missing"]) == ("stopped", None, [])
        in_a_container = {"supervisor": here | {"pid_space": "boot pid:[1]"}}
        living.cluster.write_text(json.dumps(in_a_container))
        assert runs.state("living") == "running"
        living.cluster.write_text(json.dumps({"supervisor": here, "shards": [], "workers": [], "followers": []}))
    assert runs.state("living") == status.status(living.path)["state"] == "killed"


def test_a_live_run_names_the_processes_and_hosts_that_are_lost(root: Path, living: RunDirectory) -> None:
    runs = Runs(root)
    assert runs.details("living")["missing"] == [], "live.json does not exist yet"
    presences = [
        Presence(process=worker_id(0), host="h1", state="present"),
        Presence(process=worker_id(1), host="h2", state="lost", for_s=12.3, restarts=2),
        Presence(process=worker_id(2), host="h2", state="present"),
        *(Presence(process=worker_id(rank), host="h3", state="unreachable", for_s=20.0) for rank in (3, 4, 5)),
    ]
    living.live.write_text(live(*presences))
    assert runs.details("living")["missing"] == [
        {"host": "h2", "processes": "worker-1: lost 12 s ago"},
        {"host": "h3", "processes": "worker-3..5: its host has been unreachable for 20 s"},
    ]
    living.live.write_text(live(*presences[:1]))
    assert runs.details("living")["missing"] == []


def test_old_figures_of_a_running_run_are_shown_with_their_age(root: Path, living: RunDirectory) -> None:
    lost = Presence(process=worker_id(1), host="h2", state="lost", for_s=12.3)
    living.live.write_text(live(lost, workers_present=2, version=70))
    assert Runs(root).details("living")["old"] is None
    long_ago = time.time() - 6 * 3600
    living.live.write_text(json.dumps(json.loads(live(lost, workers_present=2, version=70)) | {"at": long_ago}))
    os.utime(living.live, (long_ago, long_ago))
    shown = Runs(root).details("living")
    assert (shown["old"], shown["state"], shown["version"]) == ("these figures are 6 h old", "running", 70)
    assert (shown["workers_present"], shown["agent_steps_per_s"], shown["missing"]) == (None, None, [])


def test_a_run_whose_lock_is_not_visible_is_running_while_its_supervisor_elsewhere_writes(root: Path) -> None:
    elsewhere = RunDirectory(run_directory(root / "elsewhere", [row(1)]))
    elsewhere.cluster.write_text(json.dumps({"supervisor": {"host": "h9", "pid": 1}}))
    runs = Runs(root)
    assert runs.state("elsewhere") == "killed"
    elsewhere.live.write_text(live(workers_present=2))
    assert (runs.state("elsewhere"), runs.overview("elsewhere")["workers_present"]) == ("running", 2)
    elsewhere.cluster.write_text(json.dumps({"supervisor": {"host": socket.gethostname(), "pid": 1}}))
    assert runs.state("elsewhere") == "killed"


def test_a_run_that_is_not_running_misses_no_process(root: Path) -> None:
    text = live(Presence(process=worker_id(1), host="h2", state="lost", for_s=12.3))
    (root / "ended" / "live.json").write_text(text)  # left by a session that was killed
    assert Runs(root).details("ended")["missing"] == []


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        '{"processes": 5}',
        '{"processes": [{"name": "worker-1"}]}',
        '{"processes": [{"name": "?", "host": "h", "presence": "lost", "for_s": 1, "restarts": 0}]}',
        live(Presence(process=worker_id(1), host="h", state="lost", for_s=10**400)),
    ],
    ids=["not JSON", "a list", "no list", "incomplete", "no name", "too long"],
)
def test_a_damaged_live_json_names_no_process(root: Path, living: RunDirectory, text: str) -> None:
    living.live.write_text(text)
    shown = Runs(root).details("living")
    assert (shown["state"], shown["missing"]) == ("running", [])


def test_no_link_is_read_as_live_json(root: Path, living: RunDirectory) -> None:
    (root / "elsewhere.json").write_text(live(Presence(process=worker_id(1), host="h2", state="lost")))
    living.live.symlink_to(root / "elsewhere.json")
    assert Runs(root).details("living")["missing"] == []


def test_a_run_whose_supervisor_is_gone_is_killed_and_its_lock_is_left_alone(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = RunDirectory(run_directory(root / "left", [row(1)]))
    directory.cluster.write_text("{}")
    runs, asked = Runs(root), list[Path]()

    def is_locked(path: Path) -> bool:
        asked.append(path)
        return False

    monkeypatch.setattr(runs_module, "is_locked", is_locked)
    assert [runs.state("left") for _ in range(3)] == ["killed"] * 3
    assert len(asked) == 1
    assert runs.overview("left")["exit_reason"] is None


@pytest.mark.parametrize(("name", "before"), [("ended", "ended"), ("pong/deep", "killed")])
def test_a_run_that_resumes_is_starting_until_its_shards_are_up(
    root: Path, monkeypatch: pytest.MonkeyPatch, name: str, before: str
) -> None:
    directory, asked = RunDirectory(root / name), list[Path]()
    if before == "killed":
        directory.left.write_text("{}")
    runs = Runs(root)

    def counting(path: Path) -> bool:
        asked.append(path)
        return is_locked(path)

    monkeypatch.setattr(runs_module, "is_locked", counting)
    assert [runs.state(name) for _ in range(3)] == [before] * 3
    assert len(asked) == 1
    directory.claim()
    try:
        assert (runs.state(name), runs.overview(name)["exit_reason"]) == ("starting", None)
        directory.cluster.write_text("{}")
        assert runs.state(name) == "running"
        directory.cluster.unlink()
    finally:
        directory.release()
    assert runs.state(name) == before


def test_a_new_row_is_shown_and_an_unchanged_file_is_not_read_again(root: Path) -> None:
    (root / "ended" / "summary.json").unlink()
    runs = Runs(root)
    first = runs.record("ended")
    assert runs.record("ended") is first
    assert runs.overview("ended")["version"] == 20
    before = runs.stamp("ended")
    with (root / "ended" / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(row(3)) + "\n")
        file.write('{"version": 40, "wall')  # still being written
    assert runs.stamp("ended") != before
    assert runs.overview("ended")["version"] == 30
    assert [each["version"] for each in runs.record("ended").rows] == [10, 20, 30]


def test_damaged_lines_and_files_do_not_stop_the_page(root: Path) -> None:
    run = root / "ended"
    with (run / "metrics.jsonl").open("a") as file:
        file.write("\x00\x00\nnull\n" + json.dumps(row(4)) + "\n")
    (run / "summary.json").write_text("{")
    (run / "evaluations.jsonl").write_text('{"version": 10, "mean": 3.0, "ci95": [2.0, 4.0]}\nbroken\n')
    found = Runs(root).details("ended")
    assert found["version"] == 40
    assert [each["mean"] for each in found["evaluations"]] == [3.0]


def test_a_saved_evaluation_is_shown_once_it_is_whole(root: Path) -> None:
    file = root / "ended" / "evaluation.json"
    runs = Runs(root)
    for content, means in (("", []), ('{"version": 10', []), ('{"version": 10, "mean": 3.0}', [3.0])):
        file.write_text(content, encoding="utf-8")
        assert [each["mean"] for each in runs.details("ended")["evaluations"]] == means


def test_a_run_that_is_deleted_while_the_page_reads_it_hides_no_other_run(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs_module, "LOOK_EVERY_S", 0.0)
    monkeypatch.setattr(runs_module, "LOOK_SHARE", 0)
    run_directory(root / "zoo", [row(1)])
    runs = Runs(root)
    lines = runs.overviews()
    assert next(lines)["name"] == "ended"
    shutil.rmtree(root / "pong")
    assert [each["name"] for each in lines] == ["zoo"]
    with pytest.raises(UnknownRun):
        runs.details("pong/deep")


def test_a_run_that_has_ended_still_shows_its_hosts(root: Path) -> None:
    assert Runs(root).details("ended")["hosts"] == []
    versions = {"zmqrl": "0.1.0", "python": "3.11.2", "torch": "2.3.0", "cores": 8}
    h1 = {"host": "h1", **versions, "code": "c", "processes": ["shard-0", "worker-0", "worker-1", "worker-2"]}
    path = root / "ended" / "hosts.json"
    path.write_text(json.dumps({"hosts": [h1, {"host": "h2", "processes": []}], "given": None}))
    shown = Runs(root).details("ended")["hosts"]
    assert shown[0] == h1 | {"processes": "shard-0,worker-0..2"}
    assert (shown[1]["host"], shown[1]["processes"], shown[1]["torch"]) == ("h2", "", None)
    path.write_text('{"hosts": [{"host": 1}], "given": null}')
    assert Runs(root).details("ended")["hosts"] == []


def test_a_damaged_last_row_is_left_out(root: Path) -> None:
    (root / "ended" / "summary.json").unlink()
    with (root / "ended" / "metrics.jsonl").open("a") as file:
        file.write('{"version": 99}\n')
    assert {each["name"]: each["version"] for each in Runs(root).overviews()}["ended"] == 20


def test_a_run_whose_metrics_cannot_be_read_has_no_figures(root: Path) -> None:
    (root / "ended" / "summary.json").unlink()
    metrics = root / "ended" / "metrics.jsonl"
    metrics.unlink()
    metrics.mkdir()
    assert [(each["name"], each["version"]) for each in Runs(root).overviews()] == [("ended", None), ("pong/deep", 10)]


def test_no_symbolic_link_of_a_run_is_read(root: Path) -> None:
    """Not even a link to a directory with the files of a run is read."""
    other = run_directory(root / "other", [row(1)], evaluations=[{"version": 1, "mean": 9.0, "ci95": [8.0, 10.0]}])
    (other / "summary.json").write_text(json.dumps(summary(exit_reason="failed")))
    for directory, name in (("logs", "supervisor.log"), ("videos", "v00000010.mp4"), ("profile", "x.blocks")):
        (other / directory).mkdir()
        (other / directory / name).write_text("2026-01-05 10:12:09 failed: worker-3 died\n")
    shown = Runs(root).details("other")
    assert shown["failure"]
    assert all(shown[part] for part in ("row", "evaluations", "videos", "logs"))
    linked = root / "linked"
    linked.mkdir()
    (linked / "config.json").write_bytes((other / "config.json").read_bytes())
    for path in other.iterdir():
        if path.name != "config.json":
            (linked / path.name).symlink_to(path)
    hidden = Runs(root).details("linked")
    assert [hidden[part] for part in ("row", "evaluations", "videos", "logs", "failure")] == [None, [], [], {}, None]
    assert hidden["exit_reason"] is None
    (linked / "config.json").unlink()
    (linked / "config.json").symlink_to(other / "config.json")
    assert "linked" not in Runs(root).found()


@pytest.mark.timeout(60)  # a pipe has no writer, so it would keep its reader waiting
def test_no_pipe_of_a_run_is_read(root: Path) -> None:
    run = root / "ended"
    for name in ("logs", "videos"):
        (run / name).mkdir()
    for name in ("metrics.jsonl", "summary.json"):
        (run / name).unlink()
    of_the_run = (
        "cluster.json",
        "metrics.jsonl",
        "summary.json",
        "evaluations.jsonl",
        "hosts.json",
        "stalled.json",
        "live.json",
    )
    for name in (".lock", *of_the_run, "logs/supervisor.log", "videos/v00000010.mp4"):
        os.mkfifo(run / name)
    shown = Runs(root).details("ended")
    assert [shown[part] for part in ("row", "evaluations", "videos", "logs", "failure")] == [None, [], [], {}, None]
    assert shown["state"] == "killed"
    (run / "config.json").unlink()
    os.mkfifo(run / "config.json")
    assert list(Runs(root).found()) == ["pong/deep"]


PARTS = st.one_of(st.binary(), st.sampled_from([rb"\\", rb"\xff", b"\xff", b"x", b"f"]))
NAMES = st.lists(PARTS, max_size=4).map(b"".join)


@given(NAMES, NAMES)
def test_different_names_of_files_have_different_texts(one: bytes, other: bytes) -> None:
    texts = [text_of(os.fsdecode(name)) for name in (one, other)]
    assert (texts[0] == texts[1]) == (one == other)
    assert all(text.encode().decode() == text for text in texts)


def test_a_run_whose_name_is_not_utf8_has_a_name_that_leads_to_it(root: Path) -> None:
    names = {r"bad\xff": b"bad\xff", r"bad\\xff": rb"bad\xff", "größe/1": "größe/1".encode()}
    for name in names.values():
        run_directory(root / os.fsdecode(name), [row(1)])
    runs = Runs(root)
    assert {*runs.found()} == {"ended", "pong/deep", *names}
    for text, name in names.items():
        assert runs.find(text).path == root / os.fsdecode(name)
        assert runs.details(text)["name"] == text


def test_rows_that_a_resumed_run_has_undone_are_left_out(root: Path) -> None:
    with (root / "ended" / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(row(1, score_mean_50=99.0)) + "\n")
    assert [each["score_mean_50"] for each in Runs(root).record("ended").rows] == [99.0]


def test_videos_have_the_minute_of_their_version(root: Path) -> None:
    videos = root / "ended" / "videos"
    videos.mkdir()
    for name in ("minute-000-v00000000.mp4", "v00000015.gif", "mine.mp4", ".unfinished.mp4", "notes.txt"):
        (videos / name).touch()
    found = {each["name"]: each["minutes"] for each in Runs(root).details("ended")["videos"]}
    assert found == {"minute-000-v00000000.mp4": 0.0, "v00000015.gif": pytest.approx(1.5 / 60), "mine.mp4": None}


def test_the_end_of_a_failed_run_names_the_first_failure_of_its_last_session(root: Path) -> None:
    run = run_directory(root / "failed", [row(1)], summary=summary(exit_reason="failed"))
    (run / "logs").mkdir()
    session = "2026-01-05 10:12:03 run directory /r; game: x\n"
    log = run / "logs" / "supervisor.log"
    log.write_text(f"{session}2026-01-05 10:12:09 failed: an old reason\n{session}")
    assert Runs(root).details("failed")["failure"] is None
    with log.open("a") as file:
        file.write("2026-01-05 10:12:09 failed: worker-3 died\nThe first to fail was shard-1 on h2\n  | disk full\n")
    failure = Runs(root).details("failed")["failure"]
    assert failure == "worker-3 died\nThe first to fail was shard-1 on h2\n  | disk full"
    assert Runs(root).details("ended")["failure"] is None


@pytest.mark.parametrize("stamp", ["2026-01-05 10:12:09,123", "2026-01-05 10:12:09,123+0100"])
def test_a_failure_is_shown_whole_and_once_even_if_it_quotes_other_failures(root: Path, stamp: str) -> None:
    run = run_directory(root / "failed", [row(1)], summary=summary(exit_reason="failed"))
    (run / "logs").mkdir()
    reason = "worker-3 died: the handshake with shard 0 failed: the keys do not match\n"
    reason += (
        f"The first to fail was worker-3 on h2; its log ended with\n  | no run directory here: {'x' * 40_000} failed: y"
    )
    printed = f"zmqrl: {reason}\n"  # by a detached run
    (run / "logs" / "supervisor.log").write_text(f"{stamp} run directory /r\n{stamp} failed: {reason}\n{printed}")
    assert Runs(root).details("failed")["failure"] == reason
