"""Shared by all tests: Hypothesis profiles, markers, and fixtures for programs that not every machine has.

The default profile tries the same examples each time. ``make check`` uses ``quick``, which tries fewer examples.
``thorough`` tries many more: ``pytest --hypothesis-profile=thorough --timeout=0 tests/ps/test_protocol.py`` takes
several minutes.

Tests that use the network lab are marked ``lab``. Tests that use Slurm are marked ``slurm``. Both need root and Debian
packages. Most tests of complete runs are marked ``slow``. ``make test`` leaves out the tests with one of these three
marks.
"""

import importlib.util
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest
from hypothesis import HealthCheck, settings
from support import slurm as slurm_rig
from support.extras import extra_of
from support.lab import PROGRAMS, Lab, running_lab
from support.ray_rig import Addresses, running_ray
from support.slurm import Slurm, running_slurm
from xdist.scheduler import LoadGroupScheduling

settings.register_profile(
    "default",
    deadline=None,
    derandomize=True,
    max_examples=50,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.register_profile(
    "thorough", settings.get_profile("default"), derandomize=False, max_examples=1000, stateful_step_count=60
)
settings.register_profile("quick", settings.get_profile("default"), max_examples=10, stateful_step_count=20)
settings.load_profile("default")

# A shell makes background processes ignore SIGINT, and every process that the tests start would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

LANES = {"lab_of_all_tests": "lab", "need_a_lab": "lab", "slurm": "slurm"}  # the marker of each fixture
LABS = 3


def pytest_collection_modifyitems(items: list[pytest.Function]) -> None:
    """Mark tests as ``lab`` or ``slurm`` if they use one of these fixtures, and distribute lab tests over ``LABS``
    labs.
    """
    for item in items:
        for lane in {LANES[fixture] for fixture in item.fixturenames if fixture in LANES}:
            item.add_marker(lane)
    alone = [item for item in items if item.get_closest_marker("lab") and not shares_a_fixture(item)]
    for number, item in enumerate(alone):
        item.add_marker(pytest.mark.xdist_group(f"lab-{number % LABS}"))


def shares_a_fixture(item: pytest.Function) -> bool:
    """Whether the test uses a fixture that is made once for all tests of its file."""
    return any(each.scope == "module" for found in item._fixtureinfo.name2fixturedefs.values() for each in found)


class FilesAndGroups(LoadGroupScheduling):  # type: ignore[misc]  # pytest-xdist has no types
    """One process runs all tests of a file. One process runs all tests of a group, even from several files."""

    def _split_scope(self, nodeid: str) -> str:
        group: str = super()._split_scope(nodeid)
        return group.partition("::")[0]


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> FilesAndGroups:
    """Distribute the tests over the processes by file and by group."""
    return FilesAndGroups(config, log)


@pytest.fixture(scope="session")
def skip_or_fail() -> Callable[[str], NoReturn]:
    """Skips the test with a reason, or fails the test if `ZMQRL_REQUIRE_ALL` is set."""

    def stop(reason: str) -> NoReturn:
        if os.environ.get("ZMQRL_REQUIRE_ALL"):
            pytest.fail(f"ZMQRL_REQUIRE_ALL is set, but {reason}")
        pytest.skip(reason)

    return stop


@pytest.fixture(scope="session")
def need_programs(skip_or_fail: Callable[[str], NoReturn]) -> Callable[..., None]:
    """`need_programs("node", "npm")` skips the test unless all of these are on the PATH."""

    def need(*names: str) -> None:
        missing = [name for name in names if shutil.which(name) is None]
        if missing:
            skip_or_fail(f"{' and '.join(missing)} cannot be found on the PATH")

    return need


@pytest.fixture(scope="session")
def need_modules(skip_or_fail: Callable[[str], NoReturn]) -> Callable[..., None]:
    """`need_modules("mlflow")` skips the test unless all of these are installed."""

    def need(*names: str) -> None:
        specs = {name: importlib.util.find_spec(name) for name in names}
        # The output directory of a tracker can look like a package, but such a package has no file as its origin.
        missing = [name for name, spec in specs.items() if spec is None or spec.origin is None]
        if missing:
            extras = ",".join(map(extra_of, missing))
            skip_or_fail(f"{' and '.join(missing)} cannot be imported: pip install -e '.[{extras}]'")

    return need


@pytest.fixture(scope="session")
def install_packages(
    need_programs: Callable[..., None], skip_or_fail: Callable[[str], NoReturn]
) -> Callable[[Path], None]:
    """`install_packages(directory)` installs the packages in its lock file of npm, or skips the test."""

    def install(directory: Path) -> None:
        need_programs("node", "npm")
        command = ["npm", "ci", "--no-audit", "--no-fund", "--prefer-offline"]
        try:
            subprocess.run(command, cwd=directory, check=True, capture_output=True, text=True, timeout=180)
        except subprocess.TimeoutExpired:
            skip_or_fail(f"`npm ci` in {directory} took longer than 3 minutes")
        except subprocess.CalledProcessError as error:
            skip_or_fail(f"`npm ci` in {directory} failed: {error.stderr[-500:]}")

    return install


@pytest.fixture(scope="session")
def need_a_lab(need_programs: Callable[..., None], skip_or_fail: Callable[[str], NoReturn]) -> None:
    """Skips the test unless a network lab can be started."""
    need_programs(*PROGRAMS)
    if os.geteuid() != 0:
        skip_or_fail("a network lab needs root")
    command = ["unshare", "--net", "--mount", "--pid", "--fork", "true"]
    if subprocess.run(command, capture_output=True, timeout=180).returncode:
        skip_or_fail("this machine does not allow namespaces, which the network lab needs")


@pytest.fixture(scope="session")
def lab_of_all_tests(need_a_lab: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with running_lab(4, tmp_path_factory.mktemp("shared")) as lab:
        yield lab


@pytest.fixture(scope="module")
def slurm(
    need_programs: Callable[..., None],
    skip_or_fail: Callable[[str], NoReturn],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Slurm]:
    """A Slurm cluster of three nodes, n1 to n3, all on this machine."""
    need_programs(*slurm_rig.PROGRAMS)
    if os.geteuid() != 0:
        skip_or_fail("a private Slurm cluster needs root")
    with running_slurm(tmp_path_factory.mktemp("slurm")) as slurm:
        yield slurm


@pytest.fixture(scope="module")
def ray_addresses(need_modules: Callable[..., None]) -> Iterator[Addresses]:
    """A Ray cluster with two nodes of one CPU each, all on this machine."""
    need_modules("ray")
    with running_ray() as addresses:
        yield addresses


@pytest.fixture
def ray(ray_addresses: Addresses) -> str:
    """The address of the cluster on its machines."""
    return ray_addresses.inside


@pytest.fixture
def lab(lab_of_all_tests: Lab) -> Iterator[Lab]:
    """Hosts h1 to h4, each with its own network, SSH server and processes. The network is healed after each test."""
    yield lab_of_all_tests
    lab_of_all_tests.heal()
