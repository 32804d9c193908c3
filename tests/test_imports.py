"""Commands load only what they need: torch, the games and matplotlib take seconds to import."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from support.policy_rig import CARTPOLE, write_run

pytestmark = pytest.mark.processes

HEAVY = {"torch", "gymnasium", "ale_py", "matplotlib", "imageio", "tensorboard", "prometheus_client", "starlette"}
NO_RUN = "/no/such/run"

# Runs command lines in one process, and prints the heavy modules that are loaded after each.
PROGRAM = """
import contextlib, io, json, sys
from zmqrl import cli
from zmqrl.errors import UsageError

commands, heavy = json.load(sys.stdin)
loaded = []
for arguments in commands:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(UsageError, SystemExit):
        cli.run(arguments)
    loaded.append(sorted(set(heavy) & set(sys.modules)))
print(json.dumps(loaded))
"""
COMMANDS = [
    "--help",
    "trian",
    "train --help",
    "train --no-such-option 1",
    "train cartpole --workers 0",
    "train cartpole --dry-run",
    "train --resume --run-dir NO_RUN",
    "launch --help",
    "launch cartpole",
    "launch -H h1,h2 cartpole --dry-run",
    "launch -H h1:1 cartpole --workers 20",
    "doctor --help",
    "recipes",
    "recipes --json",
    "completion --help",
    "completion bash",
    "doctor -H h1 cartpole --workers 0",
    *(f"{command} {rest}" for command in ("status", "attach", "logs", "stop") for rest in ("--help", "NO_RUN")),
    "status RUN",
    "status RUN --json",
    "logs RUN",
    *(f"{command} {rest}" for command in ("eval", "record", "plot", "profile") for rest in ("--help", "NO_RUN")),
    "worker --help",
    "worker NO_RUN",
    "check-history --help",
    "check-history RUN",
    "compare --help",
    "compare RUN RUN",
    "serve --help",
    "simulate --help",
    "simulate --updates 2",
    "plan --help",
    "bench --help",
    "bench train --help",
    "bench train --workers 0",
    "bench wire --help",
    "bench wire --rounds 0",
]


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """The heavy modules that a process has loaded after each of the commands, which it runs in this order."""
    run = write_run(tmp_path_factory.mktemp("runs") / "run", CARTPOLE, 0)
    lines = [[word.replace("NO_RUN", NO_RUN).replace("RUN", str(run)) for word in each.split()] for each in COMMANDS]
    asked = json.dumps([lines, sorted(HEAVY)])
    done = subprocess.run([sys.executable, "-c", PROGRAM], input=asked, stdout=subprocess.PIPE, text=True, timeout=180)
    assert done.returncode == 0
    return dict(zip(COMMANDS, json.loads(done.stdout), strict=True))


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_that_does_not_compute_loads_no_heavy_module(loaded: dict[str, list[str]], command: str) -> None:
    assert loaded[command] == []


# Trains, and prints the heavy modules that the launcher has loaded at the end.
TRAINING = """
import json, sys
from zmqrl import cli

status = cli.run(sys.argv[1:])
print(json.dumps([status, sorted({"torch", "gymnasium", "ale_py", "matplotlib"} & set(sys.modules))]))
"""


@pytest.mark.slow
def test_the_launcher_of_a_run_never_loads_torch(tmp_path: Path) -> None:
    options = ["train", "cartpole", "--updates", "4", "--run-dir", str(tmp_path / "run")]
    done = subprocess.run([sys.executable, "-c", TRAINING, *options], stdout=subprocess.PIPE, text=True, timeout=180)
    assert json.loads(done.stdout.splitlines()[-1]) == [0, []]
