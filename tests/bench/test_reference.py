"""Reference figures apply only to the settings with which they were measured."""

from dataclasses import replace
from typing import Any

import pytest

from zmqrl.bench.reference import AMX, AVX512, GAMES, NETWORKS, references
from zmqrl.learner.settings import NetworkConfig
from zmqrl.recipes import breakout_ppo, cartpole, dba3c_breakout

AS_MEASURED: dict[str, Any] = {"threads": 1, "compute": "bfloat16", "passes": 4.0, "backward_only": False}


def test_a_gradient_takes_as_long_as_its_passes() -> None:
    found = references(breakout_ppo(), **AS_MEASURED)
    assert {name: each.seconds for name, each in found.items()} == pytest.approx(
        {"env_step": 437e-6, "act": 36e-6, "gradient": 580e-6}
    )
    assert {each.machine for each in found.values()} == {AMX}


def test_a_reference_names_the_machine_that_it_was_measured_on() -> None:
    assert GAMES["ALE/Breakout-v5"].machine == AMX
    machines = {name: {each.machine for each in times} for name, times in NETWORKS.items()}
    assert machines.pop(("narrow", "bfloat16")) == {AMX}
    assert set(machines) == {(model, compute) for model in ("small", "nature") for compute in ("float32", "bfloat16")}
    assert all(machine == {AVX512} for machine in machines.values())


def test_a_run_can_have_references_of_two_machines() -> None:
    found = references(replace(breakout_ppo(), model="nature"), **AS_MEASURED)
    assert {name: each.machine for name, each in found.items()} == {
        "env_step": AMX,
        "act": AVX512,
        "gradient": AVX512,
    }


def test_the_narrow_network_has_no_reference_in_float32() -> None:
    assert set(references(breakout_ppo(), **AS_MEASURED | {"compute": "float32"})) == {"env_step"}


def test_a_backward_pass_takes_as_long_as_a_pass_without_its_forward_part() -> None:
    found = references(breakout_ppo(), **AS_MEASURED | {"passes": 1.0, "backward_only": True})
    assert found["gradient"].seconds == pytest.approx(109e-6)


def test_there_is_no_reference_for_other_settings() -> None:
    assert references(breakout_ppo(), **AS_MEASURED | {"threads": 2}) == {}
    assert references(cartpole(), **AS_MEASURED) == {}
    assert references(dba3c_breakout(), **AS_MEASURED) == {}  # RGB frames
    wide = replace(breakout_ppo(), network=NetworkConfig(hidden=512))
    assert set(references(wide, **AS_MEASURED)) == {"env_step"}
    pong = replace(breakout_ppo(), env="ALE/Pong-v5")
    assert set(references(pong, **AS_MEASURED)) == {"act", "gradient"}
