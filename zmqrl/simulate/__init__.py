"""A run in virtual time: the real state machines of shards and workers run on simulated hosts.

``simulate(scenario)`` is the entry point. ``docs/simulation.md`` lists what is simulated and what is not.
"""

from zmqrl.simulate.compute import ComputeTimes, Work
from zmqrl.simulate.result import Result
from zmqrl.simulate.scenario import Failure, Scenario, ShardCosts, Straggler
from zmqrl.simulate.virtual.world import simulate

__all__ = ["ComputeTimes", "Failure", "Result", "Scenario", "ShardCosts", "Straggler", "Work", "simulate"]
