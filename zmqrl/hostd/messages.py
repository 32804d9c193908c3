"""The messages between a launcher and a host daemon: a JSON object per line.

A launcher sends requests, with their type under ``do``. A daemon sends events, with their type under ``is``. Messages
name processes, such as ``worker-3``. Paths are relative to the run's directory on the host.
"""

import json
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, fields
from typing import Any, TypeAlias, TypeVar, get_args, get_origin, get_type_hints

from zmqrl.json_lines import parse_json

T = TypeVar("T")

SAME_MACHINE = "this is the same machine as"  # the start of a reason in HostRefused
NO_INPUT = "the command that reaches this host does not pass standard input on: docker exec and kubectl exec need -i"


# requests


@dataclass(frozen=True, slots=True)
class Begin:
    """Take over the run's directory ``work``. Without a lease, the daemon runs until its input ends.

    ``launch`` is an id of the launcher, and ``host`` its name for this host.
    """

    work: str
    lease_s: float | None
    launch: str = ""
    host: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """Start ``python -m module`` and send it ``messages``. Variables of the host override those in ``before``.

    If ``forked``, the fork server may fork the process.
    """

    name: str
    module: str
    before: Mapping[str, str]
    environment: Mapping[str, str]
    messages: Sequence[Mapping[str, Any]]
    forked: bool = False


@dataclass(frozen=True, slots=True)
class Prepare:
    """Start the fork server, unless that was done before, for processes that need the imports of ``module``."""

    module: str
    before: Mapping[str, str]
    environment: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Tell:
    """Send a message to a process, on its standard input."""

    name: str
    message: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class HangUp:
    """Close the standard input of a process."""

    name: str


@dataclass(frozen=True, slots=True)
class Signal:
    """Send a signal to a process and everything it has started."""

    name: str
    number: int


@dataclass(frozen=True, slots=True)
class Inspect:
    """Ask what a process is doing."""

    name: str


@dataclass(frozen=True, slots=True)
class List:
    """Ask which files are in the directories ``under``."""

    under: Sequence[str]


@dataclass(frozen=True, slots=True)
class FetchPiece:
    """Ask for the piece of a file that begins at ``offset``."""

    path: str
    offset: int


@dataclass(frozen=True, slots=True)
class Put:
    """Write base64 ``data`` into a file at ``offset``, unless the file has ``unless`` bytes or more."""

    path: str
    offset: int
    data: str
    unless: int | None = None


@dataclass(frozen=True, slots=True)
class Remove:
    """Remove a directory."""

    path: str


@dataclass(frozen=True, slots=True)
class Clean:
    """Remove everything from the run's directory, and if ``whole`` the directory itself."""

    whole: bool


@dataclass(frozen=True, slots=True)
class Renew:
    """Renew the lease."""


@dataclass(frozen=True, slots=True)
class Look:
    """Ask what is in the run's directory ``work``, without taking it over."""

    work: str


# events


@dataclass(frozen=True, slots=True, kw_only=True)
class Up:
    """The daemon is up.

    ``address`` is where ssh reached this host. ``interfaces`` has the IPv4 addresses. ``machine`` is an id of this
    machine, the same for all its names. ``torch`` is the version of torch, or None.
    """

    host: str
    pid: int
    zmqrl: str
    code: str
    python: str
    cores: int
    interfaces: Mapping[str, list[str]]
    address: str | None
    work: str
    machine: str = ""
    torch: str | None = None


@dataclass(frozen=True, slots=True)
class HostRefused:
    """The daemon cannot continue, or an environment cannot be made."""

    why: str


@dataclass(frozen=True, slots=True)
class Started:
    """A process was started."""

    name: str
    pid: int


@dataclass(frozen=True, slots=True)
class Output:
    """A process wrote a JSON object to its standard output."""

    name: str
    facts: dict[str, Any]


@dataclass(frozen=True, slots=True)
class LogLine:
    """A process wrote a line to its standard error."""

    name: str
    line: str


@dataclass(frozen=True, slots=True)
class ExitReport:
    """A process ended with ``status`` (see ``Popen.returncode``), or did not start for the reason ``why``."""

    name: str
    status: int
    why: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class InspectionReport:
    """What a process is doing: see ``inspection.Sight``. ``stack`` is that of the main thread, innermost first."""

    name: str
    state: str
    kernel: str
    stack: list[str]


@dataclass(frozen=True, slots=True)
class Alive:
    """The lease was renewed."""


@dataclass(frozen=True, slots=True)
class Listing:
    """Files by path, with their sizes in bytes."""

    files: dict[str, int]


@dataclass(frozen=True, slots=True)
class Piece:
    """A piece of a file in base64. ``size`` is that of the whole file in bytes, or 0 without a file."""

    path: str
    offset: int
    size: int
    data: str


@dataclass(frozen=True, slots=True)
class Written:
    """A piece was written, or ``error`` says why it was not."""

    path: str
    error: str | None


@dataclass(frozen=True, slots=True)
class Seen:
    """The run's ``directory`` on the host, whether a daemon uses it, and the ``files`` in it.

    If there are too many files, ``more`` of them are only counted.
    """

    directory: str
    alive: bool
    files: list[str]
    more: int = 0


@dataclass(frozen=True, slots=True)
class Making:
    """A line about the progress of an environment, from zmqrl/hostd/environment.py."""

    line: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Lacking:
    """A host without a network lacks ``packages``, and waits for wheels that fit the other fields.

    zmqrl/hostd/environment.py sends this.
    """

    packages: list[str]
    python: str
    abis: list[str]
    platforms: list[str]


@dataclass(frozen=True, slots=True)
class Made:
    """The environment is ready. ``python`` is the path of its Python."""

    python: str


Request: TypeAlias = (
    Begin
    | Prepare
    | Start
    | Tell
    | HangUp
    | Signal
    | Inspect
    | List
    | FetchPiece
    | Put
    | Remove
    | Clean
    | Renew
    | Look  # a launcher sends all of these
)
Event: TypeAlias = (
    Up
    | HostRefused
    | Started
    | Output
    | LogLine
    | ExitReport
    | InspectionReport
    | Alive
    | Listing
    | Piece
    | Written
    | Seen
    | Making
    | Lacking
    | Made  # sent by a daemon, or by the program that makes an environment
)

REQUEST_CLASSES: dict[str, type[Any]] = {
    "begin": Begin,
    "prepare": Prepare,
    "start": Start,
    "tell": Tell,
    "hang_up": HangUp,
    "signal": Signal,
    "inspect": Inspect,
    "list": List,
    "fetch": FetchPiece,
    "put": Put,
    "remove": Remove,
    "clean": Clean,
    "renew": Renew,
    "look": Look,
}
EVENT_CLASSES: dict[str, type[Any]] = {
    "up": Up,
    "refused": HostRefused,
    "started": Started,
    "said": Output,
    "log": LogLine,
    "exited": ExitReport,
    "inspected": InspectionReport,
    "alive": Alive,
    "list": Listing,
    "file": Piece,
    "put": Written,
    "look": Seen,
    "making": Making,
    "lacking": Lacking,
    "made": Made,
}
TAGS = {cls: ("do", tag) for tag, cls in REQUEST_CLASSES.items()} | {
    cls: ("is", tag) for tag, cls in EVENT_CLASSES.items()
}


def encode(message: Request | Event) -> bytes:
    """The line that carries a message."""
    key, tag = TAGS[type(message)]
    return json.dumps({key: tag} | asdict(message)).encode() + b"\n"


def decode_request(line: bytes) -> Request:
    """Inverse of :func:`encode`. Raises ValueError."""
    request: Request = _decode("do", REQUEST_CLASSES, line)
    return request


def decode_event(line: bytes) -> Event:
    """Inverse of :func:`encode`. Raises ValueError."""
    event: Event = _decode("is", EVENT_CLASSES, line)
    return event


class Lines:
    """Joins the pieces of a stream to lines. ``rest`` is the incomplete line at the end."""

    def __init__(self) -> None:
        self.rest = bytearray()

    def add(self, piece: bytes) -> list[bytes]:
        """Return the lines that ``piece`` completes, without line ends."""
        whole, newline, rest = piece.rpartition(b"\n")
        if not newline:
            self.rest += rest
            return []
        lines = bytes(self.rest + whole).split(b"\n")
        self.rest = bytearray(rest)
        return lines


def _decode(key: str, kinds: Mapping[str, type[T]], line: bytes) -> T:
    data = parse_json(line)
    if not isinstance(data, dict) or (cls := kinds.get(str(data.get(key)))) is None:
        raise ValueError("no such message")
    values = {}
    for name, (hint, is_required) in FIELDS[cls].items():
        if name in data and _fits(data[name], hint):
            values[name] = data[name]
        elif name in data or is_required:
            raise ValueError(f"{name} of {data[key]}")
    return cls(**values)


def _fields(cls: type[Any]) -> dict[str, tuple[Any, bool]]:
    """The type of each field, and whether it is required."""
    hints = get_type_hints(cls)
    return {each.name: (hints[each.name], each.default is MISSING) for each in fields(cls)}


def _fits(value: object, hint: Any) -> bool:
    """Whether a decoded JSON value has the type ``hint``. If ``hint`` is ``Any``, every value fits, because processes
    check their own messages.
    """
    if hint is Any:
        return True
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (types.UnionType, typing.Union):
        return any(_fits(value, each) for each in inner)
    if origin is not None and issubclass(origin, Mapping):
        return isinstance(value, dict) and all(_fits(each, inner[1]) for each in value.values())
    if origin is not None:
        return isinstance(value, list) and all(_fits(each, inner[0]) for each in value)
    if hint is float:
        return isinstance(value, float | int) and not isinstance(value, bool)
    return isinstance(value, hint) and (hint is bool or not isinstance(value, bool))


FIELDS = {cls: _fields(cls) for cls in TAGS}
