"""A run in virtual time: the real state machines of shards and workers run on simulated hosts.

``simulate(scenario)`` is the entry point. ``docs/simulation.md`` lists what is not simulated. A module is imported when
one of its names is first used, because every run imports parts of this package but needs no simulator.
"""

from importlib import import_module

TYPE_CHECKING = False  # a process of this package cleans its import path before it imports modules such as typing
__all__ = ["ComputeTimes", "Failure", "Scenario", "ShardCosts", "SimulatedRun", "Straggler", "Work", "simulate"]

if TYPE_CHECKING:
    from zmqrl.simulate.compute import ComputeTimes, Work
    from zmqrl.simulate.scenario import Failure, Scenario, ShardCosts, Straggler
    from zmqrl.simulate.simulated_run import SimulatedRun
    from zmqrl.simulate.virtual.world import simulate
else:
    _HOMES = {
        "zmqrl.simulate.compute": ("ComputeTimes", "Work"),
        "zmqrl.simulate.simulated_run": ("SimulatedRun",),
        "zmqrl.simulate.scenario": ("Failure", "Scenario", "ShardCosts", "Straggler"),
        "zmqrl.simulate.virtual.world": ("simulate",),
    }

    def __getattr__(name: str) -> object:
        for home, names in _HOMES.items():
            if name in names:
                return getattr(import_module(home), name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
