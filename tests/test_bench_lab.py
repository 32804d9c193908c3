"""What all benchmarks share: where their results come from, how their runs end, and the interval of a mean."""

import argparse
import importlib
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

import bench_lab
import numpy as np
import profile_overhead
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.paths import ROOT
from support.rig import ending, eventually, is_alive

BENCHMARKS = {
    "central_graph": "",
    "continuous": "pendulum --agent-steps 2048",
    "efficiency": "",
    "flood": "",
    "learning": "--run no-such-run",
    "measure": "",
    "page": "",
    "pixel_blocks": "",
    "profile_overhead": "",
    "recovery": "",
    "scaling": "",
    "simulation_validation": "calibrate",
    "start_up": "",
    "start_up_here": "",
    "straggler": "",
    "what_if": "",
}


class Begun(Exception):
    """A benchmark has called what every benchmark calls first."""


def test_every_benchmark_that_starts_processes_is_tested() -> None:
    programs = {path.stem for path in (ROOT / "benchmarks").glob("*.py") if "\ndef main" in path.read_text("utf-8")}
    assert programs - {"keep", "published_figures"} | {"learning", "measure"} == set(BENCHMARKS)


@pytest.mark.parametrize("name", BENCHMARKS)
def test_a_benchmark_begins_as_all_others_do(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def begin(parser: argparse.ArgumentParser, *outputs: Path | None) -> NoReturn:
        raise Begun

    module = importlib.import_module(name)
    monkeypatch.setattr(bench_lab if name == "flood" else module, "begin", begin)  # flood imports it later
    monkeypatch.setattr(sys, "argv", [f"{name}.py", *BENCHMARKS[name].split()])
    with pytest.raises(Begun):
        module.main()


@pytest.mark.parametrize("name", ["central_graph", "efficiency", "flood", "page", "scaling", "start_up"])
def test_the_results_of_a_benchmark_are_written_beside_their_page(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Path | None] = []

    def begin(parser: argparse.ArgumentParser, *outputs: Path | None) -> NoReturn:
        given.extend(outputs)
        raise Begun

    module = importlib.import_module(name)
    monkeypatch.setattr(bench_lab if name == "flood" else module, "begin", begin)
    monkeypatch.setattr(sys, "argv", [f"{name}.py"])
    with pytest.raises(Begun):
        module.main()
    (output,) = given
    assert output == ROOT / "benchmarks/results" / name.replace("_", "-")
    assert (output / "README.md").exists()


@pytest.mark.parametrize("words", ["", "--rounds 1", "pong --workers 3 --envs.num-envs 4 --rounds 1 --seed 2"])
@pytest.mark.parametrize("name", ["profile_overhead", "straggler"])
def test_a_benchmark_passes_the_recipe_and_its_options_on(
    name: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[list[str]] = []

    def run(options: list[str], *others: object) -> NoReturn:
        given.append(options)
        raise Begun

    module = importlib.import_module(name)
    monkeypatch.setattr(module, "begin", lambda parser, *outputs: {})
    monkeypatch.setattr(module, "run", run)
    monkeypatch.setattr(profile_overhead, "span_ns", lambda: 0.0)
    monkeypatch.setattr(sys, "argv", [f"{name}.py", *words.split()])
    with pytest.raises(Begun):
        module.main()
    recipe = "pong --workers 3 --envs.num-envs 4 --seed 2" if "pong" in words else "cartpole"
    (options,) = given
    assert options[: len(recipe.split())] == recipe.split()
    assert "--rounds" not in options


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout with code, a result and a page. The commit of zmqrl says that some file has changed."""
    path = tmp_path / "checkout"
    for name in ("zmqrl/code.py", "benchmarks/code.py", "benchmarks/results/wire/results.json", "docs/page.md"):
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_text("old\n", encoding="utf-8")
    identity = ("-c", "user.name=n", "-c", "user.email=n@localhost", "-c", "commit.gpgsign=false")
    for command in (("init", "--quiet"), ("add", "."), (*identity, "commit", "--quiet", "-m", "first")):
        subprocess.run(["git", "-C", str(path), *command], check=True, timeout=60)
    monkeypatch.setattr(bench_lab, "CHECKOUT", path)
    monkeypatch.setattr(bench_lab, "provenance", lambda: {"commit": "0123456789ab+"})
    monkeypatch.setattr(os, "getloadavg", lambda: (1.5, 0.0, 0.0))
    monkeypatch.setattr(signal, "signal", lambda number, handler: None)
    return path


@pytest.mark.processes
def test_results_and_pages_that_another_benchmark_has_changed_are_no_change_of_the_code(checkout: Path) -> None:
    for name in ("benchmarks/results/wire/results.json", "docs/page.md"):
        (checkout / name).write_text("new\n", encoding="utf-8")
    origin = bench_lab.begin(argparse.ArgumentParser(), checkout / "benchmarks/results/wire")
    assert origin == {"commit": "0123456789ab", "load_before": 1.5}


@pytest.mark.processes
@pytest.mark.parametrize("changed", ["zmqrl/code.py", "benchmarks/code.py"])
def test_results_of_changed_code_are_not_for_the_checkout(
    changed: str, checkout: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (checkout / changed).write_text("new\n", encoding="utf-8")
    parser = argparse.ArgumentParser()
    for outputs in ([checkout / "benchmarks/results/wire"], [tmp_path, checkout / "docs/page.md"]):
        with pytest.raises(SystemExit):
            bench_lab.begin(parser, *outputs)
        assert "the code has changes that no commit has" in capsys.readouterr().err
    assert bench_lab.begin(parser, tmp_path, None)["commit"] == "0123456789ab+"


@pytest.mark.processes
def test_a_training_that_hangs_is_ended_with_ctrl_c(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_lab, "START_WITHIN_S", 1.0)
    ended = tmp_path / "ended"
    hangs = f"""
import signal, sys, time
signal.signal(signal.SIGINT, lambda *_: sys.exit(open({str(ended)!r}, "x").close()))
time.sleep(600)
"""
    with pytest.raises(SystemExit, match="not over within 3 s: "):
        bench_lab.train_with([sys.executable, "-c", hangs], 2.0)
    assert ended.exists()


@pytest.mark.processes
def test_a_training_that_fails_ends_the_benchmark(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"exit status 2: .* train no-such-recipe"):
        bench_lab.train(["no-such-recipe"], tmp_path / "run", 600.0)


@pytest.mark.processes
def test_a_run_that_does_not_end_is_killed_and_its_measurement_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ready, hangs = tmp_path / "ready", tmp_path / "hangs"
    hangs.write_text(f"#!/bin/sh\ntrap '' INT\n: > '{ready}'\nexec sleep 600\n", encoding="utf-8")
    hangs.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(hangs))
    monkeypatch.setattr(bench_lab, "END_WITHIN_S", 0.1)
    with bench_lab.running(["train"], tmp_path / "run") as run:
        run.wait_for(ready.exists, "start", 60.0)
    assert run.process.returncode == -signal.SIGKILL
    assert "killed, because it did not end within 0.1 s" in capsys.readouterr().err


@pytest.mark.processes
def test_sigterm_also_ends_the_training_of_a_benchmark(tmp_path: Path) -> None:
    started = tmp_path / "started"
    training = f"""
import os, pathlib, time
pathlib.Path({str(started)!r}).write_text(f"{{os.getpid()}}\\n")
time.sleep(600)
"""
    benchmark = f"""
import argparse, bench_lab, sys
bench_lab.begin(argparse.ArgumentParser())
bench_lab.train_with([sys.executable, "-c", {training!r}], 600.0)
"""
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'benchmarks'}"}
    with ending(subprocess.Popen([sys.executable, "-c", benchmark], env=environment)) as process:
        eventually(lambda: started.exists() and started.read_text().endswith("\n"), "training", 60)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 143
    assert not is_alive(int(started.read_text()))


@given(st.integers(3, 12))
def test_the_interval_of_a_mean_contains_it_for_most_trainings(trainings: int) -> None:
    rng = np.random.default_rng(trainings)
    draws = rng.normal(5.0, 2.0, (2000, trainings))
    bounds = np.array([bench_lab.trainings_interval(row.tolist()) for row in draws])
    share = np.mean((bounds[:, 0] <= 5.0) & (bounds[:, 1] >= 5.0))
    assert share == pytest.approx(0.95, abs=0.02)
    with pytest.raises(ValueError, match="2 trainings are too few"):
        bench_lab.trainings_interval([1.0, 2.0])
