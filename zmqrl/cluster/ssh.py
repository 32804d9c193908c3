"""Another machine as a host: its agent is started by the user's own OpenSSH client, whose settings stay the user's."""

import random
import shlex
import time
from collections.abc import Sequence
from pathlib import Path

from zmqrl.cluster.link import RENEW_EVERY_S, Link, LinkLost

AT_A_TIME = 16
TRIES = 5
FIRST_PAUSE_S = 0.5
# What a server says, or the client of it, when it drops connections because too many are not logged in (MaxStartups).
CROWDED = ("kex_exchange_identification", "Connection closed by", "Connection reset by")


def ssh_command(destination: str, python: str, *, config: Path | None) -> list[str]:
    """How to run an agent on ``destination``, as the user's ssh knows it. Nothing about the run is in it.

    No terminal and no questions: a key must be in the agent or without a passphrase, and the host must be known.
    """
    options = [] if config is None else ["-F", str(config)]
    alive = ["-o", "ConnectTimeout=10", "-o", "ServerAliveInterval=3", "-o", "ServerAliveCountMax=3"]
    # Not shared with the user's other sessions: they would end with it, or it with them.
    alive += ["-o", "ControlMaster=no", "-o", "ControlPath=none"]
    remote = f"exec {shlex.quote(python)} -m zmqrl.cluster.agent"
    return ["ssh", *options, "-T", "-o", "BatchMode=yes", *alive, destination, remote]


def connect(links: Sequence[Link]) -> dict[str, str]:
    """Open all ``links``, several at a time, trying again where a server is crowded; why those failed that did.

    Every link has a time limit of its own, so this ends.
    """
    waiting = {link.host: 0.0 for link in links}  # when each is to be tried next
    tries = dict.fromkeys(waiting, 0)
    failed: dict[str, str] = {}
    renewed_at = 0.0
    while len(failed) + sum(link.up is not None for link in links) < len(links):
        now = time.monotonic()
        for link in links:
            try:
                opening = sum(other.process is not None and other.up is None for other in links)
                if opening < AT_A_TIME and waiting.get(link.host, now + 1) <= now:
                    del waiting[link.host]
                    tries[link.host] += 1
                    link.open()
                link.poll()  # those that are up, too: they are to hear from us
            except LinkLost as lost:
                if tries[link.host] < TRIES and any(words in lost.why for words in CROWDED):
                    pause_s = FIRST_PAUSE_S * 2.0 ** (tries[link.host] - 1)
                    waiting[link.host] = now + pause_s * random.uniform(0.5, 1.5)
                else:
                    failed[link.host] = lost.why
        if now - renewed_at >= RENEW_EVERY_S:
            renewed_at = now
            for link in links:
                link.renew()
        time.sleep(0.02)
    return failed
