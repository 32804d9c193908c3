"""``zmqrl bench``: measurements of this machine. Each measurement is a separate command."""

import importlib
import sys

from zmqrl.errors import UsageError, did_you_mean

BENCHMARKS = {"wire": ("bench_wire", "measure the transport alone, compared with gloo, plain sockets and memcpy")}


def command(arguments: list[str]) -> int:
    """Run ``zmqrl bench NAME``. Raises ZmqrlError."""
    name, rest = (arguments[0], arguments[1:]) if arguments else ("--help", [])
    if name in ("--help", "-h"):
        sys.stdout.write("".join(f"zmqrl bench {each:8}{purpose}\n" for each, (_, purpose) in BENCHMARKS.items()))
        return 0
    if name not in BENCHMARKS:
        raise UsageError(f"unknown benchmark {name!r}{did_you_mean(name, BENCHMARKS)}; zmqrl bench --help lists them.")
    status: int = importlib.import_module(f"zmqrl.commands.measure.{BENCHMARKS[name][0]}").command(rest)
    return status
