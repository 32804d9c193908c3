"""Sends the rows of ``metrics.jsonl`` to Weights & Biases, or keeps them in the run directory for ``wandb sync``."""

import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import wandb

from zmqrl.errors import UsageError
from zmqrl.json_lines import read_file
from zmqrl.observe.trackers.tensorboard import scalars

FINISH_WITHIN_S: Final = 20.0  # rows not sent by then stay on disk, for wandb sync


class WandB:
    """One run of Weights & Biases. A resumed run continues its W&B run.

    The environment variables of W&B configure it: ``WANDB_MODE``, ``WANDB_PROJECT`` (default: ``zmqrl``),
    ``WANDB_NAME``...
    """

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        """``path`` is the run directory. Raises UsageError if there is no API key, and the errors of W&B."""
        session = wandb.setup(wandb.Settings(silent=True, console="off", finish_timeout=FINISH_WITHIN_S))
        # W&B must not ask for a key on the terminal, which the run uses.
        if session.settings.mode == "online" and not wandb.login(prompt=False):
            raise UsageError("it has no API key: run wandb login, or set WANDB_MODE=offline.")
        known = path / "wandb-run-id"
        if not known.exists():
            known.write_text(f"{os.environ.get('WANDB_RUN_ID') or secrets.token_hex(4)}\n", encoding="utf-8")
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "zmqrl"),
            name=os.environ.get("WANDB_NAME", path.name),
            id=read_file(known).decode().strip(),
            resume="allow",
            dir=path,
            config=dict(settings),
            allow_val_change=True,
        )
        # The step of W&B must never decrease, but a run that goes back to a checkpoint repeats versions.
        self._run.define_metric("*", step_metric="charts/version")

    def log(self, row: Mapping[str, Any], step: int) -> None:
        self._run.log(dict(scalars(row)))

    def close(self, summary: Mapping[str, Any] | None = None) -> None:
        if summary is not None:
            self._run.summary.update(dict(summary))
        self._run.finish(exit_code=int(summary is None or summary["exit_reason"] == "failed"))
