"""What tests share that need programs which not every machine has."""

import os
import shutil
from collections.abc import Callable
from typing import NoReturn

import pytest


@pytest.fixture(scope="session")
def skip_or_fail() -> Callable[[str], NoReturn]:
    """Skips the test with a reason, or fails it where `ZMQRL_REQUIRE_ALL` says that nothing may be missing."""

    def stop(reason: str) -> NoReturn:
        if os.environ.get("ZMQRL_REQUIRE_ALL"):
            pytest.fail(f"ZMQRL_REQUIRE_ALL is set, but {reason}")
        pytest.skip(reason)

    return stop


@pytest.fixture(scope="session")
def need_programs(skip_or_fail: Callable[[str], NoReturn]) -> Callable[..., None]:
    """`need_programs("node", "npm")` goes on only where all of these are on the PATH."""

    def need(*names: str) -> None:
        missing = [name for name in names if shutil.which(name) is None]
        if missing:
            skip_or_fail(f"{' and '.join(missing)} cannot be found on the PATH")

    return need
