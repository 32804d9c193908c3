"""The network between hosts: shared network cards, latency, and lost packets."""

import math
import random
from collections.abc import Callable
from typing import Any

from zmqrl.simulate.virtual.clock import Shared, VirtualClock

PACKET_BYTES = 1448  # payload of a TCP segment on Ethernet
TIMEOUT_S = 0.2  # the minimum retransmission timeout of Linux
TAIL_PACKETS = 3  # if one of the last packets is lost, only the timeout reveals it
MATHIS = math.sqrt(1.5)


class VirtualHost:
    """A machine: cores that its processes share, and a network card with two directions."""

    def __init__(self, clock: VirtualClock, cores: int | None, bandwidth: float, most_each: float) -> None:
        self.clock = clock
        self.cores = None if cores is None else Shared(clock, cores, 1.0)
        finite = min(bandwidth, most_each) < math.inf
        self.outgoing = Shared(clock, bandwidth, most_each) if finite else None
        self.incoming = Shared(clock, bandwidth, most_each) if finite else None

    def work(self, cpu_s: float, done: Callable[..., None], *arguments: Any) -> None:
        """Use a core for ``cpu_s`` seconds. This takes longer if the host has fewer cores than working processes."""
        if self.cores is None:
            self.clock.after(cpu_s, done, *arguments)
        else:
            self.cores.start(cpu_s, done, *arguments)


class Network:
    """Delivers messages.

    Each network card divides its bandwidth evenly between transfers. A transfer ends when all bytes have passed both
    network cards. Its rate is at most 1.22 / sqrt(loss rate) packets per round trip (Mathis et al. 1997, eq. 3). If one
    of the last packets is lost, the transfer also waits for a timeout.
    """

    def __init__(self, clock: VirtualClock, *, latency_s: float, loss: float, loopback: float, seed: int) -> None:
        self.clock = clock
        self.latency_s, self.loss, self.loopback = latency_s, loss, loopback
        self.random = random.Random(seed)
        self.under_way = 0
        """The number of incomplete slice transfers."""

    def most_each(self) -> float:
        """The maximum rate of one transfer, in bytes per second."""
        if not self.loss or not self.latency_s:
            return math.inf
        return PACKET_BYTES * MATHIS / (2 * self.latency_s * math.sqrt(self.loss))

    def tell(self, source: VirtualHost, target: VirtualHost, deliver: Callable[..., None], *arguments: Any) -> None:
        """Send a message of one packet."""
        self.clock.after(self._delay(source, target, 0), deliver, *arguments)

    def transfer(
        self, source: VirtualHost, target: VirtualHost, size: int, deliver: Callable[..., None], *arguments: Any
    ) -> None:
        """Send a slice of ``size`` bytes."""
        self.under_way += 1
        delay = self._delay(source, target, size)
        if source is target or source.outgoing is None or target.incoming is None:
            delay += size / self.loopback if source is target else 0.0
            self.clock.after(delay, self.complete, deliver, arguments)
            return
        transfer = _Transfer(self, delay, deliver, arguments)
        source.outgoing.start(size, transfer.half)
        target.incoming.start(size, transfer.half)

    def _delay(self, source: VirtualHost, target: VirtualHost, size: int) -> float:
        """The latency of a transfer, without the time in the network cards."""
        if source is target:
            return 0.0
        if not self.loss:
            return self.latency_s
        packets = min(1 + size // PACKET_BYTES, TAIL_PACKETS)
        lost = self.random.random() < 1 - (1 - self.loss) ** packets
        return self.latency_s + TIMEOUT_S if lost else self.latency_s

    def complete(self, deliver: Callable[..., None], arguments: tuple[Any, ...]) -> None:
        self.under_way -= 1
        deliver(*arguments)


class _Transfer:
    """A slice on its way through two network cards."""

    __slots__ = ("_arguments", "_delay_s", "_deliver", "_network", "_one_card_is_done")

    def __init__(
        self, network: Network, delay_s: float, deliver: Callable[..., None], arguments: tuple[Any, ...]
    ) -> None:
        self._network, self._delay_s = network, delay_s
        self._deliver, self._arguments = deliver, arguments
        self._one_card_is_done = False

    def half(self) -> None:
        """Record that one network card has passed the slice."""
        if self._one_card_is_done:
            self._network.clock.after(self._delay_s, self._network.complete, self._deliver, self._arguments)
        self._one_card_is_done = True
