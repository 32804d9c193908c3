"""Where the shards of a host bind and all others reach them: by an option, by the hosts file, or as ssh reached it."""

import ipaddress
from collections.abc import Mapping, Sequence
from typing import Any

from zmqrl.cluster.hosts import Host
from zmqrl.config import is_loopback
from zmqrl.errors import UsageError


def check_interface(iface: str | None) -> None:
    """Raise UsageError for what is meant as a network, such as ``10.0.0.0/24``, and is none."""
    if iface is not None and "/" in iface:
        try:
            ipaddress.IPv4Network(iface, strict=False)
        except ValueError:
            raise UsageError(f"--iface {iface} is neither an interface nor an IPv4 network, as 10.0.0.0/24.") from None


def addresses_of(
    hosts: Sequence[Host], up: Mapping[str, Mapping[str, Any]], *, by_hand: Mapping[str, str], iface: str | None
) -> tuple[dict[str, str], list[str]]:
    """The address of each of ``hosts``, by its name; and a sentence for each that has none.

    ``up`` is what agents have said, of all hosts of the run, ``by_hand`` what ``--address`` says, and ``iface`` an
    interface or a network that all of them have.
    """
    found: dict[str, str] = {}
    unknown = []
    for host in hosts:
        instead = _instead(host.name)
        interfaces: Mapping[str, list[str]] = up[host.name]["interfaces"]
        address: str | None = by_hand.get(host.name)
        if address is None and iface is not None:
            address = next(iter(_on(iface, interfaces)), None)
        elif address is None:
            address = host.address or up[host.name]["address"]
        if address is None and iface is not None:
            unknown.append(f"{host.name}: --iface {iface} is not there; it has {listed(interfaces)}: {instead}.")
        elif address is None:
            unknown.append(f"{host.name}: nothing says where the others reach it: {instead}.")
        elif is_loopback(address) and any(other["host"] != up[host.name]["host"] for other in up.values()):
            unknown.append(only_itself(host.name, address))
        else:
            found[host.name] = address
    return found, unknown


def only_itself(host: str, address: str) -> str:
    """What is wrong with a loopback ``address`` of ``host``."""
    return f"{host}: at {address} every other host reaches only itself: {_instead(host)}."


def _instead(host: str) -> str:
    return f"choose by --iface, --address {host}=ADDRESS or `address` in the hosts file"


def listed(interfaces: Mapping[str, list[str]]) -> str:
    """The interfaces of a host in words: ``lo 127.0.0.1, ib0 10.0.0.1``."""
    return ", ".join(f"{name} {' '.join(addresses)}" for name, addresses in interfaces.items()) or "none"


def _on(iface: str, interfaces: Mapping[str, list[str]]) -> list[str]:
    """The addresses on an interface, or in a network."""
    if "/" not in iface:
        return interfaces.get(iface, [])
    network = ipaddress.IPv4Network(iface, strict=False)
    return [each for addresses in interfaces.values() for each in addresses if ipaddress.IPv4Address(each) in network]
