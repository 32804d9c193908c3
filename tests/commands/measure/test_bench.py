"""``zmqrl bench`` prints rows for every requested combination and leaves no process and no file behind."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.rig import descendants, ending, eventually, is_alive

from zmqrl import cli
from zmqrl.bench.grid import IMPLEMENTATIONS, OPERATIONS, Case, Grid
from zmqrl.bench.samples import Row
from zmqrl.commands.measure import bench_wire
from zmqrl.errors import ClusterError, UsageError
from zmqrl.observe.provenance import provenance

SMALL = ("--parameters", "1000")
TINY = (*SMALL, "--workers", "2", "--rounds", "2")
ROW: dict[str, type | tuple[type, ...]] = {
    "implementation": str,
    "operation": str,
    "transport": str,
    "codec": str,
    "curve": bool,
    "parameters": int,
    "workers": int,
    "shards": int,
    "rounds": int,
    "p50_ms": float,
    "p99_ms": float,
    "bytes": int,
    "bytes_per_s": float,
    "fraction_of_memcpy": (float, type(None)),
    "limit_ms": (float, type(None)),
    "times_limit": (float, type(None)),
    "commit": (str, type(None)),
    "cpu": str,
    "load_before": float,
}


def rows_of(capsys: pytest.CaptureFixture[str], *options: str) -> list[dict[str, Any]]:
    assert cli.run(["bench", "wire", "--json", *options]) == 0
    rows: list[dict[str, Any]] = json.loads(capsys.readouterr().out)
    for row in rows:
        assert set(row) == set(ROW)
        assert all(isinstance(row[name], kind) for name, kind in ROW.items()), row
        assert 0 < row["p50_ms"] <= row["p99_ms"]
    return rows


@pytest.mark.slow
@pytest.mark.processes
def test_every_combination_has_a_row_for_every_operation(capsys: pytest.CaptureFixture[str]) -> None:
    every = ("--transport", "tcp", "ipc", "--codec", "f32", "bf16", "--curve", "off", "on", "--shards", "2")
    rows = rows_of(capsys, *TINY, *every)
    assert all(row["fraction_of_memcpy"] is not None for row in rows)
    assert Counter((row["implementation"], row["operation"]) for row in rows) == {
        **{("zmqrl", operation): 8 for operation in OPERATIONS},
        **{("raw_tcp", operation): 2 for operation in OPERATIONS},
        **{("memcpy", operation): 2 for operation in OPERATIONS},
        ("gloo", "update_round"): 2,
        ("limit", "update_round"): 2,
    }
    for row in rows:
        has_limit = row["operation"] == "update_round" and row["shards"] == 2  # gloo has no shards
        assert (row["times_limit"] is not None) == has_limit, row
    ours = [row for row in rows if row["implementation"] == "zmqrl"]
    columns = ("operation", "transport", "codec", "curve")
    assert len({tuple(row[name] for name in columns) for row in ours}) == len(ours)


@pytest.mark.processes
def test_only_the_requested_operations_are_measured(capsys: pytest.CaptureFixture[str]) -> None:
    only = ("--operation", "push", "round_trip", "--implementation", "zmqrl", "--transport", "ipc")
    rows = rows_of(capsys, *TINY, *only)
    assert [(row["implementation"], row["operation"], row["transport"]) for row in rows] == [
        ("zmqrl", "push", "ipc"),
        ("zmqrl", "round_trip", "ipc"),
    ]
    assert {row["fraction_of_memcpy"] for row in rows} == {None}


@pytest.mark.processes
def test_a_limit_in_minutes_reduces_the_number_of_samples(capsys: pytest.CaptureFixture[str]) -> None:
    short = ("--workers", "2", "--rounds", "100000", "--minutes", "0.001", "--implementation", "raw_tcp", "memcpy")
    rows = rows_of(capsys, *SMALL, *short)
    assert {row["rounds"] for row in rows} == {10}


def test_the_rows_before_a_failure_are_printed_with_their_origin(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def measured(grid: Grid, begin: Callable[[Case], None]) -> Iterator[list[Row]]:
        yield [{"workers": 2}]
        raise ClusterError("worker 3 ended")

    monkeypatch.setattr(bench_wire, "measure", measured)
    with pytest.raises(ClusterError, match="worker 3 ended"):
        cli.run(["bench", "wire", "--json"])
    (row,) = json.loads(capsys.readouterr().out)
    origin = provenance()
    assert row.pop("load_before") >= 0.0
    assert row == {"workers": 2, "commit": origin["commit"], "cpu": origin["cpu"]}


@pytest.mark.processes
def test_without_json_each_group_has_a_table_and_the_plot_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = tmp_path / "wire.svg"
    some = ["--workers", "1", "2", "--rounds", "2", "--implementation", "raw_tcp", "memcpy", "limit"]
    some += ["--plot", str(picture)]
    assert cli.run(["bench", "wire", *SMALL, *some]) == 0
    shown = capsys.readouterr().out
    for words in ("1,000 parameters", "1 worker", "2 workers", "raw_tcp 1 shard", "memcpy", "of limit", *OPERATIONS):
        assert words in shown
    drawn = picture.read_text(encoding="utf-8")
    for words in ("1 worker", "2 workers", "raw_tcp 1 shard, f32", "update_round (ms)"):
        assert words in drawn


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ("--workers 0", "--workers 0"),
        ("--workers many", "many"),
        ("--shards 65", "--shards 65"),
        ("--parameters 20 --shards 8", "20 parameters"),
        ("--transport udp", "udp"),
        ("--codec f16", "f16"),
        ("--curve maybe", "maybe"),
        ("--operation pull", "pull"),
        ("--implementation nccl", "nccl"),
        ("--rounds 0", "--rounds 0"),
        ("--minutes -1", "--minutes -1"),
        ("--plot wire.gif", "--plot wire.gif"),
        ("--plot /no/such/directory/wire.png", "/no/such/directory"),
        ("--bogus", "--bogus"),
        ("--implementation limit --operation push", "limit: has no result without --operation update_round"),
        ("--implementation gloo limit --operation push", "gloo limit: has no result without"),
    ],
)
def test_values_that_cannot_be_measured_are_refused_before_anything_starts(
    options: str, names: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def started(*_: object) -> Iterator[Any]:
        raise AssertionError("a measurement was started")

    monkeypatch.setattr(bench_wire, "measure", started)
    with pytest.raises(UsageError) as error:
        cli.run(["bench", "wire", *options.split()])
    assert names in str(error.value)


def test_an_error_about_an_unknown_benchmark_suggests_the_nearest_one() -> None:
    with pytest.raises(UsageError, match=r"unknown benchmark 'wir' \(did you mean wire\?\)"):
        cli.run(["bench", "wir"])


def test_help_lists_the_benchmarks_and_every_option_with_its_default(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["bench"], ["bench", "--help"]):
        assert cli.run(arguments) == 0
        shown = capsys.readouterr().out
        assert "zmqrl bench wire" in shown
        assert "zmqrl bench train" in shown
    with pytest.raises(SystemExit) as stop:
        cli.run(["bench", "wire", "--help"])
    assert stop.value.code == 0
    shown = " ".join(capsys.readouterr().out.split())
    for option, default in (
        ("--parameters", "480165 677429 1686693"),
        ("--workers", "2 4"),
        ("--shards", "1"),
        ("--transport", "tcp ipc shm"),
        ("--codec", "f32"),
        ("--curve", "off"),
        ("--operation", " ".join(OPERATIONS)),
        ("--implementation", " ".join(IMPLEMENTATIONS)),
        ("--rounds", "100"),
        ("--minutes", "4.0"),
        ("--plot", "None"),
    ):
        assert option in shown
        assert f"(default: {default})" in shown


# what is left when a benchmark ends early


@contextlib.contextmanager
def measuring(scratch: Path) -> Iterator[tuple["subprocess.Popen[bytes]", set[int]]]:
    """An endless ``zmqrl bench wire``. Once all of its processes run, yields the command and their ids."""
    command = [sys.executable, "-m", "zmqrl", "bench", "wire", "--parameters", "1000", "--workers", "2"]
    command += ["--transport", "tcp", "--implementation", "zmqrl", "raw_tcp", "--rounds", "1000000", "--minutes", "100"]
    environment = os.environ | {"TMPDIR": str(scratch)}
    quiet = subprocess.DEVNULL
    with ending(subprocess.Popen(command, stdin=quiet, stdout=quiet, env=environment)) as process:

        def at_work() -> bool:
            assert process.poll() is None, "the benchmark ended by itself"
            return any(file.stat().st_size > 5000 for file in scratch.glob("zmqrl-bench-*/0/*/history/*.jsonl"))

        eventually(at_work, "versions made", 120)
        yield process, descendants(process.pid)


@pytest.mark.processes
@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_ctrl_c_leaves_neither_processes_nor_files(tmp_path: Path, number: signal.Signals) -> None:
    with measuring(tmp_path) as (process, started):
        assert len(started) >= 5, "two workers, a shard and two hubs must have started"
        process.send_signal(number)
        assert process.wait(60) == 130
        eventually(lambda: not any(map(is_alive, started)), "the end of all processes")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.processes
def test_the_processes_of_a_benchmark_end_even_if_the_benchmark_is_killed(tmp_path: Path) -> None:
    with measuring(tmp_path) as (process, started):
        process.kill()
        process.wait(60)
        eventually(lambda: not any(map(is_alive, started)), "the end of all processes")
