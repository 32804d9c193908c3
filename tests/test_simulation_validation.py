"""The validation of the simulator: its predictions, its fit and its comparison."""

import json
import math
import statistics
from typing import Any

import pytest
import simulation_validation as validation
from support.paths import ROOT

from zmqrl.observe.spans import SHARD_SPANS
from zmqrl.simulate import Scenario
from zmqrl.simulate.times import times_of


def test_the_held_out_scenarios_cover_the_required_range() -> None:
    scenarios: list[Scenario] = list(validation.held_out(150).values())
    assert len(scenarios) >= 16
    assert {each.workers for each in scenarios} >= {2, 16}
    assert {each.shards for each in scenarios} == {1, 2, 3, 4}
    assert {each.backups for each in scenarios} == {0, 1, 2, 3}
    assert len({each.parameters for each in scenarios}) == 2
    assert len({each.compute for each in scenarios}) == 3
    links = [each for each in scenarios if each.bandwidth < math.inf]
    assert links
    for each in links:  # all workers are on one host and the shards are not on it
        assert set(each.host_of_rank()) == {1}
        assert set(each.host_of_shard()) == {0}
    for each in scenarios:
        each.check()
    page = " ".join((ROOT / validation.PAGE).read_text(encoding="utf-8").split())
    assert f"{len(scenarios)} other scenarios with 2 to 16 workers" in page
    assert f"scenarios, {len(scenarios) - len(links)} run as with `--live`. In the other {len(links)}," in page


def test_the_distance_matches_kolmogorov_and_smirnov() -> None:
    assert validation.ks_distance([1.0, 2.0], [1.0, 2.0]) == 0.0
    assert validation.ks_distance([1.0, 2.0], [3.0]) == 1.0
    assert validation.ks_distance([1.0, 2.0, 3.0, 4.0], [2.5, 3.5, 4.5, 5.5]) == pytest.approx(0.5)


def test_a_fit_finds_lines_without_negative_coefficients() -> None:
    assert validation.line([0.0, 1e6, 2e6], [1e-3, 2e-3, 3e-3]) == pytest.approx([1e-3, 1e-9])
    assert validation.line([0.0, 1e6], [2e-3, 1e-3]) == pytest.approx([1.5e-3, 0.0])


def test_a_fit_recovers_known_costs() -> None:
    """A fit to the steps of a simulation with known costs predicts these steps."""
    truth: dict[str, Any] = {
        "costs": {name: [1e-4, 1e-9] for name in SHARD_SPANS},
        "worker": [1e-3, 1e-10],
        "rest": [2e-3, 1e-9, 5e-10],
    }
    rows: list[dict[str, Any]] = []
    for workers in (1, 2, 3):
        for parameters in (100_000, 300_000):
            scenario = Scenario(
                workers=workers, shards=1, parameters=parameters, compute="constant:0.1", updates=20, busy=0.0
            )
            size = 4 * parameters
            cost_s = 1e-4 + 1e-9 * size
            each = {name: cost_s * (workers if name in ("receive", "accumulate") else 1) for name in truth["costs"]}
            rows.append(
                {
                    "workers": workers,
                    "shards": 1,
                    "parameters": parameters,
                    "slice_bytes": size,
                    "median_s": statistics.median(validation.predicted(scenario, truth)[5:]),
                    "shard_s": each,
                    "worker_cpu_s": 1e-3 + 1e-10 * size,
                }
            )
    found = validation.fit(rows)
    for row in rows:
        scenario = Scenario(
            workers=row["workers"],
            shards=1,
            parameters=row["parameters"],
            compute="constant:0.1",
            updates=20,
            busy=0.0,
        )
        again_s = statistics.median(validation.predicted(scenario, found)[5:])
        assert again_s == pytest.approx(row["median_s"], rel=0.01)


def compared(name: str, predicted_s: float, median_s: float, *, cpu: float, draws_s: float = 0.08) -> dict[str, Any]:
    """A row of the results: every step takes the same time."""
    return validation.compared(name, [predicted_s], [median_s]) | {"cpu": cpu, "without_costs_s": draws_s}


def test_the_table_marks_missed_targets() -> None:
    good = compared("N2-b1-S1-100k-rare-none", 0.1, 0.1, cpu=0.2)
    bad = compared("N4-b0-S2-100k-wide-50mbit", 0.1, 0.2, cpu=0.5)
    text = validation.table([good, bad])
    assert "-50.0% **missed**" in text
    assert "| constant:0.15+exponential:0.15 | 50mbit | 80 | 100 | 200 |" in text
    assert "Rows that count: 2. Median error 25.0% (limit 10%), worst 50.0%" in text
    assert "(limit 25%): **missed**" in text
    assert "With the draws alone: median error 40.0%, worst 60.0%." in text
    assert json.loads(json.dumps(bad))["ks"] == 1.0


def test_rows_of_a_busy_machine_do_not_count() -> None:
    idle = compared("N2-b1-S1-100k-rare-none", 0.1, 0.1, cpu=0.5)
    busy = compared("N4-b0-S2-100k-wide-50mbit", 0.1, 0.2, cpu=0.51)
    text = validation.table([idle, busy])
    assert "51% **too busy**" in text
    assert "Rows that count: 1. Median error 0.0% (limit 10%), worst 0.0% (limit 25%): met." in text
    assert "With the draws alone: median error 20.0%, worst 20.0%." in text
    assert "distance 0.00." in text


def test_the_step_time_without_costs_is_the_slowest_draw_of_a_quorum_of_all_workers() -> None:
    results = json.loads((ROOT / validation.RESULTS / "results.json").read_text(encoding="utf-8"))
    kept = {row["name"]: row["without_costs_s"] for row in results["rows"]}
    scenarios = validation.held_out(validation.UPDATES)
    for name in ("N2-b0-S4-331k-narrow-none", "N3-b0-S1-100k-wide-50mbit"):
        draws = times_of(scenarios[name]).gradient
        slowest_s = [max(each) for each in zip(*(work.idle_s for work in draws), strict=True)]
        expected_s = statistics.median(slowest_s[validation.WARM_UP :])
        assert kept[name] == pytest.approx(expected_s, abs=1e-6)
        assert validation.without_costs_s(scenarios[name]) == pytest.approx(expected_s, abs=1e-6)
