"""Probes a host before a run starts: its resources, and its routes to other hosts.

``python -m zmqrl.hosts.probe`` reports the resources of its host and listens on the ports that shards would use. On
request, it then reports the time or measures routes. It uses only the standard library, except to check games and
torch.
"""

import contextlib
import errno
import hmac
import ipaddress
import math
import os
import resource
import shutil
import signal
import socket
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from zmqrl.hosts.judging.load import cpu_use
from zmqrl.local.extras import lack
from zmqrl.process import Messages, control_groups, read_job, say

ANSWER_WITHIN_S = 3.0
PINGS = 5
FIRST_BYTES, MOST_BYTES = 1 << 16, 1 << 26  # each transfer is four times as long as the one before
PIECE_BYTES = 1 << 20
# For an accurate transfer. TCP doubles its speed in each round trip: a transfer that it still slows down takes three.
LONG_ENOUGH_S, LONG_ENOUGH_TURNS = 0.1, 5
LAST_AFTER_S = 6.0  # the last transfer begins before, and ends within the time for an answer
LENGTH_BYTES = 8
RECEIVED = b"\n"
ROUTES_AT_A_TIME = 64
LOAD_OVER_S = 0.25
STAT = Path("/proc/stat")
SOMEBODY_ELSE = "another machine answers"
ONLY_LITTLE_PASSES = f"answers, but {FIRST_BYTES // 1024} KiB did not arrive within {ANSWER_WITHIN_S:g} s"

RouteOrder = Mapping[str, Any]


def measure(route: RouteOrder) -> dict[str, Any]:
    """Connect to all ports of ``route``.

    Returns ``round_trip_s``, and with ``transfer`` also ``bytes_per_s``. If a port fails, returns that ``port`` and the
    ``error`` instead.

    ``route`` has ``address``, ``ports``, ``transfer`` and the ``token`` of its target.
    """
    found: dict[str, Any] = {}
    deadline = time.perf_counter() + LAST_AFTER_S
    for port in route["ports"]:
        try:
            with socket.create_connection((route["address"], port), timeout=ANSWER_WITHIN_S) as connection:
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                connection.sendall(route["token"].encode())
                _wait_for_receipt(connection)
                round_trip_s = min(_send(connection, 0) for _ in range(PINGS))
                if not found:
                    found = {"round_trip_s": round_trip_s}
                    _send_packets(connection)
                    if route["transfer"]:
                        found["bytes_per_s"] = _bytes_per_s(connection, round_trip_s, deadline)
        except OSError as error:
            return {"port": port, "error": _in_words(error)}
    return found


def _send(connection: socket.socket, count: int) -> float:
    """Send ``count`` bytes. Returns the seconds until their receipt has arrived."""
    data = memoryview(count.to_bytes(LENGTH_BYTES, "big") + bytes(count))
    began_at = time.perf_counter()
    for start in range(0, len(data), PIECE_BYTES):
        connection.sendall(data[start : start + PIECE_BYTES])  # the timeout is that of one piece
    _wait_for_receipt(connection)
    return time.perf_counter() - began_at


def _wait_for_receipt(connection: socket.socket) -> None:
    if connection.recv(1) != RECEIVED:
        raise ConnectionAbortedError(errno.ECONNABORTED, SOMEBODY_ELSE)


def _send_packets(connection: socket.socket) -> None:
    """Send packets of full length, which a network with a smaller MTU loses."""
    try:
        _send(connection, FIRST_BYTES)
    except TimeoutError:
        raise ConnectionAbortedError(errno.ECONNABORTED, ONLY_LITTLE_PASSES) from None


def _bytes_per_s(connection: socket.socket, round_trip_s: float, deadline: float) -> float:
    """The bandwidth, from ever longer transfers. Starts no second one after ``deadline``."""
    count, long_enough_s = FIRST_BYTES, max(LONG_ENOUGH_S, LONG_ENOUGH_TURNS * round_trip_s)
    while True:
        took_s = _send(connection, count)
        sent_in_s = max(took_s - round_trip_s, took_s / 10)  # a round trip can be shorter than the one measured
        if took_s >= long_enough_s or count >= MOST_BYTES or time.perf_counter() >= deadline:
            return count / sent_in_s
        count *= 4


def _in_words(error: OSError) -> str:
    if isinstance(error, TimeoutError):
        return f"no answer within {ANSWER_WITHIN_S:g} s"
    if isinstance(error, ConnectionRefusedError):
        return "refused"
    words = error.strerror or str(error)
    return words[:1].lower() + words[1:]


def listen(address: str, ports: Sequence[int], token: str) -> dict[str, Any]:
    """Listen at ``address`` and answer clients that send ``token``, until this process ends.

    Returns the ``ports``, with a free port for each 0, and ``bound``, the numeric form of ``address`` on this host.
    Raises OSError with the address and port in ``filename``.
    """
    bound = []
    for port in ports:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        try:
            listener = socket.create_server((address, port), family=family)
        except OSError as error:
            raise OSError(error.errno, error.strerror, f"{address}:{port}") from error
        if ipaddress.ip_address(listener.getsockname()[0]).is_unspecified:
            listener.close()
            raise OSError(errno.EADDRNOTAVAIL, "it would listen on every network", f"{address}:{port}")
        threading.Thread(target=_accept, args=(listener, token.encode()), name="listen", daemon=True).start()
        bound.append(listener.getsockname())
    return {"ports": [name[1] for name in bound], "bound": bound[0][0]}


def _accept(listener: socket.socket, token: bytes) -> None:
    while True:
        connection, _ = listener.accept()
        threading.Thread(target=_answer, args=(connection, token), name="answer", daemon=True).start()


def _answer(connection: socket.socket, token: bytes) -> None:
    """Confirm what a client sends after ``token``. Clients without ``token`` get no answer."""
    with connection, contextlib.suppress(OSError):
        connection.settimeout(ANSWER_WITHIN_S)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        scratch = bytearray(1 << 20)
        if not hmac.compare_digest(_receive(connection, len(token)), token):
            return
        connection.sendall(RECEIVED)
        while length := _receive(connection, LENGTH_BYTES):
            left = int.from_bytes(length, "big")
            if left > MOST_BYTES:
                return
            while left:
                came = connection.recv_into(scratch, min(left, len(scratch)))
                if not came:
                    return
                left -= came
            connection.sendall(RECEIVED)


def _receive(connection: socket.socket, count: int) -> bytes:
    """Read ``count`` bytes, or fewer if the connection ends."""
    received = b""
    while len(received) < count and (piece := connection.recv(count - len(received))):
        received += piece
    return received


def facts(work: str) -> dict[str, Any]:
    """The resources of this host and of the disk of ``work``. ``open_files`` is None without a limit."""
    before = STAT.read_text(encoding="ascii")
    time.sleep(LOAD_OVER_S)
    open_files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return {
        "memory_bytes": memory_bytes(),
        "open_files": None if open_files == resource.RLIM_INFINITY else open_files,
        "disk_bytes": shutil.disk_usage(work).free,
        "shm_bytes": shutil.disk_usage("/dev/shm").free if Path("/dev/shm").is_dir() else 0,
        "load_average": os.getloadavg()[0],
        **cpu_use(before, STAT.read_text(encoding="ascii")),
    }


def memory_bytes(proc: Path = Path("/proc/self"), meminfo: Path = Path("/proc/meminfo")) -> int | None:
    """The memory that this process can still get: that of the machine, up to the limits of its control groups.

    None if the machine does not tell it.
    """
    for line in meminfo.read_text(encoding="ascii").splitlines():
        if line.startswith("MemAvailable:"):
            limits = map(_left_bytes, control_groups(proc, "memory"))
            return int(min([1024 * int(line.split()[1]), *limits]))
    return None


def _left_bytes(group: Path) -> float:
    """What a control group may still take. The kernel frees its inactive cached files when necessary."""
    for limit, use, freed in (
        ("memory.max", "memory.current", "inactive_file"),
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ):
        with contextlib.suppress(OSError, ValueError):  # without a limit, the file has the word "max"
            left = int((group / limit).read_text()) - int((group / use).read_text())
            with contextlib.suppress(OSError):
                about = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
                left += int(about.get(freed, 0))
            return max(0, left)
    return math.inf


def game_error(env: str, settings: Mapping[str, Any]) -> str | None:
    """Why ``env`` cannot be played here, or None."""
    try:
        with contextlib.redirect_stdout(sys.stderr):  # the launcher reads standard output
            from zmqrl.learner.envs import EnvConfig, try_env

            config = EnvConfig(**settings)
            try_env(env, config, stored=config)  # the launcher has checked whether the settings apply
    except Exception as error:  # a missing package or ROM, or any other error
        return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
    return None


def lacks(extras: Mapping[str, str]) -> list[str]:
    """A clause for each missing extra. ``extras`` maps each extra to what needs it."""
    return [clause for extra, what in extras.items() if (clause := lack(extra, what))]


def sees_cuda() -> bool:
    import torch

    return torch.cuda.is_available()


def main() -> None:
    """Serve the requests on standard input until it ends."""
    job = read_job(signal.SIGKILL)
    asked = Messages()
    found = facts(job["work"])
    if job["listen"] is not None:
        try:
            found |= listen(**job["listen"])
        except OSError as error:
            found["listen_error"] = {"errno": error.errno, "why": error.strerror, "where": error.filename}
    if job["game"] is not None:
        found["game_error"] = game_error(**job["game"])
    if job["cuda"]:
        found["cuda"] = sees_cuda()
    found["lacks"] = lacks(job["extras"])
    say(found)
    while True:
        request = asked.get()
        if "routes" in request:
            with ThreadPoolExecutor(ROUTES_AT_A_TIME) as pool:
                say({"routes": list(pool.map(measure, request["routes"]))})
        else:
            say({"time_s": time.time()})


if __name__ == "__main__":
    main()
