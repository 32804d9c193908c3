"""Train a recipe with continuous actions, then CleanRL's published method in the same environment for as many steps.

    python benchmarks/continuous.py RECIPE --agent-steps X [--env ID] [--seeds 1 2 3] [--only zmqrl|reference]

Each run adds a line to ``benchmarks/results/continuous/results.jsonl``: the mean score of its last 50 training games.
The reference is a separate loop with the settings and wrappers of CleanRL's ``ppo_continuous_action.py`` at commit
016ca33 (https://docs.cleanrl.dev/rl-algorithms/ppo/#ppo_continuous_actionpy): one process, one environment, 2048 steps
in a rollout, 10 epochs of 32 minibatches. Adam's learning rate falls from 3e-4 to 0. Gamma is 0.99, lambda is 0.95, and
the clip range of ratios and values is 0.2. There is no entropy bonus. Observations and rewards are normalized and
clipped to 10. ``benchmarks/results/continuous/README.md`` lists what differs.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from bench_lab import SLOWEST_STEPS_PER_S, begin, train
from gymnasium import wrappers
from torch import Tensor, nn
from torch.distributions import Normal

from zmqrl.recipes import RECIPES

RESULTS = Path(__file__).parent / "results" / "continuous" / "results.jsonl"
STEPS, EPOCHS, MINIBATCHES, RATE, GAMMA, LAMBDA, CLIP, LAST_GAMES = 2048, 10, 32, 3e-4, 0.99, 0.95, 0.2, 50


def layer(inputs: int, outputs: int, gain: float = 2**0.5) -> nn.Linear:
    """A linear layer with orthogonal weights."""
    made = nn.Linear(inputs, outputs)
    nn.init.orthogonal_(made.weight, gain)
    nn.init.zeros_(made.bias)
    return made


class Agent(nn.Module):
    """Two networks of two layers, and a standard deviation that does not depend on the observation."""

    def __init__(self, observations: int, actions: int) -> None:
        super().__init__()
        self.critic = nn.Sequential(layer(observations, 64), nn.Tanh(), layer(64, 64), nn.Tanh(), layer(64, 1, 1.0))
        self.mean = nn.Sequential(
            layer(observations, 64), nn.Tanh(), layer(64, 64), nn.Tanh(), layer(64, actions, 0.01)
        )
        self.log_std = nn.Parameter(torch.zeros(actions))

    def policy(self, observations: Tensor) -> Normal:
        """The distribution of actions (B, D)."""
        return Normal(self.mean(observations), self.log_std.exp(), validate_args=False)

    def value(self, observations: Tensor) -> Tensor:
        """Values (B,)."""
        return self.critic(observations).squeeze(-1)  # type: ignore[no-any-return]


def environment(env_id: str) -> gymnasium.Env[Any, Any]:
    """The environment in CleanRL's wrappers."""
    env: gymnasium.Env[Any, Any] = wrappers.FlattenObservation(gymnasium.make(env_id))
    env = wrappers.ClipAction(wrappers.RecordEpisodeStatistics(env))
    env = wrappers.NormalizeObservation(env)
    env = wrappers.TransformObservation(env, lambda o: np.clip(o, -10, 10), env.observation_space)
    env = wrappers.NormalizeReward(env, gamma=GAMMA)
    return wrappers.TransformReward(env, lambda reward: max(-10.0, min(float(reward), 10.0)))


def reference(env_id: str, agent_steps: int, seed: int) -> list[float]:
    """The scores of all games of one training."""
    torch.manual_seed(seed)
    torch.set_num_threads(1)
    env = environment(env_id)
    assert env.observation_space.shape is not None
    assert env.action_space.shape is not None
    (inputs,), (outputs,) = env.observation_space.shape, env.action_space.shape
    agent = Agent(inputs, outputs)
    adam = torch.optim.Adam(agent.parameters(), lr=RATE, eps=1e-5)
    seen, actions = torch.zeros(STEPS, inputs), torch.zeros(STEPS, outputs)
    log_probs, rewards, overs, values = torch.zeros(4, STEPS)
    scores: list[float] = []
    observation = torch.as_tensor(env.reset(seed=seed)[0], dtype=torch.float32)
    iterations = agent_steps // STEPS
    for iteration in range(iterations):
        adam.param_groups[0]["lr"] = RATE * (1 - iteration / iterations)
        with torch.no_grad():
            for t in range(STEPS):
                policy = agent.policy(observation)
                seen[t], actions[t] = observation, policy.sample()
                log_probs[t], values[t] = policy.log_prob(actions[t]).sum(), agent.value(observation)
                following, reward, terminated, truncated, info = env.step(actions[t].numpy())
                rewards[t], overs[t] = float(reward), float(terminated or truncated)
                if terminated or truncated:
                    scores.append(float(info["episode"]["r"]))
                    following, _ = env.reset()
                observation = torch.as_tensor(following, dtype=torch.float32)
            advantages, after, trace = torch.zeros(STEPS), agent.value(observation), torch.tensor(0.0)
            for t in reversed(range(STEPS)):
                delta = rewards[t] + GAMMA * after * (1 - overs[t]) - values[t]
                trace = delta + GAMMA * LAMBDA * (1 - overs[t]) * trace
                advantages[t], after = trace, values[t]
            returns = advantages + values
        for _ in range(EPOCHS):
            for samples in torch.randperm(STEPS).view(MINIBATCHES, -1):
                policy, value = agent.policy(seen[samples]), agent.value(seen[samples])
                ratio = (policy.log_prob(actions[samples]).sum(-1) - log_probs[samples]).exp()
                scaled = (advantages[samples] - advantages[samples].mean()) / (advantages[samples].std() + 1e-8)
                policy_loss = -torch.minimum(scaled * ratio, scaled * ratio.clamp(1 - CLIP, 1 + CLIP)).mean()
                near = values[samples] + (value - values[samples]).clamp(-CLIP, CLIP)
                errors = torch.maximum((value - returns[samples]) ** 2, (near - returns[samples]) ** 2)
                adam.zero_grad()
                (policy_loss + 0.5 * 0.5 * errors.mean()).backward()  # type: ignore[no-untyped-call]
                nn.utils.clip_grad_norm_(agent.parameters(), 0.5)
                adam.step()
    env.close()
    return scores


def ours(recipe: str, env_id: str, agent_steps: int, seed: int) -> float:
    """The mean score of the last 50 games of a run of ``recipe``."""
    with tempfile.TemporaryDirectory(prefix="zmqrl-benchmark-") as scratch:
        run = Path(scratch) / "run"
        options = [recipe, "--env", env_id, "--agent-steps", str(agent_steps), "--seed", str(seed), "--trackers"]
        train(options, run, agent_steps / SLOWEST_STEPS_PER_S)
        summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
        return float(summary["score_mean_50"])


def main() -> None:
    """Train zmqrl and the reference with each seed, and print one line per run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    parser.add_argument("--agent-steps", type=int, required=True)
    parser.add_argument("--env")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--only", choices=("zmqrl", "reference"))
    asked = parser.parse_args()
    if asked.agent_steps < STEPS:
        parser.error(f"--agent-steps {asked.agent_steps}: must be at least {STEPS}, the length of a rollout")
    origin = begin(parser, RESULTS)
    env_id = asked.env or RECIPES[asked.recipe]().env
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    for seed in asked.seeds:
        for side in [asked.only] if asked.only else ["zmqrl", "reference"]:
            begun = time.monotonic()
            if side == "zmqrl":
                score = ours(asked.recipe, env_id, asked.agent_steps, seed)
            else:
                score = statistics.fmean(reference(env_id, asked.agent_steps, seed)[-LAST_GAMES:])
            agent_steps = asked.agent_steps if side == "zmqrl" else asked.agent_steps // STEPS * STEPS
            row = {"recipe": asked.recipe, "env": env_id, "side": side, "seed": seed, "agent_steps": agent_steps}
            row |= {"score_mean_50": round(score, 1), "seconds": round(time.monotonic() - begun)}
            with RESULTS.open("a", encoding="utf-8") as results:
                results.write(json.dumps(row | {"provenance": origin}) + "\n")
            print(row, flush=True)


if __name__ == "__main__":
    main()
