"""``zmqrl bench wire``: what the transport costs on this machine, as a table, JSON and a picture."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from zmqrl.bench.grid import IMPLEMENTATIONS, OPERATIONS, Grid, Implementation, Operation
from zmqrl.bench.samples import Row
from zmqrl.bench.wire import measure
from zmqrl.commands.measure.bench import machine
from zmqrl.commands.measure.wire_figures import table, write_picture
from zmqrl.commands.options import check_picture
from zmqrl.commands.output import print_json, show_line
from zmqrl.errors import UsageError, refusal, require
from zmqrl.observe.provenance import provenance
from zmqrl.observe.tables import page
from zmqrl.process import interruptible, quiet_children
from zmqrl.ps.wire.messages import Codec
from zmqrl.ps.wire.sockets import Transport
from zmqrl.words import counted

# Of the networks narrow, small and nature for Breakout.
PARAMETERS = (480_165, 677_429, 1_686_693)


@dataclass(frozen=True, kw_only=True)
class Options:
    """Measure the transport of gradients and weights on this machine, compared with gloo, sockets and memcpy.

    The first eight options take several values. Every combination is measured, and combinations take turns.
    """

    parameters: Annotated[tuple[int, ...], tyro.conf.arg(metavar="N ...")] = PARAMETERS
    """Lengths of the parameter vector. The defaults are those of Breakout's networks."""
    workers: Annotated[tuple[int, ...], tyro.conf.arg(metavar="N ...")] = (2, 4)
    """Numbers of worker processes."""
    shards: Annotated[tuple[int, ...], tyro.conf.arg(metavar="S ...")] = (1,)
    """Numbers of shard processes."""
    transport: tuple[Transport, ...] = ("tcp", "ipc", "shm")
    """Transports of zmqrl: TCP over the loopback interface (tcp), Unix sockets (ipc), or shared memory (shm)."""
    codec: tuple[Codec, ...] = ("f32",)
    """Number format on the wire, as in zmqrl train --wire.codec."""
    curve: tuple[Literal["off", "on"], ...] = ("off",)
    """Encryption and authentication of zmqrl."""
    operation: tuple[Operation, ...] = OPERATIONS
    """Operations to measure. docs/performance.md defines them."""
    implementation: tuple[Implementation, ...] = IMPLEMENTATIONS
    """Implementations to compare."""
    rounds: Annotated[int, tyro.conf.arg(metavar="N")] = 100
    """Number of samples per operation."""
    minutes: float = 4.0
    """Limit in minutes. A slow machine takes fewer samples, but at least 10."""
    json: bool = False
    """Print a list of JSON objects instead of tables."""
    plot: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """Picture to write: .png, .svg or .pdf. None: no picture."""

    def grid(self) -> Grid:
        """The cases. Raises UsageError."""
        return Grid(
            transport=self.transport,
            codec=self.codec,
            curve=tuple(word == "on" for word in self.curve),
            parameters=self.parameters,
            workers=self.workers,
            shards=self.shards,
            operation=self.operation,
            implementation=self.implementation,
            rounds=self.rounds,
            minutes=self.minutes,
        )


@interruptible()
def run(options: Options) -> int:
    """Measure, and print the rows. If a group fails, the rows of the groups before it are printed too."""
    grid = options.grid()
    if options.plot is not None:
        check_picture("--plot", options.plot)
        require(options.plot.parent.is_dir(), f"--plot {options.plot}: there is no directory {options.plot.parent}.")
    console = page()
    if not options.json:
        console.print(machine())
    origin = provenance()
    about = {"commit": origin["commit"], "cpu": origin["cpu"], "load_before": os.getloadavg()[0]}
    result: list[Row] = []
    try:
        with quiet_children():  # the shards log to our standard error
            for rows in measure(
                grid,
                lambda group: show_line(
                    f"measuring {group.parameters:,} parameters, {counted(group.workers, 'worker')}"
                ),
            ):
                show_line("")
                result += rows
                if not options.json:
                    console.print(table(rows))
    finally:
        if options.json and result:
            print_json([row | about for row in result], indent=1)
    if options.plot is not None:
        try:
            write_picture(result, options.plot)
        except OSError as error:
            raise UsageError(refusal(error, options.plot, "choose another --plot")) from error
    return 0
