"""Sends the rows of ``metrics.jsonl`` to MLflow: to a tracking server, or to a database in the run directory."""

import logging
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from mlflow import MlflowClient
from mlflow.entities import Metric, Param

from zmqrl.json_lines import read_file
from zmqrl.observe.records import flat
from zmqrl.observe.trackers.tensorboard import scalars

STATUS: Final = {"failed": "FAILED", "interrupted": "KILLED"}


class MLflow:
    """One MLflow run. A resumed run continues its MLflow run.

    ``MLFLOW_TRACKING_URI``, ``MLFLOW_EXPERIMENT_ID`` and ``MLFLOW_EXPERIMENT_NAME`` choose the server and the
    experiment. The defaults are ``mlflow.db`` in the run directory, and the experiment ``zmqrl``.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        """``path`` is the run directory. Raises the errors of MLflow, such as MlflowException."""
        logging.getLogger("mlflow").setLevel(logging.WARNING)  # only the run should write to the console
        server = os.environ.get("MLFLOW_TRACKING_URI")
        self._client = MlflowClient(tracking_uri=server or f"sqlite:///{path / 'mlflow.db'}")
        known = path / "mlflow-run-id"
        if known.exists():
            self._run = read_file(known).decode().strip()
            self._client.update_run(self._run, status="RUNNING")
            return  # MLflow already has the settings, and does not allow changes
        experiment = self._experiment(None if server else (path / "mlflow-artifacts").as_uri())
        self._run = self._client.create_run(experiment, run_name=path.name).info.run_id
        known.write_text(f"{self._run}\n", encoding="utf-8")
        self._client.log_batch(self._run, params=[Param(name, str(value)) for name, value in flat(settings)])

    def _experiment(self, artifacts: str | None) -> str:
        by_id = os.environ.get("MLFLOW_EXPERIMENT_ID")
        if by_id:
            return by_id
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "zmqrl")
        found = self._client.get_experiment_by_name(name)
        return str(found.experiment_id if found else self._client.create_experiment(name, artifact_location=artifacts))

    def log(self, row: Mapping[str, Any], step: int) -> None:
        now_ms = int(1000 * time.time())
        metrics = [Metric(name, value, now_ms, step) for name, value in scalars(row)]
        self._client.log_batch(self._run, metrics=metrics)

    def close(self, summary: Mapping[str, Any] | None = None) -> None:
        """Store ``summary`` as an artifact, and end the MLflow run with the status of the run."""
        reason = "failed" if summary is None else summary["exit_reason"]
        if summary is not None:
            self._client.log_dict(self._run, dict(summary), "summary.json")
            self._client.set_tag(self._run, "exit_reason", reason)
        self._client.set_terminated(self._run, STATUS.get(reason, "FINISHED"))
