"""The page and the table of a simulated run."""

from zmqrl.simulate.report import report
from zmqrl.simulate.scenario import Scenario
from zmqrl.simulate.virtual.world import simulate


def test_a_count_of_one_has_a_singular_noun() -> None:
    one = Scenario(workers=1, shards=1, backups=1, hosts=1, cores=4, updates=1, compute="constant:0.1")
    first, second = report(simulate(one)).splitlines()[:2]
    assert first == "1 worker, 1 backup, quorum 1, 1 shard on 1 host; seed 1"
    assert second.startswith("1 update in ")
