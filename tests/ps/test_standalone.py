"""Shards for programs without a supervisor check what they are given before they start a process."""

from typing import Any

import numpy as np
import pytest

from zmqrl.errors import UsageError
from zmqrl.ps.layout import Layout
from zmqrl.ps.shard.optimizer import OptimizerConfig
from zmqrl.ps.standalone import standalone_shards

SGD = OptimizerConfig(name="sgd", learning_rate=0.1)


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        ({"vector": np.zeros(64)}, r"vector is float64 \(64,\): it must be float32 \(64,\)\."),
        ({"vector": np.zeros(64, np.int32)}, r"vector is int32 \(64,\): it must be float32 \(64,\)\."),
        ({"vector": np.zeros(128, np.float32)}, r"vector is float32 \(128,\): it must be float32 \(64,\)\."),
        ({"vector": np.zeros((8, 8), np.float32)}, r"vector is float32 \(8, 8\): it must be float32 \(64,\)\."),
        ({"vector": np.full(64, np.nan, np.float32)}, r"vector has numbers that are not finite\."),
        ({"workers": 0}, r"workers 0: must be from 1 to 1024\."),
        ({"workers": 2, "quorum": 3}, r"quorum 3: must be from 1 to 2, the number of workers\."),
        ({"quorum": 0}, r"quorum 0: must be from 1 to 1, the number of workers\."),
        ({"workers": 2, "quorum": 2, "asynchronous": True}, r"quorum 2: must be 1 in asynchronous mode\."),
        (
            {"optimizer": OptimizerConfig(name="sgd", learning_rate=0.1, final_learning_rate=0.0)},
            r"final_learning_rate 0\.0: the schedule needs an end\. Set horizon or schedule_updates\.",
        ),
    ],
)
def test_wrong_arguments_are_refused(wrong: dict[str, Any], why: str) -> None:
    given: dict[str, Any] = {"vector": np.zeros(64, np.float32), "optimizer": SGD, "workers": 1, **wrong}
    with (
        pytest.raises(UsageError, match=f"^{why}$"),
        standalone_shards(Layout.of([("w", (64,))], 1), given.pop("vector"), **given),
    ):
        pytest.fail("the shards started")
