"""The settings of a run survive JSON, and errors in the settings are reported before anything starts."""

import dataclasses
import json
from pathlib import Path
from typing import Any, get_args

import pytest
from support.paths import ROOT

from zmqrl.config import CheckpointConfig, Config, ScheduleConfig, WireConfig
from zmqrl.errors import UsageError
from zmqrl.learner.envs import EnvConfig
from zmqrl.learner.settings import ALGORITHMS, AlgorithmName, BA3CConfig, PPOConfig
from zmqrl.ps.shard.optimizer import Optimizer, OptimizerConfig
from zmqrl.recipes import RECIPES


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_survives_json(recipe: str) -> None:
    config = RECIPES[recipe]()
    assert Config.from_json(json.loads(json.dumps(config.to_json(), allow_nan=False))) == config


def test_every_algorithm_has_a_name_and_settings_in_the_configuration() -> None:
    assert set(get_args(AlgorithmName)) == set(ALGORITHMS)
    for name in get_args(AlgorithmName):
        config = Config(algo=name)
        assert type(config.algorithm) is ALGORITHMS[name]
        assert config.algorithm is getattr(config, name)


@pytest.mark.parametrize("kind", ALGORITHMS.values())
def test_only_the_rollout_settings_of_an_algorithm_change_the_size_or_use_of_a_rollout(kind: Any) -> None:
    default = kind(final_entropy_coefficient=0.0)  # without it, no entropy schedule is valid
    for setting in dataclasses.fields(kind):
        value = getattr(default, setting.name)
        if type(value) is int:
            changed = dataclasses.replace(default, **{setting.name: value + 1})
            same = (changed.rollout_steps, changed.updates_per_rollout) == (
                default.rollout_steps,
                default.updates_per_rollout,
            )
            assert same is (setting.name not in default.rollout_settings), setting.name


def test_settings_of_every_kind_survive_json(tmp_path: Path) -> None:
    config = Config(
        run_dir=tmp_path,
        straggle=("0:1.5", "1:2"),
        quorum=1,
        stop_score=-3.5,
        profile=7,
        trackers=("wandb", "mlflow"),
        wire=WireConfig(port_range="5000-5010", codec="bf16"),
    )
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config.to_json()), encoding="utf-8")
    assert Config.read(path) == config


def test_missing_settings_keep_their_defaults() -> None:
    assert Config.from_json({"workers": 5, "wire": {"codec": "bf16"}}) == Config(
        workers=5, wire=WireConfig(codec="bf16")
    )


@pytest.mark.parametrize(
    ("data", "names"),
    [
        ({"wokers": 3}, "wokers"),
        ({"ppo": {"epoch": 3}}, "ppo.epoch"),
        ({"workers": "3"}, "workers"),
        ({"workers": 3.0}, "workers"),
        ({"workers": True}, "workers"),
        ({"consistent": 1}, "consistent"),
        ({"algo": "a3c"}, "algo"),
        ({"minutes": "soon"}, "minutes"),
        ({"seed": None}, "seed"),
        ({"straggle": "0:1"}, "straggle"),
        ({"straggle": [1]}, "straggle"),
        ({"run_dir": 3}, "run_dir"),
        ({"trackers": "mlflow"}, "trackers"),
        ({"trackers": ["mlflow", "paper"]}, "trackers"),
        ({"ppo": 3}, "ppo"),
        ({"optimizer": {"learning_rate": "fast"}}, "optimizer.learning_rate"),
        ({"optimizer": {"learning_rate": -1.0}}, "learning-rate"),
        ({"optimizer": {}}, "learning_rate"),
        ({"wire": {"transport": ["ipc"]}}, "wire.transport"),
        ({"stop_score": 10**400}, "stop_score"),
    ],
)
def test_an_error_names_a_setting_that_is_unknown_or_has_the_wrong_type(data: dict[str, Any], names: str) -> None:
    with pytest.raises(UsageError, match=names):
        Config.from_json(data)


@pytest.mark.parametrize("text", ["", "[1, 2]", "{", '"run"', "null"])
def test_a_file_without_settings_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "config.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UsageError):
        Config.read(path)


def test_an_error_names_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"gone/config\.json"):
        Config.read(tmp_path / "gone" / "config.json")


BAD: list[tuple[dict[str, Any], str]] = [
    ({"workers": 0}, "--workers 0"),
    ({"backups": -1}, "--backups -1"),
    ({"workers": 1000, "backups": 100}, "1100"),
    ({"shards": 0}, "--shards 0"),
    ({"shards": 65}, "--shards 65"),
    ({"quorum": 0}, "--quorum 0"),
    ({"quorum": 3}, "--quorum 3"),
    ({"external_workers": 3}, "--external-workers 3"),
    ({"external_workers": -1}, "--external-workers -1"),
    ({"updates": 0}, "--updates 0"),
    ({"updates": -5}, "--updates -5"),
    ({"updates": 2**60}, f"--updates {2**60}"),
    ({"agent_steps": 0}, "--agent-steps 0"),
    ({"minutes": 0.0}, "--minutes 0"),
    ({"minutes": -1.0}, "--minutes -1"),
    ({"minutes": float("inf")}, "--minutes inf"),
    ({"minutes": float("nan")}, "--minutes nan"),
    ({"stop_score": float("nan")}, "--stop-score nan"),
    ({"profile": 0}, "--profile 0"),
    ({"seed": -1}, "--seed -1"),
    ({"seed": 2**70}, f"--seed {2**70}"),
    ({"mode": "async", "envs": {"normalize_observations": True}}, "--envs.no-normalize-observations"),
    ({"mode": "async", "envs": {"normalize_rewards": True}}, "--envs.no-normalize-rewards"),
    ({"consistent": True, "backups": 1}, "--consistent"),
    ({"consistent": True, "quorum": 1}, "--consistent"),
    ({"consistent": True, "external_workers": 1}, "--external-workers"),
    ({"consistent": True, "on_loss": "shrink"}, "--on-loss shrink"),
    ({"metrics_port": "0.0.0.0:80"}, "--metrics-port 0.0.0.0:80"),
    ({"metrics_port": "65536"}, "--metrics-port 65536"),
    ({"pace": "slow"}, "--pace slow"),
    ({"envs": {"num_envs": 0}}, "--envs.num-envs 0"),
    ({"envs": {"min_frame_skip": 5}}, "--envs.min-frame-skip 5"),
    ({"envs": {"min_frame_skip": 2}}, "--envs.noop-max 0"),
    ({"envs": {"args": ["size"]}}, "--env-arg size"),
    ({"wire": {"address": "127.0.0.2"}}, "--wire.transport tcp"),
    ({"wire": {"transport": "tcp", "address": "0.0.0.0"}}, "--wire.address 0.0.0.0"),
    ({"wire": {"transport": "tcp", "address": "0.0.0.0", "insecure_plaintext": True}}, "--wire.address 0.0.0.0"),
    ({"wire": {"transport": "tcp", "address": "localhost"}}, "--wire.address localhost"),
    ({"wire": {"curve": True}}, "--wire.transport tcp"),
    ({"wire": {"transport": "tcp", "curve": True, "insecure_plaintext": True}}, "--wire.insecure-plaintext"),
    ({"straggle": ["1"]}, "--straggle 1"),
    ({"straggle": ["x:1"]}, "--straggle x:1"),
    ({"straggle": ["0:nan"]}, "--straggle 0:nan"),
    ({"straggle": ["0:-1"]}, "--straggle 0:-1"),
    ({"straggle": ["2:1"]}, "--straggle 2:1"),
    ({"wire": {"need_s": 0.0}}, "--wire.need-s 0"),
    ({"wire": {"need_s": float("inf")}}, "--wire.need-s inf"),
    ({"wire": {"port_range": "80-90"}}, "80-90"),
    ({"wire": {"port_range": "5000"}}, "--wire.port-range 5000"),
    ({"wire": {"port_range": "5009-5000"}}, "5009-5000"),
    ({"wire": {"port_range": "5000-5004"}}, "2 shards need 6"),
    ({"checkpoint": {"every_minutes": 0.0}}, "--checkpoint.every-minutes 0"),
    ({"checkpoint": {"keep": 0}}, "--checkpoint.keep 0"),
    ({"evaluation": {"episodes": 0}}, "--evaluation.episodes 0"),
    ({"evaluation": {"episodes": 100_001}}, "--evaluation.episodes 100001: must be from 1 to 100000."),
    ({"evaluation": {"every_minutes": -1.0}}, "--evaluation.every-minutes -1"),
    ({"schedule": {"updates": 0}}, "--schedule.updates 0"),
    ({"schedule": {"agent_steps": -1}}, "--schedule.agent-steps -1"),
    ({"schedule": {"minutes": float("nan")}}, "--schedule.minutes nan"),
    ({"schedule": {"default_minutes": 0.0}}, "--schedule.default-minutes 0"),
    ({"recording": {"minutes": [0.0, float("inf")]}}, "--recording.minutes inf"),
    ({"wire": {"codec": "bf16"}, "envs": {"normalize_observations": True}}, "use --wire.codec f32."),
    ({"act_only": True, "optimizer": {"learning_rate": 1.0, "weight_decay": 0.1}}, "--optimizer.weight-decay 0.1"),
    (
        {"optimizer": {"learning_rate": 1.0, "epsilon": 0.0}},
        "--optimizer.epsilon 0.0: must be above 0 as float32, because adam",
    ),
    (
        {"optimizer": {"name": "rmsprop", "learning_rate": 1.0, "epsilon": 0.0}},
        "--optimizer.epsilon 0.0: must be above 0 as float32, because rmsprop",
    ),
    ({"ppo": {"minibatches": 64, "rollout_steps": 2, "shuffle": "samples"}}, "--ppo.no-normalize-advantages"),
]


@pytest.mark.parametrize(("changes", "names"), BAD, ids=[names for _, names in BAD])
def test_an_error_names_an_invalid_setting_and_its_value(changes: dict[str, Any], names: str) -> None:
    stored = Config.from_json(changes)
    with pytest.raises(UsageError) as caught:
        stored.check()
    assert names in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"wire": {"transport": "tcp", "address": "0.0.0.0"}},
            "--wire.address 0.0.0.0 would listen on every network: use one address of this machine.",
        ),
        (
            {"wire": {"address": "10.9.9.9"}},
            "--wire.address 10.9.9.9 needs TCP: add --wire.transport tcp.",
        ),
        (
            {"metrics_port": "0.0.0.0:80"},
            "--metrics-port 0.0.0.0:80 would listen on every network: use one address of this machine.",
        ),
        (
            {"envs": {"min_frame_skip": 2}},
            "--envs.min-frame-skip 2 needs --envs.noop-max 0 --envs.no-fire-reset: "
            "games with random frame skip start without no-ops and FIRE.",
        ),
        ({"checkpoint": {"keep": 0}}, "--checkpoint.keep 0: must be 1 or more."),
        ({"seed": 2**32}, f"--seed {2**32}: must be at least 0 and below 2^32."),
    ],
)
@pytest.mark.parametrize("within", ["config.json", "cluster.json"])
def test_stored_settings_that_no_session_can_start_with_can_still_be_read(
    tmp_path: Path, within: str, changes: dict[str, Any], sentence: str
) -> None:
    path = tmp_path / within
    path.write_text(json.dumps(changes if within == "config.json" else {"config": changes}), encoding="utf-8")
    stored = Config.read(path)
    assert Config.from_json(json.loads(json.dumps(stored.to_json()))) == stored
    with pytest.raises(UsageError) as refused:
        stored.check()
    assert str(refused.value) == sentence


def test_settings_at_their_limits_are_valid() -> None:
    Config(
        workers=1,
        backups=1023,
        quorum=1024,
        shards=64,
        external_workers=1024,
        straggle=("1023:0",),
        seed=2**32 - 1,
        wire=WireConfig(port_range="1024-65535"),
        checkpoint=CheckpointConfig(keep=1),
    ).check()


@pytest.mark.parametrize(
    ("wire", "addresses", "encrypted"),
    [
        (WireConfig(), ["127.0.0.1"], False),
        (WireConfig(transport="tcp"), ["127.0.0.1", "127.0.0.2", "::1"], False),
        (WireConfig(transport="tcp", curve=True), ["127.0.0.1"], True),
        (WireConfig(port_range="5000-5005", curve=True), ["127.0.0.1"], True),
        (WireConfig(transport="tcp"), ["10.1.2.3"], True),
        (WireConfig(transport="tcp"), ["127.0.0.1", "fe80::1%eth0"], True),
        (WireConfig(port_range="5000-5005"), ["127.0.0.1", "node7"], True),
        (WireConfig(transport="tcp", insecure_plaintext=True), ["10.1.2.3", "node7"], False),
    ],
)
def test_traffic_between_machines_is_encrypted_unless_that_is_turned_off(
    wire: WireConfig, addresses: list[str], encrypted: bool
) -> None:
    Config(wire=wire).check()
    assert wire.encrypts(addresses) is encrypted


def test_weights_can_decay_in_training_and_sgd_ignores_epsilon() -> None:
    Config(optimizer=OptimizerConfig(learning_rate=1.0, weight_decay=0.1)).check()
    Config(act_only=True).check()
    Config(optimizer=OptimizerConfig(name="sgd", learning_rate=1.0, epsilon=0.0)).check()


def test_a_run_can_bind_to_a_network_address() -> None:
    Config(wire=WireConfig(transport="tcp", address="10.1.2.3")).check()


def test_the_quorum_is_the_number_of_workers_unless_it_is_set() -> None:
    assert Config(workers=4, backups=2).effective_quorum == 4
    assert Config(workers=4, backups=2, quorum=5).effective_quorum == 5


# schedules

FALLING = OptimizerConfig(learning_rate=1e-3, final_learning_rate=1e-5)
HOUR = ScheduleConfig(default_minutes=60.0)


@pytest.mark.parametrize(
    ("changes", "end"),
    [
        ({"minutes": 10.0}, {"minutes": 10.0}),
        ({"updates": 500, "minutes": 10.0}, {"updates": 500, "minutes": 10.0}),
        ({"agent_steps": 10**6}, {"agent_steps": 10**6}),
        ({}, {"minutes": 60.0}),
        ({"stop_score": 300.0}, {"minutes": 60.0}),
        ({"consistent": True, "updates": 500, "minutes": 10.0}, {"updates": 500}),
    ],
)
def test_schedules_end_at_the_limits_of_the_run_or_of_its_recipe(changes: dict[str, Any], end: dict[str, Any]) -> None:
    config = Config(optimizer=FALLING, schedule=HOUR, **changes)
    given = config.with_schedule()
    assert given == dataclasses.replace(config, schedule=dataclasses.replace(HOUR, **end))
    assert given.with_schedule() == given


def test_a_resumed_run_keeps_the_end_of_its_schedules_even_with_new_limits() -> None:
    stored = Config.from_json(json.loads(json.dumps(Config(optimizer=FALLING, minutes=60.0).with_schedule().to_json())))
    resumed = dataclasses.replace(stored, minutes=5.0, updates=10**6).with_schedule()
    assert resumed.schedule == ScheduleConfig(minutes=60.0)


def test_a_schedule_that_begins_in_a_resumed_run_ends_with_its_session() -> None:
    config = Config(optimizer=FALLING, minutes=20.0, updates=900)
    assert config.with_schedule(trained_s=3600.0).schedule == ScheduleConfig(minutes=80.0, updates=900)
    hour = Config(optimizer=FALLING, schedule=HOUR)
    assert hour.with_schedule(trained_s=600.0) == hour.with_schedule()


def test_a_schedule_that_begins_in_a_resumed_run_starts_where_the_documentation_says() -> None:
    documented = " ".join((ROOT / "docs" / "runs.md").read_text(encoding="utf-8").split())
    assert "trains for 60 minutes at the constant rate 0.001. Resumed with `--minutes 60 --opt" in documented
    optimizer = OptimizerConfig(learning_rate=0.001, final_learning_rate=0.0)
    config, trained_s = Config(optimizer=optimizer, minutes=60.0), 3600.0
    end = config.with_schedule(trained_s).schedule.minutes
    assert end is not None
    assert f"half of its {end:.0f} minutes behind it. It continues at " in documented
    rate = Optimizer(optimizer).learning_rate(version=9, elapsed=trained_s / (60 * end))
    assert f"It continues at {rate:g}, and ends at 0." in documented


def test_settings_without_a_schedule_that_follows_progress_have_no_end_of_schedules() -> None:
    counted = OptimizerConfig(learning_rate=1e-3, final_learning_rate=1e-5, schedule_updates=100)
    for optimizer in (counted, OptimizerConfig(learning_rate=1e-3)):
        config = Config(optimizer=optimizer, minutes=10.0, schedule=HOUR)
        assert config.with_schedule() == config
        assert config.horizon() is None


@pytest.mark.parametrize(
    ("changes", "follows"),
    [
        ({"optimizer": FALLING}, True),
        ({"ppo": PPOConfig(final_entropy_coefficient=0.0)}, True),
        ({"ppo": PPOConfig(final_clip=0.01)}, True),
        ({"ba3c": BA3CConfig(final_entropy_coefficient=0.0)}, False),
        ({"ba3c": BA3CConfig(final_entropy_coefficient=0.0), "algo": "ba3c"}, True),
    ],
)
def test_only_schedules_of_the_chosen_algorithm_need_an_end(changes: dict[str, Any], follows: bool) -> None:
    config = Config(**changes)
    assert config.follows_progress is follows
    if follows:
        with pytest.raises(UsageError, match=r"--schedule\.minutes"):
            config.with_schedule()


@pytest.mark.parametrize("changes", [{"minutes": 10.0}, {}, {"updates": 9, "schedule": ScheduleConfig(minutes=3.0)}])
def test_schedules_of_a_consistent_run_cannot_follow_minutes(changes: dict[str, Any]) -> None:
    config = dataclasses.replace(Config(optimizer=FALLING, consistent=True, schedule=HOUR), **changes)
    with pytest.raises(UsageError, match="--consistent"):
        config.with_schedule()


def test_the_end_of_schedules_is_a_version_if_they_follow_updates_or_the_run_is_consistent() -> None:
    def horizon(*, consistent: bool = False, **end: Any) -> float | None:
        ppo = PPOConfig(rollout_steps=100, epochs=4, minibatches=2)
        return Config(
            workers=3, ppo=ppo, envs=EnvConfig(num_envs=10), consistent=consistent, schedule=ScheduleConfig(**end)
        ).horizon()

    assert horizon(updates=7) == horizon(updates=7, minutes=1.0) == 7
    assert horizon(agent_steps=9000) is horizon(minutes=1.0) is None
    assert horizon(agent_steps=9000, consistent=True) == 9000 * 8 / 3000
    assert horizon(agent_steps=9000, updates=7, consistent=True) == 7


@pytest.mark.parametrize("name", ["breakout", "breakout-ppo"])
def test_the_last_learning_rate_of_breakout_is_below_a_tenth_of_the_first(name: str) -> None:
    config = dataclasses.replace(RECIPES[name](), minutes=10.0).with_schedule()
    assert config.schedule.minutes == 10.0
    assert config.optimizer.final_learning_rate is not None
    assert config.optimizer.final_learning_rate < config.optimizer.learning_rate / 10
