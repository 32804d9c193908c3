"""Sockets have the options of docs/protocol.md, and libzmq does not end a process if its connections break."""

import contextlib
import re
import subprocess
import sys
import time

import pytest
import zmq
from support.network import Proxy
from support.paths import ROOT
from support.rig import ending

from zmqrl.errors import ClusterError
from zmqrl.ps.wire.sockets import new_context, shard_sockets, worker_sockets

pytestmark = pytest.mark.processes

SLICE_BYTES = 1000
OPTIONS = {
    zmq.LINGER: 0,
    zmq.HEARTBEAT_IVL: 0,
    zmq.HANDSHAKE_IVL: 5000,
    zmq.RECONNECT_IVL: 100,
    zmq.RECONNECT_IVL_MAX: 3000,
    zmq.TCP_KEEPALIVE: 1,
    zmq.TCP_KEEPALIVE_CNT: 3,
    zmq.TCP_KEEPALIVE_IDLE: 3,
    zmq.TCP_KEEPALIVE_INTVL: 2,
    zmq.TCP_MAXRT: 8000,
}


def test_sockets_have_the_types_limits_and_options_of_the_protocol() -> None:
    page = (ROOT / "docs" / "protocol.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (shard|worker) \| (\w+) \| ([A-Z]+) \| (\d+) \| (\d+) \| (.+?) \|", page, re.MULTILINE)
    context = new_context()
    try:
        sides = {"shard": shard_sockets(context, SLICE_BYTES), "worker": worker_sockets(context, 0, 1)}
        made = {(side, role): socket for side, sockets in sides.items() for role, socket in sockets.items()}
        assert {(side, role) for side, role, *_ in rows} == made.keys()
        for side, role, kind, send_most, receive_most, most_bytes in rows:
            socket = made[side, role]
            limits = (socket.sndhwm, socket.rcvhwm, socket.maxmsgsize)
            expected = most_bytes.replace("slice + ", f"{SLICE_BYTES} + ")
            assert socket.type == getattr(zmq, kind)
            assert limits == (int(send_most), int(receive_most), sum(map(int, expected.split(" + "))))
            assert {option: socket.getsockopt(option) for option in OPTIONS} == OPTIONS
            assert socket.immediate == (kind in ("PUSH", "DEALER"))
            assert socket.getsockopt(zmq.ROUTING_ID) == b""
    finally:
        context.destroy(linger=0)


def test_an_old_libzmq_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zmq, "zmq_version_info", lambda: (4, 3, 4))
    with pytest.raises(ClusterError, match=r"is too old: install pyzmq with libzmq 4\.3\.5 or newer"):
        new_context()


READS_LATE = """
import sys, time
from zmqrl.ps.wire.sockets import new_context, worker_sockets
context = new_context()
weights = worker_sockets(context, 0, 1)["weights"]
weights.connect(sys.argv[1])
sys.stdout.write("up\\n")
sys.stdout.flush()
sys.stdin.readline()
version = None
while version != 99 and weights.poll(int(sys.argv[2])):
    version = int(weights.recv_multipart()[1])
sys.stdout.write(f"{version}\\n")
context.destroy(linger=0)
"""
QUIET_S = 4.0  # longer than any heartbeat interval that zmqrl has ever had


@pytest.mark.parametrize("heal", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_a_process_survives_a_broken_connection_with_a_full_queue(heal: bool) -> None:
    """libzmq 4.3.5 aborts a process that uses heartbeats: ``Assertion failed: !_io_error``."""
    with zmq.Context() as context, context.socket(zmq.XPUB) as publisher:
        publisher.linger = 0
        publisher.sndhwm = 100
        publisher.setsockopt(zmq.XPUB_VERBOSE, 1)
        proxy = Proxy(f"tcp://127.0.0.1:{publisher.bind_to_random_port('tcp://127.0.0.1')}")
        command = [sys.executable, "-c", READS_LATE, proxy.endpoint, "60000" if heal else "3000"]
        piped = subprocess.PIPE
        with (
            contextlib.closing(proxy),
            ending(subprocess.Popen(command, stdin=piped, stdout=piped, text=True)) as process,
        ):
            assert process.stdin is not None
            assert process.stdout is not None
            assert process.stdout.readline() == "up\n"
            wait_for_subscriptions(publisher)
            for version in range(50):
                publisher.send_multipart([b"W", b"%d" % version, bytes(100_000)])
            time.sleep(0.5)
            proxy.cut(heal=heal)
            time.sleep(QUIET_S)
            assert process.poll() is None, f"the process ended with status {process.returncode}"
            process.stdin.write("read\n")
            process.stdin.flush()
            if heal:
                wait_for_subscriptions(publisher)  # libzmq sends them again when the process reads
            publisher.send_multipart([b"W", b"99", b""])
            last = int(process.stdout.readline())
            assert process.wait(60) == 0
            assert (last == 99) == heal


def wait_for_subscriptions(publisher: "zmq.Socket[bytes]") -> None:
    topics = 0
    while topics < 5:
        assert publisher.poll(60_000), "its subscriptions must arrive"
        topics += publisher.recv().startswith(b"\1")
