"""``zmqrl completion``: a script with which a shell completes the commands, options and values of zmqrl.

The script contains all words, so completion starts no Python.
"""

import dataclasses
import importlib
import re
import sys
import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Protocol, Union, get_args, get_origin, get_type_hints

import tyro

from zmqrl.commands.measure.bench import BENCHMARKS
from zmqrl.commands.options import parse
from zmqrl.commands.shells import SCRIPTS
from zmqrl.config import Config
from zmqrl.recipes import RECIPES

SUPPRESS, POSITIONAL, BARE = (
    get_args(marked[int])[1] for marked in (tyro.conf.Suppress, tyro.conf.Positional, tyro.conf.OmitArgPrefixes)
)
Kind = Literal["words", "runs", "files"]


class About(Protocol):
    """What the table of commands says about a command."""

    @property
    def module(self) -> str:
        """The module below ``zmqrl.commands``."""

    @property
    def arguments(self) -> str:
        """The arguments in the usage line."""

    @property
    def purpose(self) -> str:
        """The first line of the help."""


class Option(NamedTuple):
    """An option: its spellings, the words that can follow it, and whether a path or anything else must follow it."""

    names: tuple[str, ...]
    values: tuple[str, ...] = ()
    takes: Literal["nothing", "words", "path", "text"] = "text"


@dataclass(frozen=True, kw_only=True, slots=True)
class Completed:
    """What can follow ``zmqrl COMMAND``: options, and operands: ``words``, paths of ``runs``, or ``files``."""

    purpose: str
    options: tuple[Option, ...]
    kind: Kind | None = None
    words: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Options:
    """Print a shell script that completes the commands, recipes and options of zmqrl.

    bash: zmqrl completion bash > ~/.local/share/bash-completion/completions/zmqrl

    zsh: zmqrl completion zsh > ~/.zsh-zmqrl, and a line `source ~/.zsh-zmqrl` in ~/.zshrc

    fish: zmqrl completion fish > ~/.config/fish/completions/zmqrl.fish
    """

    shell: tyro.conf.Positional[Literal["bash", "zsh", "fish"]]
    """The shell."""


def command(arguments: list[str], commands: Mapping[str, About]) -> int:
    """Run ``zmqrl completion``. ``commands`` is the table of all commands. Raises UsageError."""
    options = parse(Options, arguments, "zmqrl completion")
    sys.stdout.write(SCRIPTS[options.shell](completions(commands)))
    return 0


def completions(commands: Mapping[str, About]) -> dict[str, Completed]:
    """What can follow each command, by the words of the command: ``train``, or ``bench train``."""
    found = {name: completed(about.module, about.arguments, about.purpose) for name, about in commands.items()}
    for name, (module, purpose) in BENCHMARKS.items():
        arguments = "[RECIPE]" if name == "train" else ""
        found[f"bench {name}"] = completed(f"measure.{module}", arguments, purpose)
    return found


def completed(module: str, arguments: str, purpose: str) -> Completed:
    """What can follow the command that ``module`` below ``zmqrl.commands`` runs, with ``arguments`` in its usage."""
    cls = getattr(importlib.import_module(f"zmqrl.commands.{module}"), "Options", None)
    options = [] if cls is None else list(options_of(cls))
    kind: Kind | None = None
    words: tuple[str, ...] = ()
    if "RECIPE" in arguments:
        options += options_of(Config)
        kind, words = "words", tuple(RECIPES)
    elif choice := re.match(r"[a-z-]+(\|[a-z-]+)+", arguments):
        kind, words = "words", tuple(choice[0].split("|"))
    elif "RUN" in arguments or "RESULT" in arguments:
        kind = "runs"
    elif "FILE" in arguments or ".json" in arguments:
        kind = "files"
    once = {option.names: option for option in (Option(("--help",), takes="nothing"), *options)}
    return Completed(purpose=purpose, options=tuple(once.values()), kind=kind, words=words)


def options_of(cls: type[Any], prefix: str | None = "") -> Iterator[Option]:
    """The options that tyro makes of a dataclass. Fields of nested dataclasses have their path as ``prefix``.

    If ``prefix`` is None, neither these fields nor those of nested dataclasses have a prefix.
    """
    path = prefix or ""
    hints = get_type_hints(cls, include_extras=True)
    for field in dataclasses.fields(cls):
        hint, marks = _unwrapped(hints[field.name])
        name = next((mark.name for mark in marks if getattr(mark, "name", None)), field.name.replace("_", "-"))
        if SUPPRESS in marks or POSITIONAL in marks:
            continue
        if dataclasses.is_dataclass(hint):
            assert isinstance(hint, type)
            yield from options_of(hint, None if prefix is None or BARE in marks else f"{path}{name}.")
            continue
        aliases = [alias for mark in marks for alias in getattr(mark, "aliases", None) or ()]
        names = (f"--{path}{name}", *aliases)
        if hint is bool:
            yield Option((*names, f"--{path}no-{name}"), takes="nothing")
        elif get_origin(hint) is Literal:
            yield Option(names, tuple(map(str, get_args(hint))), "words")
        else:
            yield Option(names, takes="path" if hint is Path else "text")


def _unwrapped(hint: Any) -> tuple[Any, list[Any]]:
    """The type of one value of ``hint``, without None and tuples, and all marks of tyro on the way."""
    marks: list[Any] = []
    while True:
        arguments = [each for each in get_args(hint) if each not in (type(None), Ellipsis)]
        if get_origin(hint) is Annotated:
            marks += arguments[1:]
        elif get_origin(hint) not in (Union, types.UnionType, tuple) or not arguments:
            return hint, marks
        hint = arguments[0]
