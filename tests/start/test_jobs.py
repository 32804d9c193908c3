"""Jobs and answers keep their values on the way through JSON."""

import json
from pathlib import Path
from typing import Any

import pytest

from zmqrl.errors import ClusterError
from zmqrl.profile.profiler import ProfilerJob
from zmqrl.ps.cluster_file import Cluster
from zmqrl.ps.layout import Layout
from zmqrl.ps.wire.keys import ClientKeys, RunKeys
from zmqrl.ps.wire.sockets import SocketRole
from zmqrl.recipes import cartpole
from zmqrl.start.jobs import (
    Evaluated,
    EvaluationRequest,
    FollowerAnswer,
    FollowerJob,
    FollowerRequest,
    Recorded,
    RecordingRequest,
    Skipped,
    WorkerJob,
    answer_from,
)

EVALUATION: dict[str, Any] = {"version": 5, "wall_s": 60, "mean": 2.5, "ci95": [1.0, 4.0], "episodes": 50}
RECORDING: dict[str, Any] = {"version": 5, "path": "a.mp4", "score": 2.5}


@pytest.mark.parametrize("keys", [None, RunKeys.make(workers=1, shards=1).of_worker(0)])
@pytest.mark.parametrize("profiler", [None, ProfilerJob(Path("/profile"), "h1", trace_below=20)])
@pytest.mark.parametrize("core", [None, (1, 4)])
def test_the_job_of_a_worker_survives_json(
    keys: ClientKeys | None, profiler: ProfilerJob | None, core: tuple[int, int] | None
) -> None:
    endpoints: dict[SocketRole, str] = {"grad": "tcp://h:1", "weights": "tcp://h:2", "control": "tcp://h:3"}
    layout = Layout.of([("w", (100,))], 1)
    cluster = Cluster(run="r", layout=layout, codec="bf16", endpoints=(endpoints,), asynchronous=True, keys=keys)
    numbers = {"rank": 3, "version": 7, "generation": 5, "incarnation": 9, "threads": 2}
    job = WorkerJob(cluster=cluster, config=cartpole(), core=core, profiler=profiler, **numbers)
    assert WorkerJob.from_json(json.loads(json.dumps(job.to_json()))) == job


def test_the_job_of_a_follower_survives_json() -> None:
    job = FollowerJob(run_dir=Path("/run"), episodes=50, greedy=True, threads=2)
    assert FollowerJob.from_json(json.loads(json.dumps(job.to_json()))) == job


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (EvaluationRequest(5), {"version": 5, "episodes": None, "seed": 0, "samples": False}),
        (
            EvaluationRequest(5, 50, 2**31, samples=True),
            {"version": 5, "episodes": 50, "seed": 2**31, "samples": True},
        ),
        (RecordingRequest(5, "minute-015"), {"version": 5, "name": "minute-015"}),
    ],
)
def test_a_request_to_a_follower_survives_json(request_: FollowerRequest, message: dict[str, Any]) -> None:
    assert request_.to_json() == message
    assert type(request_).from_json(json.loads(json.dumps(message))) == request_


@pytest.mark.parametrize("answer", [Evaluated(EVALUATION), Recorded(RECORDING), Skipped(5, "it was pruned")])
def test_an_answer_survives_json(answer: FollowerAnswer) -> None:
    assert answer_from(json.loads(json.dumps(answer.to_json()))) == answer
    assert answer.version == 5


@pytest.mark.parametrize(
    "facts",
    [
        {},
        {"evaluation": None},
        {"skipped": 5},
        *({"evaluation": EVALUATION | {name: None}} for name in EVALUATION),
        *({"recording": RECORDING | {name: None}} for name in RECORDING),
    ],
)
def test_an_unknown_answer_is_an_error(facts: dict[str, Any]) -> None:
    with pytest.raises(ClusterError, match="unknown answer"):
        answer_from(facts)
