"""Installs this zmqrl on other hosts: each unpacks the same wheel into a Python environment."""

import base64
import hashlib
import io
import json
import re
import time
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import zmqrl
from zmqrl.errors import UsageError
from zmqrl.hostd import environment
from zmqrl.hostd import messages as h
from zmqrl.hosts.connecting import connect_all
from zmqrl.hosts.inventory import Host
from zmqrl.hosts.link import Link
from zmqrl.hosts.ways.via import shown
from zmqrl.hosts.ways.way import Way
from zmqrl.hosts.wheels import Supplier
from zmqrl.local.extras import ON_HOSTS

PYTHON = "python3"  # if the hosts file names no Python
ANOTHER_PYTHON = "set `python` in the hosts file to a Python that has it"
MADE_WITHIN_S = 1200.0  # torch is large, and some networks are slow
TELL_EVERY_S = 10.0
# The host's Python, of any version, runs this code. The rest of the program comes on standard input.
BOOTSTRAP = (
    # Files in the working directory would hide modules. An empty entry of PYTHONPATH also names it.
    "import os, sys; sys.path[:] = [p for p in sys.path if p not in ('', os.getcwd())]; "
    "import json; sys.version_info < (3, 11) and sys.exit('its Python is %s, but zmqrl needs 3.11 or newer: "
    "set `python` in the hosts file to another one' % sys.version.split()[0]); "
    f"ask = json.loads(sys.stdin.readline() or sys.exit({h.NO_INPUT!r})); its = {{'__name__': 'environment'}}; "
    "exec(ask.pop('program'), its); its['main'](ask)"
)
EXTRA = re.compile(r"""extra == ["'](.*?)["']""")
EPOCH = (1980, 1, 1, 0, 0, 0)  # of all files, so that the same code makes the same wheel


def make_environments(
    hosts: Sequence[Host], way: Way, say: Callable[[str], None], variables: Mapping[str, str], *, offline: bool = False
) -> dict[str, str]:
    """Make an environment with this zmqrl on all ``hosts`` at once. Returns the path of each environment's Python, by
    host.

    ``say`` gets the progress. pip gets the environment ``variables``. With ``offline``, this machine sends the packages
    that a host lacks. Raises UsageError if zmqrl is not installed here, and ClusterError, which names each host that
    failed.
    """
    asked = request() | {"offline": offline}
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
        supplier = Supplier({link.host: link for link in links}, exact_versions(), say)

        def news(host: str, event: h.Event) -> None:
            teller.tell(host, event)
            supplier.take(host, event)

        connect_all(links, news, instead=ANOTHER_PYTHON)
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


def requirements() -> dict[str, str]:
    """The direct requirements of zmqrl, in the versions here."""
    return _versions(_required("zmqrl"))


def pins() -> dict[str, str]:
    """The direct and indirect requirements of zmqrl, in the versions here."""
    found: dict[str, str] = {}
    news = requirements()
    while news:
        found |= news
        news = _versions(name for package in news for name in _required(package) if name not in found)
    return found


def exact_versions() -> dict[str, str]:
    """The versions of :func:`pins`, with local parts such as +cpu."""
    return {name: metadata.version(name) for name in pins()}


def request() -> dict[str, Any]:
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
        "requires": requirements(),
        "pins": pins(),
    }


def _required(package: str) -> list[str]:
    """The names of the requirements of an installed package. Those of zmqrl include the extras that hosts can need."""
    kept = ON_HOSTS if package == "zmqrl" else ()
    found = metadata.requires(package) or ()
    lines = [line for line in found if (extra := EXTRA.search(line)) is None or extra[1] in kept]
    return [re.sub(r"[-_.]+", "-", re.split(r"[^A-Za-z0-9._-]", line, maxsplit=1)[0]).lower() for line in lines]


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
            self._say(f"{host}: {event.line}")
