"""Standard output has the result of a command, and nothing that the user's code prints."""

import dataclasses
import json
import math
import sys
from pathlib import Path

import pytest
from support.commands import ran
from support.paths import ROOT
from support.policy_rig import CARTPOLE, write_run

from zmqrl import cli
from zmqrl.commands.inspect import doctor
from zmqrl.commands.output import print_json
from zmqrl.hosts.preflight import Judgement, Survey

NOISY = """
import ctypes
import os

import gymnasium
import numpy as np
from gymnasium.envs.classic_control.cartpole import CartPoleEnv

def make_noise(where):
    print(where)
    os.write(1, b"written " + where.encode() + b"\\n")
    ctypes.CDLL(None).puts(b"from C " + where.encode())

class Noisy(CartPoleEnv):
    def step(self, action):
        make_noise("in a step")
        return super().step(action)

    def render(self):
        return np.zeros((20, 20, 3), np.uint8)

make_noise("at import")
gymnasium.register("Noisy-v0", Noisy, max_episode_steps=5)
"""
NOISE = {f"{how}{where}" for how in ("", "written ", "from C ") for where in ("at import", "in a step")}


def test_a_number_that_is_not_finite_is_printed_as_null(capsys: pytest.CaptureFixture[str]) -> None:
    print_json({"mean": math.nan, "ci95": [-math.inf, 1.5], "parts": ({"share": math.inf},)})
    assert capsys.readouterr().out == '{"mean": null, "ci95": [null, 1.5], "parts": [{"share": null}]}\n'


def test_every_command_prints_json_with_print_json() -> None:
    for path in (ROOT / "zmqrl" / "commands").rglob("*.py"):
        assert path.name == "output.py" or "json.dumps" not in path.read_text(encoding="utf-8"), path


@pytest.mark.processes
@pytest.mark.parametrize("command", [["eval", "--episodes", "2"], ["record", "--output", "a.gif"]])
@pytest.mark.parametrize("json_too", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_the_result_does_not_contain_output_of_user_code(tmp_path: Path, command: list[str], json_too: bool) -> None:
    (tmp_path / "noisy.py").write_text(NOISY, encoding="utf-8")
    run = write_run(tmp_path / "run", CARTPOLE, 0)
    config = dataclasses.replace(CARTPOLE, env="noisy:Noisy-v0").to_json()
    (run / "config.json").write_text(json.dumps(config), encoding="utf-8")
    verb, *options = command
    asked = [sys.executable, "-m", "zmqrl", verb, str(run), *options, *(["--json"] if json_too else [])]
    done = ran(asked, cwd=tmp_path)
    assert set(done.stderr.splitlines()) >= NOISE
    assert not set(done.stdout.splitlines()) & NOISE
    if json_too:
        assert json.loads(done.stdout)["env"] == "noisy:Noisy-v0"
        assert done.stdout.count("\n") == 1


def test_doctor_prints_only_its_findings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "noisy_for_doctor.py").write_text(NOISY, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)

    def examined(*_: object) -> object:
        sys.stdout.write("examining\n")
        return {}, Survey(facts={}), Judgement(), None

    monkeypatch.setattr(doctor, "examine", examined)
    assert cli.run(["doctor", "-H", "h1", "cartpole", "--env", "noisy_for_doctor:Noisy-v0", "--json"]) == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["problems"] == []
    assert said.err == "at import\nin a step\nexamining\n"
