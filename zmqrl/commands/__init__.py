"""The table of the commands of the command line, in the groups of the help, and their modules."""

import importlib
import math
from typing import NamedTuple

ENDS_WITHIN_S = 10.0  # cleaning up takes a second


class Command(NamedTuple):
    """A command is a module under ``zmqrl.commands``: see :func:`run_command`.

    If ``is_guarded``, everything that the command has started ends with it. Commands that run the user's code in their
    own process need this guard. It kills a command that has not ended ``ends_within_s`` after SIGTERM or SIGHUP,
    perhaps because a step of its game never returns.
    """

    module: str
    arguments: str
    purpose: str
    is_guarded: bool = False
    ends_within_s: float = ENDS_WITHIN_S


GROUPS = {
    "train": {
        "train": Command("run.train", "[RECIPE] [options]", "train on this machine"),
        "launch": Command(
            "run.launch", "-H HOSTS [RECIPE] [options]", "train on several hosts (ssh, Slurm and others)"
        ),
        "recipes": Command("inspect.recipes", "[RECIPE] [--json]", "list recipes with their scores and training times"),
        "doctor": Command("inspect.doctor", "[-H HOSTS] [RECIPE] [options]", "check that machines can run this job"),
        "worker": Command("run.worker", "DIR/cluster.json", "join a run as an external worker", is_guarded=True),
        "stop": Command("run.stop", "RUN", "end a run with a checkpoint"),
    },
    "watch": {
        "status": Command("inspect.status", "RUN [options]", "show the state of a run, and what it left on its hosts"),
        "attach": Command("inspect.attach", "RUN", "show the live panel of a run until it ends"),
        "logs": Command("inspect.logs", "RUN [PROCESS] [-f]", "show the logs of a run's processes"),
        "serve": Command("inspect.serve", "[RUNS_DIR|RUN] [options]", "show runs on a live page in the browser"),
        "profile": Command("inspect.profile", "RUN [RUN] [options]", "show where the time of a run goes"),
        "check-history": Command(
            "inspect.check_history", "RUN [options]", "check that every shard made each version exactly once"
        ),
    },
    "results": {
        "eval": Command(
            "measure.evaluate", "RUN [options]", "play full games with a policy and print the scores", is_guarded=True
        ),
        "record": Command("measure.record", "RUN [options]", "record one game of a policy as a video", is_guarded=True),
        "plot": Command("measure.plot", "RUN [RUN ...]", "draw the metrics of runs over time"),
        "compare": Command("measure.compare", "RUN [RUN ...]", "compare the settings and results of runs"),
        "report": Command("measure.report", "RUN [options]", "write a page about the result of a run"),
        "reproduce": Command(
            "measure.reproduce",
            "RESULT [options]",
            "train again with the settings of a result, and compare both runs",
            is_guarded=True,
            ends_within_s=math.inf,  # its run writes a checkpoint first
        ),
    },
    "plan": {
        "bench": Command(
            "measure.bench",
            "train|wire [options]",
            "measure training, or the transport of gradients",
            is_guarded=True,
            ends_within_s=math.inf,  # a run that it measures ends its processes first
        ),
        "simulate": Command("measure.simulate", "[FILE] [options]", "simulate a run in virtual time"),
        "plan": Command("measure.plan", "--workers-up-to N [options]", "find the workers, backups and shards to use"),
    },
    "shell": {
        "completion": Command("completion", "bash|zsh|fish", "print a script that completes commands in a shell"),
    },
}
COMMANDS = {name: command for group in GROUPS.values() for name, command in group.items()}


def run_command(module: str, program: str, arguments: list[str]) -> int:
    """Run the command of ``module`` below ``zmqrl.commands``, and return its exit status. Raises ZmqrlError.

    Its ``run`` gets its ``Options``, parsed from ``arguments``. A command that parses in another way has a ``command``,
    which gets ``arguments``. ``program`` is the name of the command in the help.
    """
    # Import only this command's modules: torch, the games and the parser take time to import.
    found = importlib.import_module(f"zmqrl.commands.{module}")
    if hasattr(found, "command"):
        status: int = found.command(arguments)
    else:
        from zmqrl.commands.options import parse

        status = found.run(parse(found.Options, arguments, program))
    return status
