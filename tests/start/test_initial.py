"""The game and the initial parameters of a run are prepared in a separate process."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, NoReturn

import pytest
from support.commands import ran
from support.paths import ROOT
from support.policy_rig import CARTPOLE
from support.rig import file_size_limit, is_alive

from zmqrl.config import Config
from zmqrl.errors import UsageError
from zmqrl.learner import envs, networks
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
    print(json.dumps([found, preparation.notice, sorted({"torch", "gymnasium", "user_code"} & set(sys.modules))]))
"""
CARTPOLE_CLASS = "gymnasium.envs.classic_control.cartpole:CartPoleEnv"
CAMERA = """
import gymnasium
import numpy as np
from gymnasium.envs.classic_control import CartPoleEnv
from gymnasium.spaces import Box, Dict

class Camera(CartPoleEnv):
    def __init__(self):
        super().__init__()
        image = Box(0, 255, (9, 9, 3), np.uint8)
        self.observation_space = Dict({"pole": self.observation_space, "camera": image})

    def reset(self, **options):
        pole, info = super().reset(**options)
        return {"pole": pole, "camera": np.zeros((9, 9, 3), np.uint8)}, info

    def step(self, action):
        pole, *rest = super().step(action)
        return {"pole": pole, "camera": np.zeros((9, 9, 3), np.uint8)}, *rest

gymnasium.register("Camera-v0", Camera, max_episode_steps=20)
"""
SEES = (
    "user_code:Camera-v0: the policy sees observation['camera'] (Box uint8 (9, 9, 3)) as a flat vector of numbers: to "
    "use convolutions, add a wrapper that returns only the image, --envs.images and --model small"
)
BROKEN = "raise RuntimeError('broken on purpose')\n"
# Each environment starts a server in a session of its own, which inherits the pipes, and notes the server's process id.
SERVED = """
import os, signal, subprocess
import gymnasium
from gymnasium.envs.classic_control import CartPoleEnv

class Served(CartPoleEnv):
    def __init__(self):
        super().__init__()
        server = subprocess.Popen(["sleep", "600"], start_new_session=True)
        with open("servers", "a") as servers:
            servers.write(f"{{server.pid}}\\n")

    def reset(self, **options):
        {fails}
        return super().reset(**options)

gymnasium.register("Served-v0", Served)
"""


def prepared(config: Config, where: Path, **variables: str) -> list[str]:
    """The answers that a process without torch gets from a preparation. The process runs in the directory ``where``."""
    return answers(config, where, **variables)[0]


def answers(config: Config, where: Path, **variables: str) -> tuple[list[str], str | None]:
    """Like ``prepared``, with the notice about the game."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        input=json.dumps(config.to_json()),
        cwd=where,
        stdout=subprocess.PIPE,
        text=True,
        timeout=180,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), **variables},
    )
    found, notice, loaded = json.loads(done.stdout)
    assert loaded == [], "the process that asks must not load them"
    return list(found), notice


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


def test_a_notice_about_the_game_reaches_the_process_that_asks(tmp_path: Path) -> None:
    (tmp_path / "user_code.py").write_text(CAMERA, encoding="utf-8")
    found, notice = answers(dataclasses.replace(CARTPOLE, env="user_code:Camera-v0"), tmp_path)
    assert len(found) == 5
    assert notice == SEES
    assert answers(CARTPOLE, tmp_path)[1] is None


@pytest.mark.slow
def test_a_run_says_that_its_policy_sees_images_as_vectors(tmp_path: Path) -> None:
    (tmp_path / "user_code.py").write_text(CAMERA, encoding="utf-8")
    options = ["--env", "user_code:Camera-v0", "--workers", "1", "--updates", "2", "--run-dir", "run"]
    command = [sys.executable, "-m", "zmqrl", "train", "cartpole", *options]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    assert f"{SEES}\n" in ran(command, cwd=tmp_path, env=environment).stdout
    assert f" {SEES}\n" in (tmp_path / "run" / "logs" / "supervisor.log").read_text(encoding="utf-8")


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


def test_a_consistent_run_needs_games_that_repeat(tmp_path: Path) -> None:
    register = f"import gymnasium; gymnasium.register('Chance-v0', '{CARTPOLE_CLASS}', nondeterministic=True)\n"
    (tmp_path / "user_code.py").write_text(register, encoding="utf-8")
    config = dataclasses.replace(CARTPOLE, env="user_code:Chance-v0")
    assert len(prepared(config, tmp_path)) == 5
    assert prepared(dataclasses.replace(config, consistent=True), tmp_path) == [
        "--consistent: user_code:Chance-v0 is registered as nondeterministic, so it does not repeat games. "
        "Remove --consistent, or change the registration."
    ]


def test_a_missing_cuda_device_is_refused(tmp_path: Path) -> None:
    _, sentence = prepared(CARTPOLE, tmp_path, CUDA="needed", CUDA_VISIBLE_DEVICES="")
    assert sentence.startswith("--device cuda: torch ")


@pytest.mark.parametrize(
    ("fails", "how"),
    [
        ("pass", None),
        ("os.kill(os.getpid(), signal.SIGSEGV)", "killed by SIGSEGV"),
        pytest.param("os._exit(0)", "exit status 0", marks=pytest.mark.slow),
    ],
    ids=["plays", "crashes", "exits"],
)
def test_the_servers_of_a_game_end_with_its_check_even_if_the_game_crashes(
    tmp_path: Path, fails: str, how: str | None
) -> None:
    (tmp_path / "user_code.py").write_text(SERVED.format(fails=fails), encoding="utf-8")
    found = prepared(dataclasses.replace(CARTPOLE, env="user_code:Served-v0"), tmp_path)
    if how is not None:
        assert found == [f"user_code:Served-v0 fails: the process that checks it ended ({how})."]
    else:
        assert len(found) == 5, found
    servers = [int(pid) for pid in (tmp_path / "servers").read_text(encoding="utf-8").split()]
    assert servers
    assert not any(map(is_alive, servers))


@pytest.mark.slow
def test_a_network_that_crashes_is_named(tmp_path: Path) -> None:
    (tmp_path / "user_code.py").write_text("import os\n\ndef net(*_):\n    os.abort()\n", encoding="utf-8")
    _, sentence = prepared(dataclasses.replace(CARTPOLE, model="user_code:net"), tmp_path)
    assert sentence == "--model user_code:net fails: the process that checks it ended (killed by SIGABRT)."


def test_a_torch_that_cannot_be_loaded_is_named(tmp_path: Path) -> None:
    why = "libcudart.so.12: cannot open shared object file: No such file or directory"
    (tmp_path / "torch.py").write_text(f"raise OSError({why!r})\n", encoding="utf-8")
    _, sentence = prepared(CARTPOLE, tmp_path, PYTHONPATH=f"{tmp_path}:{ROOT}")
    assert sentence == f"cannot import torch: OSError: {why}."


def test_a_network_that_does_not_fit_in_the_memory_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def too_large(*_: Any) -> NoReturn:
        raise RuntimeError("can't allocate memory: you tried to allocate 400000000000000 bytes.\nError code 12")

    monkeypatch.setattr(networks, "make_model", too_large)
    with Preparation(CARTPOLE) as here:
        here.flavour()
        with pytest.raises(UsageError) as refused:
            here.checkpoint()
    why = "RuntimeError: can't allocate memory: you tried to allocate 400000000000000 bytes"
    place = f"(test_initial.py, line {too_large.__code__.co_firstlineno + 1})"
    assert str(refused.value) == f"--model mlp fails: {why} {place}."


def test_an_error_in_the_check_of_a_game_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> NoReturn:
        raise OSError("libSDL2.so: cannot open shared object file: No such file or directory")

    monkeypatch.setattr(envs, "try_env", broken)
    with Preparation(CARTPOLE) as here, pytest.raises(UsageError) as refused:
        here.flavour()
    why = "OSError: libSDL2.so: cannot open shared object file: No such file or directory"
    place = f"(test_initial.py, line {broken.__code__.co_firstlineno + 1})"
    assert str(refused.value) == f"CartPole-v1 fails: {why} {place}."


def test_parameters_above_the_limit_of_file_sizes_are_refused_in_a_sentence(tmp_path: Path) -> None:
    with file_size_limit(1024):
        _, found = prepared(CARTPOLE, tmp_path)
    assert found == (
        "cannot write the initial parameters to a temporary file: File too large: raise the limit of file sizes "
        "(ulimit -f)."
    )
