"""Commands that a test runs to their end."""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def ran(
    command: Sequence[str | Path], *, status: int = 0, within_s: float = 180.0, **options: Any
) -> "subprocess.CompletedProcess[str]":
    """Run a command, and assert its exit status. ``options`` are passed to ``subprocess.run``."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=within_s, check=False, **options)
    assert done.returncode == status, done.stdout + done.stderr
    return done


def ran_zmqrl(*arguments: str | Path, status: int = 0) -> "subprocess.CompletedProcess[str]":
    """Run a command of zmqrl, and assert its exit status."""
    return ran([sys.executable, "-m", "zmqrl", *arguments], status=status)
