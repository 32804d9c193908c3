"""Parses command lines into dataclasses of options, and turns a parse error into one sentence."""

import contextlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Final, TypeAlias, TypeVar

import tyro

from zmqrl.errors import UsageError, require

PICTURES: Final = (".png", ".svg", ".pdf")

T = TypeVar("T")
RunPath: TypeAlias = Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN")]
RunPaths: TypeAlias = Annotated[
    tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="RUN ...", help_behavior_hint="(required)")
]


def parse(cls: type[T], arguments: list[str], program: str, default: T | None = None) -> T:
    """Parse ``arguments`` into a ``cls``. They override ``default`` if it is given. Raises UsageError."""
    with _one_sentence(program):
        if default is None:
            return tyro.cli(cls, args=arguments, prog=program)
        return tyro.cli(cls, default=default, args=arguments, prog=program)


def parse_known(cls: type[T], arguments: list[str], program: str) -> tuple[T, list[str]]:
    """Parse the options of ``cls``. Returns the other arguments too, in their order. Raises UsageError."""
    with _one_sentence(program):
        return tyro.cli(cls, args=arguments, prog=program, return_unknown_args=True)


def check_picture(option: str, path: Path) -> None:
    """Raise UsageError unless the value of ``option`` names a kind of picture that can be written."""
    require(path.suffix in PICTURES, f"{option} {path}: the name must end with one of {', '.join(PICTURES)}.")


@contextlib.contextmanager
def _one_sentence(program: str) -> Iterator[None]:
    """Turn tyro's complaint about a command line into one sentence; ``--help`` exits as tyro does."""
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            yield
            return
    except SystemExit as stop:
        if not stop.code:
            raise
    lines = [line.strip("│╭╮╰╯ ") for line in complaint.getvalue().splitlines()]
    # tyro prints the sentence in a box, between the title and the first horizontal line.
    end = next((i for i, line in enumerate(lines) if i and set(line) <= {"─"}), len(lines))
    sentence = " ".join(line for line in lines[1:end] if line).rstrip(".")
    raise UsageError(f"{sentence}; {program.split(' [')[0]} --help lists the options.")
