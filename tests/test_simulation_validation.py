"""The validation of the simulator: its predictions, its fit and its comparison."""

import json
import math
import statistics
from pathlib import Path
from typing import Any

import pytest
import simulation_validation as validation
from support.paths import ROOT

from zmqrl.observe.spans import SHARD_SPANS
from zmqrl.simulate import Scenario


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


def test_the_table_marks_missed_targets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- validation -->\nold\n<!-- end -->\nafter\n", encoding="utf-8")
    monkeypatch.setattr(validation, "PAGE", page)
    good = validation.compared("N2-b1-S1-100k-rare-none", [0.1, 0.1], [0.1, 0.11]) | {"cpu": 0.2}
    bad = validation.compared("N4-b0-S2-100k-wide-50mbit", [0.1, 0.1], [0.2, 0.2]) | {"cpu": 0.9}
    validation.write_table([good, bad])
    text = page.read_text(encoding="utf-8")
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "old" not in text
    assert "-50.0% **missed**" in text
    assert "90% **too busy**" in text
    assert "| constant:0.15+exponential:0.15 | 50mbit | 100 | 200 |" in text
    assert "(limit 25%): **missed**" in text
    assert json.loads(json.dumps(bad))["ks"] == 1.0
