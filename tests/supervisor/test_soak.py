"""Real runs under attack: see ``support/nemesis.py``. ``make soak`` attacks for longer than ``make test-all``."""

import os
from pathlib import Path

import pytest
from support import nemesis

pytestmark = pytest.mark.processes


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_three_minutes_of_attacks_change_nothing_about_the_result(tmp_path: Path) -> None:
    assert nemesis.soak(3.0, tmp_path, 0, print) > 0


@pytest.mark.soak
@pytest.mark.timeout(0)
def test_attacks_change_nothing_about_the_result(tmp_path: Path) -> None:
    minutes, first = float(os.environ.get("MINUTES", "30")), int(os.environ.get("FIRST", "1000"))
    assert nemesis.soak(minutes, tmp_path, first, print) > 0
