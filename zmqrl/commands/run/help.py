"""The help of ``zmqrl train`` and ``zmqrl launch``: the options of a run in groups, the most used first."""

import sys
from collections.abc import Mapping, Sequence
from typing import Any, Final

from zmqrl.commands.help import OptionGroup, grouped, help_of
from zmqrl.config import Config
from zmqrl.learner.settings import ALGORITHMS

RUN: Final = (
    OptionGroup("run", ["help", "run-dir", "minutes", "updates", "agent-steps", "stop-score"]),
    OptionGroup("start", ["resume", "detach", "dry-run", "seed"]),
    OptionGroup(
        "worker and shard", ["workers", "shards", "backups", "quorum", "device", "on-loss", "external-workers"]
    ),
    OptionGroup("environment", ["env"], ["envs"]),
    OptionGroup("learning", ["algo", "model", "loss"], [*ALGORITHMS, "network", "optimizer", "schedule"]),
    OptionGroup("watching", ["page", "trackers", "metrics-port", "profile"]),
    OptionGroup("checkpoint", [], ["checkpoint"]),
    OptionGroup("evaluation", ["evaluator"], ["evaluation"]),
    OptionGroup("recording", ["recorder"], ["recording"]),
    OptionGroup("experiment", ["scenario", "straggle", "pace", "mode", "consistent", "act-only"]),
    OptionGroup("connection", [], ["wire"]),
)
HOSTS: Final = (
    OptionGroup(
        "host",
        ["hosts", "slurm", "pbs", "lsf", "ray", "include", "exclude", "via", "ssh-config", "preflight", "requeue"],
    ),
    OptionGroup("installation", ["sync", "offline", "export"]),
    OptionGroup("login node", ["slurm-login", "sbatch", "login-dir"]),
    OptionGroup("network", ["iface", "address", "node-address", "lease-s"]),
)
TRAIN: Final = {
    "zmqrl train breakout": "Train until Ctrl-C, which ends the run with a checkpoint",
    "zmqrl train pong --workers 4 --backups 1 --minutes 60": "Train for an hour, and never wait for the slowest worker",
    "zmqrl train --resume --run-dir runs/my-run": "Continue a run",
}
LAUNCH: Final = {
    "zmqrl launch -H one,two:8 breakout --workers 12 --dry-run": "Show what would run on which host",
    "zmqrl launch -H one,two:8 breakout --workers 12": "Train on two hosts, with at most 8 workers on the second",
    "zmqrl launch --slurm breakout --workers 60": "Train on the nodes of this Slurm job",
}


def show(
    own: type[Any], default: Config, program: str, groups: Sequence[OptionGroup], examples: Mapping[str, str]
) -> None:
    """Print the help for the options of ``own``, and for the settings of a run with the values ``default``."""
    sys.stdout.write(grouped(help_of(own, default, program), groups, examples))
