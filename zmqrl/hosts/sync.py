"""Installs this zmqrl on other hosts: each unpacks the same wheel into a Python environment."""

import base64
import contextlib
import hashlib
import io
import json
import re
import time
import zipfile
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import zmqrl
from zmqrl.errors import UsageError
from zmqrl.hostd import environment
from zmqrl.hostd import messages as h
from zmqrl.hosts.connecting import connect, unusable
from zmqrl.hosts.inventory import Host
from zmqrl.hosts.link import Link
from zmqrl.hosts.ways.via import shown
from zmqrl.hosts.ways.way import Way
from zmqrl.hosts.wheels import Supplier, normal
from zmqrl.learner.games import EnvConfig
from zmqrl.local.extras import OF_GYMNASIUM, ON_HOSTS, is_installed
from zmqrl.observe.folding import printable

PYTHON = "python3"  # if the hosts file names no Python
ANOTHER_PYTHON = "set `python` in the hosts file to a Python that has it"
MADE_WITHIN_S = 1200.0  # torch is large, and some networks are slow
ENDS_AFTER_S = 1260  # a host cannot notice that its launcher has lost the network
TELL_EVERY_S = 10.0
# The host's Python, of any version, runs this code. The rest of the program comes on standard input.
BOOTSTRAP = (
    # Files in the working directory would hide modules. An empty entry of PYTHONPATH also names it.
    "import os, sys; sys.path[:] = [p for p in sys.path if p not in ('', os.getcwd())]; "
    f"import json, signal; signal.alarm({ENDS_AFTER_S}); "
    "sys.version_info < (3, 11) and sys.exit('its Python is %s, but zmqrl needs 3.11 or newer: "
    "set `python` in the hosts file to another one' % sys.version.split()[0]); "
    f"ask = json.loads(sys.stdin.readline() or sys.exit({h.NO_INPUT!r})); its = {{'__name__': 'environment'}}; "
    "exec(ask.pop('program'), its); its['main'](ask)"
)
EXTRA = re.compile(r"""extra == ["'](.*?)["']""")
REQUIREMENT = re.compile(r"([A-Za-z0-9._-]+)\s*(?:\[(.*?)\])?")
EVERY_EXTRA = tuple(OF_GYMNASIUM)
EPOCH = (1980, 1, 1, 0, 0, 0)  # of all files, so that the same code makes the same wheel


class _Need(NamedTuple):
    package: str
    extras: frozenset[str]


def make_environments(
    hosts: Sequence[Host],
    way: Way,
    say: Callable[[str], None],
    variables: Mapping[str, str],
    *,
    extras: Collection[str],
    offline: bool = False,
) -> dict[str, str]:
    """Make an environment with this zmqrl on all ``hosts`` at once. Returns the path of each environment's Python, by
    host.

    The environments have the packages of ``extras``, such as those of Gymnasium. ``say`` gets the progress. pip gets
    the environment ``variables``. With ``offline``, this machine sends the packages that a host lacks. Raises
    UsageError if zmqrl is not installed here, and ClusterError, which names each host that failed.
    """
    asked = request(extras) | {"offline": offline}
    links = [
        Link(
            host.name,
            way(host, [host.python or PYTHON, "-c", BOOTSTRAP]),
            work="",
            lease_s=None,
            shown=shown(host.via, host.name),
            first=json.dumps(asked | {"variables": {**host.env, **variables}}).encode() + b"\n",
            up_within_s=MADE_WITHIN_S,
        )
        for host in hosts
    ]
    try:
        teller = _Teller(say)
        supplier = Supplier({link.host: link for link in links}, exact_versions(extras), say)

        def news(host: str, event: h.Event) -> None:
            teller.tell(host, event)
            supplier.take(host, event)

        if failed := connect(links, news, instead=ANOTHER_PYTHON):
            raise unusable(failed, [link.host for link in links])
        return {link.host: link.made.python for link in links if link.made is not None}
    finally:
        for link in links:
            link.cut()


def wheel() -> bytes:
    """A wheel of the installed package, or of the checkout."""
    about = metadata.distribution("zmqrl")
    package = Path(zmqrl.__file__).parent
    files = {
        f"zmqrl/{path.relative_to(package)}": path.read_bytes()
        for path in sorted(package.rglob("*"))
        if path.is_file() and "__pycache__" not in path.parts
    }
    dist_info = f"zmqrl-{about.version}.dist-info"
    for name in ("METADATA", "entry_points.txt"):
        files[f"{dist_info}/{name}"] = (about.read_text(name) or "").encode()
    files[f"{dist_info}/WHEEL"] = b"Wheel-Version: 1.0\nGenerator: zmqrl\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    record = [f"{name},sha256={_digest(data)},{len(data)}\n" for name, data in files.items()]
    files[f"{dist_info}/RECORD"] = "".join([*record, f"{dist_info}/RECORD,,\n"]).encode()
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(zipfile.ZipInfo(name, EPOCH), data, zipfile.ZIP_DEFLATED)
    return packed.getvalue()


def extras_of_game(env_id: str, envs: EnvConfig) -> tuple[str, ...]:
    """The extras of Gymnasium that games of ``env_id`` need. All of them if this is unknown."""
    if ":" in env_id or envs.wrappers:
        return EVERY_EXTRA
    import gymnasium

    with contextlib.suppress(ImportError):
        import ale_py  # noqa: F401 - registers the Atari games
    try:
        entry_point = gymnasium.spec(env_id).entry_point
    except gymnasium.error.Error:
        return EVERY_EXTRA
    if not isinstance(entry_point, str):
        return EVERY_EXTRA
    return tuple(extra for extra in OF_GYMNASIUM if entry_point.startswith(f"gymnasium.envs.{extra}"))


def requirements(extras: Collection[str]) -> dict[str, str]:
    """The direct requirements of zmqrl, of its extras that hosts can need, and of ``extras`` of zmqrl or Gymnasium.

    All are in the versions here.
    """
    return _versions(need.package for need in _direct(extras))


def pins(extras: Collection[str]) -> dict[str, str]:
    """The direct and indirect requirements, in the versions here."""
    needs = _direct(extras)
    for need in needs:  # the list grows
        needs += [each for each in _required(need) if each not in needs]
    return _versions(need.package for need in needs)


def exact_versions(extras: Collection[str]) -> dict[str, str]:
    """The versions of :func:`pins`, with local parts such as +cpu."""
    return {name: metadata.version(name) for name in pins(extras)}


def request(extras: Collection[str]) -> dict[str, Any]:
    """The request for an environment. Raises UsageError if zmqrl is not installed here."""
    try:
        packed = wheel()
    except metadata.PackageNotFoundError as error:
        raise UsageError(
            "--sync wheel: zmqrl is not installed here. Run `pip install -e .` in its checkout."
        ) from error
    return {
        "program": Path(environment.__file__).read_text(encoding="utf-8"),
        "wheel": base64.b64encode(packed).decode(),
        "requires": requirements(extras),
        "pins": pins(extras),
    }


def _direct(extras: Collection[str]) -> list[_Need]:
    needs = list(_required(_Need("zmqrl", frozenset({*ON_HOSTS, *extras} - OF_GYMNASIUM.keys()))))
    always = list(_required(_Need("gymnasium", frozenset())))
    chosen = {extra for extra, module in OF_GYMNASIUM.items() if extra in extras and is_installed(module)}
    chosen |= {extra for need in needs if need.package == "gymnasium" for extra in need.extras}
    for extra in sorted(chosen):
        of_extra = _required(_Need("gymnasium", frozenset({extra})))
        needs += [each for each in of_extra if each not in always]
    return needs


def _required(need: _Need) -> Iterator[_Need]:
    """The requirements of a package with its extras. Nothing if the package is not installed."""
    try:
        lines = metadata.requires(need.package) or ()
    except metadata.PackageNotFoundError:  # for another platform or Python
        return
    for line in lines:
        if (extra := EXTRA.search(line)) is None or extra[1] in need.extras:
            found = REQUIREMENT.match(line)
            assert found is not None
            extras = frozenset(filter(None, re.split(r"[\s,]+", found[2] or "")))
            yield _Need(normal(found[1]), extras)


def _versions(names: Iterable[str]) -> dict[str, str]:
    """The versions of the installed packages in ``names``, without local parts such as +cpu."""
    found = {}
    for name in names:
        try:
            found[name] = metadata.version(name).partition("+")[0]
        except metadata.PackageNotFoundError:  # for another platform or Python
            continue
    return found


def _digest(data: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()


class _Teller:
    """Prints progress per host: the first line at once, then one line every ``TELL_EVERY_S``."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._told_at: dict[str, float] = {}

    def tell(self, host: str, event: h.Event) -> None:
        now = time.monotonic()
        if isinstance(event, h.Making) and now - self._told_at.get(host, -TELL_EVERY_S) >= TELL_EVERY_S:
            self._told_at[host] = now
            self._say(f"{host}: {printable(event.line)}")
