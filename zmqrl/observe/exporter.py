"""Serves the figures of a run over HTTP, for Prometheus, from separate threads."""

import contextlib
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from zmqrl.errors import UsageError, cannot_listen, unfit_part
from zmqrl.observe.live.figures import LiveMetrics
from zmqrl.observe.records import COUNTED
from zmqrl.words import ESCAPING

if TYPE_CHECKING:
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

OLD_S: Final = 30.0  # the supervisor shows new figures every second

# The keys are those of a row of metrics.jsonl.
GAUGES = {
    "version": ("zmqrl_version", "Number of updates, the lowest over all shards"),
    "wall_s": ("zmqrl_training_seconds", "Training time of all sessions"),
    "agent_steps_per_s": ("zmqrl_agent_steps_per_second", "Actions per second of all workers, over about 30 s"),
    "updates_per_s": ("zmqrl_updates_per_second", "Updates per second, over about 30 s"),
    "score_mean_50": ("zmqrl_score_mean", "Mean true score of the last 50 whole games"),
    "learning_rate": ("zmqrl_learning_rate", "Learning rate of the newest update"),
    "workers_present": ("zmqrl_workers_present", "Workers that every shard sees"),
}
COUNTERS = {
    "agent_steps": ("zmqrl_agent_steps", "Actions of all workers"),
    "abandoned_steps": ("zmqrl_abandoned_steps", "Actions of rollouts that were dropped as too old"),
    "episodes": ("zmqrl_episodes", "Whole games of all workers"),
}
LAGS = {"policy_lag": "mean", "policy_lag_min": "min", "policy_lag_max": "max"}
BY_RANK = {
    "late_by_rank": ("zmqrl_worker_late", "Slices of a worker that arrived too late"),
    "skipped_by_rank": ("zmqrl_worker_skipped", "Slices that a worker did not send, because they were already late"),
}


class Exporter:
    """Serves the newest metrics at ``url`` until :meth:`close`."""

    def __init__(self, address: str, port: int) -> None:
        """Port 0 picks a free port. Raises UsageError if the port is in use, or the address is not local."""
        from prometheus_client import CollectorRegistry, start_http_server

        self._metrics: LiveMetrics | None = None
        self._shown_at = 0.0
        self._contributions: defaultdict[str, float] = defaultdict(float)
        registry = CollectorRegistry()
        registry.register(self)
        try:
            self._server, self._thread = start_http_server(port, address, registry)
        except OSError as error:
            why = f"{cannot_listen(error, address, port)}: choose another {unfit_part(error)}"
            raise UsageError(f"--metrics-port: {why}.") from error
        self.url = f"http://{address}:{self._server.server_port}/metrics"

    def show(self, metrics: LiveMetrics) -> None:
        """Serve ``metrics`` for the next ``OLD_S``. Never waits."""
        before = self._metrics.row.get("contributions", {}) if self._metrics else {}
        for outcome, count in metrics.row.get("contributions", {}).items():
            # A rollback lowers the counts of a run. Prometheus assumes that a falling counter restarted at 0.
            self._contributions[outcome] += max(0, count - before.get(outcome, 0))
        self._shown_at, self._metrics = time.monotonic(), metrics

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    # the threads of the server call these methods

    def describe(self) -> "Iterator[Metric]":
        """Return nothing: the metric names are unknown before the first call of ``show``."""
        return iter(())

    def collect(self) -> "Iterator[Metric]":
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily

        metrics, contributions = self._metrics, dict(self._contributions)
        if metrics is None:
            return
        row, age_s = metrics.row, time.monotonic() - self._shown_at

        def gauge(name: str, about: str, labels: Sequence[str], values: Mapping[Any, Any]) -> "Metric":
            return _filled(GaugeMetricFamily(name, about, labels=labels), values)

        def counter(name: str, about: str, labels: Sequence[str], values: Mapping[Any, Any]) -> "Metric":
            return _filled(CounterMetricFamily(name, about, labels=labels), values)

        yield gauge("zmqrl_figures_age_seconds", "Time since the supervisor renewed the figures", [], {(): age_s})
        if age_s > OLD_S:  # the supervisor hangs
            return
        yield InfoMetricFamily("zmqrl_run", "The run", {name: _text(value) for name, value in metrics.about.items()})
        for key, (name, about) in GAUGES.items():
            yield gauge(name, about, [], {(): row.get(key)})
        for key, (name, about) in COUNTERS.items():
            yield counter(name, about, [], {(): row.get(key)})
        yield counter("zmqrl_contributions", "Slices by outcome", ["outcome"], contributions)
        lags = {label: row.get(key) for key, label in LAGS.items()}
        yield gauge("zmqrl_policy_lag_versions", "Policy lag: versions between acting and learning", ["stat"], lags)
        figures = {name: value for name, value in row.items() if name not in COUNTED and name not in LAGS}
        yield gauge("zmqrl_loss", "Figures of learning, by name, averaged over workers", ["name"], figures)
        yield gauge(
            "zmqrl_update_span_seconds", "Mean time of a worker for one gradient", ["span"], row.get("split_s", {})
        )
        yield gauge(
            "zmqrl_worker_missing_seconds",
            "Time since the last contribution of a rank that the open version waits for",
            ["rank"],
            row.get("missing_s", {}),
        )
        for key, (name, about) in BY_RANK.items():
            yield counter(name, about, ["rank"], row.get(key, {}))
        yield gauge("zmqrl_worker_silent_seconds", "Time since the last message of a rank", ["rank"], metrics.silent_s)
        yield gauge("zmqrl_workers_required", "K: contributions that make an update", [], {(): metrics.quorum})
        yield gauge("zmqrl_stalled_seconds", "Time for which a version has stalled, or 0", [], {(): metrics.stalled_s})
        yield gauge("zmqrl_checkpoint_version", "Version of the newest checkpoint", [], {(): metrics.checkpoint})
        yield gauge("zmqrl_shard_version", "Updates that a shard has made", ["shard"], metrics.shard_versions)
        yield gauge("zmqrl_shard_held", "Contributions to the open version of a shard", ["shard"], metrics.shard_held)
        named = {(each.process.role, str(each.process.number), each.host): each for each in metrics.processes}
        labels = ["role", "rank", "host"]
        up = {name: int(each.is_up) for name, each in named.items()}
        yield gauge("zmqrl_process_up", "1 while a process of the run is up", labels, up)
        restarts = {name: each.restarts for name, each in named.items()}
        yield counter("zmqrl_process_restarts", "Restarts of a process", labels, restarts)


def _filled(family: "GaugeMetricFamily | CounterMetricFamily", values: Mapping[Any, Any]) -> "Metric":
    """Add each value that is a number. A key is a tuple of labels (texts), or one label (a number or text)."""
    for labels, value in values.items():
        if isinstance(value, int | float):
            family.add_metric([_text(label) for label in (labels if isinstance(labels, tuple) else (labels,))], value)
    return family


def _text(label: object) -> str:
    r"""A label that can be sent as UTF-8, with ``\xff`` for each byte of a path that is not text."""
    return str(label).encode(errors=ESCAPING).decode()


@contextlib.contextmanager
def exporter_at(endpoint: tuple[str, int] | None) -> Iterator[Exporter | None]:
    """An exporter at the ``endpoint`` (address and port), or None without one. Raises UsageError."""
    if endpoint is None:
        yield None
    else:
        with contextlib.closing(Exporter(*endpoint)) as exporter:
            yield exporter
