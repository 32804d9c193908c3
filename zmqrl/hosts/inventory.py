"""Reads the hosts that the user names: a list, an MPI hostfile or a TOML file. Contacts no host."""

import itertools
import math
import re
import socket
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from zmqrl.errors import UsageError, did_you_mean
from zmqrl.hosts.ways.via import HOST, check_via
from zmqrl.json_lines import parse_toml
from zmqrl.ps.wire.messages import MAX_WORKERS

MAX_RANGE = 1024  # the most hosts that one pattern stands for
SSH_PORTS = (22, 443, 2222)  # in user@host:N, N is probably a port, not a number of slots
MOST_SLOTS_OF_A_USER = 512  # in user@host:N, a larger N is probably a port

# ssh and its ProxyCommand cannot mistake such a name for an option or shell syntax.
_WORD: Final = r"[A-Za-z0-9_][A-Za-z0-9_.-]*"
_NUMBER: Final = r"[0-9]{1,9}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """A machine, and the processes that may run on it."""

    name: str
    """The name for ssh, such as ``me@node1`` or a name in ssh_config, or the name for ``via``."""
    slots: int | None = None
    """Maximum number of workers. None: no limit, and workers are spread by cores."""
    via: tuple[str, ...] = ()
    """A command that reaches the host, as in :mod:`zmqrl.hosts.ways.via`. Empty: ssh."""
    address: str | None = None
    """Its address for other hosts."""
    python: str | None = None
    """Its Python interpreter."""
    threads: int | None = None
    """Threads of each worker, the evaluator and the recorder."""
    env: Mapping[str, str] = field(default_factory=dict)
    """Additional environment variables of its processes."""
    shards: int | None = None
    """Shards that must run here."""
    workers: int | None = None
    """Workers that must run here."""
    evaluator: bool = False
    """The evaluator, if any, must run here."""
    recorder: bool = False
    """The recorder, if any, must run here."""


def read_hosts(text: str) -> tuple[Host, ...]:
    """The hosts that ``-H text`` names: a list such as ``h1,node[01-16]:4``, or a file as in ``launch/hosts/``.

    A file whose name ends in .toml is TOML. Raises UsageError for unreadable files, unknown settings, bad names and
    repeated hosts. A hostfile can list a host on several lines, whose slots are added.
    """
    if is_file(text):
        where = text
        hosts = tuple(_from_toml(text) if text.endswith(".toml") else _from_hostfile(text))
    elif "/" in text or text.endswith((".toml", ".txt")):
        raise UsageError(f"-H {text}: {'this is a directory' if Path(text).is_dir() else 'no such file'}.")
    else:
        where = "-H"
        hosts = tuple(_from_list(text))
    if not hosts:
        raise UsageError(f"{where} names no hosts.")
    for name, times in Counter(host.name for host in hosts).items():
        if times > 1:
            raise UsageError(f"{where}: host {name} is listed {times} times. List it once.")
    return hosts


def select(hosts: Iterable[Host], include: str | None, exclude: str | None) -> tuple[Host, ...]:
    """The ``hosts`` that ``include`` names (None: all), without those that ``exclude`` names.

    Both are lists as in :func:`read_hosts`, without slots. Raises UsageError for an unknown name, or if no host is
    left.
    """
    hosts = tuple(hosts)
    known = [host.name for host in hosts]
    kept = known if include is None else _members(include, known, "--include")
    dropped = [] if exclude is None else _members(exclude, known, "--exclude")
    left = set(kept) - set(dropped)
    if not left:
        raise UsageError("--include and --exclude leave no host.")
    return tuple(host for host in hosts if host.name in left)


def read_addresses(texts: Iterable[str], hosts: Iterable[Host]) -> dict[str, str]:
    """Read addresses by host from items such as ``h1=10.0.0.1,node[1-4]=10.0.1.[1-4]``. Raises UsageError."""
    known = [host.name for host in hosts]
    found: dict[str, str] = {}
    for item in (item for text in texts for item in _split(text, "--address")):
        pattern, equals, addresses = item.partition("=")
        if not equals:
            raise UsageError(f"--address {item} is not HOST=ADDRESS, such as h1=10.0.0.1.")
        if ":" in addresses:
            raise UsageError(f"--address {item}: must be an IPv4 address or a name, not an IPv6 address.")
        names = _members(pattern, known, "--address")
        found |= zip(names, _addresses(addresses, names, "--address"), strict=True)
    return found


def _members(text: str, known: list[str], option: str) -> list[str]:
    names = [name for item in _split(text, option) for name in _expand(item, option)]
    for name in names:
        if name not in known:
            raise UsageError(f"{option} {name}: no such host{did_you_mean(name, known)}.")
    return names


def is_file(text: str) -> bool:
    """Whether ``-H text`` names a file."""
    try:
        # Not is_file(): the shell's <(...) is a pipe.
        return Path(text).exists() and not Path(text).is_dir()
    except OSError:  # the list is longer than the limit for file names
        return False


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8-sig")  # editors on Windows write a BOM
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not text in UTF-8.") from error


def _from_list(text: str) -> Iterator[Host]:
    for item in _split(text, "-H"):
        pattern, slots = _slots_behind(item, "-H")
        for name in host_names(pattern, "-H"):
            yield Host(name=name, slots=slots)


def _slots_behind(item: str, where: str) -> tuple[str, int | None]:
    """The name and slots in an item such as ``h1:4``. Raises UsageError for what looks like a port."""
    name, _, slots = item.rpartition(":")
    if not re.fullmatch(_NUMBER, slots):
        return item, None
    if not name:
        raise UsageError(f"{where}: there is no name before :{slots}.")
    is_port = "@" in name and (int(slots) in SSH_PORTS or int(slots) > MOST_SLOTS_OF_A_USER)
    if int(slots) > MAX_WORKERS or is_port:
        otherwise = f" For slots, write a hostfile with the line '{name} slots={slots}'."
        raise UsageError(
            f"{where}: {item!r} would be a host with {slots} slots. "
            f"To use a port, set it as Port for a name in ssh_config.{'' if int(slots) > MAX_WORKERS else otherwise}"
        )
    return name, int(slots)


def _from_hostfile(path: str) -> Iterable[Host]:
    """The hosts of a hostfile. MPI can exceed the slots, up to max_slots, but zmqrl never does."""
    listed: dict[str, list[int | None]] = {}  # by name: the slots of each line
    for number, line in enumerate(_read(path).splitlines(), start=1):
        where = f"{path}, line {number}"
        words = re.sub(r"\s*=\s*", "=", line.partition("#")[0]).split()
        if not words:
            continue
        pattern, slots = _slots_behind(words[0], where)
        limits = [] if slots is None else [slots]
        for setting in words[1:]:
            key, _, value = setting.partition("=")
            if key.replace("-", "_") not in ("slots", "max_slots"):
                hint = did_you_mean(key, ("slots", "max_slots"))
                raise UsageError(f"{where}: unknown setting {key!r}{hint}; other settings need a TOML file.")
            if not re.fullmatch(_NUMBER, value):
                raise UsageError(f"{where}: {setting} must be {key}=N, such as {key}=4.")
            limits.append(int(value))
        for name in host_names(pattern, where):
            listed.setdefault(name, []).append(min(limits, default=None))
    for name, lines in listed.items():
        # As in MPI and batch systems: if several lines name a host, a line without slots is one slot.
        yield Host(name=name, slots=lines[0] if len(lines) == 1 else sum(1 if n is None else n for n in lines))


def _from_toml(path: str) -> Iterator[Host]:
    try:
        document = parse_toml(_read(path))
    except ValueError as error:
        raise UsageError(f"{path} is not valid TOML: {error}.") from error
    for key in document:
        if key not in ("defaults", "host"):
            hint = did_you_mean(key, ("defaults", "host"))
            raise UsageError(f"{path}: unknown key {key!r}{hint}; the file can have [defaults] and [[host]].")
    defaults, tables = document.get("defaults", {}), document.get("host", [])
    if not isinstance(defaults, dict):
        raise UsageError(f"{path}: defaults must be below a line [defaults].")
    if not (isinstance(tables, list) and all(isinstance(table, dict) for table in tables)):
        raise UsageError(f"{path}: each host must be below a line [[host]].")
    for key in ("name", "address"):
        if key in defaults:
            raise UsageError(f"{path}, [defaults]: {key} is a setting of one host. Move it below its [[host]].")
    _check(defaults, f"{path}, [defaults]")
    if "via" in defaults:
        check_via(defaults["via"], f"{path}, [defaults]: via")
    for number, table in enumerate(tables, start=1):
        if not _is_text(table.get("name")):
            raise UsageError(f"{path}: [[host]] number {number} needs a name, a string on one line.")
        where = f"{path}, host {table['name']}"
        _check(table, where)
        names = host_names(table["name"], where)
        addresses = _addresses(table["address"], names, where) if "address" in table else [None] * len(names)
        if HOST not in "".join(table.get("via", HOST)) and len(names) > 1:
            raise UsageError(f"{where}: via needs {HOST}, because it reaches {len(names)} hosts.")
        settings = defaults | table | {"env": defaults.get("env", {}) | table.get("env", {})}
        settings["via"] = tuple(settings.get("via", ()))
        for name, address in zip(names, addresses, strict=True):
            yield Host(**settings | {"name": name, "address": address})


def _is_text(value: object) -> bool:
    return isinstance(value, str) and value.isprintable() and value != ""


def _is_words(value: object) -> bool:
    return isinstance(value, list) and value != [] and all(map(_is_text, value))


def _is_count(value: object) -> bool:
    return type(value) is int and value >= 0  # True is an int


def _is_env(value: object) -> bool:
    return isinstance(value, dict) and all(
        re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name) and isinstance(text, str) and "\0" not in text
        for name, text in value.items()
    )


_TEXT: Final = (_is_text, "a non-empty string on one line")
_COUNT: Final = (_is_count, "an integer of at least 0")
_FLAG: Final = (lambda value: isinstance(value, bool), "true or false")
_KINDS: Final[dict[str, tuple[Callable[[Any], bool], str]]] = {
    "name": _TEXT,
    "slots": _COUNT,
    "address": _TEXT,
    "via": (_is_words, 'a list of strings, such as ["docker", "exec", "-i", "{host}"]'),
    "python": (
        lambda value: _is_text(value) and not value.startswith("~"),
        "an absolute path or a name on the PATH of the host: ~ is not expanded",
    ),
    "threads": (lambda value: _is_count(value) and value > 0, "an integer of at least 1"),
    "env": (_is_env, 'a table of strings, such as { TMPDIR = "/scratch" }'),
    "shards": _COUNT,
    "workers": _COUNT,
    "evaluator": _FLAG,
    "recorder": _FLAG,
}


def _check(table: Mapping[str, Any], where: str) -> None:
    """Raise UsageError for an unknown key or a wrong type in a TOML table."""
    for key, value in table.items():
        if key not in _KINDS:
            raise UsageError(f"{where}: unknown key {key!r}{did_you_mean(key, _KINDS)}.")
        fits, kind = _KINDS[key]
        if not fits(value):
            raise UsageError(f"{where}: {key} is {value!r:.60}, but it must be {kind}.")


def host_names(pattern: str, where: str) -> list[str]:
    """The host names that ``pattern`` stands for. Raises UsageError for a bad name."""
    if ":" in pattern:
        raise UsageError(
            f"{where}: {pattern!r} has a colon. Write slots as h1:4. "
            "If it is an IPv6 address, give that host a name in ssh_config."
        )
    names = _expand(pattern, where)
    for name in names:
        if not re.fullmatch(f"({_WORD}@)?{_WORD}", name):
            raise UsageError(
                f"{where}: {name!r} is not a host name: use letters, digits, '.', '_' and '-', "
                "and do not begin with '.' or '-'. A name can have user@ before it."
            )
    return names


def _addresses(pattern: str, names: list[str], where: str) -> list[str]:
    """An address for each of ``names``. A range of hosts needs a range of as many addresses."""
    addresses = _expand(pattern, where)
    for address in addresses:
        if not re.fullmatch(_WORD, address):
            raise UsageError(f"{where}: the address {address!r} is neither an IPv4 address nor a name.")
        if _is_wildcard(address):
            raise UsageError(
                f"{where}: the address {address} would listen on every network. Use the host's own address."
            )
    if len(addresses) != len(names):
        raise UsageError(
            f"{where}: the numbers of hosts ({len(names)}) and of addresses ({len(addresses)}) must be equal."
        )
    return addresses


def _is_wildcard(address: str) -> bool:
    """Whether ``address`` is 0.0.0.0, also in a form such as 0 or 0x0.0."""
    try:
        return not any(socket.inet_aton(address))
    except OSError:  # a name
        return False


def _split(text: str, where: str) -> list[str]:
    """The items of a list, split at the commas outside brackets."""
    items = [item.strip() for item in re.split(r",(?![^\[\]]*\])", text)]
    if "" in items:
        raise UsageError(f"{where}: a name is missing in {text!r:.60}.")
    return items


def _expand(pattern: str, where: str) -> list[str]:
    """Expand a pattern such as ``node[01-16]``. The last of several brackets varies fastest."""
    pieces = re.split(r"\[([^\[\]]*)\]", pattern)
    if any(bracket in text for text in pieces[::2] for bracket in "[]"):
        raise UsageError(f"{where}: the brackets in {pattern} do not match.")
    choices = [_numbers(piece, where) if index % 2 else [piece] for index, piece in enumerate(pieces)]
    if math.prod(map(len, choices)) > MAX_RANGE:
        raise UsageError(f"{where}: {pattern} stands for more than {MAX_RANGE} hosts.")
    return ["".join(chosen) for chosen in itertools.product(*choices)]


def _numbers(ranges: str, where: str) -> list[str]:
    """Expand ranges such as ``01-03,7``. Numbers get as many digits as the first number of their range."""
    numbers: list[str] = []
    for item in ranges.split(","):
        match = re.fullmatch(f"({_NUMBER})(?:-({_NUMBER}))?", item)
        if match is None:
            raise UsageError(f"{where}: [{ranges}] is not a range such as [01-16] or [1-3,7].")
        first, last = match[1], match[2] or match[1]
        if int(first) > int(last):
            raise UsageError(f"{where}: the range [{item}] is reversed; write [{last}-{first}].")
        if int(last) - int(first) >= MAX_RANGE:
            raise UsageError(f"{where}: the range [{item}] stands for more than {MAX_RANGE} hosts.")
        numbers += [str(number).zfill(len(first)) for number in range(int(first), int(last) + 1)]
    return numbers
