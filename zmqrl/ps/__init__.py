"""The parameter server: shards that own slices of a parameter vector, and the workers that push gradients to them.

A program can use this package without the rest of zmqrl, as docs/examples/plain_torch.py does. A module is imported
when one of its names is first used, so that a shard process does not import torch.
"""

from importlib import import_module

TYPE_CHECKING = False  # a shard process cleans its import path before it imports modules such as typing
__all__ = [
    "ClientKeys",
    "Cluster",
    "ClusterError",
    "Connection",
    "FlatParameters",
    "FloatVector",
    "Layout",
    "OptimizerConfig",
    "PulledWeights",
    "RunKeys",
    "ShardTiming",
    "Slice",
    "StandaloneShards",
    "Tally",
    "UsageError",
    "WorkerTiming",
    "ZmqrlError",
    "standalone_shards",
]

if TYPE_CHECKING:
    from zmqrl.errors import ClusterError, UsageError, ZmqrlError
    from zmqrl.ps.cluster_file import Cluster
    from zmqrl.ps.flat import FlatParameters
    from zmqrl.ps.layout import Layout, Slice
    from zmqrl.ps.shard.machine import ShardTiming
    from zmqrl.ps.shard.optimizer import OptimizerConfig
    from zmqrl.ps.standalone import StandaloneShards, standalone_shards
    from zmqrl.ps.wire.codec import FloatVector
    from zmqrl.ps.wire.keys import ClientKeys, RunKeys
    from zmqrl.ps.worker.connection import Connection, PulledWeights
    from zmqrl.ps.worker.known_shard import Tally
    from zmqrl.ps.worker.machine import WorkerTiming
else:
    _HOMES = {
        "zmqrl.errors": ("ClusterError", "UsageError", "ZmqrlError"),
        "zmqrl.ps.cluster_file": ("Cluster",),
        "zmqrl.ps.flat": ("FlatParameters",),
        "zmqrl.ps.layout": ("Layout", "Slice"),
        "zmqrl.ps.shard.machine": ("ShardTiming",),
        "zmqrl.ps.shard.optimizer": ("OptimizerConfig",),
        "zmqrl.ps.standalone": ("StandaloneShards", "standalone_shards"),
        "zmqrl.ps.wire.codec": ("FloatVector",),
        "zmqrl.ps.wire.keys": ("ClientKeys", "RunKeys"),
        "zmqrl.ps.worker.connection": ("Connection", "PulledWeights"),
        "zmqrl.ps.worker.known_shard": ("Tally",),
        "zmqrl.ps.worker.machine": ("WorkerTiming",),
    }

    def __getattr__(name: str) -> object:
        for home, names in _HOMES.items():
            if name in names:
                return getattr(import_module(home), name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
