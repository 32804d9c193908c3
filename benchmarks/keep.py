"""Keep the result of a run in a form small enough for a repository: settings, thinned metrics and the policy.

    python benchmarks/keep.py RUN NAME

The result is the run directory ``benchmarks/results/NAME``, which ``zmqrl eval``, ``record``, ``plot`` and ``compare``
can read. A run of code that no commit has (a commit that ends with ``+``) is refused: such a result cannot be repeated.
"""

import argparse
import json
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from zmqrl.checkpoint import checkpoints
from zmqrl.observe.records import RunRecord, merged_rows

RESULTS = Path(__file__).parent / "results"
ROW_EVERY_S, FEWEST_ROWS = 30.0, 20


def thinned(run: Path) -> list[Mapping[str, Any]]:
    """About one row per half minute of training, or twenty rows for a short run, and always the last row. Each row has
    the means of the rows that it replaces.
    """
    rows = RunRecord.read(run).rows
    every_s = min(ROW_EVERY_S, rows[-1]["wall_s"] / FEWEST_ROWS)
    kept, due_s, since = list[Mapping[str, Any]](), 0.0, list[Mapping[str, Any]]()
    for row in rows:
        since.append(row)
        if row["wall_s"] >= due_s or row is rows[-1]:
            kept.append(merged_rows(since))
            since = []
            due_s = (row["wall_s"] // every_s + 1) * every_s
    return kept


def keep(run: Path, name: str) -> Path:
    """Copy the result of ``run``. Returns the new directory. Exits if the code of the run has no commit, or if ``name``
    has a result.
    """
    commit = json.loads((run / "summary.json").read_text(encoding="utf-8"))["provenance"]["commit"]
    if str(commit).endswith("+"):
        sys.exit(f"{run} ran with changes after commit {commit[:-1]}: commit the changes, and train again.")
    kept = RESULTS / name
    if (kept / "config.json").exists():
        sys.exit(f"{kept} has a result: remove its files first, or choose another name.")
    kept.mkdir(parents=True, exist_ok=True)
    config = json.loads((run / "config.json").read_text(encoding="utf-8")) | {"run_dir": f"runs/{name}"}
    (kept / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in thinned(run)), encoding="utf-8")
    for file in [run / "summary.json", *run.glob("evaluations.jsonl"), *run.glob("evaluation.json")]:
        shutil.copy(file, kept)
    if (run / "videos").exists():
        shutil.copytree(run / "videos", kept / "videos", dirs_exist_ok=True)
    newest = checkpoints(run / "checkpoints")[-1]
    policy = kept / "checkpoints" / newest.name
    policy.mkdir(parents=True, exist_ok=True)
    for part in ("manifest.json", "model.safetensors"):
        shutil.copy(newest / part, policy)
    (kept / "config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
    return kept


def main() -> None:
    """Keep the result of one run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("name")
    arguments = parser.parse_args()
    print(keep(arguments.run, arguments.name))


if __name__ == "__main__":
    main()
