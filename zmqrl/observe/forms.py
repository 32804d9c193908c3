"""The required contents of the JSON files in a run directory, settings built from plain data, and errors for both."""

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import is_dataclass
from pathlib import Path
from types import MappingProxyType, UnionType
from typing import Any, Final, Literal, NamedTuple, TypeVar, Union, get_args, get_origin, get_type_hints

from zmqrl.errors import UsageError, did_you_mean
from zmqrl.json_lines import parse_json, read_file
from zmqrl.words import counted

T = TypeVar("T")


class _Kind(NamedTuple):
    """A requirement for a value: words that describe it, and a test."""

    words: str
    fits: Callable[[Any], bool]


_NUMBER_TYPES: Final = (float, int)  # of parsed JSON, in which a bool is not a number
_LARGEST: Final = 1e110  # the figures that workers report, and sums of them, are smaller. Larger ones cannot be drawn


def _is_number(value: object) -> bool:
    return type(value) in _NUMBER_TYPES and -_LARGEST <= value <= _LARGEST  # type: ignore[operator]


def _or_null(kind: _Kind) -> _Kind:
    return _Kind(f"{kind.words} or null", lambda value: value is None or kind.fits(value))


def _list_of(kind: _Kind) -> _Kind:
    words = f"a list in which each item is {kind.words}"
    return _Kind(words, lambda value: isinstance(value, list) and all(map(kind.fits, value)))


def _object_of(kind: _Kind) -> _Kind:
    words = f"an object in which each value is {kind.words}"
    return _Kind(words, lambda value: isinstance(value, dict) and all(map(kind.fits, value.values())))


def _is_interval(value: object) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(map(_is_number, value)) and value[0] <= value[1]


def _are_hosts(value: object) -> bool:
    return isinstance(value, list) and all(
        isinstance(each, dict)
        and isinstance(each.get("host"), str)
        and isinstance(each.get("processes"), list)
        and all(isinstance(name, str) for name in each["processes"])
        and (each.get("cores") is None or type(each["cores"]) is int)
        for each in value
    )


_NUMBER: Final = _Kind("a number from -1e110 to 1e110", _is_number)
_AMOUNT: Final = _Kind("a number from 0 to 1e110", lambda value: _is_number(value) and value >= 0)
_COUNT: Final = _Kind("a whole number from 0 to 1e110", lambda value: type(value) is int and 0 <= value <= _LARGEST)
_GAMES: Final = _Kind("a whole number from 0 to 1000000", lambda value: type(value) is int and 0 <= value <= 1_000_000)
_INTERVAL: Final = _Kind("a pair of numbers with the lower one first", _is_interval)
_FLAG: Final = _Kind("true or false", lambda value: isinstance(value, bool))
_TEXT: Final = _Kind("a string", lambda value: isinstance(value, str))
_OBJECT_OR_NULL: Final = _Kind("an object or null", lambda value: value is None or isinstance(value, dict))
_HOSTS: Final = _Kind("a list of hosts with their processes", _are_hosts)
_NUMBER_OR_NULL: Final = _or_null(_NUMBER)
_NUMBERS_AND_NULLS: Final = _object_of(_NUMBER_OR_NULL)
_FIGURE: Final = _Kind(
    f"{_NUMBER.words}, null, or an object of these",
    lambda value: _NUMBER_OR_NULL.fits(value) or _NUMBERS_AND_NULLS.fits(value),
)


class Form(NamedTuple):
    """The keys that an object must have, the keys that it may have, and the kind of all other values."""

    must: Mapping[str, _Kind] = {}
    may: Mapping[str, _Kind] = {}
    others: _Kind | None = None

    def complaint(self, found: object) -> str | None:
        """What is wrong with ``found``, or None."""
        if not isinstance(found, dict):
            return "there is no JSON object"
        for name in self.must:
            if name not in found:
                return f"{name} is missing"
        for name, value in found.items():
            kind = self.must.get(name) or self.may.get(name) or self.others
            if kind is not None and not kind.fits(value):
                return f"{name} is not {kind.words}"
        return None


SETTINGS: Final = Form()  # no required keys, so that runs of different versions of zmqrl can be compared
ROW: Final = Form(
    must={"version": _COUNT, "wall_s": _AMOUNT, "agent_steps": _COUNT},
    may={
        "contributions": _object_of(_COUNT),
        "episodes": _or_null(_COUNT),
        "gradients": _COUNT,
        **dict.fromkeys(("score_mean_50", "policy_lag", "policy_lag_min", "policy_lag_max"), _NUMBER_OR_NULL),
    },
    others=_FIGURE,
)
EVALUATION: Final = Form(
    must={"version": _COUNT, "mean": _NUMBER},
    may={
        "wall_s": _AMOUNT,
        "agent_steps": _COUNT,
        "episodes": _GAMES,
        "greedy": _FLAG,
        **dict.fromkeys(("median", "min", "max"), _NUMBER),
        "ci95": _INTERVAL,
        "scores": _list_of(_NUMBER),
        "seeds": _list_of(_COUNT),
    },
)
_ORIGIN: Final = Form(
    may={
        **dict.fromkeys(("zmqrl", "commit", "python", "cpu"), _or_null(_TEXT)),
        "cores": _or_null(_COUNT),
        "packages": _object_of(_TEXT),
    }
)
SUMMARY: Final = Form(
    must={
        "exit_reason": _TEXT,
        "updates": _COUNT,
        "agent_steps": _COUNT,
        "wall_s": _AMOUNT,
        "episodes": _COUNT,
        "score_mean_50": _NUMBER_OR_NULL,
        "contributions": _object_of(_COUNT),
    },
    may={
        "flavour": _TEXT,
        "compute": _list_of(_TEXT),
        "hosts": _HOSTS,
        "provenance": _Kind(
            "an object with versions, commit, cpu and cores", lambda value: _ORIGIN.complaint(value) is None
        ),
    },
)
MANIFEST: Final = Form(must={"generation": _COUNT})
HOSTS: Final = Form(must={"hosts": _HOSTS, "given": _OBJECT_OR_NULL})


def read_object(path: Path, form: Form, remedy: str, *, may_be_empty: bool = False) -> dict[str, Any] | None:
    """Read the object in a file, or return None if the file does not exist, or is empty where it may be.

    Raises a UsageError with the ``remedy`` if the file is damaged.
    """
    content = _content(path)
    if content is None or (may_be_empty and not content):
        return None
    return _checked(_parsed(content), form, path, "", remedy)


def read_lines(path: Path, form: Form) -> Iterator[dict[str, Any]]:
    """Read the objects in a file of JSON lines, if the file exists. Raises UsageError, which names the damaged line.

    Leaves out an incomplete last line, which a run is still writing, or was writing when it was killed.
    """
    for number, found in _numbered(path):
        yield _checked(found, form, path, f"in line {number} ", "repair that line, or remove it")


def readable_lines(path: Path, form: Form, notice: Callable[[str], None]) -> list[dict[str, Any]]:
    """Like :func:`read_lines`, but leave out damaged lines, and report them to ``notice``."""
    readable, damaged = [], []
    try:
        for number, found in _numbered(path):
            if isinstance(found, dict) and form.complaint(found) is None:
                readable.append(found)
            else:
                damaged.append(str(number))
    except UsageError as error:
        notice(str(error))
    if damaged:
        what = f"line {damaged[0]}" + (f" and {counted(len(damaged) - 1, 'other line')}" if len(damaged) > 1 else "")
        notice(f"{path} is damaged: {what} cannot be read; the run continues without that data")
    return readable


def parsed_rows(lines: Iterable[bytes], keys: Sequence[str] | None = None) -> Iterator[dict[str, Any]]:
    """Parse rows of metrics, without damaged ones. With ``keys``, check and return only the values of these keys."""
    for found in map(_parsed, lines):
        if isinstance(found, dict):
            kept = found if keys is None else {key: found[key] for key in keys if key in found}
            if ROW.complaint(kept) is None:
                yield kept


def _numbered(path: Path) -> Iterator[tuple[int, object]]:
    """The number and the content of each line. The content is None if it is not JSON."""
    *whole, last = (_content(path) or b"").split(b"\n")
    for number, line in enumerate([*whole, last], start=1):
        found = _parsed(line)
        if found is None and number > len(whole):
            return
        yield number, found


def _content(path: Path) -> bytes | None:
    try:
        return read_file(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}; make it readable, or use other runs.") from error


def _parsed(text: bytes) -> object:
    """The plain data in ``text``, or None if ``text`` is not JSON."""
    try:
        found: object = parse_json(text)
    except ValueError:
        return None
    return found


def _checked(found: object, form: Form, path: Path, where: str, remedy: str) -> dict[str, Any]:
    complaint = form.complaint(found)
    if complaint is not None:
        raise UsageError(f"{path} is damaged: {where}{complaint}; {remedy}.")
    assert isinstance(found, dict)
    return found


def decode(cls: type[T], data: object, where: str = "", refused: Mapping[str, str] = MappingProxyType({})) -> T:
    """Build a dataclass and its nested dataclasses from ``data``. Missing settings keep their defaults.

    Names can have dashes instead of underscores. A list becomes a tuple, and text becomes a path. A float can be
    written as an integer, or as the text ``inf``.

    Raises a UsageError that names an unknown, missing or invalid setting, below ``where``. ``refused`` has the rest of
    the sentence for names that the user may expect.
    """
    if not isinstance(data, dict):
        raise UsageError(f"{where or 'the file'} is {data!r:.60}: it must be a group of settings.")
    hints = get_type_hints(cls)
    values = {}
    for name, value in data.items():
        name = name.replace("-", "_")
        path = f"{where}.{name}" if where else name
        if name in refused:
            raise UsageError(f"{path} {refused[name]}")
        if name not in hints:
            raise UsageError(f"unknown setting {path}{did_you_mean(name, hints)}.")
        values[name] = _value(hints[name], value, path, refused)
    try:
        return cls(**values)
    except TypeError as error:
        raise UsageError(f"{where or 'the file'} is not complete: {error}.") from error


def _value(hint: Any, value: Any, path: str, refused: Mapping[str, str]) -> Any:
    if is_dataclass(hint):
        assert isinstance(hint, type)
        return decode(hint, value, path, refused)
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        if value is None:
            return None
        (hint,) = [argument for argument in arguments if argument is not type(None)]
        return _value(hint, value, path, refused)
    if origin in (tuple, Sequence) and isinstance(value, list | tuple):
        return tuple(_value(arguments[0], item, f"{path}[{n}]", refused) for n, item in enumerate(value))
    if origin is Literal and value in arguments:
        return value
    if hint is Path and isinstance(value, str):
        return Path(value)
    if hint is float and (value == "inf" or (type(value) is int and abs(value) <= sys.float_info.max)):
        return float(value)
    if origin is None and type(value) is hint:
        return value
    raise UsageError(f"{path} cannot be {value!r:.60}.")
