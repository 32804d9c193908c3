"""Make and undo faults in a host's network, and read them from the kernel."""

import json
import re
from typing import Any

from network_lab.lab import Lab, Refusal, first_process, ip, processes, run

TO_HOST, FROM_HOST = ("INPUT", "-i", "eth0"), ("OUTPUT", "-o", "eth0")
RESET = ("-j", "REJECT", "--reject-with", "tcp-reset")
UNITS = {1e9: "gbit", 1e6: "mbit", 1e3: "kbit", 1: "bit"}


def set_link(lab: Lab, host: str, state: str) -> None:
    """Pulls a host's cable at the switch (`down`), or plugs it in (`up`). The host only loses the carrier."""
    first_process(lab, host)
    ip(f"link set {host} {state}", netns=lab.name)


def set_blackhole(lab: Lab, host: str, on: bool) -> None:
    """Drops every packet from and to a host. Senders get no error."""
    set_rules(lab, host, on, (*TO_HOST, "-j", "DROP"), (*FROM_HOST, "-j", "DROP"))


def set_reset(lab: Lab, host: str, on: bool) -> None:
    """Answers every TCP packet from and to a host with a reset."""
    # The second rule must let the resets of the first one pass.
    but_resets = ("!", "--tcp-flags", "RST", "RST")
    set_rules(lab, host, on, (*TO_HOST, "-p", "tcp", *RESET), (*FROM_HOST, "-p", "tcp", *but_resets, *RESET))


def set_refused(lab: Lab, host: str, ports: str, on: bool) -> None:
    """Answers TCP packets to a host's ports with a reset."""
    set_rules(lab, host, on, (*TO_HOST, "-p", "tcp", "--dport", ports, *RESET))


def set_rules(lab: Lab, host: str, on: bool, *rules: tuple[str, ...]) -> None:
    first_process(lab, host)
    iptables = ("ip", "netns", "exec", lab.netns(host), "iptables", "-w")
    for chain, *rule in rules:
        present = run(*iptables, "-C", chain, *rule, check=False).returncode == 0
        if present != on:
            run(*iptables, "-I" if on else "-D", chain, *rule)


def set_rate(lab: Lab, host: str, rate: str | None) -> None:
    """Limits what a host sends, and what it receives, to this rate."""
    shape(lab, host, rate, shaped(lab, host)[1])


def set_delay(lab: Lab, host: str, delay: str | None) -> None:
    """Delays what a host sends and receives. Raises `Refusal` if the kernel cannot delay packets."""
    if delay:
        # Try it on an idle device first. If that fails, the host keeps its current limit.
        if run("tc", "-n", lab.name, "qdisc", "add", "dev", "lo", "root", "netem", check=False).returncode:
            raise Refusal("this kernel has no netem, so it cannot delay packets")
        run("tc", "-n", lab.name, "qdisc", "delete", "dev", "lo", "root")
    shape(lab, host, shaped(lab, host)[0], delay)


def shape(lab: Lab, host: str, rate: str | None, delay: str | None) -> None:
    # A queue discipline acts on what a device sends, so each end needs one.
    for netns, device in ((lab.netns(host), "eth0"), (lab.name, host)):
        run("tc", "-n", netns, "qdisc", "delete", "dev", device, "root", check=False)
        add, parent = ("tc", "-n", netns, "qdisc", "add", "dev", device), ["root"]
        if delay:
            run(*add, *parent, "handle", "1:", "netem", "delay", delay, "limit", "20000")
            parent = ["parent", "1:1"]
        if rate:
            # The burst must hold the largest packet that the kernel makes.
            run(*add, *parent, "handle", "2:", "tbf", "rate", rate, "burst", "64kb", "latency", "50ms")


def shaped(lab: Lab, host: str) -> tuple[str | None, str | None]:
    """The rate and the delay of a host, in the notation of `tc`."""
    first_process(lab, host)
    rate = delay = None
    for qdisc in json.loads(run("tc", "-n", lab.netns(host), "-j", "qdisc", "show", "dev", "eth0").stdout):
        if qdisc["kind"] == "tbf":
            bits = 8 * qdisc["options"]["rate"]
            size = next(size for size in UNITS if bits >= size)
            rate = f"{bits / size:g}{UNITS[size]}"
        if qdisc["kind"] == "netem":
            # The kernel counts in ticks, so 150us may come back as 149.
            delay = f"{round(1000 * qdisc['options']['delay']['delay'], 2):g}ms"
    return rate, delay


def heal(lab: Lab, host: str) -> None:
    """Restores a host's network to its state after `netlab up`."""
    set_link(lab, host, "up")
    run("ip", "netns", "exec", lab.netns(host), "iptables", "-w", "-F")
    shape(lab, host, lab.rate, None)


def describe(lab: Lab, host: str) -> dict[str, Any]:
    """A row of `netlab status`."""
    row = {"host": host, "address": lab.address(host)}
    try:
        count = len(list(processes(lab, host)))
    except Refusal:
        return row | {"running": False}
    port = json.loads(run("ip", "-n", lab.name, "-j", "link", "show", host).stdout)[0]
    rules = run("ip", "netns", "exec", lab.netns(host), "iptables", "-w", "-S").stdout
    rate, delay = shaped(lab, host)
    return row | {
        "running": True,
        "link": "up" if "UP" in port["flags"] else "down",
        "blackhole": "-j DROP" in rules,
        "reset": "eth0 -p tcp -j REJECT" in rules,
        "refused": re.findall(r"--dport (\S+)", rules),
        "rate": rate,
        "delay": delay,
        "processes": count,
    }
