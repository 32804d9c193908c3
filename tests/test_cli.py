"""The command line: its options, and its errors about bad usage."""

import dataclasses
import errno
import json
import math
import os
import re
import shlex
import socket
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NoReturn

import pytest
import torch
from support import record_rig
from support.commands import ran
from support.paths import ROOT, TESTS
from support.rig import commands_with, eventually

from zmqrl import __version__, cli
from zmqrl.checkpoint import Checkpoint
from zmqrl.commands import COMMANDS, GROUPS
from zmqrl.commands.run.train import config_from
from zmqrl.config import CheckpointConfig, Config, WireConfig
from zmqrl.errors import ClusterError, UsageError
from zmqrl.hosts.inventory import Host
from zmqrl.hosts.reach import check, over_tcp
from zmqrl.learner.envs import describe_env
from zmqrl.observe.metrics import Counters
from zmqrl.recipes import cartpole, pong
from zmqrl.rundir import RunDirectory, write_json
from zmqrl.start.initial import initial_checkpoint
from zmqrl.supervisor import run

STAGES = re.compile(r"(checking the game .+\n)?((drawing the initial|looking for the last version) .+\n)?")
GOLDEN = TESTS / "golden" / "train_options.txt"


class Refused:
    """Checks that a refused command line prints one sentence to standard error and does nothing else."""

    def __init__(self, where: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self.where, self.capsys = where, capsys
        self.monkeypatch = monkeypatch
        monkeypatch.chdir(where)

        def started(*_: object, **__: object) -> None:
            raise AssertionError("a process was started")

        monkeypatch.setattr(subprocess, "Popen", started)
        monkeypatch.setattr(run, "Supervisor", started)
        # The imports of workers may begin while the network and the loss are still being checked.
        monkeypatch.setattr(run, "prepare", lambda deployment: None)

    def sentence(self, *arguments: str) -> str:
        before = self.files()
        self.monkeypatch.setattr(sys, "argv", ["zmqrl", *arguments])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        said = self.capsys.readouterr()
        assert stop.value.code == 2, said
        assert STAGES.fullmatch(said.out)
        assert re.fullmatch(r"zmqrl: .+[.?]\n", said.err), said.err
        assert "Traceback" not in said.err
        assert self.files() == before, "the command made or changed files"
        return said.err

    def files(self) -> dict[Path, int]:
        """Every file and directory with the time of its last change, except the lock file of a run."""
        found = [path for path in self.where.rglob("*") if path.name != ".lock"]
        return {path: path.stat().st_mtime_ns if path.is_file() else 0 for path in found}


@pytest.fixture
def refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Refused:
    return Refused(tmp_path, monkeypatch, capsys)


BAD_INPUT: list[tuple[str, str]] = [
    ("--env NoSuchGame-v3", "NoSuchGame-v3"),
    ("--env ALE/Brekout-v5", "ALE/Brekout-v5"),
    ("--env no_such_module:Game-v0", "no_such_module"),
    ("--env-arg size", "--env-arg size: must be NAME=VALUE"),
    ("--env Pendulum-v1 --env-arg size=3", "Pendulum-v1 does not start"),
    ("--env Pendulum-v1 --env-arg g=1 --env-arg g=2", "g already has a value"),
    ("--env Pendulum-v1 --env-arg g={[1]:2}", "--env-arg g={[1]:2}: the value must be a Python literal"),
    ("--env Pendulum-v1 --wrapper no_such_module:f", "cannot import no_such_module"),
    ("--env Pendulum-v1 --model small", "use --model mlp for vectors, or --envs.images --model small if"),
    ("--env ALE/Pong-v5 --model small --envs.normalize-observations", "--envs.normalize-observations"),
    ("--wire.transport tcp --wire.address 192.0.2.1", "192.0.2.1"),
    ("--wire.address 127.0.0.2", "127.0.0.2"),
    ("--ppo.gae-lambda nan", "--ppo.gae-lambda nan"),
    ("--ppo.max-grad-norm -1", "--ppo.max-grad-norm -1"),
    ("--optimizer.schedule-updates 100", "--optimizer.schedule-updates 100"),
    ("--optimizer.final-learning-rate 1e-4", "--schedule.minutes"),
    ("--optimizer.final-learning-rate 1e-4 --minutes 1 --consistent", "--consistent"),
    ("--workers 2 --backups 1 --quorum 4", "--quorum 4"),
    ("--workers 0", "--workers 0"),
    ("--workers two", "two"),
    ("--minutes soon", "soon"),
    ("--updates -3", "--updates -3"),
    ("--updates 1.5", "1.5"),
    ("--updates 99999999999999999999999", "99999999999999999999999"),
    ("--seed 99999999999999999999999", "99999999999999999999999"),
    ("--straggle 1", "--straggle 1"),
    ("--straggle 7:0.5", "--straggle 7:0.5"),
    ("--straggle 1:soon", "--straggle 1:soon"),
    ("--bogus 3", "--bogus"),
    ("--workers 2 surplus", "surplus"),
    ("--stop-score", "--stop-score"),
    ("--algo dqn", "dqn"),
    ("--model nature", "nature"),
    ("--model natur", "did you mean nature?"),
    ("--model no_such_module:f", "no_such_module"),
    ("--loss no_such_module:f", "no_such_module"),
    ("--loss huber", "huber"),
    ("--env ALE/Breakout-v5 --model mlp", "for images, use --model small, nature"),
    ("--env ALE/Breakout-v5 --model nature --envs.screen-size 8", "nature"),
    ("--network.hidden 0", "--network.hidden 0"),
    ("--network.hidden wide", "wide"),
    ("--network.compute bfloat16", "--network.compute bfloat16"),
    ("--network.compute float16", "float16"),
    ("--device tpu", "tpu"),
    ("--consistent --backups 1", "--backups 0"),
    ("--ppo.epochs 0", "epochs"),
    ("--ppo.minibatches 7", "7"),
    ("--optimizer.learning-rate -1", "--optimizer.learning-rate -1"),
    ("--wire.port-range 80-90", "80-90"),
    ("--wire.port-range 5000-5003", "5000-5003"),
    ("--wire.transport tcp --wire.address 192.0.2.1", "192.0.2.1"),
    ("--resume", "--resume RUN"),
]


@pytest.mark.parametrize(("options", "names"), BAD_INPUT, ids=[options for options, _ in BAD_INPUT])
def test_bad_input_is_refused_in_one_sentence_and_starts_nothing(refused: Refused, options: str, names: str) -> None:
    # Add a run directory, unless the test is about a missing one.
    place = [] if options == "--resume" else ["--run-dir", str(refused.where / "run")]
    assert names in refused.sentence("train", "cartpole", *options.split(), *place)


def test_a_log_level_that_does_not_exist_is_refused(refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZMQRL_LOG_LEVEL", "chatty")
    assert "ZMQRL_LOG_LEVEL=chatty" in refused.sentence("train", "cartpole")


def test_an_error_about_an_unknown_recipe_suggests_the_nearest_one(refused: Refused) -> None:
    sentence = refused.sentence("train", "brakeout", "--updates", "3")
    assert "brakeout" in sentence
    assert "did you mean breakout?" in sentence


def test_an_error_about_an_unknown_command_suggests_the_nearest_one(refused: Refused) -> None:
    sentence = refused.sentence("trian")
    assert "trian" in sentence
    assert "train" in sentence


@pytest.mark.parametrize("command", ["launch", "doctor"])
@pytest.mark.parametrize(
    ("options", "names"),
    [
        ("--iface 10.0.0.0/99", "10.0.0.0/99"),
        ("--address h2=10.0.0.2", "h2"),
        ("--address h1", "h1"),
        ("--port-range 80-90", "80-90"),
        ("--env NoSuchGame-v3", "NoSuchGame-v3"),
        ("--workers 0", "--workers 0"),
        ("--wire.address 10.9.9.9", "use --iface, --address HOST=ADDRESS or `address` in the hosts file"),
        ("--wire.transport ipc", "--wire.transport ipc works on one machine only"),
        ("--sync whee", "--sync"),
    ],
)
def test_bad_input_about_hosts_is_refused_before_any_host_is_contacted(
    refused: Refused, command: str, options: str, names: str
) -> None:
    assert names in refused.sentence(command, "-H", "h1", "cartpole", *options.split())


@pytest.mark.parametrize("command", ["launch", "launch --dry-run", "launch --sync wheel", "doctor"])
def test_too_many_workers_for_the_hosts_are_refused_before_any_host_is_contacted(
    refused: Refused, command: str
) -> None:
    sentence = refused.sentence(*command.split(), "-H", "h1:1,h2:1", "cartpole", "--workers", "12")
    assert "12 workers, but the hosts have 2 slots" in sentence
    assert not (refused.where / "runs").exists(), "a run directory was made"


@pytest.mark.parametrize("transport", ["tcp", "ipc"])
def test_a_local_run_can_be_resumed_on_hosts(tmp_path: Path, transport: Literal["tcp", "ipc"]) -> None:
    wire = WireConfig(transport=transport, address="10.9.9.9")
    path = finished_run(tmp_path / "run", dataclasses.replace(cartpole(), wire=wire))
    config = config_from(["--resume", "--run-dir", str(path)], over_tcp)
    assert (config.wire.transport, config.wire.address) == ("tcp", "127.0.0.1")
    check(config, [Host(name="h1")])


@pytest.mark.parametrize(
    ("build", "sentence"),
    [
        (None, f"torch {torch.__version__} was built without CUDA. Install its build on PyPI, in a checkout with"),
        ("12.8", "torch sees no CUDA device on this machine."),
    ],
)
def test_cuda_without_a_cuda_device_is_refused(
    refused: Refused, monkeypatch: pytest.MonkeyPatch, build: str | None, sentence: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", build)
    assert f"zmqrl: --device cuda: {sentence}" in refused.sentence("train", "cartpole", "--device", "cuda")


def test_a_launch_for_cuda_devices_needs_no_cuda_device_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    config = dataclasses.replace(cartpole(), device="cuda")
    assert initial_checkpoint(config, describe_env(config.env, config.envs)).version == 0


HALF_MADE = """
import gymnasium
from gymnasium.envs.classic_control.cartpole import CartPoleEnv

class HalfMade(CartPoleEnv):
    def step(self, action):
        raise NotImplementedError

gymnasium.register("HalfMade-v0", HalfMade)
"""


def test_an_environment_that_fails_is_refused_before_a_process_starts(
    refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    (refused.where / "half_made.py").write_text(HALF_MADE, encoding="utf-8")
    sentence = refused.sentence("train", "cartpole", "--env", "half_made:HalfMade-v0")
    assert sentence == "zmqrl: half_made:HalfMade-v0 fails: NotImplementedError (half_made.py, line 7).\n"


UNSEEN = """
import gymnasium
from gymnasium.envs.classic_control.cartpole import CartPoleEnv

class Unseen(CartPoleEnv):
    def render(self):
        raise RuntimeError("no screen")

gymnasium.register("Unseen-v0", Unseen)
"""


def test_an_environment_that_cannot_be_drawn_is_refused_with_a_recorder(
    refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    (refused.where / "unseen.py").write_text(UNSEEN, encoding="utf-8")
    sentence = refused.sentence("train", "cartpole", "--env", "unseen:Unseen-v0", "--recorder")
    assert sentence == "zmqrl: unseen:Unseen-v0 cannot be drawn: RuntimeError: no screen (unseen.py, line 7).\n"


@pytest.mark.processes
def test_an_error_names_the_metrics_port_in_use(refused: Refused) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = min(taken.getsockname()[1], 65535 - 5)
        assert str(taken.getsockname()[1]) in refused.sentence(
            "train", "cartpole", "--wire.port-range", f"{port}-{port + 5}"
        )


def test_an_error_names_an_impossible_run_directory(refused: Refused) -> None:
    (refused.where / "file").write_text("", encoding="utf-8")
    for path in (refused.where / "file", refused.where / "file" / "below", refused.where / ("x" * 300)):
        assert str(path) in refused.sentence("train", "cartpole", "--run-dir", str(path))


def finished_run(
    path: Path,
    config: Config | None = None,
    versions: tuple[int, ...] = (40,),
    counters: dict[str, Any] | None = None,
) -> Path:
    """Write a run directory with the files that a resume needs."""
    config = config or cartpole()
    directory = RunDirectory(path)
    path.mkdir()
    checkpoint = initial_checkpoint(config, describe_env(config.env, config.envs))
    for version in versions:
        dataclasses.replace(checkpoint, generation=1, version=version, counters=counters or {}).write(
            directory.checkpoints
        )
    write_json(directory.config, config.to_json())
    return path


def test_a_directory_that_holds_a_run_is_not_overwritten(refused: Refused) -> None:
    path = finished_run(refused.where / "run")
    sentence = refused.sentence("train", "cartpole", "--run-dir", str(path))
    assert str(path) in sentence
    assert "--resume" in sentence


def test_a_directory_in_use_by_a_live_run_is_refused(refused: Refused) -> None:
    path = finished_run(refused.where / "run")
    holder = RunDirectory(path)
    holder.claim()
    try:
        for options in ([], ["--resume"]):
            assert "still alive" in refused.sentence("train", "cartpole", "--run-dir", str(path), *options)
    finally:
        holder.release()


def test_resuming_without_a_run_is_refused(refused: Refused) -> None:
    path = refused.where / "nowhere"
    assert str(path) in refused.sentence("train", "cartpole", "--run-dir", str(path), "--resume")


def test_resuming_without_a_checkpoint_is_refused(refused: Refused) -> None:
    path = finished_run(refused.where / "run")
    (path / "checkpoints" / "v00000040" / "manifest.json").unlink()
    assert "no checkpoint" in refused.sentence("train", "cartpole", "--run-dir", str(path), "--resume")


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ("--shards 3", "2 shards, not 3"),
        ("--env Acrobot-v1", "CartPole-v1, not on Acrobot-v1"),
        ("--network.hidden 32", "parameters"),
        ("--optimizer.name rmsprop", "rmsprop"),
    ],
)
def test_resuming_with_settings_that_do_not_match_the_checkpoint_is_refused(
    refused: Refused, options: str, names: str
) -> None:
    path = finished_run(refused.where / "run")
    assert names in refused.sentence("train", "--run-dir", str(path), "--resume", *options.split())


def test_resuming_with_games_of_another_flavour_is_refused(refused: Refused) -> None:
    path = finished_run(refused.where / "run", pong())
    sentence = refused.sentence("train", "--run-dir", str(path), "--resume", "--envs.sticky-actions", "0.25")
    assert "sticky 0, " in sentence
    assert "sticky 0.25" in sentence


def test_resuming_shards_at_different_versions_in_synchronous_mode_is_refused(refused: Refused) -> None:
    path = finished_run(refused.where / "run")
    checkpoints = RunDirectory(path).checkpoints
    dataclasses.replace(Checkpoint.read(checkpoints / "v00000040"), versions=(43, 40)).write(checkpoints)
    sentence = refused.sentence("train", "--run-dir", str(path), "--resume", "--mode", "sync")
    assert sentence == f"zmqrl: the shards of {path} are at versions 40 to 43: resume with --mode async.\n"


COUNTERS = Counters(version=40, agent_steps=5000).to_json()
ENDED = record_rig.summary(updates=40, agent_steps=5000)


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ("--updates 40", "--updates 40: {} has already reached 40"),
        ("--updates 39", "--updates 39: {} has already reached 40"),
        ("--agent-steps 4096", "--agent-steps 4096: {} has already reached 5000"),
        ("--stop-score 8.5", "--stop-score 8.5: {} has already reached 9"),
    ],
)
def test_resuming_a_run_that_has_reached_its_end_is_refused(refused: Refused, options: str, names: str) -> None:
    path = finished_run(refused.where / "run", counters=COUNTERS)
    write_json(path / "summary.json", ENDED)
    (path / "evaluations.jsonl").write_text(
        '{"version": 40, "mean": 9.0, "seeds": [2147483648]}\n{"version": 40, "mean": 1.0, "seeds": [0]}\n',
        encoding="utf-8",
    )
    assert names.format(path) in refused.sentence("train", "--run-dir", str(path), "--resume", *options.split())


@pytest.mark.parametrize(
    "old",
    [
        pytest.param(None, id="killed before its summary"),
        pytest.param("", id="damaged"),
        # The disk was full at the end. The resume found version 40 in the state of the shards.
        pytest.param(json.dumps(ENDED | {"exit_reason": "failed", "updates": 31}), id="of an earlier version"),
    ],
)
def test_a_run_at_its_end_without_a_summary_of_it_is_completed(
    old: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = finished_run(tmp_path / "run", counters=COUNTERS)
    if old is not None:
        (path / "summary.json").write_text(old, encoding="utf-8")
    (path / ".summary.json.7.unfinished").touch()
    (path / "state").mkdir()
    (path / "state" / "shard-0.slots").touch()
    monkeypatch.setattr(sys, "argv", ["zmqrl", "train", "--run-dir", str(path), "--resume", "--updates", "40"])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 0
    assert f"ended (updates) at version 40; see {path / 'summary.json'}" in capsys.readouterr().out
    summary = json.loads((path / "summary.json").read_text(encoding="utf-8"))
    assert (summary["exit_reason"], summary["updates"], summary["agent_steps"]) == ("updates", 40, 5000)
    left = {str(file.relative_to(path)) for file in path.iterdir()}
    assert left == {".lock", "checkpoints", "config.json", "logs", "summary.json"}


def test_a_repeatable_option_replaces_the_earlier_values_on_resume(tmp_path: Path) -> None:
    path = finished_run(tmp_path / "run", dataclasses.replace(cartpole(), straggle=("0:0.1",)))
    resume = ["--run-dir", str(path), "--resume"]
    assert config_from(resume).straggle == ("0:0.1",)
    assert config_from([*resume, "--straggle", "0:0.1"]).straggle == ("0:0.1",)


@pytest.mark.parametrize(
    ("stored", "options"),
    [
        ({"metrics_port": "0.0.0.0:80"}, ["--metrics-port", "127.0.0.1:9100"]),
        ({"wire": WireConfig(transport="tcp", address="0.0.0.0")}, ["--wire.address", "127.0.0.1"]),
        ({"wire": WireConfig(address="10.9.9.9")}, ["--wire.transport", "tcp"]),
        ({"checkpoint": CheckpointConfig(keep=0)}, ["--checkpoint.keep", "3"]),
    ],
)
def test_an_option_replaces_a_stored_setting_that_is_invalid_on_resume(
    tmp_path: Path, stored: dict[str, Any], options: list[str]
) -> None:
    path = finished_run(tmp_path / "run", dataclasses.replace(cartpole(), **stored))
    resume = ["--run-dir", str(path), "--resume"]
    with pytest.raises(UsageError, match=options[0]):
        config_from(resume).check()
    config_from([*resume, *options]).check()


def test_resuming_with_another_recipe_is_refused(refused: Refused) -> None:
    path = finished_run(refused.where / "run")
    sentence = refused.sentence("train", "pong", "--run-dir", str(path), "--resume")
    assert "cartpole" in sentence
    assert "pong" in sentence


def damage_checksum(checkpoint: Path) -> None:
    content = bytearray((checkpoint / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (checkpoint / "model.safetensors").write_bytes(content)


def remove_optimizer(checkpoint: Path) -> None:
    (checkpoint / "optimizer-shard-01.safetensors").unlink()


def cut_manifest(checkpoint: Path) -> None:
    content = (checkpoint / "manifest.json").read_bytes()
    (checkpoint / "manifest.json").write_bytes(content[: len(content) // 2])


@pytest.mark.parametrize(
    ("damage", "names"),
    [
        (damage_checksum, "model.safetensors"),
        (remove_optimizer, "optimizer-shard-01.safetensors"),
        (cut_manifest, "manifest.json"),
    ],
)
def test_resuming_from_a_damaged_checkpoint_names_the_file(
    refused: Refused, damage: Callable[[Path], None], names: str
) -> None:
    path = finished_run(refused.where / "run")
    damage(path / "checkpoints" / "v00000040")
    assert names in refused.sentence("train", "--run-dir", str(path), "--resume")


def test_an_error_about_damaged_checkpoints_gives_the_command_to_resume_from_an_intact_one(
    refused: Refused,
) -> None:
    path = finished_run(refused.where / "my run", versions=(7, 40, 300))
    checkpoints = path / "checkpoints"
    for version in (40, 300):
        cut_manifest(checkpoints / f"v{version:08d}")
    sentence = refused.sentence("train", "--run-dir", str(path), "--resume")
    assert f"{checkpoints}/v00000300/manifest.json is damaged" in sentence
    command = sentence.split("To resume from v00000007, which is intact: `")[1].split("`")[0]
    *moves, resume = command.split(" && ")
    for move, version in zip(moves, (300, 40), strict=True):
        found = checkpoints / f"v{version:08d}"
        assert shlex.split(move) == ["mv", str(found), str(checkpoints / f"damaged-v{version:08d}")]
        found.rename(checkpoints / f"damaged-v{version:08d}")
    assert shlex.split(resume) == ["zmqrl", "train", "--resume", "--run-dir", str(path)]
    write_json(path / "summary.json", ENDED)
    assert "--updates 7: " in refused.sentence(*shlex.split(resume)[1:], "--updates", "7"), "it resumes from there"


def test_a_worker_without_a_cluster_file_gets_a_clear_error(refused: Refused) -> None:
    path = refused.where / "cluster.json"
    assert str(path) in refused.sentence("worker", str(path))
    path.write_text("{}", encoding="utf-8")
    assert str(path) in refused.sentence("worker", str(path))


def test_options_of_a_resumed_run_change_its_own_settings_and_not_those_of_a_recipe(tmp_path: Path) -> None:
    rate = dataclasses.replace(cartpole().optimizer, final_learning_rate=1e-4, schedule_updates=20)
    path = finished_run(tmp_path / "run", dataclasses.replace(cartpole(), optimizer=rate))
    resume = ["--resume", "--run-dir", str(path), "--optimizer.schedule-updates", "90"]
    for recipe in ([], ["cartpole"]):
        optimizer = config_from([*recipe, *resume]).optimizer
        assert (optimizer.final_learning_rate, optimizer.schedule_updates) == (1e-4, 90)


def test_an_error_names_the_file_with_unknown_settings_of_another_zmqrl_version(refused: Refused) -> None:
    path = finished_run(refused.where / "run")
    settings = json.loads((path / "config.json").read_text(encoding="utf-8"))
    (path / "config.json").write_text(json.dumps(settings | {"foo": 1}), encoding="utf-8")
    sentence = refused.sentence("train", "--run-dir", str(path), "--resume")
    assert f"{path}/config.json cannot be used: unknown setting foo." in sentence


def test_settings_on_the_command_line_override_the_settings_of_the_resumed_run(tmp_path: Path) -> None:
    path = finished_run(tmp_path / "run", cartpole())
    config = config_from(["--resume", "--run-dir", str(path), "--updates", "90", "--ppo.clip", "0.3"])
    assert (config.recipe, config.env, config.envs.num_envs) == ("cartpole", "CartPole-v1", 8)
    assert (config.updates, config.ppo.clip, config.resume) == (90, 0.3, True)


@pytest.mark.parametrize(
    ("options", "versions"),
    [([], None), (["--profile"], 100), (["--profile", "--seed", "2"], 100), (["--profile", "7"], 7)],
)
def test_profile_can_be_given_without_a_number(options: list[str], versions: int | None) -> None:
    assert config_from(["cartpole", *options]).profile == versions


def test_a_dry_run_of_train_shows_the_processes_and_starts_none(
    refused: Refused, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["train", "cartpole", "--dry-run", "--workers", "3", "--shards", "1"]) == 0
    shown = capsys.readouterr().out
    assert "shard-0" in shown
    assert "worker-[0-2]" in shown
    assert "--workers 0" in refused.sentence("train", "cartpole", "--dry-run", "--workers", "0")
    assert list(refused.where.iterdir()) == []


def test_straggle_can_be_repeated() -> None:
    config = config_from(["cartpole", "--straggle", "0:0.5", "--straggle", "1:2"])
    assert {rank: each.seconds for rank, each in config.stragglers().items()} == {0: 0.5, 1: 2.0}


def test_the_options_of_train_match_the_golden_file(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["train", "--help"]) == 0
    shown = re.findall(r"^  (--[a-z][a-z0-9.-]*)", capsys.readouterr().out, re.MULTILINE)
    assert shown == GOLDEN.read_text(encoding="utf-8").split(), f"if intended, write the new options to {GOLDEN}"


def test_the_help_shows_each_command_once_in_its_group(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run([]) == cli.run(["--help"]) == 0
    shown = capsys.readouterr().out
    assert shown[: len(shown) // 2] * 2 == shown
    first, *parts = shown[: len(shown) // 2].split("\n\n")
    assert first.startswith(f"zmqrl {__version__}: ")
    titles = [part.partition("\n")[0] for part in parts]
    assert titles == [*map(str.upper, GROUPS), "MORE"]
    listed = [re.findall(r"^  zmqrl (\S+)", part, re.MULTILINE) for part in parts]
    assert listed == [*map(list, GROUPS.values()), ["COMMAND", "--version"]]
    columns = {
        line.index(about.purpose)
        for name, about in COMMANDS.items()
        for line in shown.splitlines()
        if line.startswith(f"  zmqrl {name} ")
    }
    assert len(columns) == 1
    assert max(map(len, shown.splitlines())) <= 120


def test_the_installed_command_handles_ctrl_c_from_its_first_line() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["scripts"] == {"zmqrl": "zmqrl.__main__:main"}


def test_every_command_that_plays_or_loads_a_policy_itself_has_a_guard() -> None:
    plays = re.compile(r"\b(load_policy|from zmqrl\.worker import|bench_train)\b")
    files = {
        name: ROOT / "zmqrl" / "commands" / f"{each.module.replace('.', '/')}.py" for name, each in COMMANDS.items()
    }
    found = {name for name, file in files.items() if plays.search(file.read_text(encoding="utf-8"))}
    assert found >= {"eval", "record", "worker", "bench", "reproduce"}, "the search no longer finds commands"
    assert found == {name for name, each in COMMANDS.items() if each.is_guarded}


@pytest.mark.processes
def test_a_refused_network_leaves_no_process_and_no_directory(tmp_path: Path) -> None:
    marker = f"REFUSED={tmp_path}"
    command = [
        sys.executable,
        "-m",
        "zmqrl",
        "train",
        "cartpole",
        "--model",
        "nature",
        "--run-dir",
        str(tmp_path / "run"),
    ]
    environment = {**os.environ, "REFUSED": str(tmp_path)}
    done = ran(command, status=2, env=environment)
    assert done.stderr.count("\n") == 1, done.stderr
    eventually(lambda: not commands_with(marker), "the end of all processes")
    assert not (tmp_path / "run").exists()


AGAIN = BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")
NO_PROCESS = (
    "the system refused a request: Resource temporarily unavailable: if no process could be started, raise the limit "
    "of processes (ulimit -u, or pids.max of the control group)."
)


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (
            OSError("libcudart.so.12: cannot open shared object file: No such file or directory"),
            "libcudart.so.12: cannot open shared object file: No such file or directory.",
        ),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "the system refused a request: Cannot allocate memory."),
        (
            OSError(errno.ENOSPC, "No space left on device"),
            "the system refused a request: No space left on device: free some space on that disk.",
        ),
        (PermissionError(errno.EACCES, "Permission denied"), "the system refused a request: Permission denied."),
        (PermissionError(errno.EACCES, "Permission denied", "a.json"), "cannot use a.json: Permission denied."),
        (AGAIN, NO_PROCESS),
        (
            RuntimeError("can't start new thread"),
            "cannot start a thread: too many are running: raise the limit of processes (ulimit -u, or pids.max of the "
            "control group).",
        ),
        (
            BlockingIOError(errno.EAGAIN, "write could not complete without blocking", 0),
            "cannot write standard output: write could not complete without blocking.",
        ),
    ],
)
def test_an_error_of_the_system_blames_standard_output_only_for_its_own_errors(
    error: Exception, sentence: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def failing(_: object) -> NoReturn:
        raise error

    monkeypatch.setattr(cli, "run", failing)
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert (stop.value.code, *capsys.readouterr()) == (2, "", f"zmqrl: {sentence}\n")


def test_an_error_cannot_send_control_sequences_to_the_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def failing(_: object) -> NoReturn:
        raise ClusterError("1 of 2 hosts cannot be used:\n  h1: \033[31mWelcome\r")

    monkeypatch.setattr(cli, "run", failing)
    with pytest.raises(SystemExit):
        cli.main()
    assert capsys.readouterr().err == "zmqrl: 1 of 2 hosts cannot be used:\n  h1:  [31mWelcome \n"


@pytest.mark.parametrize("name", ["bench", "reproduce"])
def test_a_command_that_trains_has_time_to_end_its_run(name: str) -> None:
    assert COMMANDS[name].is_guarded
    assert COMMANDS[name].ends_within_s == math.inf


def test_a_guard_that_cannot_be_forked_is_reported_in_one_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object) -> NoReturn:
        raise AGAIN

    monkeypatch.setattr(os, "fork", full)
    monkeypatch.setattr(sys, "argv", ["zmqrl", "eval", "nowhere"])
    with pytest.raises(SystemExit) as stop:
        cli.guarded_main()
    assert (stop.value.code, *capsys.readouterr()) == (2, "", f"zmqrl: {NO_PROCESS}\n")


def test_a_python_without_pidfd_open_is_reported(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delattr(os, "pidfd_open")
    monkeypatch.setattr(sys, "argv", ["zmqrl", "eval", "nowhere"])
    with pytest.raises(SystemExit) as stop:
        cli.guarded_main()
    assert stop.value.code == 2
    assert capsys.readouterr().err == (
        "zmqrl: zmqrl needs Linux 5.3 or newer, and a Python that was built for it: this one lacks os.pidfd_open.\n"
    )


@pytest.mark.processes
def test_the_installed_command_returns_its_exit_status() -> None:
    assert ran([sys.executable, "-m", "zmqrl", "--version"]).stdout == f"zmqrl {__version__}\n"
    assert "zmqrl train" in ran([sys.executable, "-m", "zmqrl"]).stdout
    assert ran([sys.executable, "-m", "zmqrl", "trian"], status=2).stderr.startswith("zmqrl: ")
