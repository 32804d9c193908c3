"""The syntax of Python files, for tests about the code."""

import ast
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

import pytest
from support.paths import TESTS

# One process reads the files for the tests of all files with this mark.
ABOUT_SOURCES = pytest.mark.xdist_group("sources")


# without the packages that tests install
TEST_FILES = [path for path in sorted(TESTS.rglob("*.py")) if "node_modules" not in path.parts]


@cache
def tree_of(path: Path) -> ast.Module:
    """The syntax tree of a file."""
    return ast.parse(path.read_text(encoding="utf-8"))


@cache
def nodes_of(path: Path) -> tuple[ast.AST, ...]:
    """All nodes of the syntax tree of a file."""
    return tuple(ast.walk(tree_of(path)))


def calls(nodes: Iterable[ast.AST], *names: str) -> Iterator[ast.Call]:
    """The calls of a function or method with one of ``names``."""
    for node in nodes:
        if isinstance(node, ast.Call) and (getattr(node.func, "attr", None) or getattr(node.func, "id", None)) in names:
            yield node
