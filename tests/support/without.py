"""Hides packages from a process, as if they were not installed."""

import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from typing import Any

from zmqrl.local.extras import EXTRAS


class Without:
    """A finder that does not find ``packages``, and asks ``finder`` for all others."""

    def __init__(self, finder: Any, packages: frozenset[str]) -> None:
        self.finder, self.packages = finder, packages

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: Any = None) -> ModuleSpec | None:
        if name.partition(".")[0] in self.packages:
            return None
        found: ModuleSpec | None = self.finder.find_spec(name, path, target)
        return found

    def __getattr__(self, name: str) -> Any:
        return getattr(self.finder, name)


def finders_without(*extras: str) -> list[Any]:
    """The finders of this process for ``sys.meta_path``. They do not find the packages of ``extras``."""
    packages = frozenset(modules_of(*extras))
    return [Without(finder, packages) for finder in sys.meta_path]


def modules_of(*extras: str) -> set[str]:
    """The names under which Python imports the packages of ``extras``."""
    return {module for extra in extras for module in EXTRAS[extra].values()}
