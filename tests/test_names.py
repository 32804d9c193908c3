"""One name, one meaning: a public class of the package shares its name with no other class or type."""

import ast
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from support.paths import ROOT
from support.sources import ABOUT_SOURCES, nodes_of, tree_of

pytestmark = ABOUT_SOURCES

PACKAGE = ROOT / "zmqrl"

# Names that occur more than once, each with the reason.
SHARED = {
    "Options": "each command has its own: cli.py and the completion find it by this name",
    "Event": "the events of each state machine, of the launcher and of the host daemon, imported with their module",
    "Action": "the actions of each state machine, imported with their module",
    "Tick": "the same event of each state machine: time has passed",
    "ControlArrived": "the same event of both ends of a connection: a control message has arrived",
    "Log": "the same action of the machines of shards and workers: write a line to the log",
    "Checkpoint": "the message CHECKPOINT, whose class has its name, asks a shard for its part of a checkpoint",
    "Totals": "the same counts, with their limit on the wire and without it",
}


def types_of(path: Path) -> Iterator[str]:
    """The names of public classes, and of public type aliases at the top of a module."""
    for node in nodes_of(path):
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            yield node.name
    for node in tree_of(path).body:
        targets = (
            node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        )
        for target in targets:
            if isinstance(target, ast.Name) and target.id[:1].isupper() and not target.id.isupper():
                yield target.id


def test_the_name_of_a_public_class_occurs_once() -> None:
    modules = defaultdict(list)
    for path in sorted(PACKAGE.rglob("*.py")):
        for name in types_of(path):
            modules[name].append(str(path.relative_to(ROOT)))
    shared = {name: found for name, found in modules.items() if len(found) > 1}
    assert {name: found for name, found in shared.items() if name not in SHARED} == {}
    assert set(SHARED) <= set(shared), "remove names that no longer occur twice"
