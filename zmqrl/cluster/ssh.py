"""Another machine as a host: its agent is started by the user's own OpenSSH client, whose settings stay the user's."""

import random
import re
import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from zmqrl.cluster.link import RENEW_EVERY_S, Link, LinkLost
from zmqrl.errors import ClusterError

News = Callable[[str, Mapping[str, Any]], None]
AGENT = ("-m", "zmqrl.cluster.agent")

AT_A_TIME = 16
TRIES = 5
FIRST_PAUSE_S = 0.5
# What a server says, or the client of it, when it drops connections because too many are not logged in (MaxStartups).
CROWDED = ("kex_exchange_identification", "Connection closed by", "Connection reset by")
# How a shell says that there is no such Python, and Python that it has no such module.
NOT_THERE = re.compile(r"python\S*: |: \S*python\S*$|No module named")


def ssh_command(destination: str, python: str, arguments: Sequence[str] = AGENT, *, config: Path | None) -> list[str]:
    """How to run an agent on ``destination``, as the user's ssh knows it. Nothing about the run is in it.

    No terminal and no questions: a key must be in the agent or without a passphrase, and the host must be known.
    """
    options = [] if config is None else ["-F", str(config.absolute())]
    alive = ["-o", "ConnectTimeout=10", "-o", "ServerAliveInterval=3", "-o", "ServerAliveCountMax=3"]
    # Not shared with the user's other sessions: they would end with it, or it with them.
    alive += ["-o", "ControlMaster=no", "-o", "ControlPath=none"]
    remote = f"exec {shlex.join([python, *arguments])}"
    return ["ssh", *options, "-T", "-o", "BatchMode=yes", *alive, destination, remote]


def connect_all(
    links: Sequence[Link], news: News | None = None, *, instead: str | None = None
) -> dict[str, dict[str, Any]]:
    """Open all ``links``; what each said when it was up, by host. Raises ClusterError that names each that failed."""
    failed = connect(links, news, instead=instead)
    if failed:
        told = "".join(f"\n  {host}: {why}" for host, why in failed.items())
        raise ClusterError(f"{len(failed)} of {len(links)} hosts cannot be used:{told}")
    return {link.host: link.up for link in links if link.up is not None}


def connect(links: Sequence[Link], news: News | None = None, *, instead: str | None = None) -> dict[str, str]:
    """Open all ``links``, several at a time, trying again where a server is crowded; why those failed that did.

    Every link has a time limit of its own, so this ends. ``news`` is told what is heard, and from which host.
    ``instead`` is what to do where there is no such Python, or it lacks something.
    """
    waiting = {link.host: 0.0 for link in links}  # when each is to be tried next
    tries = dict.fromkeys(waiting, 0)
    failed: dict[str, str] = {}
    renewed_at = 0.0
    while len(failed) + sum(link.up is not None for link in links) < len(links):
        now = time.monotonic()
        for link in links:
            try:
                opening = sum(other.is_silent() for other in links)
                if opening < AT_A_TIME and waiting.get(link.host, now + 1) <= now:
                    del waiting[link.host]
                    tries[link.host] += 1
                    link.open()
                for event in link.poll():  # of those that are up, too: they are to hear from us
                    if news is not None:
                        news(link.host, event)
            except LinkLost as lost:
                if tries[link.host] < TRIES and any(words in lost.why for words in CROWDED):
                    pause_s = FIRST_PAUSE_S * 2.0 ** (tries[link.host] - 1)
                    waiting[link.host] = now + pause_s * random.uniform(0.5, 1.5)
                else:
                    advice = f": {instead}" if instead is not None and NOT_THERE.search(lost.why) else ""
                    failed[link.host] = lost.why + advice
        if now - renewed_at >= RENEW_EVERY_S:
            renewed_at = now
            for link in links:
                link.renew()
        time.sleep(0.02)
    return failed
