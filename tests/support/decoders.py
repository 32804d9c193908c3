"""Every decoder of bytes from outside, with valid messages, and hostile variants of these messages.

A variant is a few bytes, so that a fuzzer can search among the variants: see :func:`message`.
"""

import contextlib
import copy
import functools
import json
import logging
import math
import shutil
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import MISSING, dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias, get_args, get_origin, get_type_hints

import msgpack
import numpy as np
import zmq
from support import shard_rig, worker_rig
from support.paths import ROOT, TESTS

from zmqrl.checkpoint import Checkpoint
from zmqrl.commands.inspect.check_history import check
from zmqrl.commands.inspect.living import Living
from zmqrl.commands.measure import compare
from zmqrl.config import Config
from zmqrl.errors import ClusterError, UsageError
from zmqrl.hostd import messages as h
from zmqrl.hosts.inventory import read_hosts
from zmqrl.hosts.reach import HostOptions
from zmqrl.hosts.ways.login_node import Submitted
from zmqrl.json_lines import nulled, parse_json
from zmqrl.observe.forms import HOSTS, read_object
from zmqrl.observe.live.figures import LiveMetrics
from zmqrl.observe.live.presence import Presence, by_host
from zmqrl.observe.metrics import Counters, RunMetrics
from zmqrl.observe.records import RunRecord, hosts_of
from zmqrl.observe.reports import WorkerReport
from zmqrl.observe.stalls import Awaited, Doing, Stall
from zmqrl.page.charts import charts
from zmqrl.page.runs import Runs, UnknownRun
from zmqrl.process_id import shard_id, worker_id
from zmqrl.profile import tables
from zmqrl.profile.run_tables import RunTables, newest_version
from zmqrl.ps.cluster_file import Cluster
from zmqrl.ps.layout import Layout
from zmqrl.ps.shard.history import History, LostState
from zmqrl.ps.shard.reception import Reception
from zmqrl.ps.shard.store import PAGE, SlotStore
from zmqrl.ps.wire import framing
from zmqrl.ps.wire import messages as m
from zmqrl.ps.wire.keys import ClientKeys, RunKeys
from zmqrl.ps.worker import events as worker_events
from zmqrl.results.kept import NO_LIMITS, Result, reproducible
from zmqrl.results.pages import report_page, reproduction_page
from zmqrl.results.rerun import By, judge, rerun_config
from zmqrl.rundir import RunDirectory
from zmqrl.simulate.scenario import Scenario
from zmqrl.supervisor.progress import _unpack
from zmqrl.supervisor.salvage import _Left

OLD_RUN = TESTS / "old_run"
LAYOUT = Layout.of([("w", (100,))], 2)
Node: TypeAlias = tuple[Any, Any]
"""A list or dict, and the index or key of one of its items."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoder:
    """``decode(data, place)`` decodes one message, and may raise only ``errors``. ``place`` is a scratch directory.

    ``seeds`` are valid messages. ``form`` is their format, or None if no variant changes single values of a seed.
    """

    decode: Callable[[bytes, Path], object]
    errors: tuple[type[Exception], ...] = ()
    seeds: tuple[bytes, ...]
    form: Literal["json", "msgpack"] | None = None


# valid messages


def example(hint: Any) -> Any:
    """A small value that an annotation in ``messages.py`` allows."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return example(hint.__origin__)
    if origin is Literal:
        return inner[0]
    if origin is tuple:
        return (example(inner[0]),)
    if inner:
        return example(inner[0])
    if hasattr(hint, "_fields"):  # a named tuple
        return hint(*map(example, get_type_hints(hint).values()))
    return {int: 1, str: "run", bytes: b"\x80", bool: True}[hint]


def headers() -> tuple[bytes, ...]:
    """A header of each kind, with the values that the two state machines in this file expect."""
    fitting: dict[str, Any] = {
        "layout": "layout",
        "generation": 1,
        "secret": "secret",
        "version": 0,
        "members": (0, 1, 2),
        "total": 64,
    }
    made = []
    for cls in framing.KINDS.values():
        hints = get_type_hints(cls, include_extras=True)
        values: dict[str, Any] = {
            field.name: fitting.get(field.name, example(hints[field.name])) for field in fields(cls)
        }
        made.append(framing.encode(cls(**values)))
    return tuple(made)


def hostd_messages(kinds: dict[str, type[Any]]) -> tuple[bytes, ...]:
    values: dict[Any, Any] = {str: "x", int: 1, float: 1.0, bool: True, Any: 1}

    def value(hint: Any) -> Any:
        inner = get_args(hint)
        if get_origin(hint) is not None and inner[:1] == (str,) and len(inner) == 2 and type(None) not in inner:
            return {"x": value(inner[1])}
        if get_origin(hint) is not None and type(None) not in inner:
            return [value(inner[0])]
        return value(inner[0]) if inner else values[hint]

    made = []
    for cls in kinds.values():
        hints = get_type_hints(cls)
        required = {each.name: value(hints[each.name]) for each in fields(cls) if each.default is MISSING}
        made.append(h.encode(cls(**required)).rstrip(b"\n"))
    return tuple(made)


def report() -> bytes:
    game = (1, 21.0, 300)
    figures = {"version": 3, "agent_steps": 512, "games": [game], "gradients": 2, "policy_lag_sum": 1.5}
    sums = {"loss_sums": {"policy_loss": (0.5, 2)}, "span_sums": {"env_step": 0.1}, "losses": {"entropy": 0.6}}
    return bytes(msgpack.packb(figures | sums | {"policy_lag_min": 0, "policy_lag": 0.5, "policy_lag_max": 1}))


def cluster() -> dict[str, Any]:
    """The contents of ``cluster.json``."""
    place = {"grad": "tcp://h:1", "weights": "tcp://h:2", "control": "tcp://h:3"}
    return {
        "protocol": m.PROTOCOL,
        "zmqrl": "1",
        "run": "run",
        "supervisor": {"host": "h", "pid": 1},
        "hosts": [{"host": "h", "command": ["ssh", "h"], "work": "w", "lease_s": 10.0, "environment": None}],
        "shards": [{"shard": shard, "host": "h", "pid": 2, **place} for shard in range(2)],
        "workers": [{"rank": 0, "host": "h", "pid": 3}],
        "followers": [{"name": "evaluator-0", "host": "h", "pid": 4}],
        "open_ranks": [1],
        "mode": "sync",
        "codec": "f32",
        "layout": LAYOUT.to_json(),
        "keys": {"1": "keys/worker-1.json"},
    }


def left() -> dict[str, Any]:
    """The contents of ``left.json``."""
    return cluster() | {"config": Config(shards=2).to_json()}


def stalled() -> dict[str, Any]:
    doing = Doing(state="blocked", kernel="k", stack=('File "game.py", line 1 in step',))
    awaited = (Awaited(process=worker_id(1), host="h", doing=doing), Awaited(process=shard_id(0)))
    return Stall(version=3, waited_s=9.0, awaited=awaited).to_json()


def profile_block() -> dict[str, Any]:
    """The first block of a shard's profile, with its tables as :func:`profile.tables.pack` encodes them."""
    about = {"format": tables.FORMAT, "process": "shard-0", "incarnation": 1, "run": "r", "host": "h", "clock": "c"}
    histogram = {"gaps": [3], "counts": [2], "maximum": 3, "total": 6}
    rows = {name: [[1] * len(columns)] * 2 for name, columns in tables.COLUMNS.items()}
    block = {"about": about | {"cores": 1, "spans": ["s"]}, "earlier": {"s": histogram}, "new": {"s": histogram}}
    packed = tables.pack(block | {"spans": ["s"], "untraced": 0}, rows)
    return dict(msgpack.unpackb(zlib.decompress(packed[tables.PREFIX.size :]), strict_map_key=False))


def slots(place: Path) -> bytes:
    """A file of slots that holds one version."""
    path = place / "made.slots"
    store = SlotStore.create(path, identity=b"i", count=16, state_names=("m",), slots=3)
    slot = store.free_slot()
    slot.weights[:], slot.state["m"][:] = 1, 2
    store.commit(slot, generation=1, version=5, record=b"record", crc32=7)
    store.close()
    return path.read_bytes()


def jsons(*data: object) -> tuple[bytes, ...]:
    return tuple(json.dumps(each).encode() for each in data)


def lines_of(path: Path) -> tuple[bytes, ...]:
    return tuple(path.read_bytes().splitlines()[:2])


# decoders


def decode_header(data: bytes, _: Path) -> None:
    found = framing.decode(data)
    assert framing.decode(framing.encode(found)) == found


RECEPTION = Reception(None, logging.getLogger("test"))
PAYLOAD = np.ones(16, np.float32).tobytes()


def decode_at_a_shard(data: bytes, _: Path) -> None:
    """Give the bytes to each socket of a shard as the message of a worker, and then to the state machine."""
    shard = shard_rig.opened(workers=(0, 1))
    peer, frame, payload = (zmq.Frame(each) for each in (b"0", data, PAYLOAD))
    for event in (
        RECEPTION.control([peer, frame]),
        RECEPTION.control([peer, frame, payload]),
        RECEPTION.gradient([frame, payload]),
        RECEPTION.presence([zmq.Frame(b"\1" + data)]),
    ):
        if event is not None:
            shard_rig.handle(shard, event)
    shard_rig.push(shard, 0)


def decode_at_a_worker(data: bytes, _: Path) -> None:
    """Give the bytes to each socket of a worker as the message of a shard, and then to the state machine."""
    worker = worker_rig.contributed()
    for payload in (None, zmq.Frame(PAYLOAD)):
        try:
            published = framing.decode_at(m.PUBLICATIONS, data, payload is not None)
        except framing.MalformedMessage:
            pass
        else:
            worker.handle(worker_events.PublicationArrived(0, published, payload), 0.0)
        try:
            answer = framing.decode_at(m.ANSWERS, data, payload is not None)
        except framing.MalformedMessage:
            pass
        else:
            worker.handle(worker_events.ControlArrived(0, answer, payload), 0.0)
    worker.handle(worker_events.Tick(), 1.0)


def decode_at_a_supervisor(data: bytes, _: Path) -> None:
    """Give the bytes to a supervisor as the message of a shard."""
    found = []
    for payloads in (0, 1, 2):
        with contextlib.suppress(framing.MalformedMessage):
            found.append((payloads, framing.decode_at(m.TOLD, data, payloads)))
    assert all(payloads == (type(message) in m.WITH_PAYLOAD) for payloads, message in found)
    assert all(isinstance(message, m.ToSupervisor) for _, message in found)


def decode_report(data: bytes, _: Path) -> None:
    metrics = RunMetrics(start=Counters())
    metrics.on_report(WorkerReport.parse(_unpack(data) | {"rank": 0, "incarnation": 1}))
    json.dumps(metrics.row(1.0), allow_nan=False)


def decode_request(data: bytes, _: Path) -> None:
    found = h.decode_request(data)
    assert h.decode_request(h.encode(found)) == found


def decode_event(data: bytes, _: Path) -> None:
    found = h.decode_event(data)
    assert h.decode_event(h.encode(found)) == found


def in_a_file(name: str, read: Callable[[Path], object]) -> Callable[[bytes, Path], object]:
    """A decoder of files: ``read`` gets the path of a file with the bytes."""

    def decode(data: bytes, place: Path) -> object:
        path = place / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        return read(path)

    return decode


def read_history(path: Path) -> None:
    try:
        history = History(path)
        try:
            history.totals(2)
            history.recover(replace(shard_rig.RECORD, version=3, ranks=(0, 1)), 0)
            assert history.last_version == 3
            history.rewind(1, 2)
        finally:
            history.close()
    finally:
        shutil.rmtree(path.parent)


def read_slots(data: bytes, place: Path) -> None:
    """Replace the beginning of a file with the bytes, and then, in another copy, the beginning of its first slot."""
    whole = slots_of(place)
    path = place / "changed.slots"
    for start in (0, PAGE):
        path.write_bytes(whole[:start] + data + whole[start + len(data) :])
        store = SlotStore.open(path, identity=b"i", count=16, state_names=("m",))
        if store is not None:
            store.close()


@functools.cache
def slots_of(place: Path) -> bytes:
    return slots(place)


def read_manifest(data: bytes, place: Path) -> None:
    checkpoint = place / "v00000020"
    if not checkpoint.exists():
        shutil.copytree(OLD_RUN / "checkpoints" / checkpoint.name, checkpoint)
    (checkpoint / "manifest.json").write_bytes(data)
    Checkpoint.read(checkpoint)


def read_profile(data: bytes, place: Path) -> None:
    """Read the bytes as a file, and as the body of a block with a correct checksum."""
    packed = zlib.compress(data)
    block = tables.PREFIX.pack(len(packed), zlib.crc32(packed)) + packed
    for content in (data, block, block * 2):
        (place / "shard-0.1.1.blocks").write_bytes(content)
        newest_version(place)
        for each in RunTables.read(place).after((1, 0)).processes:
            each.histograms()


def in_a_run(name: str, read: Callable[[Path], object]) -> Callable[[bytes, Path], object]:
    """A decoder of files in a run directory: ``read`` gets the path of the directory."""

    def decode(data: bytes, place: Path) -> object:
        run = place / "run"
        if not run.exists():
            shutil.copytree(OLD_RUN, run)
        (run / name).write_bytes(data + b"\n")
        return read(run)

    return decode


def read_result(run: Path) -> None:
    """Read a run as the page, ``zmqrl compare``, ``report`` and ``reproduce`` do before ``reproduce`` trains."""
    page = Runs(run)
    with contextlib.suppress(UnknownRun):
        record = page.record(".")
        shown = page.overview("."), page.details("."), charts(["."], [record], "minutes")
        json.dumps(nulled(shown), allow_nan=False)
    record = RunRecord.read(run)
    compared = compare.result(record)
    compare.table([record.name], {}, [compared])
    json.dumps(nulled(compared), allow_nan=False)
    report_page(Result.read(run), "report.svg")
    result, evaluated = reproducible(run)
    for by in get_args(By):
        rerun_config(result, evaluated, by, run, NO_LIMITS).check()
    verdict = judge(result.games, result.games, evaluated, evaluated, "minutes")
    reproduction_page(result, result, "minutes", verdict, "reproduction.svg")
    assert all(seed >= 0 for seed in result.seeds)


def read_living(run: Path) -> None:
    living = Living.read(run)
    living.processes()
    assert isinstance(living.is_here, bool)


def read_stall(run: Path) -> None:
    stall = Living.read(run).stall()
    if stall is not None:
        stall.sentence()


def live() -> dict[str, Any]:
    """The contents of ``live.json``."""
    row = {"version": 3, "wall_s": 9.0, "agent_steps": 64, "agent_steps_per_s": 7.1, "updates_per_s": 0.3}
    presences = [Presence(process=worker_id(rank), host="h", state="lost", for_s=2.0, restarts=1) for rank in (0, 1)]
    return LiveMetrics(row=row, about={}, processes=presences, quorum=2).to_json()


def read_live(run: Path) -> None:
    found = Living.read(run).live()
    assert isinstance(found.over({}), dict)
    assert isinstance(found.is_old, bool)
    by_host(found.processes)


def hosts() -> dict[str, Any]:
    """The contents of ``hosts.json``."""
    options = HostOptions(hosts="h1:2,h2", iface="ib0", address=("h1=10.0.0.1",)).read()
    return {"hosts": [{"host": "h1", "python": "3", "processes": ["shard-0"]}], "given": options.to_json()}


def read_kept_hosts(run: Path) -> None:
    directory = RunDirectory(run)
    hosts_of(directory)
    found = read_object(directory.hosts, HOSTS, "")
    if found is not None and found["given"] is not None:
        HostOptions().resumed(found["given"], directory.hosts)


FILES = (UsageError, ClusterError)
DECODERS: dict[str, Decoder] = {
    # on the wire
    "header": Decoder(decode=decode_header, errors=(framing.MalformedMessage,), seeds=headers(), form="msgpack"),
    "shard": Decoder(decode=decode_at_a_shard, seeds=headers(), form="msgpack"),
    "worker": Decoder(decode=decode_at_a_worker, seeds=headers(), form="msgpack"),
    "supervisor": Decoder(decode=decode_at_a_supervisor, seeds=headers(), form="msgpack"),
    "report": Decoder(decode=decode_report, errors=(ValueError,), seeds=(report(),), form="msgpack"),
    # between launcher, host daemons and processes
    "request": Decoder(
        decode=decode_request, errors=(ValueError,), seeds=hostd_messages(h.REQUEST_CLASSES), form="json"
    ),
    "event": Decoder(decode=decode_event, errors=(ValueError,), seeds=hostd_messages(h.EVENT_CLASSES), form="json"),
    "said": Decoder(
        decode=lambda data, _: parse_json(data), errors=(ValueError,), seeds=jsons({"endpoints": {}}), form="json"
    ),
    # files
    "history": Decoder(
        decode=in_a_file("history/shard-0.jsonl", read_history),
        errors=(ClusterError, LostState),
        seeds=tuple(line + b"\n" for line in lines_of(OLD_RUN / "history/shard-0.jsonl")),
        form="json",
    ),
    "checked history": Decoder(
        decode=in_a_run("history/shard-0.jsonl", check),
        errors=FILES,
        seeds=lines_of(OLD_RUN / "history/shard-0.jsonl"),
        form="json",
    ),
    "checked left": Decoder(decode=in_a_run("left.json", check), errors=FILES, seeds=jsons(left()), form="json"),
    "checked manifest": Decoder(
        decode=in_a_run("checkpoints/v00000020/manifest.json", check),
        errors=FILES,
        seeds=((OLD_RUN / "checkpoints/v00000020/manifest.json").read_bytes(),),
        form="json",
    ),
    "slots": Decoder(decode=read_slots, seeds=(b"",)),
    "manifest": Decoder(
        decode=read_manifest,
        errors=FILES,
        seeds=((OLD_RUN / "checkpoints/v00000020/manifest.json").read_bytes(),),
        form="json",
    ),
    "profile": Decoder(decode=read_profile, seeds=(bytes(msgpack.packb(profile_block())),), form="msgpack"),
    "cluster": Decoder(
        decode=in_a_file("cluster.json", Cluster.read), errors=FILES, seeds=jsons(cluster()), form="json"
    ),
    "living": Decoder(decode=in_a_run("cluster.json", read_living), errors=FILES, seeds=jsons(cluster()), form="json"),
    "left": Decoder(decode=in_a_file("left.json", _Left.read), errors=FILES, seeds=jsons(left()), form="json"),
    "submitted": Decoder(
        decode=in_a_run("submitted.json", Submitted.read),
        errors=FILES,
        seeds=jsons(dict.fromkeys((each.name for each in fields(Submitted)), "x")),
        form="json",
    ),
    "stalled": Decoder(decode=in_a_run("stalled.json", read_stall), seeds=jsons(stalled()), form="json"),
    "live": Decoder(decode=in_a_run("live.json", read_live), seeds=jsons(live()), form="json"),
    "hosts.json": Decoder(
        decode=in_a_run("hosts.json", read_kept_hosts), errors=FILES, seeds=jsons(hosts()), form="json"
    ),
    "keys": Decoder(
        decode=in_a_file("worker-0.json", lambda path: ClientKeys.read(path, run="r", rank=0)),
        errors=FILES,
        seeds=jsons({"run": "r", "rank": 0, **RunKeys.make(workers=1, shards=1).of_worker(0).to_json()}),
        form="json",
    ),
    "config": Decoder(
        decode=in_a_file("config.json", lambda path: Config.read(path).check()),
        errors=FILES,
        seeds=(*jsons(Config().to_json()), (OLD_RUN / "config.json").read_bytes()),
        form="json",
    ),
    "metrics": Decoder(
        decode=in_a_run("metrics.jsonl", read_result),
        errors=FILES,
        seeds=lines_of(OLD_RUN / "metrics.jsonl"),
        form="json",
    ),
    "evaluations": Decoder(
        decode=in_a_run("evaluations.jsonl", read_result),
        errors=FILES,
        seeds=lines_of(OLD_RUN / "evaluations.jsonl")[-1:],
        form="json",
    ),
    "evaluation.json": Decoder(
        decode=in_a_run("evaluation.json", read_result),
        errors=FILES,
        seeds=lines_of(OLD_RUN / "evaluations.jsonl")[-1:],
        form="json",
    ),
    "settings": Decoder(
        decode=in_a_run("config.json", read_result),
        errors=FILES,
        seeds=((OLD_RUN / "config.json").read_bytes(),),
        form="json",
    ),
    "summary": Decoder(
        decode=in_a_run("summary.json", read_result),
        errors=FILES,
        seeds=((OLD_RUN / "summary.json").read_bytes(),),
        form="json",
    ),
    # files that users write
    "hostfile": Decoder(
        decode=in_a_file("hosts", lambda path: read_hosts(str(path))),
        errors=FILES,
        seeds=(b"h1 slots=4\nnode[01-03]:2 max-slots=3 # c\nu@h2\n", (ROOT / "launch/hosts/hostfile").read_bytes()),
    ),
    "hosts.toml": Decoder(
        decode=in_a_file("hosts.toml", lambda path: read_hosts(str(path))),
        errors=FILES,
        seeds=tuple(path.read_bytes() for path in (ROOT / "launch/hosts").glob("*.toml")),
    ),
    "scenario.toml": Decoder(
        decode=in_a_file("scenario.toml", Scenario.read),
        errors=FILES,
        seeds=(b'workers = 4\nbackups = 1\ncompute = "lognormal:0.2:0.3"\nbandwidth = "inf"\n',),
    ),
    "scenario.json": Decoder(
        decode=in_a_file("scenario.json", Scenario.read),
        errors=FILES,
        seeds=jsons(Scenario().to_json()),
        form="json",
    ),
}


# variants

MOST_CHANGES = 6
DEEP: Any = json.loads("[" * 100 + "]" * 100)
VALUES: tuple[Any, ...] = (
    *(None, True, False, -1, 0, 1, 2, 3, 2**16, 2**31, 2**32, 2**53, 2**63 - 1, 2**64 - 1, 10**400),
    *(1.5, -0.0, 1e308, math.nan, math.inf, "", "x", "x" * 70, "../x", "\0", "\ud800", "1", "nan", b"", b"\x80"),
    *([], [[]], [1, 2, 3], [-1], [True], {}, {"x": 1}, {"": None}, DEEP),
)
ACTIONS: tuple[Callable[[Any, Any, Any], None], ...] = (
    lambda items, key, value: items.__setitem__(key, value),
    lambda items, key, value: items.__delitem__(key),
    lambda items, key, value: items.__setitem__(key, [items[key], value]),
    lambda items, key, value: items.append(value) if isinstance(items, list) else items.__setitem__("x", value),
)
HOSTILE = (
    b"",
    b"\n\n",
    b"null",
    b"\xff\xfe",
    b"\xef\xbb\xbf{}",
    b"{" * 3000,
    *(b"[" * depth + b"]" * depth for depth in (100, *range(900, 1000, 3), 5000)),
    b'{"x":' * 3000,
    b"x = " + b"[" * 3000,
    b"x." * 3000 + b"x = 1",
    b"1" * 5000,
    b"1e999",
    b"\x91" * 3000,
    b"\x81\xa1x" * 3000,
    b"\xdd\xff\xff\xff\xff",
    b"\xc6\xff\xff\xff\xff",
)
"""Bytes that every decoder should survive: empty, nested too deeply, too long, or of another form."""


def message(decoder: Decoder, variant: bytes) -> bytes:
    """The message that ``variant`` stands for. If its first byte is 1, the rest describes changes to a seed.

    Then the second byte is the number of the seed. Each change has the number of an item (2 bytes), of an action and of
    a value. If the first byte is not 1, the rest is the message itself.
    """
    if variant[:1] != b"\1" or decoder.form is None or len(variant) < 2:
        return variant[1:]
    whole = [_read(decoder.form, decoder.seeds[variant[1] % len(decoder.seeds)])]
    for at in range(2, min(len(variant) - 3, 4 * MOST_CHANGES), 4):
        items = list(nodes(whole))
        change, value = ACTIONS[variant[at + 2] % len(ACTIONS)], VALUES[variant[at + 3] % len(VALUES)]
        if items:
            change(*items[int.from_bytes(variant[at : at + 2]) % len(items)], copy.deepcopy(value))
    return _write(decoder.form, whole[0] if whole else None)


def nodes(data: Any) -> Iterator[Node]:
    """Every item of a tree of lists and dicts."""
    pairs: Iterable[Node] = (
        enumerate(data) if isinstance(data, list) else data.items() if isinstance(data, dict) else ()
    )
    for key, value in list(pairs):
        yield data, key
        yield from nodes(value)


def corpus(decoder: Decoder) -> Iterator[bytes]:
    """The variants to begin with: the seeds, and the hostile bytes."""
    yield from (b"\0" + each for each in (*decoder.seeds, *HOSTILE))
    if decoder.form is not None:
        yield from (b"\1" + bytes([seed, 0, seed, 0, 0]) for seed in range(len(decoder.seeds)))


def single_changes(decoder: Decoder) -> Iterator[bytes]:
    """Every variant that changes one item of a seed in one way."""
    if decoder.form is None:
        return
    for number, seed in enumerate(decoder.seeds):
        count = len(list(nodes([_read(decoder.form, seed)])))
        for item in range(count):
            for action, values in ((0, len(VALUES)), (1, 1), (2, 1), (3, 1)):
                yield from (single_change(number, item, action, value) for value in range(values))


def single_change(seed: int, item: int, action: int, value: int) -> bytes:
    """The variant that changes one item of a seed by one of ``ACTIONS``. All arguments are indices."""
    return b"\1" + bytes([seed, *divmod(item, 256), action, value])


def large_counts(decoder: Decoder) -> Iterator[bytes]:
    """Every variant that replaces one integer of a seed by a number that is too large for any loop."""
    if decoder.form is None:
        return
    for number, seed in enumerate(decoder.seeds):
        for item, (items, key) in enumerate(nodes([_read(decoder.form, seed)])):
            if type(items[key]) is int:
                yield single_change(number, item, 0, VALUES.index(2**53))


def survives(decoder: Decoder, variant: bytes, place: Path) -> None:
    """Decode a variant. Raises what the decoder raises, except its declared errors."""
    data = message(decoder, variant)
    try:
        decoder.decode(data, place)
    except decoder.errors as error:
        str(error).encode(errors="backslashreplace")


def _read(form: str, data: bytes) -> Any:
    return json.loads(data) if form == "json" else msgpack.unpackb(data, strict_map_key=False)


def _write(form: str, data: Any) -> bytes:
    if form == "json":
        return json.dumps(data, default=lambda value: value.hex()).encode()
    try:
        return bytes(msgpack.packb(data, unicode_errors="surrogatepass"))
    except (OverflowError, ValueError):  # MessagePack has no such value
        return b""
