"""Reference figures apply only to the settings with which they were measured."""

from dataclasses import replace
from typing import Any

import pytest

from zmqrl.bench.reference import AVX512, references
from zmqrl.learner.settings import NetworkConfig
from zmqrl.recipes import breakout_ppo, cartpole, dba3c_breakout

AS_MEASURED: dict[str, Any] = {"threads": 1, "compute": "bfloat16", "passes": 4.0, "backward_only": False}


def test_a_gradient_takes_as_long_as_its_passes() -> None:
    found = references(breakout_ppo(), **AS_MEASURED)
    assert {name: each.seconds for name, each in found.items()} == pytest.approx(
        {"env_step": 437e-6, "act": 36e-6, "gradient": 580e-6}
    )
    assert {each.machine for each in found.values()} == {AVX512}


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
