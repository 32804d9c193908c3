"""The policies in benchmarks/results still play the same games as in their evaluations."""

import dataclasses
import json
from pathlib import Path

import pytest
from support.paths import ROOT
from support.policy_rig import CARTPOLE, write_run

from zmqrl.commands.measure.evaluate import evaluate
from zmqrl.policy import load_policy

pytestmark = pytest.mark.processes

RESULTS = ROOT / "benchmarks/results"
EVALUATIONS = sorted(RESULTS.glob("*/evaluation.json"))
GAMES = 2


@pytest.mark.slow
@pytest.mark.parametrize("file", EVALUATIONS, ids=lambda file: file.parent.name)
def test_a_kept_policy_gets_the_same_scores_on_any_machine(file: Path) -> None:
    """The evaluations ran on one kind of processor. This test can run on any processor."""
    kept = json.loads(file.read_text(encoding="utf-8"))
    policy = load_policy(file.parent, kept["version"])
    played = evaluate(policy, kept["seeds"][:GAMES], greedy=kept["greedy"], threads=GAMES)
    assert played["scores"] == kept["scores"][:GAMES]
    assert played["flavour"] == kept["flavour"]


def test_the_scores_do_not_depend_on_the_number_of_shards(tmp_path: Path) -> None:
    scores = []
    for shards in (1, 2, 3):
        run = write_run(tmp_path / str(shards), dataclasses.replace(CARTPOLE, shards=shards), 0)
        assert len(list(run.glob("checkpoints/*/optimizer-*"))) == shards
        scores.append(evaluate(load_policy(run), range(5), greedy=False, threads=2)["scores"])
    assert scores[0] == scores[1] == scores[2]
