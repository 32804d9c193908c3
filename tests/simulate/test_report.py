"""The page and the table of a simulated run."""

from dataclasses import replace

from rich.console import Console

from zmqrl.simulate.report import assumed, report, table
from zmqrl.simulate.scenario import Scenario
from zmqrl.simulate.virtual.world import simulate


def test_a_count_of_one_has_a_singular_noun() -> None:
    one = Scenario(workers=1, shards=1, backups=1, hosts=1, cores=4, updates=1, compute="constant:0.1")
    first, second = report(simulate(one)).splitlines()[:2]
    assert first == "1 worker, 1 backup, quorum 1, 1 shard on 1 host; seed 1"
    assert second.startswith("1 update in ")


def test_the_network_cards_of_a_live_run_are_not_measured() -> None:
    result = simulate(Scenario(updates=3, bandwidth=1e8))
    assert report(result).splitlines()[-1].startswith("network cards  the busiest used ")
    live = replace(result, live=True, nics=())
    assert report(live).splitlines()[-1] == "network cards  not measured"
    console = Console(width=200)
    with console.capture() as printed:
        console.print(table([live], []))
    assert printed.get().splitlines()[1].split()[-1].endswith("%")  # the last column is waiting
    assert live.to_json()["nic_use"] == {"outgoing": [], "incoming": []}


def test_a_plan_says_which_hosts_it_assumes() -> None:
    everything = Scenario(hosts=1, cores=2, bandwidth=125e6)
    assert assumed(everything) == "assumed: 1 host, 2 cores per host, 125 MB/s per host"
    assert assumed(Scenario()) == "assumed: a host for each process, a core for each process, unlimited bandwidth"
