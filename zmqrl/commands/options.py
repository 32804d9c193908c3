"""Parses command lines into dataclasses of options, and turns a parse error into one sentence."""

import contextlib
import io
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import dropwhile, takewhile
from pathlib import Path
from typing import Annotated, Final, TypeAlias, TypeVar

import tyro

from zmqrl.errors import UsageError, require
from zmqrl.local.extras import require_extra

PICTURES: Final = (".png", ".svg", ".pdf")
OPTION: Final = re.compile(r"--?[A-Za-z]")
ALIASES: Final = {
    "-H": "--hosts",
    "-f": "--follow",
    "-x": "--export",
    "--port-range": "--wire.port-range",
    "--insecure-plaintext": "--wire.insecure-plaintext",
    "--env-arg": "--envs.args",
    "--wrapper": "--envs.wrappers",
}
REPEATABLE: Final = frozenset(
    {"--straggle", "--address", "--export", "--sweep", "--without", "--envs.args", "--envs.wrappers"}
)  # tyro appends their values
LISTS_OF_HOSTS: Final = frozenset({"--hosts", "--include", "--exclude"})

T = TypeVar("T")
RunPath: TypeAlias = Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN")]
RunPaths: TypeAlias = Annotated[
    tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="RUN ...", help_behavior_hint="(required)")
]


def parse(cls: type[T], arguments: list[str], program: str, default: T | None = None) -> T:
    """Parse ``arguments`` into a ``cls``. The arguments override the values of ``default``, if given. Raises
    UsageError.
    """
    _refuse_repetition(arguments)
    with _one_sentence(program):
        if default is None:
            return tyro.cli(cls, args=arguments, prog=program)
        return tyro.cli(cls, default=default, args=arguments, prog=program)


def parse_known(cls: type[T], arguments: list[str], program: str) -> tuple[T, list[str]]:
    """Parse the options of ``cls``. Also returns the other arguments, in their order. Raises UsageError."""
    _refuse_repetition(arguments)
    with _one_sentence(program):
        return tyro.cli(cls, args=arguments, prog=program, return_unknown_args=True)


def asks_for_help(arguments: list[str]) -> bool:
    """Whether a command line asks for help."""
    return not {"-h", "--help"}.isdisjoint(arguments)


def check_picture(option: str, path: Path) -> None:
    """Raise UsageError unless the value of ``option`` names a kind of picture that can be written here."""
    require_extra("plot", "pictures need")
    require(path.suffix in PICTURES, f"{option} {path}: the name must end with one of {', '.join(PICTURES)}.")


def _refuse_repetition(arguments: list[str]) -> None:
    """Raise UsageError for an option that is given twice: tyro would silently use only the last of the two values."""
    written = [argument.partition("=")[0] for argument in arguments if OPTION.match(argument)]
    given = Counter(map(_option, written))
    for text in written:
        times = given[_option(text)]
        if times > 1 and _option(text) not in REPEATABLE:
            hint = ", with a list of hosts such as h1,h2" if _option(text) in LISTS_OF_HOSTS else ""
            raise UsageError(f"{text} is given {times} times: give it once{hint}.")


def option_names(arguments: Iterable[str]) -> set[str]:
    """The names of the options in ``arguments``."""
    return {_option(argument.partition("=")[0]) for argument in arguments if OPTION.match(argument)}


def _option(text: str) -> str:
    """The name of the option that ``text`` sets. ``--no-resume``, ``-H`` and ``--run_dir`` are other spellings of a
    name.
    """
    name = re.sub(r"(^--|\.)no-", r"\1", text.replace("_", "-"))
    return ALIASES.get(name, name)


@contextlib.contextmanager
def _one_sentence(program: str) -> Iterator[None]:
    """Turn tyro's complaint about a command line into one sentence. ``--help`` is unchanged: tyro prints the help and
    exits.
    """
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            yield
            return
    except SystemExit as stop:
        if not stop.code:
            raise
    # tyro prints the sentence in a box, between the title and a horizontal line. The encoding decides how boxes look.
    lines = [line.strip("│╭╮╰╯|+ ") for line in complaint.getvalue().splitlines()]
    after_title = dropwhile(_is_rule, lines[1:])
    sentence = " ".join(takewhile(lambda line: not _is_rule(line), after_title)).rstrip(".")
    raise UsageError(f"{sentence}; {program.split(' [')[0]} --help lists the options.")


def _is_rule(line: str) -> bool:
    return set(line) <= {"─", "-"}
