"""Opens the links to all hosts at once, and reports the reason for each failure."""

import random
import re
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from zmqrl.errors import ClusterError
from zmqrl.hostd import messages as h
from zmqrl.hosts.link import CLOSED, NO_OUTPUT, RENEW_EVERY_S, Link, LinkLost
from zmqrl.observe.provenance import code_hash
from zmqrl.words import counted

OnEvent = Callable[[str, h.Event], None]

AT_A_TIME = 16
TRIES = 5
FIRST_PAUSE_S = 0.5
FINAL = ("verification failed", "Permission denied")  # another try would fail, too
OLDER = "No module named 'zmqrl.hostd'"  # in older code, the daemon is in another module
OTHER_CODE = "zmqrl there ({}) differs from zmqrl here (code {})"
# The first two: a shell finds no such Python. The others: Python lacks the module, or is too old for -P.
NOT_THERE = re.compile(r"python\S*: |: \S*python\S*$|No module named|python -h")
REFUSED_BY_SSH = "exit status 255"  # ssh itself failed
NO_SHELL = "account is currently not available"  # printed by nologin


def unusable(failed: Mapping[str, str], hosts: Sequence[str]) -> ClusterError:
    """An error that names each of ``hosts`` that ``failed``, with the reason."""
    told = "".join(f"\n  {host}: {failed[host]}" for host in hosts if host in failed)
    return ClusterError(f"{len(failed)} of {counted(len(hosts), 'host')} cannot be used:{told}")


def other_code(up: h.Up, instead: str) -> str:
    """A sentence about a host with other code, with the advice ``instead``."""
    return f"{OTHER_CODE.format(f'{up.zmqrl}, code {up.code[:8]}', code_hash()[:8])}: {instead}"


def listed_twice(up: Mapping[str, h.Up]) -> dict[str, str]:
    """A sentence, by host, for each host that is the same machine as an earlier host.

    Daemons themselves notice this only if they have the same user.
    """
    first: dict[str, str] = {}
    for host, about in up.items():
        first.setdefault(about.machine or host, host)
    names = {host: first[about.machine or host] for host, about in up.items()}
    return {host: f"{h.SAME_MACHINE} {name}: list it once" for host, name in names.items() if name != host}


def connect(links: Sequence[Link], news: OnEvent | None = None, *, instead: str | None = None) -> dict[str, str]:
    """Open all ``links``, several at a time, and retry a server that drops connections. Returns the reason for each
    failure, by host, in the order of ``links``.

    ``news`` gets each host and event. ``instead`` is the advice for a host without the Python interpreter or a module.
    """
    waiting = {link.host: 0.0 for link in links}  # by host: the time of the next try
    tries = dict.fromkeys(waiting, 0)
    failed: dict[str, str] = {}
    renewed_at = 0.0
    while len(failed) + sum(link.is_ready for link in links) < len(links):
        now = time.monotonic()
        for link in links:
            try:
                opening = sum(other.is_silent() for other in links)
                if opening < AT_A_TIME and waiting.get(link.host, now + 1) <= now:
                    del waiting[link.host]
                    tries[link.host] += 1
                    link.open()
                for event in link.poll():  # even if the link is up, to keep its connection alive
                    if news is not None:
                        news(link.host, event)
            except LinkLost as lost:
                is_crowded = any(words in lost.why for words in CLOSED) and not any(
                    words in lost.why for words in FINAL
                )
                if tries[link.host] < TRIES and is_crowded:
                    pause_s = FIRST_PAUSE_S * 2.0 ** (tries[link.host] - 1)
                    waiting[link.host] = now + pause_s * random.uniform(0.5, 1.5)
                else:
                    why = OTHER_CODE.format("an older one", code_hash()[:8]) if OLDER in lost.why else lost.why
                    advice = f": {instead}" if instead is not None and NOT_THERE.search(lost.why) else ""
                    if NO_SHELL in lost.why:
                        why = f"{why.rstrip('.')}: its login shell is nologin: use another account (user@host)"
                    ended_silently = lost.why.startswith("exit status") and NO_OUTPUT in lost.why
                    if ended_silently and REFUSED_BY_SSH not in lost.why and Path(link.command[0]).name == "ssh":
                        why += ": its login shell may be one that runs no commands"
                    failed[link.host] = why + advice
        if now - renewed_at >= RENEW_EVERY_S:
            renewed_at = now
            for link in links:
                link.renew()
        time.sleep(0.02)
    return {link.host: failed[link.host] for link in links if link.host in failed}
