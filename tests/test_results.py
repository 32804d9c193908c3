"""The policies in benchmarks/results still play the same games, and their commits have the code of the runs."""

import dataclasses
import json
import subprocess
from pathlib import Path

import keep
import pytest
from support.paths import ROOT
from support.policy_rig import CARTPOLE, write_run
from support.result_rig import ORIGIN, write_result

import zmqrl
from zmqrl.commands.measure.evaluate import evaluate
from zmqrl.observe.provenance import code_hash
from zmqrl.policy import load_policy

pytestmark = pytest.mark.processes

RESULTS = ROOT / "benchmarks/results"
EVALUATIONS = sorted(RESULTS.rglob("evaluation.json"))
SUMMARIES = {file.parent: json.loads(file.read_text(encoding="utf-8")) for file in RESULTS.rglob("summary.json")}
GAMES = 2


def name_of(result: Path) -> str:
    return str(result.relative_to(RESULTS))


@pytest.mark.slow
@pytest.mark.parametrize("file", EVALUATIONS, ids=lambda file: name_of(file.parent))
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


@pytest.fixture(scope="module")
def whole_history() -> None:
    """Skips the test in a copy without git, and in a shallow checkout, even if all tests are required."""
    command = ["git", "-C", str(ROOT), "rev-parse", "--is-shallow-repository"]
    is_checkout = (ROOT / ".git").exists()
    if not is_checkout or subprocess.run(command, capture_output=True, check=True, timeout=60).stdout != b"false\n":
        pytest.skip("this is not a git checkout with its whole history: git fetch --unshallow")


@pytest.mark.usefixtures("whole_history")
@pytest.mark.parametrize("path", [path for path, summary in SUMMARIES.items() if "hosts" in summary], ids=name_of)
def test_the_commit_of_a_kept_result_has_the_code_that_its_hosts_ran(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = SUMMARIES[path]["provenance"]["commit"]
    found = subprocess.run(["git", "-C", ROOT, "archive", commit, "zmqrl"], capture_output=True, timeout=60)
    assert found.returncode == 0, found.stderr
    subprocess.run(["tar", "-x", "-C", tmp_path], input=found.stdout, check=True, timeout=60)
    monkeypatch.setattr(zmqrl, "__file__", str(tmp_path / "zmqrl" / "__init__.py"))
    assert {host["code"] for host in SUMMARIES[path]["hosts"]} == {code_hash()}


def test_a_run_of_code_without_a_commit_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = write_result(tmp_path / "run")
    summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    (run / "summary.json").write_text(json.dumps(summary | {"provenance": ORIGIN | {"commit": "abc+"}}))
    monkeypatch.setattr(keep, "RESULTS", tmp_path / "results")
    with pytest.raises(SystemExit, match="ran with changes after commit abc: commit the changes, and train again"):
        keep.keep(run, "kept")
    assert not (tmp_path / "results").exists()


def test_a_run_is_not_kept_in_the_directory_of_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keep, "RESULTS", tmp_path / "results")
    other = write_result(tmp_path / "results" / "kept")
    before = {file: file.read_bytes() for file in other.iterdir()}
    with pytest.raises(SystemExit, match="kept has a result: remove its files first"):
        keep.keep(write_result(tmp_path / "run"), "kept")
    assert {file: file.read_bytes() for file in other.iterdir()} == before
