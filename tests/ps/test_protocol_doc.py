"""``docs/protocol.md`` matches the code: these tests read its tables and examples from the page and try them."""

import contextlib
import dataclasses
import importlib.util
import json
import re
import signal
import threading
import time
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import msgpack
import numpy as np
import pytest
import zmq
from support.inboxes import INBOXES
from support.paths import ROOT
from support.stand_ins import received

from zmqrl.config import Config, WireConfig
from zmqrl.hosts.deployment import on_this_machine
from zmqrl.observe.reports import WorkerReport
from zmqrl.process_id import shard_id
from zmqrl.ps.layout import MAX_SHARDS, Layout
from zmqrl.ps.shard import events as e
from zmqrl.ps.shard import roster
from zmqrl.ps.shard.history import read_lines
from zmqrl.ps.shard.machine import ShardMachine, ShardTiming
from zmqrl.ps.shard.optimizer import OptimizerConfig
from zmqrl.ps.standalone import StandaloneShards, standalone_shards
from zmqrl.ps.wire import framing
from zmqrl.ps.wire import messages as m
from zmqrl.ps.wire.codec import CODECS, FloatVector
from zmqrl.ps.wire.sockets import new_context, shard_sockets, worker_sockets
from zmqrl.ps.worker.machine import WorkerTiming
from zmqrl.rundir import RunDirectory
from zmqrl.supervisor.ending import stop_shards
from zmqrl.supervisor.tasks import RunTasks

DOCS = ROOT / "docs"
PAGE = (DOCS / "protocol.md").read_text(encoding="utf-8")


def load(path: Path) -> types.ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


bare_worker = load(DOCS / "examples" / "bare_worker.py")


def section(title: str) -> str:
    """The text under a heading that begins with ``title``, up to the next heading of any level."""
    found = re.search(rf"^#+ {re.escape(title)}(?: .*?)?$(.*?)(?=^#+ |\Z)", PAGE, re.MULTILINE | re.DOTALL)
    assert found is not None, f"no heading {title!r}"
    return found[1]


def tables(text: str) -> list[list[list[str]]]:
    """The rows of each table in ``text`` without the two header lines. Backquotes and outer blanks are removed."""
    found = re.findall(r"((?:^\|.*\n)+)", text, re.MULTILINE)
    return [
        [[cell.strip().replace("`", "") for cell in row.strip("|").split("|")] for row in rows.splitlines()[2:]]
        for rows in found
    ]


def type_name(hint: Any) -> str:
    """The type of a field in the notation of the page."""
    origin = get_origin(hint)
    if origin is Annotated:
        base, limit = hint.__origin__, hint.__metadata__[0]
        return f"u{limit.bits}" if isinstance(limit, m.Uint) else f"{type_name(base)} {limit.most}"
    if origin is Literal:
        return ", ".join(f'"{word}"' for word in get_args(hint))
    if origin is tuple:
        return f"[{type_name(get_args(hint)[0])}]"
    if hasattr(hint, "_fields"):  # a named tuple
        (item,) = {type_name(each) for each in get_type_hints(hint, include_extras=True).values()}
        return f"[{item}]"
    if type(None) in get_args(hint):
        return f"{type_name(get_args(hint)[0])} or nil"
    return {str: "text", bytes: "bytes", bool: "bool"}[hint]


def fields(kind: str) -> list[tuple[str, str]]:
    """Names and types of the fields of a message in the order on the wire."""
    cls = framing.KINDS[kind]
    hints = get_type_hints(cls, include_extras=True)
    return [(field.name, type_name(hints[field.name])) for field in dataclasses.fields(cls)]


def render(message: m.Message) -> str:
    """A header in the notation of the page: the bytes of each element and their meaning."""
    kind = framing.kind_of(type(message))
    named = [(name, getattr(message, name)) for name, _ in fields(kind)]
    named = named[: len(msgpack.unpackb(framing.encode(message))) - 2]  # the header omits the other fields
    elements = [("", m.PROTOCOL), ("", kind), *named]
    lines = [(msgpack.Packer().pack_array_header(len(elements)), f"array of {len(elements)}")]
    for name, value in elements:
        shown = f'"{value}"' if isinstance(value, str) else str(list(value)) if isinstance(value, tuple) else str(value)
        lines.append((msgpack.packb(value), f"{name} = {shown}" if name else shown))
    return "".join(f"{code.hex(' '):<52}{words}\n" for code, words in lines)


def example(kind: str) -> str:
    """The worked example of a header."""
    found = re.search(rf"```hex {kind}\n(.*?)```", PAGE, re.DOTALL)
    assert found is not None
    return found[1]


def supervisor_rows() -> dict[str, str]:
    """The kinds and fields of the messages in part 2."""
    return {row[0]: row[2] for row in tables(section("2.2"))[0]}


WORKER_KINDS = re.findall(r"^#### ([A-Z_]+) ", PAGE, re.MULTILINE)


def test_every_message_is_documented() -> None:
    assert sorted([*WORKER_KINDS, *supervisor_rows()]) == sorted(framing.KINDS)


@pytest.mark.parametrize("kind", WORKER_KINDS)
def test_the_field_table_of_a_message_matches_the_code(kind: str) -> None:
    if kind == "SNAPSHOT":
        assert "fields of WEIGHTS" in section(kind)
        assert fields(kind) == fields("WEIGHTS")
        return
    (rows,) = tables(section(kind))
    assert [(row[1], row[2]) for row in rows] == fields(kind)
    assert [row[0] for row in rows] == [str(2 + i) for i in range(len(rows))]
    assert all(row[3] for row in rows)


@pytest.mark.parametrize("kind", list(supervisor_rows()))
def test_the_fields_of_a_supervisor_message_match_the_code(kind: str) -> None:
    assert supervisor_rows()[kind] == ", ".join(f"{name} {words}" for name, words in fields(kind))


def test_messages_begin_with_the_fields_that_the_page_says_they_share() -> None:
    for kind in ("WEIGHTS", "HEARTBEAT", "NEED", "BYE", "WELCOME", "SNAPSHOT"):
        assert [name for name, _ in fields(kind)][:5] == ["run", "shard", "incarnation", "generation", "version"]


@pytest.mark.parametrize("kind", ["HELLO", "GRADIENT", "WEIGHTS"])
def test_a_worked_example_matches_the_code(kind: str) -> None:
    code = bytes.fromhex("".join(line[:51] for line in example(kind).splitlines()))
    message = framing.decode(code)
    assert framing.kind_of(type(message)) == kind
    assert framing.encode(message) == code
    assert example(kind) == render(message)


def test_the_table_of_frames_has_the_payloads_and_topics_of_the_code() -> None:
    rows = tables(section("1.4"))[0]
    kinds = [kind for row in rows for kind in row[1].split(", ")]
    assert sorted(kinds) == sorted(WORKER_KINDS)
    with_payload = {kind for row in rows if "payload" in row[2] for kind in row[1].split(", ")}
    assert with_payload == {"GRADIENT", "WEIGHTS", "SNAPSHOT"}
    assert {framing.kind_of(cls) for cls in m.WITH_PAYLOAD} == with_payload | {"CHUNK", "LOAD"}
    sockets = {
        framing.kind_of(cls): inbox.socket for inbox in INBOXES if inbox.receiver != "supervisor" for cls in inbox.kinds
    }
    assert {kind: row[0].split(" → ")[1] for row in rows for kind in row[1].split(", ")} == {
        kind: sockets[kind] for kind in kinds
    }
    for kind, direction, *_ in tables(section("2.2"))[0]:
        inbox = m.REQUESTS if direction.startswith("to") else m.TOLD
        assert framing.KINDS[kind] in inbox.kinds
        assert direction.endswith("with a payload") == (kind in {"CHUNK", "LOAD"})
    assert [topic.decode() for topic in m.TOPICS] == re.findall(r"`([A-Z])`", section("1.3").split("exactly these")[1])
    assert framing.parse_presence(b"P/2/1764000000000") == (2, 1764000000000)
    assert "`P/2/1764000000000`" in PAGE


# Numbers


def test_the_examples_of_encoded_numbers_match_the_codec() -> None:
    (rows,) = tables(section("1.5"))
    assert len(rows) >= 5
    assert "| float32 | " + " | ".join(CODECS) + " |\n" in section("1.5")
    for number, *encoded in rows:
        vector = np.array([float(number)], np.float32)
        for each, shown in zip(CODECS.values(), encoded, strict=True):
            assert each.encode(vector).tobytes().hex(" ") == shown


def test_the_documented_layout_hash_is_right() -> None:
    text, digest = re.findall(r"```layout\n(.*)\n(.*)\n```", PAGE)[0]
    layout = Layout.of([("w", (3, 4)), ("b", (4,))], 1)
    assert layout.hash == digest
    assert text == '["float32",[["w",[3,4]],["b",[4]]],[16]]'


def test_timers_and_limits_match_the_code() -> None:
    timers, limits = tables(section("1.10"))
    presence = {"silent_s": roster.SILENT_S, "doubt_s": roster.DOUBT_S}
    machines = {"worker": dataclasses.asdict(WorkerTiming()), "shard": dataclasses.asdict(ShardTiming()) | presence}
    assert all(float(row[1]) == machines[row[2]][row[0]] for row in timers)
    assert {row[0]: row[1] for row in limits} == {
        "ranks": f"0 to {m.MAX_WORKERS - 1}",
        "shards": str(MAX_SHARDS),
        "bytes of a header": str(m.MAX_HEADER_BYTES),
        "bytes of REPORT figures": str(m.MAX_REPORT_BYTES),
        "bytes of a subscription": str(m.MAX_SUBSCRIPTION_BYTES),
        "bytes of a frame on control": str(m.MAX_CONTROL_BYTES),
        "bytes of state in a LOAD or CHUNK": str(m.CHUNK_BYTES),
    }


def test_the_socket_table_matches_the_code() -> None:
    slice_bytes = 4000
    context = new_context()
    made = {"shard": shard_sockets(context, slice_bytes), "worker": worker_sockets(context, 0, 1)}
    (rows,) = tables(section("1.3"))
    for side, role, kind, send_most, receive_most, most_bytes, _ in rows:
        made_socket = made[side][role]  # type: ignore[index]
        assert made_socket.type == getattr(zmq, kind)
        assert (made_socket.sndhwm, made_socket.rcvhwm) == (int(send_most), int(receive_most))
        assert made_socket.maxmsgsize == sum(int(n) for n in most_bytes.replace("slice", str(slice_bytes)).split(" + "))
    context.destroy(linger=0)


def test_the_documented_keys_of_a_report_are_those_that_the_supervisor_reads() -> None:
    keys = [row[0] for row in tables(section("1.7"))[0]]
    read = [field.name for field in dataclasses.fields(WorkerReport)]
    assert sorted([*keys, "rank", "incarnation"]) == sorted(read)
    WorkerReport.parse({"rank": 0, "incarnation": 1, "version": 2, "agent_steps": 3})


def test_the_table_of_a_key_file_lists_every_key_that_a_run_writes(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path)
    config = Config(external_workers=1, wire=WireConfig(transport="tcp", curve=True))
    tasks = RunTasks(config, directory, Layout.of([("w", (100,))], 2), on_this_machine(config, directory))
    tasks.write_cluster({}, {shard_id(0): 1})
    written = json.loads((tmp_path / tasks.cluster({}, {})["keys"]["1"]).read_text(encoding="utf-8"))
    key_file, judged = tables(section("1.15"))
    types = {"text": str, "int": int, "list of text": list}
    assert [(key, types[kind]) for key, kind, _ in key_file] == [(key, type(value)) for key, value in written.items()]
    assert len(judged) == 4


# Faults of contributions in the order of the page's table. ``None`` stands for a malformed message.
FAULTS: list[dict[str, Any] | None] = [
    None,
    {"layout": "another"},
    {"payload_bytes": 63},
    {"generation": 3},
    {"rank": 9},
    {"incarnation": 99},
    {"generation": 1},
    {"version": 6},
    {"version": 4, "rank": 0},
    {"version": 4},
    {"ended": True},
    {"rank": 2},
    {"view": 8},
    {"finite": False},
    {},
]


@pytest.mark.parametrize("row", range(len(FAULTS)))
def test_a_shard_judges_contributions_as_the_page_says(row: int) -> None:
    (judged,) = tables(section("1.9"))
    assert len(judged) == len(FAULTS)
    fault = FAULTS[row]
    sizes: dict[m.Codec, int] = {"f32": 64, "bf16": 32}
    identity = e.Identity(run="r", layout="l", shard=0, incarnation=1, codec="f32", payload_bytes=sizes, secret="s")
    machine = ShardMachine(identity, ShardTiming())
    record = dataclasses.replace(e.Record.handed_over(2, 5, e.View(7, 2, (0, 1, 2))), quorum=1, ranks=(0,))
    machine.handle(e.StateRestored(record, recovered=True), 0.0)
    for rank in range(3):
        hello = m.Hello(
            run="r", layout="l", role="worker", rank=rank, incarnation=100 + rank, host="h", pid=1, secret=""
        )
        machine.handle(e.ControlArrived(b"peer%d" % rank, hello), 0.0)

    def contribute(faults: dict[str, Any]) -> None:
        rank = faults.get("rank", 1)
        whole = {"run": "r", "layout": "l", "generation": 2, "view": 7, "shard": 0, "version": 5, "rank": rank}
        whole |= {"incarnation": 100 + rank, "attempt": 0, "codec": "f32"}
        header = m.Gradient(**whole | {name: value for name, value in faults.items() if name in whole})
        finite = faults.get("finite", True)
        machine.handle(e.GradientArrived(header, received(b""), faults.get("payload_bytes", 64), lambda: finite), 0.0)

    if fault is None:
        machine.handle(e.MalformedArrived(), 0.0)
    else:
        contribute({"rank": 2})
        if fault.get("ended"):
            machine.state, machine.stop = "ended", 5
        # The first matching line of the table decides, whatever else is wrong.
        last_faults = {"view": 8, "finite": False} if row < 12 else {}
        contribute(last_faults | fault)
    outcome = next((name for name, count in machine.contributions.since_last.items() if count), "used")
    assert outcome == judged[row][1]


# the worker that was written from the page


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[Any]:
    """A bare worker whose only shard does not exist."""
    layout = Layout.of([("w", (16,))], 1)
    shards = [{role: f"ipc://{tmp_path}/{role}" for role in ("grad", "weights", "control")}]
    worker = bare_worker.Worker({"run": "r", "layout": layout.to_json(), "shards": shards}, 0, None)
    yield worker
    worker.context.destroy(linger=0)


@pytest.mark.processes
@pytest.mark.parametrize(
    "frames",
    [
        [b""],
        [b"\xc1"],
        [b"\x93\x01\x02\x03"],
        [msgpack.packb("zmqrl/1")],
        [msgpack.packb(["zmqrl/1", "HEARTBEAT", "r"])],
        [msgpack.packb(["zmqrl/1", "HEARTBEAT", "r", 0, "1", 1, 1, 1, [], True])],
        [msgpack.packb(["zmqrl/1", "WEIGHTS", "r", 0, 1, 1, 1, 1, 1, [0], [0], "f32", 0])],
        [msgpack.packb(["zmqrl/1", "WEIGHTS", "r", 0, 1, 1, 1, 1, 1, [0], [0], "f32", 0]), b"odd"],
        [msgpack.packb(["zmqrl/9", "HEARTBEAT", "r", 0, 1, 1, 1, 1, [], True])],
        [msgpack.packb(["zmqrl/1", "LATER", "r", 0])],
    ],
)
def test_the_bare_worker_ignores_malformed_messages(alone: Any, frames: list[bytes]) -> None:
    alone._received(alone.shards[0], frames)
    assert alone.whole_version() is None
    alone._received(alone.shards[0], [msgpack.packb(["zmqrl/1", "HEARTBEAT", "r", 1, 9, 1, 1, 1, [], True])])
    assert alone.shards[0].incarnation != 9, "this message is about another shard"
    with pytest.raises(ConnectionRefusedError, match="because"):
        alone._received(alone.shards[0], [msgpack.packb(["zmqrl/9", "REFUSE", "s", "whim", "because"])])


@pytest.mark.processes
def test_a_new_process_of_a_shard_cancels_the_bye_of_the_old_one_for_the_bare_worker(alone: Any) -> None:
    (shard,) = alone.shards
    alone._received(shard, [msgpack.packb(["zmqrl/1", "BYE", "r", 0, 100, 1, 7])])
    assert alone.ended()
    welcome = ["zmqrl/1", "WELCOME", "r", 0, 200, 1, 7, 1, 1, [0], "f32", "open", True]
    alone._received(shard, [msgpack.packb(welcome)])
    assert not alone.ended()


@pytest.mark.parametrize("changes", [{"protocol": "zmqrl/2"}, {"mode": "async"}, {"codec": "f8"}])
def test_the_bare_worker_does_not_join_a_run_that_it_cannot_understand(changes: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="does not know"):
        bare_worker.work({"protocol": "zmqrl/1", "mode": "sync", "codec": "f32"} | changes, 0, lambda *_: None)


def start(shards: StandaloneShards, rank: int, versions: list[int], **endpoints: str) -> threading.Thread:
    """Run the bare worker as ``rank`` in a thread. The worker appends each version that it uses to ``versions``."""
    cluster: dict[str, Any] = {
        "protocol": "zmqrl/1",
        "mode": "sync",
        "codec": shards.cluster.codec,
        "run": shards.cluster.run,
        "layout": shards.cluster.layout.to_json(),
        "shards": [dict(place) for place in shards.cluster.endpoints],
    }
    cluster["shards"][1] |= endpoints

    def gradient(weights: FloatVector, version: int) -> FloatVector:
        versions.append(version)
        time.sleep(0.002)
        return np.subtract(weights, 1.0, dtype=np.float32)

    keys = shards.keys.of_worker(rank).to_json() if shards.keys else None

    def run() -> None:
        with contextlib.suppress(ConnectionRefusedError):
            bare_worker.work(cluster, rank, gradient, keys)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread


def versions_made(shards: StandaloneShards) -> list[int]:
    return [stats.version for stats in shards.control.stats(range(2), within_s=10, what="a look").values()]


def end(shards: StandaloneShards, threads: list[threading.Thread]) -> tuple[int, dict[int, m.Stats]]:
    """Stop the shards and wait until the workers have left. Returns the last version and the shards' statistics."""
    versions, _ = stop_shards(shards.control, range(2), 10, lambda: time.sleep(0.01))
    (version,) = set(versions.values())
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()
    stats = shards.control.stats(range(2), within_s=10, what="a look")
    assert all(s.state == "ended" and s.version == version for s in stats.values())
    return version, stats


WIRES: dict[str, dict[str, Any]] = {
    "f32": {},
    "bf16": {"codec": "bf16"},
    "curve": {"transport": "tcp", "curve": True},
}


@pytest.fixture(params=WIRES)
def shards(request: pytest.FixtureRequest) -> Iterator[StandaloneShards]:
    """Two shards and two workers with K = 2."""
    layout = Layout.of([("w", (7, 9)), ("b", (9,))], 2)
    zeros, rule = np.zeros(layout.count, np.float32), OptimizerConfig(name="sgd", learning_rate=0.5)
    timing = ShardTiming(need_s=0.1)
    options = WIRES[request.param]
    with standalone_shards(layout, zeros, optimizer=rule, workers=2, timing=timing, **options) as running:
        yield running


@pytest.mark.processes
def test_a_worker_written_from_the_page_contributes_to_every_version_even_if_a_shard_dies(
    shards: StandaloneShards,
) -> None:
    mine: list[int] = []
    threads = [start(shards, 0, mine), start(shards, 1, [])]
    while len(mine) < 20:
        time.sleep(0.01)
    # Shard 1 learns the progress from the workers.
    shards.control.send(0, m.Elapsed(run=shards.cluster.run, elapsed=500_000))
    shards.processes[1].send_signal(signal.SIGKILL)
    shards.start(1)
    shards.control.greet([1], within_s=10)
    restarted_at = len(mine)
    while len(mine) < restarted_at + 20:
        time.sleep(0.01)
    version, stats = end(shards, threads)
    assert mine[:version] == list(range(version))
    assert all(tally[:2] == (rank, version) for s in stats.values() for rank, tally in enumerate(s.tallies))
    assert all(s.present == () for s in stats.values()), "a worker has not left"
    first, second = ([line.get("made_at", 0) for line in read_lines(job.history_path)] for job in shards.jobs)
    assert first == second == sorted(first)
    assert set(first) == {0, 500_000}


@pytest.mark.processes
@pytest.mark.parametrize("shards", ["f32"], indirect=True)
def test_a_worker_written_from_the_page_helps_a_shard_that_its_predecessor_did_not_reach(
    shards: StandaloneShards, tmp_path: Path
) -> None:
    first: list[int] = []
    second: list[int] = []
    threads = [start(shards, 0, []), start(shards, 1, first, grad=f"ipc://{tmp_path}/nobody")]
    while versions_made(shards) != [1, 0]:
        time.sleep(0.01)
    threads.append(start(shards, 1, second))
    while len(second) < 20:
        time.sleep(0.01)
    version, _ = end(shards, threads)
    assert first == [0], "the process whose rank was taken must end"
    assert second[:version] == list(range(version)), "the gradient of version 0 must be computed again for shard 1"
