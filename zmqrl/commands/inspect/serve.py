"""``zmqrl serve``: a live page of the runs below a directory."""

import ipaddress
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from zmqrl.errors import UsageError
from zmqrl.local.extras import require_extra
from zmqrl.page.server import PageServer, listen
from zmqrl.process import interruptible


@dataclass(frozen=True, kw_only=True)
class Options:
    """Show runs on a live page in the browser, until Ctrl-C. The page only reads the files of runs."""

    directory: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="[RUNS_DIR|RUN]")] = Path("runs")
    """A run directory, or a directory with runs below it."""
    port: int | None = None
    """Port. 0: any free port. None: 8470, or any free port if 8470 is in use."""
    address: str = "127.0.0.1"
    """IP address of this machine to listen on. Connections from other machines are not encrypted."""


@interruptible()
def run(options: Options) -> int:
    """Print the address of the page, and serve it."""
    require_extra("page", "zmqrl serve needs")
    if not options.directory.is_dir():
        raise UsageError(f"{options.directory} is not a directory: name a run directory, or a directory of runs.")
    with listen(options.address, options.port) as listener:
        import zmqrl.page.app  # noqa: F401 - takes longer than the rest: done before the address is printed

        server = PageServer(options.directory, listener)
        sys.stdout.write(f"{server.url}\n")
        if ipaddress.ip_address(options.address).is_loopback:
            forward = f"ssh -L {server.port}:{server.host}:{server.port} THIS_MACHINE"
            sys.stderr.write(
                f"on another machine, run `{forward}`, then open the same address. Ctrl-C ends the page.\n"
            )
        else:
            sys.stderr.write(f"traffic with {options.address} is not encrypted: use ssh -L to protect the token.\n")
        sys.stdout.flush()
        server.run()
    return 0
