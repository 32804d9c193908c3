"""``zmqrl worker``: an external worker that joins a run by its ``cluster.json``."""

import os
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import tyro

from zmqrl.hosts.daemons import PATIENCE

os.environ.update(PATIENCE | os.environ)  # before the import of torch, which loads OpenMP

from zmqrl.config import Config
from zmqrl.errors import UsageError
from zmqrl.observe.provenance import code_id
from zmqrl.observe.screen import never_waiting
from zmqrl.process import interruptible, log_to_stderr
from zmqrl.ps.cluster_file import Cluster
from zmqrl.ps.wire.keys import ClientKeys


@dataclass(frozen=True, kw_only=True)
class Options:
    """Join a run as an external worker, and work until the run ends."""

    cluster: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="DIR/cluster.json")]
    """The cluster.json of the run."""
    rank: int | None = None
    """Open rank to take. Required if several ranks are open. A worker that already has the rank is replaced."""
    threads: Annotated[int, tyro.conf.arg(metavar="N")] = 1
    """Number of threads for the games and the network."""
    any_code: bool = False
    """Join even if the run uses different code of zmqrl.

    Use this only if you know that both versions of the code are compatible.
    """


@interruptible()
def run(options: Options) -> int:
    if options.cluster.is_dir():
        raise UsageError(f"{options.cluster} is a directory: use {options.cluster / 'cluster.json'}.")
    cluster, config = Cluster.read(options.cluster), Config.read(options.cluster)
    if options.threads < 1:
        raise UsageError(f"--threads {options.threads}: must be 1 or more.")
    rank, ranks = options.rank, ", ".join(map(str, cluster.open_ranks))
    if rank is None:
        if not cluster.open_ranks:
            raise UsageError(f"{options.cluster} has no open rank: start the run with --external-workers.")
        if len(cluster.open_ranks) > 1:
            raise UsageError(f"several ranks are open ({ranks}): choose one with --rank.")
        rank = cluster.open_ranks[0]
    elif rank not in cluster.open_ranks:
        raise UsageError(f"--rank {rank}: this rank is not open; open ranks: {ranks or 'none'}.")
    if cluster.key_files is not None:
        path = options.cluster.parent / cluster.key_files[rank]
        cluster = replace(cluster, keys=ClientKeys.read(path, run=cluster.run, rank=rank))
    from zmqrl.worker import join  # takes seconds for torch

    with never_waiting():
        log = log_to_stderr("zmqrl.worker")
        log.info("worker %d of run %s, process %d", rank, cluster.run, os.getpid())
        # The version of the run is known only after joining, so the time seeds the games.
        join(
            cluster,
            config,
            rank,
            version=int(time.time()),
            threads=options.threads,
            log=log,
            code="" if options.any_code else code_id(),
        )
    return 0
