"""No test waits forever for a process that it has started."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.paths import TESTS

FILES = sorted(path for path in TESTS.rglob("*.py") if "node_modules" not in path.parts)
# The host daemons end what the first starts. The second kills what it has started.
THE_TESTED = {"a_child.py", "a_killing_command.py"}


@pytest.mark.parametrize("path", [path for path in FILES if path.name not in THE_TESTED], ids=lambda path: path.stem)
def test_every_process_that_a_test_starts_is_ended(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    ended = {id(call.args[0]) for call in calls(tree, "ending") if call.args}
    made = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Return)}  # the caller must use `ending`
    for call in calls(tree, "Popen"):
        assert id(call) in ended | made, f"{path.name}:{call.lineno}: nothing ends this process: use rig.ending"
    for call in calls(tree, "run"):
        if ast.unparse(call.func) == "subprocess.run":
            assert "timeout" in {each.arg for each in call.keywords}, f"{path.name}:{call.lineno}: no timeout"


def calls(tree: ast.AST, name: str) -> Iterator[ast.Call]:
    """The calls of a function or method with this name."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] == name:
            yield node
