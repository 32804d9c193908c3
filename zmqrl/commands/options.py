"""Parses command lines into dataclasses of options, and turns errors into one sentence."""

import contextlib
import dataclasses
import io
import math
import re
import types
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from itertools import dropwhile, takewhile
from pathlib import Path
from typing import (
    Annotated,
    Any,
    Final,
    Literal,
    NamedTuple,
    TypeAlias,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

import tyro

from zmqrl.errors import UsageError, did_you_mean, require
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
HELP: Final = frozenset({"-h", "--help"})
# Sentences of tyro, and what they mean
IN_PLAIN_WORDS: Final = tuple(
    (re.compile(pattern), plain)
    for pattern, plain in (
        (r"Error parsing (\S+): invalid literal for int.*?: ['\"](.*)['\"]", r"\1 \2: must be a whole number"),
        (r"Error parsing (\S+): could not convert .*?: ['\"](.*)['\"]", r"\1 \2: must be a number"),
        (r"Error parsing (\S+): no type .*\|INT could .* \['(.*)'\]", r"\1 \2: must be a whole number or None"),
        (r"Error parsing (\S+): no type .*\|FLOAT could .* \['(.*)'\]", r"\1 \2: must be a number or None"),
        (r"Error parsing (\S+): Exceeds the limit .*", r"\1: the number has too many digits"),
        (r"Error parsing (\S+): .* \['(.*)'\]", r"\1 \2: has a value of the wrong type"),
        (r"invalid choice '(.*)' for argument '(.*)'\. Expected .* \((.*?),?\)", r"\2 \1: must be one of \3"),
        (r"Missing value for argument '(.*)'\. .*", r"\1: its value is missing"),
        (r"Missing from [^:]*: (\S+) .*", r"\1 is required"),
    )
)
SUPPRESS, POSITIONAL, BARE = (
    get_args(marked[int])[1] for marked in (tyro.conf.Suppress, tyro.conf.Positional, tyro.conf.OmitArgPrefixes)
)

T = TypeVar("T")
RunPath: TypeAlias = Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN")]
RunPaths: TypeAlias = Annotated[
    tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="RUN ...", help_behavior_hint="(required)")
]


class Option(NamedTuple):
    """An option, with its spellings ``names``.

    ``takes`` says what follows, and ``values`` lists possible words. With ``is_list``, any number can follow.
    """

    names: tuple[str, ...]
    values: tuple[str, ...] = ()
    takes: Literal["nothing", "words", "path", "text"] = "text"
    is_list: bool = False


def parse(
    cls: type[T], arguments: list[str], program: str, default: T | None = None, beside: Collection[type[Any]] = ()
) -> T:
    """Parse ``arguments`` into an instance of ``cls``.

    The arguments override ``default``. Raises UsageError, which can also suggest an option of the classes ``beside``.
    """
    _refuse_repetition(arguments)
    if _has_operands(cls):  # tyro accepts no list of operands after an option
        words, others = operands(arguments, [cls])
        arguments = [*others, "--", *words]
    with _one_sentence(program, arguments, (cls, *beside)):
        if default is None:
            return tyro.cli(cls, args=arguments, prog=program)
        return tyro.cli(cls, default=default, args=arguments, prog=program)


def parse_known(cls: type[T], arguments: list[str], program: str) -> tuple[T, list[str]]:
    """Parse the options of ``cls``. Also returns the other arguments. Raises UsageError."""
    _refuse_repetition(arguments)
    with _one_sentence(program, arguments, (cls,)):
        return tyro.cli(cls, args=arguments, prog=program, return_unknown_args=True)


def operands(
    arguments: Iterable[str], of: Iterable[type[Any]], known: Collection[str] = ()
) -> tuple[list[str], list[str]]:
    """The words that are neither options of the classes ``of`` nor their values, and the other arguments.

    A ``known`` word is never a value of an unknown option, or of one that takes a list.
    """
    table = {_option(option.names[0]): option for cls in of for option in options_of(cls)}
    words, others = list[str](), list[str]()
    expected = 0.0  # words that still belong to the last option
    left = iter(arguments)
    for argument in left:
        if argument == "--":
            words += left
        elif OPTION.match(argument):
            name, equals, _ = argument.partition("=")
            option = table.get(_option(name))
            if name in HELP or (option is not None and option.takes == "nothing"):
                expected = 0
            elif option is None or option.is_list:
                expected = math.inf
            else:
                expected = 0 if equals else 1
            others.append(argument)
        elif expected == 0 or (expected == math.inf and argument in known):
            expected = 0
            words.append(argument)
        else:
            expected -= 1
            others.append(argument)
    return words, others


def _has_operands(cls: type[Any]) -> bool:
    hints = get_type_hints(cls, include_extras=True).values()
    return any(POSITIONAL in _unwrapped(hint)[1] for hint in hints)


def options_of(cls: type[Any], prefix: str | None = "") -> Iterator[Option]:
    """The options that tyro makes of a dataclass, with ``prefix`` before each name.

    Names in a nested dataclass also get the path of that dataclass, unless ``prefix`` is None.
    """
    path = prefix or ""
    hints = get_type_hints(cls, include_extras=True)
    for field in dataclasses.fields(cls):
        hint, marks, is_tuple = _unwrapped(hints[field.name])
        name = next((mark.name for mark in marks if getattr(mark, "name", None)), field.name.replace("_", "-"))
        if SUPPRESS in marks or POSITIONAL in marks:
            continue
        if dataclasses.is_dataclass(hint):
            assert isinstance(hint, type)
            yield from options_of(hint, None if prefix is None or BARE in marks else f"{path}{name}.")
            continue
        aliases = [alias for mark in marks for alias in getattr(mark, "aliases", None) or ()]
        names = (f"--{path}{name}", *aliases)
        is_list = is_tuple and tyro.conf.UseAppendAction not in marks
        if hint is bool:
            yield Option((*names, f"--{path}no-{name}"), takes="nothing")
        elif get_origin(hint) is Literal:
            yield Option(names, tuple(map(str, get_args(hint))), "words", is_list)
        else:
            yield Option(names, takes="path" if hint is Path else "text", is_list=is_list)


def _unwrapped(hint: Any) -> tuple[Any, list[Any], bool]:
    """The type of one value of ``hint``, tyro's marks around it, and whether ``hint`` is a tuple.

    The type is neither None nor a tuple: for ``tuple[int, ...] | None``, it is ``int``.
    """
    marks, is_tuple = list[Any](), False
    while True:
        arguments = [each for each in get_args(hint) if each not in (type(None), Ellipsis)]
        if get_origin(hint) is Annotated:
            marks += arguments[1:]
        elif get_origin(hint) not in (Union, types.UnionType, tuple) or not arguments:
            return hint, marks, is_tuple
        is_tuple = is_tuple or get_origin(hint) is tuple
        hint = arguments[0]


def asks_for_help(arguments: list[str]) -> bool:
    return not HELP.isdisjoint(arguments)


def check_picture(option: str, path: Path) -> None:
    """Raise UsageError if ``path``, the value of ``option``, cannot be a picture."""
    require_extra("plot", "pictures need")
    require(path.suffix in PICTURES, f"{option} {path}: the name must end with one of {', '.join(PICTURES)}.")


def _refuse_repetition(arguments: list[str]) -> None:
    """Raise UsageError for a repeated option: tyro would silently use only the last value."""
    written = [argument.partition("=")[0] for argument in arguments if OPTION.match(argument)]
    given = Counter(map(_option, written))
    for text in written:
        times = given[_option(text)]
        if times > 1 and _option(text) not in REPEATABLE:
            hint = ", with a list of hosts such as h1,h2" if _option(text) in LISTS_OF_HOSTS else ""
            raise UsageError(f"{text} is given {times} times: give it once{hint}.")


def option_names(arguments: Iterable[str]) -> set[str]:
    return {_option(argument.partition("=")[0]) for argument in arguments if OPTION.match(argument)}


def _option(text: str) -> str:
    """The usual name of an option in spellings such as ``--no-resume``, ``-H`` and ``--run_dir``."""
    name = re.sub(r"(^--|\.)no-", r"\1", text.replace("_", "-"))
    return ALIASES.get(name, name)


@contextlib.contextmanager
def _one_sentence(program: str, arguments: Iterable[str], of: Iterable[type[Any]]) -> Iterator[None]:
    """Turn tyro's complaint about ``arguments`` into one sentence, which can suggest an option of the classes ``of``.
    For ``--help``, tyro still prints and exits.
    """
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            yield
            return
    except SystemExit as stop:
        if not stop.code:
            raise
    # tyro prints the sentence in a box, between a title and a rule. The characters of the box depend on the encoding.
    lines = [line.strip("│╭╮╰╯|+ ") for line in complaint.getvalue().splitlines()]
    after_title = dropwhile(_is_rule, lines[1:])
    sentence = " ".join(takewhile(lambda line: not _is_rule(line), after_title)).rstrip(".")
    sentence = re.sub(r"'([a-z0-9]+)'(?=[,)])", r"\1", sentence)  # choices need no quotes
    told = next((found.expand(plain) for tyros, plain in IN_PLAIN_WORDS if (found := tyros.fullmatch(sentence))), None)
    if sentence.startswith("Unrecognized"):  # "Unrecognized options: a, b"
        told = _unknown(arguments, of) or f"unexpected argument {sentence.partition(': ')[2]}"
    raise UsageError(f"{told or sentence}; {program.split(' [')[0]} --help lists the options.")


def _unknown(arguments: Iterable[str], of: Iterable[type[Any]]) -> str | None:
    """A sentence about the first option that belongs to none of the classes ``of``, or has a value in vain, if any."""
    table = {name: option for cls in of for option in options_of(cls) for name in option.names}
    known = {_option(name): option for name, option in table.items()}
    for name, equals, _ in (argument.partition("=") for argument in arguments if OPTION.match(argument)):
        if _option(name) not in known:
            return f"unknown option {name}{did_you_mean(name, table)}"
        if equals and known[_option(name)].takes == "nothing":
            return f"{name} takes no value"
    return None


def _is_rule(line: str) -> bool:
    return set(line) <= {"─", "-"}
