"""Real runs under attack: see ``support/nemesis.py``. ``make soak`` attacks for longer than ``make test-all``."""

import os
from pathlib import Path

import pytest
from support import nemesis

pytestmark = pytest.mark.processes


def test_a_traceback_in_a_log_is_a_crash_unless_a_write_has_failed(tmp_path: Path) -> None:
    begin = 'Traceback (most recent call last):\n  File "x.py", line 1, in <module>\n    f()\n    ~^^\n'
    (tmp_path / "worker-0.log").write_text(f"{begin}OSError: [Errno 27] File too large\nINFO goes on\n")
    (tmp_path / "worker-1.log").write_text(f"{begin}  File")  # a full disk has cut it
    (tmp_path / "worker-2.log").write_text(f"{begin}  File2026-11-29 12:00:00 INFO goes on\n2026-11-29 12:00:01 INFO\n")
    assert nemesis.crashes(tmp_path) == []
    (tmp_path / "shard-1.log").write_text(f"12:00:00 INFO up\n{begin}zmqrl.ps.story.BrokenInvariant: late\n    event\n")
    assert nemesis.crashes(tmp_path) == [f"shard-1.log: {begin}zmqrl.ps.story.BrokenInvariant: late"]


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_three_minutes_of_attacks_change_nothing_about_the_result(tmp_path: Path) -> None:
    assert nemesis.soak(3.0, tmp_path, 0, print) > 0


@pytest.mark.soak
@pytest.mark.timeout(0)
def test_attacks_change_nothing_about_the_result(tmp_path: Path) -> None:
    minutes, first = float(os.environ.get("MINUTES", "30")), int(os.environ.get("FIRST", "1000"))
    assert nemesis.soak(minutes, tmp_path, first, print) > 0
