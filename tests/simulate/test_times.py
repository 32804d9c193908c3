"""The times of a recorded run in other scenarios."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.page_rig import write_profile
from support.paths import TESTS
from support.profiles import synthetic_run
from support.replays import recorded

from zmqrl.commands.measure.simulate import tell_of_profile
from zmqrl.errors import UsageError
from zmqrl.observe.records import RunRecord
from zmqrl.simulate import Scenario, times
from zmqrl.simulate.live.run import within_s, without_ignored
from zmqrl.simulate.recorded import RecordedRun
from zmqrl.simulate.virtual.world import simulate

OLD_RUN = TESTS / "old_run"
SLICE_BYTES = 4 * 10_000


def from_run(run: RecordedRun, **settings: Any) -> float:
    """Updates per second that ``zmqrl simulate --from RUN`` predicts with these settings."""
    return simulate(replace(run.scenario, compute="run:here", **settings)).updates_per_s


@pytest.fixture
def slow_link(monkeypatch: pytest.MonkeyPatch) -> RecordedRun:
    run = recorded(synthetic_run(workers=1, shards=1, link_extra_s={0: 0.2}))
    monkeypatch.setattr(times, "recorded_run", lambda _: run)
    return run


@pytest.mark.parametrize("network", [{"bandwidth": SLICE_BYTES / 0.1}, {"latency": 0.1}])
def test_a_simulated_network_takes_the_place_of_the_recorded_transfers(
    slow_link: RecordedRun, network: dict[str, float]
) -> None:
    assert from_run(slow_link) == pytest.approx(slow_link.measured, rel=0.02)
    assert from_run(slow_link, **network) == pytest.approx(slow_link.measured, rel=0.05)


def test_a_network_that_no_transfer_uses_changes_nothing(slow_link: RecordedRun) -> None:
    one_host = {"hosts": 1, "worker_hosts": (), "shard_hosts": (), "host_cores": ()}
    assert from_run(slow_link, bandwidth=1e3, latency=9.0, **one_host) == pytest.approx(slow_link.measured, rel=0.02)
    assert from_run(slow_link, loopback=SLICE_BYTES / 0.1, **one_host) == pytest.approx(slow_link.measured, rel=0.05)


def test_a_live_run_keeps_the_recorded_transfers_because_it_ignores_the_network() -> None:
    scenario = Scenario(workers=3, bandwidth=1e3, latency=0.1, loopback=1e3, cores=1)
    assert without_ignored(scenario) == Scenario(workers=3)


def test_a_run_on_a_slow_network_gives_no_prediction_for_more_shards(
    slow_link: RecordedRun, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("zmqrl.commands.measure.simulate.recorded_run", lambda _: slow_link)
    scenario = replace(slow_link.scenario, compute="run:here")
    tell_of_profile(scenario, {1, 2})
    assert capsys.readouterr().err == (
        "here: transfers took 53% of the time of updates, and the profile does not show how another number of "
        "shards would change them: set --bandwidth to simulate them.\n"
    )
    tell_of_profile(scenario, {1})
    tell_of_profile(replace(scenario, bandwidth=1e6), {1, 2})
    assert capsys.readouterr().err == ""


def test_a_run_that_cannot_be_replayed_says_why(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    tell_of_profile(times.scenario_of(OLD_RUN), {2})
    means = "All workers take the mean times of the run, which do not vary.\n"
    assert capsys.readouterr().err == f"{OLD_RUN}: the run has no profile. {means}"
    run = tmp_path / "run"
    shutil.copytree(OLD_RUN, run)
    write_profile(run / "profile", synthetic_run(workers=1, versions=8))
    tell_of_profile(times.scenario_of(run), {2})
    assert capsys.readouterr().err == f"{run}: rank 1 recorded nothing, so the run cannot be replayed. {means}"


def test_waits_before_the_first_and_after_the_last_version_do_not_count() -> None:
    waits = [(0.0, 3.0), (3.5, 4.0), (6.0, 9.0), (9.0, 10.0)]
    assert within_s(waits, 2.0, 8.0) == 1.0 + 0.5 + 2.0
    assert within_s(waits, 20.0, 30.0) == 0.0


@pytest.mark.parametrize(
    ("changes", "updates_per_rollout", "agent_steps"),
    [
        ({}, 16, 8 * 128),
        ({"ppo.epochs": 6, "ppo.setting_of_a_newer_version": 7}, 24, 8 * 128),
        ({"algo": "ba3c"}, 1, 8 * 5),
    ],
)
def test_the_settings_of_a_run_say_how_many_updates_learn_from_a_rollout(
    changes: dict[str, Any], updates_per_rollout: int, agent_steps: int
) -> None:
    record = RunRecord.read(OLD_RUN)
    scenario = times.settings_of(OLD_RUN, replace(record, settings={**record.settings, **changes}))
    assert scenario.updates_per_rollout == updates_per_rollout
    assert scenario.agent_steps_per_rollout == agent_steps


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"algo": "a3c"}, "'a3c'"),
        ({"algo": ["ppo"]}, "unhashable type: 'list'"),
        ({"ppo.epochs": "3"}, "ppo.epochs cannot be '3'"),
        ({"ppo.epochs": 0}, "--ppo.epochs 0: must be 1 or more"),
        ({"envs.num_envs": "8"}, "envs.num_envs cannot be '8'"),
        ({"workers": "two"}, "workers cannot be 'two'"),
        ({"workers": 0}, "--workers 0: must be 1 or more"),
        ({"workers": None}, "workers cannot be None"),
        ({"backups": "x"}, "backups cannot be 'x'"),
        ({"shards": "2"}, "shards cannot be '2'"),
        ({"wire.need_s": "x"}, "need_s cannot be 'x'"),
        ({"quorum": 7}, "--quorum 7 is above the number of workers, 2 (N + b)"),
    ],
)
def test_a_run_with_an_invalid_setting_is_refused(changes: dict[str, Any], reason: str) -> None:
    record = RunRecord.read(OLD_RUN)
    with pytest.raises(UsageError) as refused:
        times.settings_of(OLD_RUN, replace(record, settings={**record.settings, **changes}))
    assert str(refused.value).endswith(f"config.json cannot be used: a setting is missing or invalid: {reason}.")


@pytest.mark.parametrize(
    ("algo", "missing"),
    [
        ("ppo", "ppo.rollout_steps"),
        ("ppo", "ppo.epochs"),
        ("ppo", "ppo.minibatches"),
        ("ba3c", "ba3c.rollout_steps"),
        ("ppo", "envs.num_envs"),
        ("ppo", "workers"),
    ],
)
def test_a_run_that_does_not_say_how_large_a_rollout_is_is_refused(algo: str, missing: str) -> None:
    record = RunRecord.read(OLD_RUN)
    settings = {name: value for name, value in record.settings.items() if name != missing} | {"algo": algo}
    with pytest.raises(UsageError) as refused:
        times.settings_of(OLD_RUN, replace(record, settings=settings))
    reason = f"a setting is missing or invalid: {missing!r}."
    assert str(refused.value) == f"{OLD_RUN / 'config.json'} cannot be used: {reason}"


def test_a_run_without_a_setting_that_does_not_change_its_rollouts_can_be_simulated() -> None:
    record = RunRecord.read(OLD_RUN)
    settings = {name: value for name, value in record.settings.items() if name not in ("ppo.gamma", "ppo.final_clip")}
    assert times.settings_of(OLD_RUN, replace(record, settings=settings)).updates_per_rollout == 16


def test_an_error_about_the_codec_of_a_run_names_its_configuration() -> None:
    record = RunRecord.read(OLD_RUN)
    with pytest.raises(UsageError) as refused:
        times.settings_of(OLD_RUN, replace(record, settings={**record.settings, "wire.codec": "f8"}))
    assert str(refused.value).startswith(f"{OLD_RUN / 'config.json'} names the codec 'f8', but this zmqrl only has ")


@pytest.mark.parametrize("cores", [(4,), (4, 4, 0)])
def test_a_scenario_has_a_number_of_cores_for_each_host_or_none(cores: tuple[int, ...]) -> None:
    with pytest.raises(UsageError, match=r"^host_cores has .*: it must have 3 numbers of cores, each 1 or more\.$"):
        Scenario.from_json({"hosts": 3, "host_cores": list(cores)})
    assert Scenario.from_json({"hosts": 3, "host_cores": [4, 4, 2]}).cores_of_host() == (4, 4, 2)
    assert Scenario.from_json({"hosts": 3, "cores": 8}).cores_of_host() == (8, 8, 8)
