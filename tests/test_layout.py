"""The layout of the package: imports only go down, folders stay small, and every named module exists."""

import ast
import importlib.util
import re
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from support.paths import ROOT

from zmqrl.cli import COMMANDS

PACKAGE = ROOT / "zmqrl"
MOST_MODULES_IN_A_FOLDER = 16

# From the bottom up. A module imports from its own unit and from earlier lines, never from other units of its line.
ORDER = (
    ("__init__",),  # it also imports the policy, but only on request
    ("errors", "process_id", "words"),
    ("process", "child_process", "json_lines"),
    ("local",),
    ("rundir",),
    ("observe",),
    ("hostd",),
    ("profile",),
    ("page",),
    ("ps",),
    ("learner",),
    ("simulate",),  # of the learner, only the settings of the algorithms
    ("checkpoint",),
    ("config",),
    ("recipes", "start"),
    ("results",),
    ("policy",),
    ("reporter",),
    ("worker",),
    ("hosts",),
    ("supervisor",),
    ("bench",),
    ("commands",),
    ("cli",),
    ("__main__",),
)
# The same for the parameter server.
ORDER_IN_PS = (
    ("layout", "schedule", "story", "wire"),
    ("cluster_file", "control", "flat"),
    ("shard", "worker"),
    ("standalone",),
    ("__init__",),
)
LEVELS = {
    package: {unit: level for level, units in enumerate(order) for unit in units}
    for package, order in {"zmqrl": ORDER, "zmqrl.ps": ORDER_IN_PS}.items()
}
DAEMON_OF_OLDER_CODE = "zmqrl.cluster.agent"  # named in cluster.json files that older code wrote
FOR_HOSTD = (
    "zmqrl",
    "zmqrl.errors",
    "zmqrl.json_lines",
    "zmqrl.process",
    "zmqrl.process_id",
    "zmqrl.rundir",
    "zmqrl.observe.provenance",
    "zmqrl.hostd",
)
MODULES = {
    ".".join(("zmqrl", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
}


def unit_of(module: str, package: str = "zmqrl") -> str:
    """The folder or module below ``package`` that contains ``module``. It is ``__init__`` for the package itself."""
    return [*module.removeprefix(package).split("."), "__init__"][1]


def within(module: str, package: str) -> bool:
    return f"{module}.".startswith(f"{package}.")


@cache
def tree_of(path: Path) -> ast.Module:
    """The syntax tree of a file."""
    return ast.parse(path.read_text(encoding="utf-8"))


@cache
def imports_of(path: Path) -> list[tuple[int, str]]:
    """The line and module of every import, even within functions. ``from a import b`` gives a.b if that is a module.

    Imports for type checking are left out.
    """
    tree = tree_of(path)
    for_types = [node for node in ast.walk(tree) if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)]
    skipped = {id(inner) for node in for_types for inner in ast.walk(node)}
    found = []
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.module is not None
            named = [f"{node.module}.{alias.name}" for alias in node.names]
            found += [(node.lineno, name if name in MODULES else node.module) for name in named]
    return found


def ours(path: Path) -> Iterator[tuple[int, str]]:
    yield from ((line, module) for line, module in imports_of(path) if module.split(".")[0] == "zmqrl")


@pytest.mark.parametrize("package", LEVELS)
def test_every_module_belongs_to_a_unit_in_the_import_order(package: str) -> None:
    assert {unit_of(module, package) for module in MODULES if within(module, package)} == set(LEVELS[package])


@pytest.mark.parametrize("package", LEVELS)
def test_a_module_imports_only_from_its_own_unit_and_lower_ones(package: str) -> None:
    levels = LEVELS[package]
    assert not [
        f"{MODULES[module]}:{line} imports {imported}"
        for module in MODULES
        if module != "zmqrl" and within(module, package)
        for line, imported in ours(MODULES[module])
        if within(imported, package)
        for unit, other in [(unit_of(module, package), unit_of(imported, package))]
        if unit != other and levels[other] >= levels[unit]
    ]


def test_the_parameter_server_and_the_learner_do_not_import_each_other() -> None:
    assert not [
        f"{MODULES[module]}:{line} imports {imported}"
        for module in MODULES
        for line, imported in ours(MODULES[module])
        if {unit_of(module), unit_of(imported)} == {"ps", "learner"}
    ]


@pytest.mark.processes
def test_the_host_daemon_needs_little_beyond_the_standard_library() -> None:
    assert not [
        f"{MODULES[module]}:{line} imports {imported}"
        for module in MODULES
        for line, imported in imports_of(MODULES[module])
        if unit_of(module) == "hostd"
        and imported not in FOR_HOSTD
        and not imported.startswith("zmqrl.hostd.")
        and imported.split(".")[0] not in sys.stdlib_module_names
    ]


def test_no_folder_has_too_many_modules() -> None:
    folders = {path.parent for path in MODULES.values()}
    sizes = {folder: len(list(folder.glob("*.py"))) for folder in folders}
    assert not {folder: size for folder, size in sizes.items() if size > MOST_MODULES_IN_A_FOLDER}


# modules named in strings and documents


def named_in_code() -> Iterator[tuple[str, str]]:
    """The place and name of each zmqrl module in a string, such as ``"zmqrl.worker"`` or ``-m zmqrl.worker``."""
    named = re.compile(r"zmqrl(?:\.[a-z_]\w*)+")
    after_m = re.compile(r"-m (zmqrl(?:\.[a-z_]\w*)*)")
    for folder in ("zmqrl", "tests", "benchmarks", "launch"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            for node in ast.walk(tree_of(path)):
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    names = [node.value] if named.fullmatch(node.value) else after_m.findall(node.value)
                    yield from ((f"{path.relative_to(ROOT)}:{node.lineno}", name) for name in names)


def named_in_texts() -> Iterator[tuple[str, str]]:
    """The place and name of each module in documents, scripts and the project file: after ``-m``, or in code."""
    named = re.compile(r"(?:-m |`|from |import )(zmqrl(?:\.[a-z_]\w*)*)(?=[`\s\n]|$)")
    scripts = [path for path in (ROOT / "launch").rglob("*") if path.is_file() and path.suffix in ("", ".sh")]
    texts = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), ROOT / "Makefile", *scripts]
    for path in sorted(texts):
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            yield from ((f"{path.relative_to(ROOT)}:{number}", name) for name in named.findall(line))


def exists(name: str) -> bool:
    """Whether ``name`` is a module or a name in a module."""
    if name in MODULES:
        return importlib.util.find_spec(name) is not None
    module, _, attribute = name.rpartition(".")
    if module not in MODULES:
        return False
    tree = tree_of(MODULES[module])
    return any(attribute in (getattr(node, "name", None), getattr(node, "id", None)) for node in ast.walk(tree)) or any(
        attribute == alias.name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for alias in node.names
    )


def test_every_module_named_in_code_and_documents_exists() -> None:
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["scripts"]
    found = [
        *named_in_code(),
        *named_in_texts(),
        *(("pyproject.toml", script.partition(":")[0]) for script in scripts.values()),
        *(("the table of commands", f"zmqrl.commands.{command.module}.command") for command in COMMANDS.values()),
    ]
    assert len(found) > 20, "the search no longer finds modules"
    assert not [f"{place} names {name}" for place, name in found if not exists(name) and name != DAEMON_OF_OLDER_CODE]
