"""A live run as Prometheus sees it, and the values of ``--metrics-port`` that are refused before a run starts."""

import re
import socket
import urllib.request
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families
from support.run_rig import Run, training

from zmqrl.config import Config
from zmqrl.errors import UsageError

HOST = socket.gethostname()


def scraped(run: Run) -> dict[tuple[str, ...], float]:
    """Samples by name and labels, sorted: ``("zmqrl_shard_version", "shard=0")``."""
    run.wait_to_say("figures for Prometheus: ")
    found = re.search(r"figures for Prometheus: (\S+)", run.said())
    assert found is not None
    with urllib.request.urlopen(found[1], timeout=60) as answer:
        text = answer.read().decode()
    return {
        (sample.name, *sorted(f"{label}={value}" for label, value in sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


@pytest.mark.processes
@pytest.mark.slow
def test_prometheus_can_scrape_the_restarts_and_contributions_of_a_live_run(tmp_path: Path) -> None:
    path = tmp_path / "run"
    with training(path, "--external-workers", "1", "--quorum", "1", "--metrics-port", "0") as run:
        run.wait_for(20)
        run.eventually(lambda: scraped(run).get(("zmqrl_version",), 0) >= 20, "a version for Prometheus")
        before = scraped(run)
        assert before["zmqrl_workers_required",] == before["zmqrl_workers_present",] == 1.0
        assert before["zmqrl_stalled_seconds",] == 0.0
        assert before["zmqrl_run_info", "env=CartPole-v1", "name=run", "recipe=cartpole"] == 1.0
        up = {sample[1:]: value for sample, value in before.items() if sample[0] == "zmqrl_process_up"}
        assert up == {
            (f"host={HOST}", "rank=0", "role=shard"): 1.0,
            (f"host={HOST}", "rank=1", "role=shard"): 1.0,
            (f"host={HOST}", "rank=0", "role=worker"): 1.0,
            ("host=external", "rank=1", "role=worker"): 0.0,
        }
        run.kill("worker", 0)
        restarts = ("zmqrl_process_restarts_total", f"host={HOST}", "rank=0", "role=worker")
        run.eventually(lambda: scraped(run)[restarts] == 1.0, "a restart")
        made = run.files.version()
        run.wait_for(made + 20)
        run.eventually(lambda: scraped(run)["zmqrl_version",] > made, "more versions")
        after = scraped(run)
        for counter in ("zmqrl_agent_steps_total", "zmqrl_episodes_total"):
            assert after[counter,] > before[counter,] > 0
        used = ("zmqrl_contributions_total", "outcome=used")
        assert after[used] > before[used] >= 2 * 20
        assert after["zmqrl_update_span_seconds", "span=env_step"] > 0
        run.interrupt()
        histories = [run.files.history(shard) for shard in range(2)]
        assert len(histories[0]) == len(histories[1])
        for shard, history in enumerate(histories):
            assert made < after["zmqrl_shard_version", f"shard={shard}"] <= len(history)


@pytest.mark.processes
@pytest.mark.slow
def test_a_port_in_use_ends_the_command_before_the_run_starts(tmp_path: Path) -> None:
    path = tmp_path / "run"
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with training(path, "--metrics-port", str(port)) as run:
            assert run.wait() == 2
            (line,) = run.complaint().splitlines()
    assert line == f"zmqrl: --metrics-port: port {port} is in use (Address already in use): choose another port."
    assert not path.exists()


@pytest.mark.parametrize(
    ("given", "place"),
    [
        (None, None),
        ("9100", ("127.0.0.1", 9100)),
        ("0", ("127.0.0.1", 0)),
        (":9100", ("127.0.0.1", 9100)),
        ("10.0.0.5:9100", ("10.0.0.5", 9100)),
    ],
)
def test_a_port_is_on_loopback_unless_an_address_is_given(given: str | None, place: tuple[str, int] | None) -> None:
    assert Config(metrics_port=given).metrics_endpoint() == place


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ("0.0.0.0:9100", "would listen on every network: use one address of this machine"),
        ("*:9100", "the address before the port must be IPv4"),
        ("localhost:9100", "the address before the port must be IPv4"),
        ("::9100", "the address before the port must be IPv4"),
        ("127.0.0.1", "the port must be from 0 to 65535"),
        ("127.0.0.1:", "the port must be from 0 to 65535"),
        ("65536", "the port must be from 0 to 65535"),
        ("-1", "the port must be from 0 to 65535"),
        ("", "the port must be from 0 to 65535"),
    ],
)
def test_an_invalid_metrics_port_is_refused_in_one_sentence(given: str, complaint: str) -> None:
    with pytest.raises(UsageError, match=re.escape(f"--metrics-port {given}") + ".*" + re.escape(complaint)):
        Config(metrics_port=given).check()
