"""Damaged files of a run: no version is made twice, and errors name the lost data."""

import json
import os
import signal
from pathlib import Path

import pytest
from support.rig import damage_newest_slot
from support.run_rig import RunFiles, copied, trained, training

pytestmark = pytest.mark.processes


@pytest.mark.slow
def test_after_damage_no_version_is_made_twice_even_if_no_worker_knows_of_the_loss(tmp_path: Path) -> None:
    with training(tmp_path / "run", "--shards", "2", "--checkpoint.every-minutes", "0.05") as run:
        run.wait_to_say("checkpoint of version")
        run.wait_for(run.files.version() + 20)
        pid = run.living_pid("shard", 0)
        os.kill(pid, signal.SIGSTOP)
        workers = [run.pid("worker", rank) for rank in range(2)]
        damage_newest_slot(run.files.path / "state" / "shard-0.slots")
        for victim in (*workers, pid):
            if victim is not None:
                os.kill(victim, signal.SIGKILL)
        run.wait_to_say("shard 0 came back without the newest state: all shards go back to the checkpoint")
        version = run.files.version()
        run.wait_for(version + 20)
        run.interrupt(signal.SIGTERM)
        run.files.assert_history_exact(run.files.summary()["updates"])
    assert "state is lost: the history has version" in run.files.log("shard-0")


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> RunFiles:
    return trained(tmp_path_factory.mktemp("ended") / "run", "--updates", "30")


@pytest.mark.slow
def test_a_run_continues_with_a_damaged_line_in_a_history_and_names_the_gap(tmp_path: Path, ended: RunFiles) -> None:
    path = copied(ended, tmp_path / "run")
    history = path / "history" / "shard-1.jsonl"
    lines = history.read_text().splitlines(keepends=True)
    lines[11] = '{"version": 12, "ra\x00"\n'
    history.write_text("".join(lines))
    with training(path, "--resume", "--updates", "40") as run:
        assert run.wait() == 0, run.said()
        assert f"{history}: line 12 could not be read; the original file is kept as shard-1.damaged-" in run.said()
    made = [line["version"] for line in RunFiles(path).history(1)]
    assert made == [version for version in range(1, 41) if version != 12]
    (original,) = history.parent.glob("shard-1.damaged-*.jsonl")
    assert original.read_text() == "".join(lines)


@pytest.mark.slow
@pytest.mark.parametrize(("kept", "missing"), [(0, "1 to 30"), (21, "22 to 30")])
def test_a_missing_or_shortened_history_is_reported(tmp_path: Path, ended: RunFiles, kept: int, missing: str) -> None:
    path = copied(ended, tmp_path / "run")
    history = path / "history" / "shard-0.jsonl"
    lines = history.read_text().splitlines(keepends=True)
    history.write_text("".join(lines[:kept]))
    if not kept:
        history.unlink()
    with training(path, "--resume", "--updates", "40") as run:
        assert run.wait() == 0, run.said()
        assert f"{history}: the lines of versions {missing} are missing" in run.said()
    made = [json.loads(line)["version"] for line in history.read_text().splitlines()]
    assert made == [*range(1, kept + 1), *range(31, 41)]


@pytest.mark.slow
def test_a_history_missing_after_a_kill_is_reported_on_the_screen(tmp_path: Path) -> None:
    path = tmp_path / "run"
    with training(path, "--shards", "2") as run:
        run.wait_for(20)
        run.signal(signal.SIGKILL)
        run.wait()
    (path / "history" / "shard-0.jsonl").unlink()
    lines = (path / "history" / "shard-1.jsonl").read_text().splitlines(keepends=True)
    lines[4] = '{"version": 5, "ra\x00"\n'
    (path / "history" / "shard-1.jsonl").write_text("".join(lines))
    with training(path, "--resume", "--minutes", "0.02") as run:
        assert run.wait() == 0, run.said()
        assert "shard-0.jsonl: the lines of versions 1 to " in run.said()
        assert "shard-1.jsonl: the line of version 5 is missing" in run.said()


@pytest.mark.slow
def test_a_resume_that_fails_early_leaves_the_summary_as_it_was(tmp_path: Path, ended: RunFiles) -> None:
    path = copied(ended, tmp_path / "run")
    before = (path / "summary.json").read_bytes()
    (path / "config.json").rename(tmp_path / "config.json")
    (path / "config.json").symlink_to(tmp_path / "config.json")
    (path / "state").mkdir()
    (path / "state" / "shard-0.slots").mkdir()  # a shard cannot make its state file
    with training(path, "--resume", "--updates", "60") as run:
        assert run.wait() in (2, 3), run.said()
    assert (path / "summary.json").read_bytes() == before
