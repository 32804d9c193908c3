"""The game and the initial parameters of a run are prepared in a separate process."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest
from support.paths import ROOT
from support.policy_rig import CARTPOLE

from zmqrl.config import Config
from zmqrl.errors import UsageError
from zmqrl.learner.envs import try_env
from zmqrl.start.initial import Preparation, initial_checkpoint

pytestmark = pytest.mark.processes

# Reads the settings of a run from each line of standard input, prepares the run, and prints the result or the error.
PROGRAM = """
import json, os, sys
from zmqrl.config import Config
from zmqrl.errors import UsageError
from zmqrl.start.initial import Preparation
from zmqrl.process import look_for_modules_here

look_for_modules_here()
for line in sys.stdin:
    with Preparation(Config.from_json(json.loads(line)), needs_cuda="CUDA" in os.environ) as preparation:
        found = []
        try:
            found.append(preparation.flavour())
            initial = preparation.checkpoint()
            found += [initial.params_sha256(), initial.layout.hash, initial.optimizer, list(initial.state_names)]
        except UsageError as error:
            found.append(str(error))
    print(json.dumps([found, sorted({"torch", "gymnasium", "user_code"} & set(sys.modules))]))
"""
BROKEN = "raise RuntimeError('broken on purpose')\n"


def prepared(config: Config, where: Path, **variables: str) -> list[str]:
    """What a process without torch gets, in the directory ``where``."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        input=json.dumps(config.to_json()),
        cwd=where,
        stdout=subprocess.PIPE,
        text=True,
        timeout=180,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), **variables},
    )
    found, loaded = json.loads(done.stdout)
    assert loaded == [], "the process that asks must not load them"
    return list(found)


def test_a_separate_process_draws_the_same_parameters(tmp_path: Path) -> None:
    config = dataclasses.replace(CARTPOLE, shards=3, seed=5)
    spec = try_env(config.env, config.envs)
    initial = initial_checkpoint(config, spec)
    there = prepared(config, tmp_path)
    assert there == [
        spec.flavour,
        initial.params_sha256(),
        initial.layout.hash,
        initial.optimizer,
        list(initial.state_names),
    ]
    with Preparation(config) as here:  # this process has imported torch
        assert here.flavour() == spec.flavour
        assert here.checkpoint() == initial


def test_an_unknown_game_is_refused(tmp_path: Path) -> None:
    config = dataclasses.replace(CARTPOLE, env="CartPole-v9")
    (sentence,) = prepared(config, tmp_path)
    assert "did you mean CartPole-v1" in sentence
    with Preparation(config) as here, pytest.raises(UsageError) as refused:
        here.flavour()
    assert str(refused.value) == sentence


def test_the_users_code_runs_in_the_separate_process_only(tmp_path: Path) -> None:
    (tmp_path / "user_code.py").write_text(BROKEN, encoding="utf-8")
    (sentence,) = prepared(dataclasses.replace(CARTPOLE, env="user_code:Game-v0"), tmp_path)
    assert "cannot import user_code" in sentence
    _, sentence = prepared(dataclasses.replace(CARTPOLE, model="user_code:net"), tmp_path)
    assert "--model user_code:net: cannot import user_code" in sentence


def test_a_missing_cuda_device_is_refused(tmp_path: Path) -> None:
    _, sentence = prepared(CARTPOLE, tmp_path, CUDA="needed", CUDA_VISIBLE_DEVICES="")
    assert sentence == "--device cuda: torch sees no CUDA device on this machine."
