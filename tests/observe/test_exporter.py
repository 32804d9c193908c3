"""Prometheus reads every figure of the metrics over HTTP, and the dashboard uses only these figures."""

import contextlib
import json
import os
import re
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from support.paths import ROOT

from zmqrl.errors import UsageError
from zmqrl.observe.exporter import BY_RANK, COUNTERS, GAUGES, LAGS, Exporter, exporter_at
from zmqrl.observe.live.figures import LiveMetrics
from zmqrl.observe.live.presence import Presence
from zmqrl.observe.metrics import LOSSES, Counters, RunMetrics
from zmqrl.process_id import shard_id, worker_id

MONITORING = ROOT / "docs" / "monitoring"
DASHBOARD: dict[str, Any] = json.loads((MONITORING / "grafana-dashboard.json").read_text(encoding="utf-8"))

ROW: dict[str, Any] = {
    "version": 812,
    "wall_s": 60.5,
    "agent_steps": 100_000,
    "abandoned_steps": 64,
    "agent_steps_per_s": 1652.9,
    "updates_per_s": 13.4,
    "score_mean_50": 41.5,
    "episodes": 321,
    "policy_loss": -0.25,
    "grad_norm": 0.5,
    "value_loss": None,
    "my_own_figure": 7,
    "policy_lag": 7.5,
    "policy_lag_min": 0,
    "policy_lag_max": 15,
    "contributions": {"used": 1624, "late": 3, "duplicate": 0, "rejected": 1, "skipped": 2},
    "late_by_rank": {"1": 3},
    "skipped_by_rank": {"1": 2},
    "missing_s": {"1": 2.5},
    "workers_present": 2,
    "split_s": {"env_step": 0.01, "wait": 0.002},
    "learning_rate": 5e-4,
}
METRICS = LiveMetrics(
    row=ROW,
    about={"name": "first", "recipe": "cartpole", "env": "CartPole-v1"},
    processes=[
        Presence(process=shard_id(0), host="h1", state="present"),
        Presence(process=worker_id(1), host="h2", state="lost", restarts=3),
        Presence(process=worker_id(2), host="external", state="awaited"),
    ],
    shard_versions={0: 812, 1: 813},
    shard_held={0: 1, 1: 0},
    silent_s={0: 0.25, 1: 0.5},
    quorum=2,
    stalled_s=12.5,
    checkpoint=800,
)

Samples = dict[tuple[str, ...], float]


@pytest.fixture
def exporter() -> Iterator[Exporter]:
    with contextlib.closing(Exporter("127.0.0.1", 0)) as exporter:
        yield exporter


def scraped(exporter: Exporter) -> Samples:
    """The value of each sample, by the name and the labels of the sample: ``("zmqrl_shard_version", "shard=0")``."""
    with urllib.request.urlopen(exporter.url, timeout=60) as answer:
        text = answer.read().decode()
    return {
        (sample.name, *(f"{label}={value}" for label, value in sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_every_figure_of_the_metrics_is_served(exporter: Exporter) -> None:
    exporter.show(METRICS)
    found = scraped(exporter)
    for name, value in {
        ("zmqrl_run_info", "env=CartPole-v1", "name=first", "recipe=cartpole"): 1.0,
        ("zmqrl_version",): 812.0,
        ("zmqrl_training_seconds",): 60.5,
        ("zmqrl_agent_steps_total",): 100_000.0,
        ("zmqrl_abandoned_steps_total",): 64.0,
        ("zmqrl_episodes_total",): 321.0,
        ("zmqrl_agent_steps_per_second",): 1652.9,
        ("zmqrl_score_mean",): 41.5,
        ("zmqrl_learning_rate",): 5e-4,
        ("zmqrl_contributions_total", "outcome=used"): 1624.0,
        ("zmqrl_contributions_total", "outcome=skipped"): 2.0,
        ("zmqrl_policy_lag_versions", "stat=max"): 15.0,
        ("zmqrl_loss", "name=policy_loss"): -0.25,
        ("zmqrl_loss", "name=my_own_figure"): 7.0,
        ("zmqrl_update_span_seconds", "span=env_step"): 0.01,
        ("zmqrl_worker_missing_seconds", "rank=1"): 2.5,
        ("zmqrl_worker_late_total", "rank=1"): 3.0,
        ("zmqrl_worker_skipped_total", "rank=1"): 2.0,
        ("zmqrl_worker_silent_seconds", "rank=0"): 0.25,
        ("zmqrl_workers_present",): 2.0,
        ("zmqrl_workers_required",): 2.0,
        ("zmqrl_stalled_seconds",): 12.5,
        ("zmqrl_checkpoint_version",): 800.0,
        ("zmqrl_shard_version", "shard=1"): 813.0,
        ("zmqrl_shard_held", "shard=0"): 1.0,
        ("zmqrl_process_up", "role=shard", "rank=0", "host=h1"): 1.0,
        ("zmqrl_process_up", "role=worker", "rank=1", "host=h2"): 0.0,
        ("zmqrl_process_up", "role=worker", "rank=2", "host=external"): 1.0,
        ("zmqrl_process_restarts_total", "role=worker", "rank=1", "host=h2"): 3.0,
    }.items():
        assert found.get(name) == value or found.get((name[0], *sorted(name[1:]))) == value, name
    assert ("zmqrl_loss", "name=value_loss") not in found, "an unknown figure must not be served"
    assert not any("version" in label for name, *labels in found for label in labels if name == "zmqrl_loss")


def test_each_key_of_a_row_has_a_metric() -> None:
    row = RunMetrics(start=Counters()).row(0.0)
    others = {"contributions", "missing_s", "split_s"}
    left_out = {"gradients"}  # counted since the previous row, but Prometheus does not read every row
    known = {*GAUGES, *COUNTERS, *LAGS, *BY_RANK, *LOSSES, *others, *left_out}
    assert set(row) <= known, "a new key of a row needs a metric of its own"


def test_counters_of_slices_say_so(exporter: Exporter) -> None:
    exporter.show(METRICS)
    with urllib.request.urlopen(exporter.url, timeout=60) as answer:
        about = {each.name: each.documentation for each in text_string_to_metric_families(answer.read().decode())}
    for name in ("zmqrl_contributions", "zmqrl_worker_late", "zmqrl_worker_skipped"):
        assert about[name].startswith("Slices")


def test_nothing_is_served_before_the_first_metrics_and_afterwards_only_the_newest_one(exporter: Exporter) -> None:
    assert scraped(exporter) == {}
    for version in (1, 2, 3):
        exporter.show(replace(METRICS, row=ROW | {"version": version}))
    assert scraped(exporter)["zmqrl_version",] == 3.0


def test_old_figures_are_not_served(exporter: Exporter, monkeypatch: pytest.MonkeyPatch) -> None:
    exporter.show(METRICS)
    found = scraped(exporter)
    assert 0 <= found["zmqrl_figures_age_seconds",] < 30
    began = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: began + 31.0)
    old = scraped(exporter)
    assert list(old) == [("zmqrl_figures_age_seconds",)]
    assert 30 < old["zmqrl_figures_age_seconds",] < 62
    exporter.show(METRICS)
    assert scraped(exporter).keys() == found.keys()


def test_a_rollback_does_not_lower_a_counter_of_contributions(exporter: Exporter) -> None:
    served = []
    for used in (100, 150, 120, 130):  # the third value follows a rollback
        exporter.show(replace(METRICS, row=ROW | {"contributions": {"used": used}}))
        served.append(scraped(exporter)["zmqrl_contributions_total", "outcome=used"])
    assert served == [100.0, 150.0, 150.0, 160.0]


def test_names_from_other_processes_cannot_forge_a_line(exporter: Exporter) -> None:
    forged = 'x"} 1\nzmqrl_version 999\n'
    exporter.show(replace(METRICS, about={"name": forged}, row=ROW | {"split_s": {forged: 1.0}}))
    assert scraped(exporter)["zmqrl_version",] == 812.0


def test_names_that_are_not_text_are_served_escaped(exporter: Exporter) -> None:
    about = {**METRICS.about, "name": os.fsdecode(b"run-\xff")}
    exporter.show(replace(METRICS, about=about, row=ROW | {"split_s": {"\ud800": 1.5, "env_step": 0.01}}))
    found = scraped(exporter)
    (info,) = [labels for name, *labels in found if name == "zmqrl_run_info"]
    assert r"name=run-\xff" in info
    assert found["zmqrl_update_span_seconds", r"span=\ud800"] == 1.5
    assert found["zmqrl_version",] == 812.0


def test_an_error_names_a_port_in_use(exporter: Exporter) -> None:
    port = int(exporter.url.split(":")[2].split("/")[0])
    with pytest.raises(UsageError, match=f"--metrics-port: port {port} is in use .*: choose another"):
        Exporter("127.0.0.1", port)


def test_an_error_names_an_address_of_another_machine() -> None:
    with pytest.raises(UsageError, match=r"--metrics-port: 192\.0\.2\.1 is not an address of this machine: ch"):
        Exporter("192.0.2.1", 0)


def test_a_port_is_free_again_once_the_exporter_is_closed() -> None:
    with exporter_at(("127.0.0.1", 0)) as exporter:
        assert exporter is not None
        port = int(exporter.url.split(":")[2].split("/")[0])
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", port)) != 0


@pytest.mark.processes
def test_without_an_address_nothing_is_served_or_imported() -> None:
    program = (
        "import sys, zmqrl.supervisor.run, zmqrl.observe.exporter as exporter\n"
        "with exporter.exporter_at(None) as none: assert none is None\n"
        "assert not [name for name in sys.modules if name.startswith('prometheus_client')]"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=180)


# the dashboard


def panels() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = DASHBOARD["panels"]
    return found


def test_each_query_of_the_dashboard_names_metrics_that_are_exported(exporter: Exporter) -> None:
    exporter.show(METRICS)
    exported = {name for name, *_ in scraped(exporter)}
    queries = [target["expr"] for panel in panels() for target in panel["targets"]]
    queries += [each["query"]["query"] for each in DASHBOARD["templating"]["list"] if each["type"] == "query"]
    assert len(queries) > 25
    for query in queries:
        named = re.findall(r"\bzmqrl_\w+", query)
        assert named, f"{query} names no metric"
        assert set(named) <= exported, f"{query} names metrics that are not exported"
    unused = exported - set(re.findall(r"\bzmqrl_\w+", " ".join(queries)))
    assert unused == {"zmqrl_figures_age_seconds", "zmqrl_run_info", "zmqrl_training_seconds"}


def test_each_label_of_the_dashboard_belongs_to_its_metric(exporter: Exporter) -> None:
    exporter.show(METRICS)
    labels: dict[str, set[str]] = {}
    for name, *pairs in scraped(exporter):
        labels.setdefault(name, {"instance"}).update(pair.partition("=")[0] for pair in pairs)
    for panel in panels():
        for target in panel["targets"]:
            named = re.findall(r"\bzmqrl_\w+", target["expr"])
            used = set(re.findall(r"{{(\w+)}}", target["legendFormat"])) | set(re.findall(r"(\w+)=~", target["expr"]))
            used |= {word for group in re.findall(r"by \(([\w, ]+)\)", target["expr"]) for word in group.split(", ")}
            assert all(used <= labels[name] for name in named), target["expr"]


def test_panels_have_their_own_ids_and_places() -> None:
    assert len({panel["id"] for panel in panels()}) == len(panels())
    taken: set[tuple[int, int]] = set()
    for panel in panels():
        x, y, width, height = (panel["gridPos"][key] for key in "xywh")
        places = {(column, row) for column in range(x, x + width) for row in range(y, y + height)}
        assert x + width <= 24
        assert not places & taken, f"{panel['title']} covers another panel"
        taken |= places
    variables = {each["name"] for each in DASHBOARD["templating"]["list"]}
    assert set(re.findall(r"\$\{?(\w+)", json.dumps(DASHBOARD))) - {"__rate_interval", "__all"} <= variables


def test_the_page_lists_every_metric_with_its_labels(exporter: Exporter) -> None:
    exporter.show(METRICS)
    served: dict[str, set[str]] = {}
    for name, *pairs in scraped(exporter):
        served.setdefault(name, set()).update(pair.partition("=")[0] for pair in pairs)
    page = (ROOT / "docs" / "monitoring.md").read_text(encoding="utf-8").partition("## Metrics")[2]
    listed: dict[str, set[str]] = {}
    for names, labels, _ in re.findall(r"^\| (`zmqrl_.*?) \| (.*?) ?\| (.*) \|$", page, re.MULTILINE):
        named = {label.strip().partition(":")[0].strip("`") for label in re.sub(r": .*", "", labels).split(",")}
        listed |= dict.fromkeys(re.findall(r"zmqrl_\w+", names), named - {""})
    assert listed == served


def test_the_page_agrees_with_the_files_for_prometheus() -> None:
    page = (ROOT / "docs" / "monitoring.md").read_text(encoding="utf-8")
    port = re.findall(r"127\.0\.0\.1:(\d+)", (MONITORING / "prometheus.yml").read_text(encoding="utf-8"))[-1]
    assert f"--metrics-port {port}" in page
    compose = (MONITORING / "compose.yml").read_text(encoding="utf-8")
    names = re.findall(r"\./([\w.-]+):", compose)
    assert names
    for name in names:
        assert (MONITORING / name).is_file(), name
    assert "0.0.0.0" not in compose
