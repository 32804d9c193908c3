"""``zmqrl completion``: a script that makes a shell complete commands, options and values of zmqrl.

The script contains all words, so completion starts no Python.
"""

import importlib
import re
import sys
from dataclasses import dataclass
from typing import Literal

import tyro

from zmqrl.commands import COMMANDS
from zmqrl.commands.measure.bench import BENCHMARKS
from zmqrl.commands.options import Option, options_of, parse
from zmqrl.commands.shells import SCRIPTS
from zmqrl.config import Config
from zmqrl.recipes import RECIPES

OperandKind = Literal["words", "runs", "files"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Completed:
    """What can follow ``zmqrl COMMAND``: options and operands.

    The ``kind`` of operands: ``words``, paths of runs, or files.
    """

    purpose: str
    options: tuple[Option, ...]
    kind: OperandKind | None = None
    words: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Options:
    """Print a shell script that completes the commands, recipes and options of zmqrl.

    bash: zmqrl completion bash > ~/.local/share/bash-completion/completions/zmqrl

    zsh: zmqrl completion zsh > ~/.zsh-zmqrl, and a line `source ~/.zsh-zmqrl` in ~/.zshrc

    fish: zmqrl completion fish > ~/.config/fish/completions/zmqrl.fish
    """

    shell: tyro.conf.Positional[Literal["bash", "zsh", "fish"]]
    """Shell that runs the script."""


def command(arguments: list[str]) -> int:
    """Print the script."""
    options = parse(Options, arguments, "zmqrl completion")
    sys.stdout.write(SCRIPTS[options.shell](completions()))
    return 0


def completions() -> dict[str, Completed]:
    """Maps each command, such as ``train`` or ``bench train``, to what can follow it."""
    found = {name: completed(about.module, about.arguments, about.purpose) for name, about in COMMANDS.items()}
    for name, (module, purpose) in BENCHMARKS.items():
        arguments = "[RECIPE] [options]" if name == "train" else ""
        found[f"bench {name}"] = completed(f"measure.{module}", arguments, purpose)
    return found


def completed(module: str, arguments: str, purpose: str) -> Completed:
    """What can follow the command of ``module`` below ``zmqrl.commands``, whose usage line shows ``arguments``."""
    cls = getattr(importlib.import_module(f"zmqrl.commands.{module}"), "Options", None)
    options = [] if cls is None else list(options_of(cls))
    kind: OperandKind | None = None
    words: tuple[str, ...] = ()
    if "RECIPE" in arguments:
        options += options_of(Config) if "[options]" in arguments else ()
        kind, words = "words", tuple(RECIPES)
    elif choice := re.match(r"[a-z-]+(\|[a-z-]+)+", arguments):
        kind, words = "words", tuple(choice[0].split("|"))
    elif "RUN" in arguments or "RESULT" in arguments:
        kind = "runs"
    elif "FILE" in arguments or ".json" in arguments:
        kind = "files"
    once = {option.names: option for option in (Option(("--help",), takes="nothing"), *options)}
    return Completed(purpose=purpose, options=tuple(once.values()), kind=kind, words=words)
