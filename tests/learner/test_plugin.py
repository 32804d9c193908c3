"""A custom model or loss is found in the current directory, tried before anything starts, and used for learning."""

import dataclasses
import itertools
import random
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from support.actor_learners import actor_learner_of
from support.paths import ROOT
from support.policy_rig import write_run
from support.run_rig import training
from support.stub_games import described

from zmqrl import cli
from zmqrl.errors import UsageError
from zmqrl.learner.envs import EnvConfig, describe_env
from zmqrl.learner.games import BoxActions, DiscreteActions, FactoredActions
from zmqrl.learner.networks import make_model
from zmqrl.learner.plugin import load_loss
from zmqrl.learner.settings import BA3CConfig, NetworkConfig, PPOConfig
from zmqrl.policy import load_policy
from zmqrl.recipes import cartpole
from zmqrl.start.initial import initial_checkpoint

NUMBERS = itertools.count()

Write = Callable[[str], str]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Write a module that can be imported. Returns its name."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def write(source: str) -> str:
        name = f"own_module_{next(NUMBERS)}"
        (tmp_path / f"{name}.py").write_text(
            "import torch\nfrom torch import nn, zeros\n" + textwrap.dedent(source), encoding="utf-8"
        )
        return name

    return write


MODEL = """
    class Net(nn.Module):
        def __init__(self, shape, num_actions):
            super().__init__()
            self.norm = nn.BatchNorm1d(5) if {norm} else nn.Identity()
            self.layer = nn.Linear(5, num_actions, dtype={dtype})
            self.layer.requires_grad_({trainable})
        def forward(self, observations):
            logits = self.layer(self.norm(observations.to({dtype})))
            return {outputs}
"""
GOOD = {"norm": False, "dtype": "torch.float32", "trainable": True, "outputs": "logits, logits[:, 0]"}


def test_a_function_or_a_class_makes_the_model(write: Write) -> None:
    name = write(MODEL.format(**GOOD) + "\n    def make(shape, num_actions):\n        return Net(shape, num_actions)")
    for function in ("Net", "make"):
        logits, values = make_model(f"{name}:{function}", described((5,), 3))(torch.randn(7, 5))
        assert (logits.shape, values.shape) == ((7, 3), (7,))


def test_a_model_is_tried_with_frames_in_the_format_of_a_rollout(write: Write) -> None:
    name = write("""
        class Net(nn.Module):
            def __init__(self, shape, num_actions):
                super().__init__()
                self.layer = nn.Linear(2 * 6 * 6, num_actions)
            def forward(self, observations):
                assert observations.dtype == torch.uint8 and observations.shape[1:] == (2, 6, 6)
                assert observations.is_contiguous(memory_format=torch.channels_last)
                logits = self.layer(observations.flatten(1) / 255)
                return logits, logits[:, 0]
    """)
    make_model(f"{name}:Net", described((2, 6, 6), 3))


def test_a_model_is_tried_with_observations_that_its_environment_allows(write: Write) -> None:
    name = write("""
        import gymnasium

        class Cards(gymnasium.Env):
            observation_space = gymnasium.spaces.Box(1, 13, (5,), int)
            action_space = gymnasium.spaces.Discrete(3)

        gymnasium.register("Cards-v0", Cards)

        class Net(nn.Module):
            def __init__(self, shape, num_actions):
                super().__init__()
                self.cards, self.actor = nn.Embedding(14, 4), nn.Linear(4, num_actions)
            def forward(self, observations):
                logits = self.actor(self.cards(observations.long()).sum(1))
                return logits, logits[:, 0]
    """)
    spec = describe_env(f"{name}:Cards-v0", EnvConfig())
    make_model(f"{name}:Net", spec)
    with pytest.raises(UsageError, match=r":Net fails for normalized observations of shape \(5,\): IndexError: index"):
        make_model(f"{name}:Net", dataclasses.replace(spec, normalizes_observations=True))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"outputs": "logits, logits[:, :1]"},
            "--model M returned a tuple of Tensor float32 (4, 3) and Tensor float32 (4, 1) for 4 observations: "
            "it must return a tuple of float32 logits (4, 3) and values (4,).",
        ),
        (
            {"outputs": "logits"},
            "--model M returned Tensor float32 (4, 3) for 4 observations: it must return a tuple of",
        ),
        ({"outputs": "logits, None"}, "--model M returned a tuple of Tensor float32 (4, 3) and NoneType for"),
        ({"outputs": "logits / 0, logits[:, 0]"}, "--model M returned logits or values that are not finite."),
        ({"outputs": "1 / 0"}, "--model M fails for observations of shape (5,): ZeroDivisionError: division by zero ("),
        ({"dtype": "torch.float64"}, "--model M returned a tuple of Tensor float64 (4, 3) and Tensor float64 (4,) for"),
        (
            {"outputs": "logits, logits[:, 0].squeeze()"},
            "--model M returned a tuple of Tensor float32 (1, 3) and Tensor float32 () for 1 observation: it must",
        ),
        (
            {"outputs": "logits.detach(), logits[:, 0].detach()"},
            "--model M fails in its backward pass: RuntimeError: element 0 of tensors does not require grad",
        ),
        ({"outputs": "logits.masked_fill(logits < 9, torch.inf), logits[:, 0]"}, "--model M returned logits or values"),
        ({"trainable": False}, "--model M must have trainable parameters, all of them float32."),
        (
            {"outputs": "logits, logits[:, 0] + 0 * observations.mul_(2)[:, 0]"},
            "--model M changes its observations in place: use x = x / 255, not x /= 255.",
        ),
        ({"norm": True}, "--model M changes its buffer norm.running_mean in forward, as batch normalization does"),
    ],
)
def test_a_model_that_cannot_be_used_is_refused_with_the_reason(
    write: Write, changes: dict[str, object], sentence: str
) -> None:
    reference = f"{write(MODEL.format(**GOOD | changes))}:Net"
    with pytest.raises(UsageError) as refused:
        make_model(reference, described((5,), 3))
    assert str(refused.value).startswith(sentence.replace(" M ", f" {reference} "))


def test_a_model_may_mask_discrete_actions_but_not_the_means_of_box_actions(write: Write) -> None:
    name = write(
        MODEL.format(**GOOD | {"outputs": "logits.index_fill(1, torch.tensor([0]), -torch.inf), logits[:, 0]"})
    )
    for actions in (DiscreteActions(4), FactoredActions((2, 2), (0, 0), (2,))):
        model = make_model(f"{name}:Net", described((5,), actions))
        assert all(parameter.grad is None for parameter in model.parameters())
    with pytest.raises(UsageError, match=f"^--model {name}:Net returned logits or values that are not finite"):
        make_model(f"{name}:Net", described((5,), BoxActions((-1.0, -1.0), (1.0, 1.0), (2,))))


def test_a_custom_model_refuses_the_network_settings(write: Write) -> None:
    name = write(MODEL.format(**GOOD))
    with pytest.raises(UsageError, match=f"^--model {name}:Net has its own width and number format"):
        make_model(f"{name}:Net", described((5,), 3), NetworkConfig(hidden=32))


def test_an_error_names_a_missing_function(write: Write) -> None:
    name = write("make_net = 3\ndef model(shape, num_actions):\n    return 'net'")
    broken, ending = write("raise RuntimeError('not today.\\nnor ever')"), write("raise SystemExit('bye')")
    for reference, sentence in {
        "no_such_module:f": "cannot import no_such_module: ModuleNotFoundError: No module named 'no_such_module'.",
        f"{broken}:f": f"cannot import {broken}: RuntimeError: not today ({broken}.py, line 3).",
        f"{ending}:f": f"cannot import {ending}: SystemExit: bye ({ending}.py, line 3).",
        f"{name}:modle": f"{name} has no 'modle' (did you mean model?).",
        f"{name}:make_net": "make_net is a value of type int, not a function.",
        f"{name}:": "must be module:function.",
        ":f": "must be module:function.",
    }.items():
        with pytest.raises(UsageError) as refused:
            make_model(reference, described((5,), 3))
        assert str(refused.value) == f"--model {reference}: {sentence}"
    with pytest.raises(UsageError, match=f"^--model {name}:model returned str, not a torch.nn.Module.$"):
        make_model(f"{name}:model", described((5,), 3))


def test_untrained_parameters_of_a_model_are_the_same_in_every_worker(write: Write) -> None:
    name = write("""
        class Net(nn.Module):
            def __init__(self, shape, num_actions):
                super().__init__()
                self.features = nn.Linear(*shape, 8).requires_grad_(False)
                self.actor = nn.Linear(8, num_actions)
            def forward(self, observations):
                logits = self.actor(self.features(observations))
                return logits, logits[:, 0]
    """)
    config = dataclasses.replace(cartpole(), model=f"{name}:Net")
    drawn = []
    for rank in (0, 1):
        with actor_learner_of(config, rank) as actor_learner:
            drawn.append(actor_learner.player.model.get_parameter("features.weight"))
    assert torch.equal(*drawn)
    layout = initial_checkpoint(config, describe_env(config.env, config.envs)).layout
    assert [name for name, _ in layout.tensors] == ["actor.weight", "actor.bias"]


def test_noise_in_a_model_differs_between_workers_and_is_off_in_evaluations(write: Write, tmp_path: Path) -> None:
    name = write("""
        class Net(nn.Module):
            def __init__(self, shape, num_actions):
                super().__init__()
                self.features = nn.Sequential(nn.Linear(*shape, 16), nn.Dropout(0.5))
                self.actor = nn.Linear(16, num_actions)
            def forward(self, observations):
                logits = self.actor(self.features(observations))
                return logits, logits[:, 0]
    """)
    config = dataclasses.replace(cartpole(), model=f"{name}:Net")
    noise = []
    for rank, version, generation in ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)):
        with actor_learner_of(config, rank, version, generation):
            noise.append(tuple(torch.rand(4).tolist()))
    assert len(set(noise)) == 4
    model = load_policy(write_run(tmp_path / "run", config, 0)).model
    observations = torch.ones(8, 4)
    assert torch.equal(model(observations)[0], model(observations)[0])


def test_a_model_is_in_train_mode_in_workers_and_in_evaluation_mode_in_policies(write: Write, tmp_path: Path) -> None:
    name = write(MODEL.format(**GOOD).replace("5", "4"))
    config = dataclasses.replace(cartpole(), model=f"{name}:Net", shards=1)
    with actor_learner_of(config) as actor_learner:
        assert actor_learner.player.model is actor_learner.learner.model  # type: ignore[union-attr]
        assert actor_learner.player.model.training
    assert not load_policy(write_run(tmp_path / "run", config, 0)).model.training


@pytest.mark.parametrize(
    ("env", "wrong"), [("CartPole-v1", "nan"), ("CartPole-v1", "-inf"), ("Pendulum-v1", "nan"), ("Pendulum-v1", "-inf")]
)
def test_a_worker_refuses_outputs_with_which_no_action_can_be_chosen(write: Write, env: str, wrong: str) -> None:
    name = write(f"""
        class Net(nn.Linear):
            def __init__(self, shape, num_actions):
                super().__init__(*shape, num_actions)
            def forward(self, observations):
                logits = super().forward(observations)
                if len(observations) > 4:  # more than in the check before the run
                    logits = logits.masked_fill(torch.arange(len(logits))[:, None] == 3, float("{wrong}"))
                return logits, logits[:, 0]
    """)
    config = dataclasses.replace(cartpole(), env=env, model=f"{name}:Net")
    config = dataclasses.replace(config, envs=dataclasses.replace(config.envs, num_envs=5))
    with actor_learner_of(config) as actor_learner, pytest.raises(UsageError) as refused:
        actor_learner.player.play(actor_learner.rollout)
    wanted = "returned outputs with which no action can be chosen: NaN, inf, or only -inf."
    assert str(refused.value) == f"--model {config.model} {wanted}"


def test_an_environment_that_draws_from_global_generators_plays_the_same_games_again(write: Write) -> None:
    name = write("""
        import random
        import gymnasium
        import numpy as np

        def drawn():
            return np.array([random.random(), np.random.random(), torch.rand(()).item()], np.float32)

        class Drawn(gymnasium.Env):
            observation_space = gymnasium.spaces.Box(0.0, 2.0, (3,))
            action_space = gymnasium.spaces.Discrete(2)
            def __init__(self):
                self.level = drawn()
            def reset(self, *, seed=None, options=None):
                return self.level + drawn(), {}
            def step(self, action):
                return self.level + drawn(), 0.0, False, False, {}

        gymnasium.register("Drawn-v0", Drawn)
    """)
    config = dataclasses.replace(cartpole(), env=f"{name}:Drawn-v0")
    seen = []
    for rank in (0, 0, 1):
        np.random.seed()
        random.seed()
        torch.seed()
        with actor_learner_of(config, rank) as actor_learner:
            actor_learner.player.play(actor_learner.rollout)
        seen.append(actor_learner.rollout.observations)
    assert torch.equal(seen[0], seen[1])
    assert all((seen[0][..., part] != seen[2][..., part]).all() for part in range(3))


def test_an_environment_that_draws_from_global_generators_gets_neither_the_noise_of_actions_nor_a_number_twice(
    write: Write,
) -> None:
    name = write("""
        import gymnasium
        import numpy as np

        made, played = [], []

        class Noisy(gymnasium.Env):
            observation_space = gymnasium.spaces.Box(-1.0, 1.0, (1,))
            action_space = gymnasium.spaces.Box(-np.inf, np.inf, (1,))
            def __init__(self):
                made.append(torch.randn(1).item())
            def reset(self, *, seed=None, options=None):
                return np.zeros(1, np.float32), {}
            def step(self, action):
                played.append(torch.randn(1).item())
                return np.zeros(1, np.float32), 0.0, False, False, {}

        gymnasium.register("Noisy-v0", Noisy)
    """)
    config = dataclasses.replace(cartpole(), env=f"{name}:Noisy-v0")
    config = dataclasses.replace(config, envs=dataclasses.replace(config.envs, num_envs=1))
    with actor_learner_of(config) as actor_learner:
        actor_learner.player.play(actor_learner.rollout)
    drawn = sys.modules[name]
    actions = actor_learner.rollout.actions[:, 0, 0].numpy()  # the mean never changes
    assert len(drawn.played) == len(actions) > 100
    assert abs(np.corrcoef(actions, drawn.played)[0, 1]) < 0.3
    assert not set(drawn.made) & set(drawn.played)


def test_a_model_that_draws_from_global_generators_begins_with_the_same_parameters_again(write: Write) -> None:
    name = write("""
        import random
        import numpy as np

        class Net(nn.Linear):
            def __init__(self, shape, num_actions):
                super().__init__(*shape, num_actions)
                self.weight.data[:] = torch.from_numpy(np.random.random(self.weight.shape))
                self.bias.data[:] = random.random()
            def forward(self, observations):
                logits = super().forward(observations)
                return logits, logits[:, 0]
    """)
    config = dataclasses.replace(cartpole(), model=f"{name}:Net", shards=1)
    spec = describe_env(config.env, config.envs)
    first, second, other = (
        initial_checkpoint(dataclasses.replace(config, seed=seed), spec).vector() for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(first, second)
    assert (first != other).all()


@pytest.mark.parametrize(
    ("name", "hint"), [("natur", " (did you mean nature?)"), ("xyz", ""), ("Small", " (did you mean small?)")]
)
def test_an_error_about_an_unknown_model_suggests_the_nearest_one(name: str, hint: str) -> None:
    with pytest.raises(UsageError) as refused:
        make_model(name, described((5,), 3))
    known = "choose small, nature, narrow, dba3c, mlp, or your own as module:function."
    assert str(refused.value) == f"unknown model '{name}'{hint}; {known}"


@pytest.mark.parametrize(
    ("result", "sentence"),
    [
        ("values.mean()", "returned Tensor float32 (): it must return a scalar tensor"),
        ("values, {}", "returned a tuple of Tensor float32 (4,) and dict: it must return a scalar tensor"),
        (
            "values.mean().detach(), {}",
            "returned a tuple of Tensor float32 () and dict: it must return a scalar tensor",
        ),
        (
            "values.mean(), {'kl': 0.5}",
            "returned a tuple of Tensor float32 () and dict: it must return a scalar tensor",
        ),
        (
            "values.mean(), {'kl': values}",
            "returned a tuple of Tensor float32 () and dict: it must return a scalar tensor",
        ),
        ("values.mean(), {'loss': values.mean()}", "reports 'loss': a name must have at most 40 lower-case letters"),
        ("values.mean(), {'KL': values.mean()}", "reports 'KL': a name must have at most 40 lower-case letters"),
        ("values.mean(), {f'kl_{i}': values.mean() for i in range(60)}", "reports 60 values: the limit is 59."),
        ("batch.no_such_thing", "fails: AttributeError: 'Batch' object has no attribute 'no_such_thing' ("),
    ],
)
def test_a_loss_that_cannot_be_used_is_refused_with_the_reason(write: Write, result: str, sentence: str) -> None:
    name = write(f"def loss(logits, values, batch, config, entropy_coefficient):\n    return {result}")
    for config in (PPOConfig(), BA3CConfig()):
        with pytest.raises(UsageError) as refused:
            load_loss(f"{name}:loss", config, DiscreteActions(3))
        assert str(refused.value).startswith(f"--loss {name}:loss {sentence}")


def test_all_built_in_losses_pass_the_check() -> None:
    load_loss("zmqrl.learner.losses:ppo_loss", PPOConfig(), DiscreteActions(3))
    load_loss("zmqrl.learner.losses:ba3c_loss", BA3CConfig(), DiscreteActions(3))


def test_the_command_finds_modules_in_the_current_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "standing_here.py").write_text("raise ValueError('found it')", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    for option in ("--model", "--loss"):
        monkeypatch.setattr(sys, "argv", ["zmqrl", "train", "cartpole", option, "standing_here:f"])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        assert stop.value.code == 2
        said = capsys.readouterr().err
        reason = "cannot import standing_here: ValueError: found it (standing_here.py, line 1)."
        assert said == f"zmqrl: {option} standing_here:f: {reason}\n"
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_a_run_learns_with_the_model_and_the_loss_of_the_example(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT / "docs" / "examples")
    # Like a console script: Python does not look for modules in the current directory.
    command = tmp_path / "zmqrl-as-installed"
    command.write_text("from zmqrl.cli import main\nmain()\n", encoding="utf-8")
    with training(
        tmp_path / "run",
        *("--algo", "ba3c", "--ba3c.rollout-steps", "32", "--updates", "60"),
        *("--model", "own_learner:model", "--loss", "own_learner:loss"),
        quickly=(),
        program=(str(command),),
        environment={"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"},
    ) as run:
        assert run.wait() == 0, run.said()
    assert run.files.newest().version == 60
    assert dict(run.files.newest().layout.tensors)["body.0.weight"] == (128, 4)
    rows = run.files.metrics()
    assert any(row["value_loss"] is not None and row["loss"] is not None for row in rows)
    assert "clip_fraction" not in rows[-1]
