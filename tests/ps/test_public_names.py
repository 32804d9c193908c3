"""The public names of ``zmqrl.ps``: everything that a program needs to use the parameter server alone."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from zmqrl import ps

EXAMPLE = Path(__file__).parents[2] / "docs" / "examples" / "plain_torch.py"


def test_the_public_names_are_these() -> None:
    assert ps.__all__ == [
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


@pytest.mark.parametrize("name", ps.__all__)
def test_every_public_name_can_be_imported(name: str) -> None:
    assert getattr(ps, name) is not None


def test_any_other_name_is_an_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Nonsense'"):
        ps.Nonsense  # type: ignore[attr-defined]  # noqa: B018


def test_the_example_imports_only_the_public_names() -> None:
    tree = ast.parse(EXAMPLE.read_text(encoding="utf-8"))
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    assert {node.module for node in imports if str(node.module).startswith("zmqrl")} == {"zmqrl.ps"}
    names = [name.name for node in imports if node.module == "zmqrl.ps" for name in node.names]
    assert set(names) <= set(ps.__all__)


@pytest.mark.processes
def test_the_example_learns() -> None:
    done = subprocess.run([sys.executable, EXAMPLE], stdout=subprocess.PIPE, text=True, timeout=300)
    assert done.returncode == 0
    losses = [float(loss) for loss in re.findall(r"^version \d+: loss (\S+)$", done.stdout, re.MULTILINE)]
    assert len(losses) == 5
    assert losses[-1] < losses[0] / 100


@pytest.mark.processes
@pytest.mark.parametrize(
    "module", ["zmqrl.ps", "zmqrl.ps.shard.server", "zmqrl.ps.worker.connection", "zmqrl.ps.standalone"]
)
def test_a_process_that_trains_no_network_does_not_import_torch(module: str) -> None:
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
