"""``zmqrl bench train`` trains for real, and compares the speed with the speed of its parts alone."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from support.commands import ran
from support.rig import descendants, ending, eventually, is_alive

from zmqrl import cli
from zmqrl.bench.efficiency import PARTS, SPLIT, Efficiency, StepTimes
from zmqrl.bench.reference import AMX, references
from zmqrl.bench.train import Measured, to_json
from zmqrl.commands.measure import bench_train
from zmqrl.commands.measure.train_figures import headline, notes, table
from zmqrl.errors import UsageError
from zmqrl.recipes import breakout_ppo

MEASURED = Measured(
    efficiency=Efficiency(
        workers=2,
        rounds=[
            StepTimes(
                bare_s={"env_step": 8e-4, "act": 5e-5, "gradient": 4e-4},
                split_s={"env_step": 8e-4, "act": 1e-4, "gradient": 5e-4, "wait": wait_s, "rest": 1e-4},
            )
            for wait_s in (2e-4, 3e-4)
        ],
    ),
    threads=1,
    passes=4.0,
    facts={"compute": "bfloat16", "batch": 128, "backward_only": False},
    references=references(breakout_ppo(), threads=1, compute="bfloat16", passes=4.0, backward_only=False),
)


def rows_shown() -> list[list[str]]:
    console = Console(width=200)
    with console.capture() as captured:
        console.print(table(MEASURED))
    return [[cell.strip() for cell in line.split("  ") if cell.strip()] for line in captured.get().splitlines()]


def test_the_table_compares_each_part_in_training_with_the_part_alone_and_its_reference() -> None:
    rows = {row[0]: row[1:] for row in rows_shown() if row}
    assert rows["environment"] == ["800.0", "800.0", "1.00", "437.0", "1.83"]
    assert rows["acting"] == ["100.0", "50.0", "0.50", "36.0", "1.39"]
    assert rows["gradient"] == ["500.0", "400.0", "0.80", "580.0", "0.69"]
    assert rows["waiting"] == ["250.0"]
    assert rows["rest"] == ["100.0"]
    assert rows["sum"] == ["1,750.0", "1,250.0", "0.71"]


def test_the_sentences_tell_the_speed_the_limit_and_what_was_measured() -> None:
    assert headline(breakout_ppo(), MEASURED) == (
        "ppo, network narrow in bfloat16, 2 workers with 16 games of ALE/Breakout-v5 and 1 thread each, 2 shards"
    )
    said = "\n".join(notes(MEASURED))
    for words in (
        "training: 1,143 agent steps/s",
        "component limit: 1,600 agent steps/s",
        "efficiency: 0.71 (0.69 to 0.74 in 2 rounds)",
        "bare environment: 2,500 agent steps/s; training reaches 0.46 of this",
        "batches of 128; 4 passes per sample",
        f"reference of environment, acting, gradient: {AMX}",
    ):
        assert words in said
    kept = MEASURED._replace(passes=1.0, facts=MEASURED.facts | {"backward_only": True}, references={})
    assert "1 pass per sample, backward only" in "\n".join(notes(kept))
    assert not any(note.startswith("reference") for note in notes(kept))


def test_json_has_the_reference_of_each_part_or_null() -> None:
    found = to_json(breakout_ppo(), MEASURED._replace(references={}))
    assert found["reference_s"] == found["reference_machine"] == dict.fromkeys(PARTS)
    found = to_json(breakout_ppo(), MEASURED)
    assert found["reference_s"] == pytest.approx({"env_step": 437e-6, "act": 36e-6, "gradient": 580e-6})
    assert (found["workers"], found["num_envs"], found["batch"], found["passes"]) == (2, 16, 128, 4.0)


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ("--seconds 0", "--seconds 0"),
        ("--seconds nan", "--seconds nan"),
        ("--rounds 0", "--rounds 0"),
        ("--minutes 5", "--minutes cannot be used"),
        ("--stop-score 5", "--stop-score cannot be used"),
        ("--external-workers 1", "--external-workers cannot be used"),
        ("--act-only", "--act-only cannot be used"),
        ("--workers 0", "--workers 0"),
        ("--model no-such-net", "no-such-net"),
        ("--env NoSuchGame-v5", "NoSuchGame-v5"),
        ("--ppo.minibatches 7", "7 equal minibatches"),
        ("--bogus", "--bogus"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_anything_starts(
    options: str, names: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def started(*_: object, **__: object) -> Iterator[Any]:
        raise AssertionError("a measurement was started")

    monkeypatch.setattr(bench_train, "measure", started)
    with pytest.raises(UsageError) as error:
        cli.run(["bench", "train", "cartpole", *options.split()])
    assert names in str(error.value)


def test_a_directory_with_rounds_is_not_used_again(tmp_path: Path) -> None:
    (tmp_path / "round-1").mkdir()
    with pytest.raises(UsageError, match=r"round-1 already exists"):
        cli.run(["bench", "train", "cartpole", "--run-dir", str(tmp_path)])


@pytest.mark.slow
@pytest.mark.processes
def test_a_short_measurement_trains_for_real_and_times_every_part(tmp_path: Path) -> None:
    games = ("--env", "zmqrl/Dummy-v0", "--algo", "ba3c", "--envs.num-envs", "2", "--envs.screen-size", "36")
    short = (
        "--model",
        "small",
        "--shards",
        "1",
        "--trackers",
        "--seconds",
        "0.2",
        "--rounds",
        "1",
        "--run-dir",
        str(tmp_path),
    )
    command = [sys.executable, "-m", "zmqrl", "bench", "train", *games, *short, "--json"]
    found = json.loads(ran(command, within_s=300).stdout)
    assert set(found["split_s"]) == set(SPLIT)
    assert all(found["split_s"][name] > 0 for name in PARTS)
    assert all(found["bare_s"][name] > 0 for name in PARTS)
    assert found["agent_steps_per_s"] == pytest.approx(2 / sum(found["split_s"].values()))
    assert found["efficiency"] == pytest.approx(found["agent_steps_per_s"] / found["component_limit_steps_per_s"])
    assert (found["backward_only"], found["batch"], found["passes"], found["workers"]) == (True, 10, 1.0, 2)
    assert [each["efficiency"] for each in found["rounds"]] == [found["efficiency"]]
    summary = json.loads((tmp_path / "round-1" / "summary.json").read_text(encoding="utf-8"))
    assert summary["exit_reason"] == "updates"
    assert summary["agent_steps"] >= 2 * 10 * summary["updates"]


@pytest.mark.slow
@pytest.mark.processes
def test_ctrl_c_during_training_leaves_neither_processes_nor_files(tmp_path: Path) -> None:
    options = ("cartpole", "--trackers", "--seconds", "1000", "--rounds", "1000")
    quiet = subprocess.DEVNULL
    command = [sys.executable, "-m", "zmqrl", "bench", "train", *options]
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    with ending(subprocess.Popen(command, stdin=quiet, stdout=quiet, stderr=quiet, env=environment)) as process:

        def trains() -> bool:
            assert process.poll() is None, "the benchmark ended by itself"
            return any(file.stat().st_size > 1000 for file in tmp_path.glob("zmqrl-bench-*/round-1/history/*.jsonl"))

        eventually(trains, "versions made", 150)
        started = descendants(process.pid)
        assert len(started) >= 6, "the parts, the host daemon, two shards and two workers must have started"
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
        eventually(lambda: not any(map(is_alive, started)), "the end of all processes")
    assert list(tmp_path.iterdir()) == []
