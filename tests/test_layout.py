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
from support.sources import ABOUT_SOURCES, nodes_of

from zmqrl.commands import COMMANDS, Command

pytestmark = ABOUT_SOURCES

PACKAGE = ROOT / "zmqrl"
MOST_MODULES_IN_A_FOLDER = 16

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
FREE_OF_ZMQ_AND_TORCH = (
    "zmqrl.ps.layout",
    "zmqrl.ps.shard.events",
    "zmqrl.ps.shard.machine",
    "zmqrl.ps.wire.messages",
    "zmqrl.ps.worker.events",
    "zmqrl.ps.worker.machine",
    "zmqrl.supervisor.events",
    "zmqrl.supervisor.machine",
)
MODULES = {
    ".".join(("zmqrl", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
}


def rows_of_the_table() -> list[list[str]]:
    """The files and folders in each row of the table of folders, from the bottom up."""
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    section = page.partition("\n## Folders\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (`[^|]*) \|", section, re.MULTILINE)
    return [re.findall(r"`([^`]+)`", row) for row in reversed(rows)]


def levels_of(package: str) -> dict[str, int]:
    """The level of each unit of ``package``, by the table: 0 is the lowest row.

    A row with the folder of ``package`` itself contains its ``__init__``.
    """
    folder = "".join(f"{part}/" for part in package.split(".")[1:])
    levels = {}
    for level, row in enumerate(rows_of_the_table()):
        for name in row:
            unit = name.removeprefix(folder).removesuffix("/").removesuffix(".py")
            if name.startswith(folder) and "/" not in unit:
                assert unit not in levels, f"{name} is in two rows"
                levels[unit or "__init__"] = level
    return levels


LEVELS = {package: levels_of(package) for package in ("zmqrl", "zmqrl.ps")}


def unit_of(module: str, package: str = "zmqrl") -> str:
    """The folder or module below ``package`` that contains ``module``. It is ``__init__`` for the package itself."""
    return [*module.removeprefix(package).split("."), "__init__"][1]


def within(module: str, package: str) -> bool:
    return f"{module}.".startswith(f"{package}.")


@cache
def imports_of(path: Path, *, at_start: bool = False) -> list[tuple[int, str]]:
    """The line and module of every import, even within functions. ``from a import b`` gives a.b if that is a module.

    Imports for type checking are left out. If ``at_start``, those within functions are left out, too.
    """
    nodes = nodes_of(path)
    for_types = [node for node in nodes if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)]
    functions = [node for node in nodes if at_start and isinstance(node, ast.FunctionDef)]
    skipped = {id(inner) for node in (*for_types, *functions) for inner in ast.walk(node)}
    found = []
    for node in nodes:
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


@pytest.mark.parametrize("module", FREE_OF_ZMQ_AND_TORCH)
def test_state_machines_messages_and_layout_import_neither_zmq_nor_torch(module: str) -> None:
    missing = [module]
    loaded: dict[str, set[str]] = {}
    while missing:
        each = missing.pop()
        loaded[each] = {imported for _, imported in imports_of(MODULES[each], at_start=True)}
        parents = {each.rpartition(".")[0]} - {""}
        missing += [name for name in loaded[each] | parents if name in MODULES and name not in loaded]
    assert len(loaded) > 3, "the search no longer finds imports"
    assert not [
        f"{each} imports {name}"
        for each, names in loaded.items()
        for name in names
        if name.partition(".")[0] in ("zmq", "torch")
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


def test_every_folder_of_tests_has_the_name_of_a_folder_of_the_package() -> None:
    folders = {path.parent.relative_to(ROOT / "tests") for path in (ROOT / "tests").rglob("test_*.py")}
    assert len(folders) > 10, "the search no longer finds tests"
    assert not [str(folder) for folder in folders if not (PACKAGE / folder / "__init__.py").exists()]


# modules named in strings and documents


def named_in_code() -> Iterator[tuple[str, str]]:
    """The place and name of each zmqrl module in a string, such as ``"zmqrl.worker"`` or ``-m zmqrl.worker``."""
    named = re.compile(r"zmqrl(?:\.[a-z_]\w*)+")
    after_m = re.compile(r"-m (zmqrl(?:\.[a-z_]\w*)*)")
    for folder in ("zmqrl", "tests", "benchmarks", "launch"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            for node in nodes_of(path):
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    names = [node.value] if named.fullmatch(node.value) else after_m.findall(node.value)
                    yield from ((f"{path.relative_to(ROOT)}:{node.lineno}", name) for name in names)


def named_in_texts() -> Iterator[tuple[str, str]]:
    """The place and name of each module in documents, scripts and the project file: after ``-m``, in code, or where
    mkdocstrings inserts the docstring of a name.
    """
    named = re.compile(r"(?:-m |`|from |import |^::: )(zmqrl(?:\.[A-Za-z_]\w*)*)(?=[`\s\n]|$)")
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
    nodes = nodes_of(MODULES[module])
    return any(attribute in (getattr(node, "name", None), getattr(node, "id", None)) for node in nodes) or any(
        attribute == alias.name for node in nodes if isinstance(node, ast.ImportFrom) for alias in node.names
    )


def needed_by(command: Command) -> list[str]:
    """The names that ``run_command`` looks up for ``command``."""
    module = f"zmqrl.commands.{command.module}"
    parses = exists(f"{module}.command")
    return [f"{module}.{name}" for name in (["command"] if parses else ["Options", "run"])]


def test_every_module_named_in_code_and_documents_exists() -> None:
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["scripts"]
    found = [
        *named_in_code(),
        *named_in_texts(),
        *(("pyproject.toml", script.partition(":")[0]) for script in scripts.values()),
        *(("the table of commands", name) for command in COMMANDS.values() for name in needed_by(command)),
    ]
    assert len(found) > 20, "the search no longer finds modules"
    assert not [f"{place} names {name}" for place, name in found if not exists(name) and name != DAEMON_OF_OLDER_CODE]
