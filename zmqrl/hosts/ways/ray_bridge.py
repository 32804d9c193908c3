"""Runs a command on a node of a Ray cluster, and passes on its standard streams:

    python -P -m zmqrl.hosts.ways.ray_bridge ADDRESS NODE_ID NAME WORDS...

An actor on the node runs the command. When this process ends, Ray ends the actor, which closes the standard input of
the command, and kills the process of the command. If the command is a host daemon, this process is its front
(:mod:`zmqrl.hostd.guard`), and the daemon then ends what it has started.
"""

if __name__ == "__main__":
    from zmqrl.hostd.import_path import search_here_last

    search_here_last()  # before the first import that a file in the current directory can hide

import os
import selectors
import shutil
import subprocess
import sys
import threading
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

PIECE_BYTES = 1 << 20
TURN_S = 1.0
OF_RAY = ("RAY_", "OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES")  # variables that Ray sets for its actors


def connect(address: str) -> None:
    """Connect to a cluster, without messages of Ray. Raises an error of Ray."""
    ray.init(address=address, log_to_driver=False, logging_level="ERROR", namespace="zmqrl")


class Relay:
    """The actor: a command on this node, and its pipes.

    Ray pickles this class by value, so the actor needs no zmqrl on its node.
    """

    def __init__(self, words: list[str], name: str) -> None:
        """Start the command ``words``. The actor's Python replaces the first word if the node has no such program.

        The variable ``ZMQRL_NODE`` tells a host daemon the ``name`` of this node: one machine can have several.
        """
        program = shutil.which(words[0]) or sys.executable
        kept = {key: value for key, value in os.environ.items() if not key.startswith(OF_RAY)}
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(
            [program, *words[1:]], stdin=pipe, stdout=pipe, stderr=pipe, env=kept | {"ZMQRL_NODE": name}, bufsize=0
        )
        self.selector = selectors.DefaultSelector()
        for number, stream in ((1, self.process.stdout), (2, self.process.stderr)):
            assert stream is not None
            self.selector.register(stream, selectors.EVENT_READ, number)

    def write(self, data: bytes) -> None:
        """Write to the standard input of the command. Empty ``data`` closes it."""
        assert self.process.stdin is not None
        try:
            if not data:
                self.process.stdin.close()
            while data:
                data = data[os.write(self.process.stdin.fileno(), data) :]
        except BrokenPipeError:  # the command has ended, and read returns its status
            pass

    def read(self) -> tuple[list[tuple[int, bytes]], int | None]:
        """Returns pairs of stream (1 or 2) and new output, and the exit status once both streams have ended.

        Waits at most ``TURN_S`` for output, so there may be none.
        """
        pieces = []
        for key, _ in self.selector.select(TURN_S):
            if piece := os.read(key.fd, PIECE_BYTES):
                pieces.append((key.data, piece))
            else:
                self.selector.unregister(key.fileobj)
        return pieces, None if self.selector.get_map() else self.process.wait()


def main() -> None:
    """Relay until the command has ended. Exits with its status."""
    address, node, name, *words = sys.argv[1:]
    out = os.dup(1)
    os.dup2(2, 1)  # Ray prints to standard output
    try:
        connect(address)
        on_node = NodeAffinitySchedulingStrategy(node, soft=False)
        relay = (
            ray.remote(Relay).options(num_cpus=0, max_concurrency=2, scheduling_strategy=on_node).remote(words, name)
        )
        threading.Thread(target=_feed, args=(relay,), daemon=True).start()
        status = None
        while status is None:
            pieces, status = ray.get(relay.read.remote())
            for stream, piece in pieces:
                _write(out if stream == 1 else 2, piece)
    except Exception as error:  # Ray raises errors of many kinds
        sys.exit(f"Ray: {' '.join(str(error).split())}")
    sys.exit(status if status >= 0 else 128 - status)


def _feed(relay: Any) -> None:
    """Pass on standard input, piece by piece."""
    data = b"first"
    while data:
        data = os.read(0, PIECE_BYTES)
        ray.get(relay.write.remote(data))


def _write(to: int, piece: bytes) -> None:
    while piece:
        piece = piece[os.write(to, piece) :]


if __name__ == "__main__":
    main()
