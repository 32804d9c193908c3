"""``zmqrl bench``: measurements of this machine. Each is a separate command."""

import os
import sys

from zmqrl.commands import run_command
from zmqrl.errors import UsageError, did_you_mean
from zmqrl.observe.provenance import provenance
from zmqrl.words import counted

BENCHMARKS = {
    "train": ("bench_train", "measure training, compared with what its parts need alone"),
    "wire": ("bench_wire", "measure the transport alone, compared with gloo, plain sockets and memcpy"),
}


def command(arguments: list[str]) -> int:
    name, rest = (arguments[0], arguments[1:]) if arguments else ("--help", [])
    if name in ("--help", "-h"):
        sys.stdout.write("".join(f"zmqrl bench {each:8}{purpose}\n" for each, (_, purpose) in BENCHMARKS.items()))
        return 0
    if name not in BENCHMARKS:
        raise UsageError(f"unknown benchmark {name!r}{did_you_mean(name, BENCHMARKS)}; zmqrl bench --help lists them.")
    return run_command(f"measure.{BENCHMARKS[name][0]}", f"zmqrl bench {name}", rest)


# for all benchmarks


def machine() -> str:
    """This machine, its load and its software in a line."""
    about = provenance()
    load = os.getloadavg()[0]
    return (
        f"{about['cpu']}, {counted(about['cores'], 'core')}, load {load:.1f} before the "
        f"benchmark; Python {about['python']}, "
        f"torch {about['packages']['torch']}, zmqrl {about['commit'] or about['zmqrl']}"
    )
