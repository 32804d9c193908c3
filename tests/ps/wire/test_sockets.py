"""libzmq must not end a process if its connections break."""

import contextlib
import subprocess
import sys
import time

import pytest
import zmq
from support.network import Proxy
from support.rig import ending

pytestmark = pytest.mark.processes

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
            last = int(process.stdout.readline())
            assert process.wait(60) == 0
            assert (last == 99) == heal


def wait_for_subscriptions(publisher: "zmq.Socket[bytes]") -> None:
    topics = 0
    while topics < 5:
        assert publisher.poll(60_000), "its subscriptions must arrive"
        topics += publisher.recv().startswith(b"\1")
        publisher.setsockopt(zmq.XPUB_VERBOSE, 1)
            if heal:
                wait_for_subscriptions(publisher)  # libzmq sends them again when the process reads
            publisher.send_multipart([b"W", b"99", b""])
