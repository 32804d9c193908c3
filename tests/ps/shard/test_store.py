"""The state of a shard on disk: however the process ends, the newest committed version survives bit for bit."""

import errno
import os
import shutil
import stat
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.rig import ending

from zmqrl.errors import ClusterError
from zmqrl.ps.shard import store
from zmqrl.ps.shard.store import Slot, SlotStore

IDENTITY = b"run 7f3a, layout 0011223344556677, shard 1"
NAMES = ("exp_avg", "exp_avg_sq")
COUNT = 2500  # three arrays, each slightly longer than two pages


def create(path: Path, slots: int = 5) -> SlotStore:
    return SlotStore.create(path, identity=IDENTITY, count=COUNT, state_names=NAMES, slots=slots)


def reopen(path: Path) -> SlotStore:
    found = SlotStore.open(path, identity=IDENTITY, count=COUNT, state_names=NAMES)
    assert found is not None
    return found


def content(generation: int, version: int) -> np.ndarray:
    return np.random.default_rng([generation, version]).standard_normal((3, COUNT), np.float32)


def fill(slot: Slot, generation: int, version: int) -> None:
    slot.weights[:], slot.state["exp_avg"][:], slot.state["exp_avg_sq"][:] = content(generation, version)


def record_of(version: int) -> bytes:
    return b"record of %d, " % version * (version % 50)


def commit(target: SlotStore, generation: int, version: int) -> Slot:
    slot = target.free_slot()
    fill(slot, generation, version)
    target.commit(slot, generation=generation, version=version, record=record_of(version), crc32=version * 7)
    return slot


def assert_holds(slot: Slot | None, expected: tuple[int, int] | None) -> None:
    if expected is None:
        assert slot is None
        return
    assert slot is not None
    assert (slot.generation, slot.version) == expected
    assert (slot.record, slot.crc32) == (record_of(slot.version), slot.version * 7)
    held = np.stack([slot.weights, *(slot.state[name] for name in NAMES)])
    assert held.tobytes() == content(*expected).tobytes()


def assert_survives(path: Path, history: list[tuple[int, int]]) -> None:
    """Assert that the next process would find the last versions of ``history`` in the current file."""
    copy = path.with_name("copy")
    shutil.copyfile(path, copy)
    found = reopen(copy)
    newest = history[-1] if history else None
    assert_holds(found.newest, newest)
    before = (newest[0], newest[1] - 1) if newest else None
    assert_holds(found.previous, before if before in history[-2:-1] else None)
    found.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "shard-1.state"


def test_a_new_store_holds_no_version(path: Path) -> None:
    made = create(path)
    assert made.newest is None
    assert made.previous is None
    assert_survives(path, [])


def test_a_new_store_is_private_and_reserves_its_disk_space(path: Path) -> None:
    create(path)
    status = path.stat()
    assert stat.S_IMODE(status.st_mode) == 0o600
    assert status.st_blocks * 512 >= status.st_size >= 5 * 3 * COUNT * 4
    assert list(path.parent.iterdir()) == [path]


def test_a_full_disk_is_an_error_at_the_start_and_leaves_nothing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_room(fd: int, offset: int, length: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", no_room)
    with pytest.raises(ClusterError, match=r"shard-1\.state of \d+ bytes \(No space left"):
        create(path)
    assert list(path.parent.iterdir()) == []


def test_an_incomplete_file_left_by_a_killed_process_is_replaced(path: Path) -> None:
    path.with_name(path.name + ".new").write_bytes(b"half a file")
    create(path)
    assert list(path.parent.iterdir()) == [path]


def test_arrays_are_aligned_to_cache_lines_and_do_not_overlap(path: Path) -> None:
    made = create(path)
    commit(made, 0, 0)
    slot = commit(made, 0, 1)
    for array in (slot.weights, *slot.state.values()):
        assert array.ctypes.data % 64 == 0
        assert array.shape == (COUNT,)
        assert array.dtype == np.float32
    assert_holds(made.newest, (0, 1))
    assert_holds(made.previous, (0, 0))


def test_the_first_version_of_a_generation_has_no_previous_version(path: Path) -> None:
    made = create(path)
    commit(made, 0, 4)
    commit(made, 1, 5)
    assert made.previous is None
    assert_survives(path, [(0, 4), (1, 5)])


def test_a_rollback_makes_a_lower_version_the_newest(path: Path) -> None:
    made = create(path)
    for version in range(6):
        commit(made, 0, version)
    commit(made, 1, 2)
    assert_survives(path, [(0, 5), (1, 2)])


@pytest.mark.parametrize("other", ["identity", "count", "names", "order", "missing", "short", "long", "empty", "magic"])
def test_a_file_that_is_not_the_store_of_this_shard_is_not_opened(path: Path, other: str) -> None:
    commit(create(path), 0, 0)
    identity, count, names = IDENTITY, COUNT, NAMES
    data = path.read_bytes()
    match other:
        case "identity":
            identity = IDENTITY + b"0"
        case "count":
            count = COUNT - 1  # the file size is the same, because both counts end in the same page
        case "names":
            names = ("exp_avg", "square_avg")
        case "order":
            names = ("exp_avg_sq", "exp_avg")
        case "missing":
            path.unlink()
        case "short":
            path.write_bytes(data[:-1])
        case "long":
            path.write_bytes(data + b"0")
        case "empty":
            path.write_bytes(b"")
        case "magic":
            path.write_bytes(b"zmqrlst0" + data[8:])
    assert SlotStore.open(path, identity=identity, count=count, state_names=names) is None


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["next version", "rollback", "reopened"]),
        st.integers(0, COUNT),  # the number of elements of each array that are written when the process dies
        st.floats(0, 1),  # the fraction of the header that is written
    ),
    min_size=1,
    max_size=10,
)


@settings(max_examples=40, deadline=None)
@given(STEPS)
def test_a_crash_at_any_point_of_any_sequence_leaves_the_last_commit(steps: list[tuple[str, int, float]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "state"
        live = create(path, slots=3 + len(steps) % 3)
        history: list[tuple[int, int]] = []
        for kind, written, header_part in steps:
            if kind == "reopened":
                live.close()
                live = reopen(path)
                assert_survives(path, history)
                continue
            generation, version = history[-1] if history else (0, -1)
            new = (generation, version + 1) if kind == "next version" else (generation + 1, max(version - 3, 0))

            slot = live.free_slot()
            assert_survives(path, history)
            data = content(*new)
            for array, numbers in zip((slot.weights, *slot.state.values()), data, strict=True):
                array[:written] = numbers[:written]
            assert_survives(path, history)
            fill(slot, *new)
            assert_survives(path, history)

            before = path.read_bytes()
            live.commit(slot, generation=new[0], version=new[1], record=record_of(new[1]), crc32=new[1] * 7)
            after = path.read_bytes()
            changed = np.flatnonzero(np.frombuffer(before, np.uint8) != np.frombuffer(after, np.uint8))
            start, end = int(changed[0]), int(changed[-1]) + 1
            torn = start + store.MARK_BYTES + int(header_part * (end - start - store.MARK_BYTES))
            without_mark = before[: start + store.MARK_BYTES] + after[start + store.MARK_BYTES : torn] + before[torn:]
            (torn_path := Path(folder) / "torn").write_bytes(without_mark)
            assert_survives(torn_path, history)
            if torn < end:  # a host that went down: the mark reached the disk, but the earlier writes did not
                torn_path.write_bytes(after[:torn] + before[torn:])
                assert_survives(torn_path, history)
            history.append(new)
            assert_survives(path, history)
        live.close()


def used_bytes(newest: Slot, slot_bytes: int) -> list[range]:
    start = store.PAGE + newest.index * slot_bytes
    return [
        range(start, start + store.RECORD_OFFSET + len(newest.record)),
        range(start + store.HEADER_BYTES, start + slot_bytes),
    ]


@pytest.fixture(scope="module")
def three_versions(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, list[range], Path]:
    path = tmp_path_factory.mktemp("damage") / "state"
    made = create(path, slots=3)
    slot_bytes = (path.stat().st_size - store.PAGE) // 3
    for version in (20, 21, 22):
        commit(made, 0, version)
    assert made.newest is not None
    used = used_bytes(made.newest, slot_bytes)
    made.close()
    return path.read_bytes(), used, path


@settings(deadline=None)
@given(part=st.integers(0, 1), place=st.floats(0, 1, exclude_max=True), flip=st.integers(1, 255))
def test_with_a_damaged_byte_in_the_newest_version_the_previous_one_is_used(
    three_versions: tuple[bytes, list[range], Path], part: int, place: float, flip: int
) -> None:
    data, used, path = three_versions
    damaged = bytearray(data)
    damaged[used[part][int(place * len(used[part]))]] ^= flip
    path.write_bytes(damaged)
    found = reopen(path)
    assert_holds(found.newest, (0, 21))
    assert_holds(found.previous, (0, 20))
    commit(found, 0, 22)
    found.close()
    assert_survives(path, [(0, 21), (0, 22)])


def test_lost_stale_or_swapped_pages_are_detected(three_versions: tuple[bytes, list[range], Path]) -> None:
    data, (_, arrays), path = three_versions
    first, second = arrays.start, arrays.start + store.PAGE
    older = data.index(content(0, 21)[0].tobytes())
    pages = {name: data[at : at + store.PAGE] for name, at in (("first", first), ("second", second), ("older", older))}
    for left, right in (
        (bytes(store.PAGE), pages["second"]),
        (pages["older"], pages["second"]),
        (pages["second"], pages["first"]),
    ):
        path.write_bytes(data[:first] + left + right + data[second + store.PAGE :])
        found = reopen(path)
        assert_holds(found.newest, (0, 21))
        found.close()


def test_a_store_with_every_slot_damaged_holds_no_version(path: Path) -> None:
    made = create(path)
    for version in range(3):
        commit(made, 0, version)
    data = path.read_bytes()
    path.write_bytes(data[: store.PAGE] + b"\xa5" * (len(data) - store.PAGE))
    assert_survives(path, [])


def test_a_reopened_store_continues_where_it_was(path: Path) -> None:
    first = create(path)
    for version in range(4):
        commit(first, 0, version)
    first.close()
    second = reopen(path)
    for version in range(4, 8):
        commit(second, 0, version)
        assert_survives(path, [(0, version - 1), (0, version)])


def test_the_slots_of_the_newest_and_the_previous_version_are_never_reused(path: Path) -> None:
    made = create(path, slots=3)
    for version in range(10):
        slot = made.free_slot()
        assert slot is not made.newest
        assert slot is not made.previous
        assert slot is made.free_slot()
        fill(slot, 0, version)
        made.commit(slot, generation=0, version=version, record=record_of(version), crc32=version * 7)
        assert_holds(made.previous, (0, version - 1) if version else None)


def test_a_slot_taken_for_writing_is_invalid_even_before_the_first_write(path: Path) -> None:
    made = create(path, slots=3)
    newest_two = [commit(made, 0, version) for version in range(3)][1:]
    made.free_slot()
    slot_bytes = (path.stat().st_size - store.PAGE) // 3
    data = bytearray(path.read_bytes())
    for slot in newest_two:
        data[used_bytes(slot, slot_bytes)[0].start] ^= 1
    damaged = path.with_name("damaged")
    damaged.write_bytes(data)
    assert_survives(damaged, [])


class Reader:
    """A slow subscriber."""

    def __init__(self) -> None:
        self.done = False

    def released(self) -> bool:
        return self.done


def test_a_pinned_slot_is_not_overwritten_until_it_is_released(path: Path) -> None:
    made = create(path)
    commit(made, 0, 0)
    slot = commit(made, 0, 1)
    reader = Reader()
    made.pin(slot, reader.released)
    for version in range(2, 12):
        assert commit(made, 0, version) is not slot
    assert_holds(slot, (0, 1))
    reader.done = True
    assert slot in [commit(made, 0, version) for version in range(12, 16)]


def test_a_slot_with_two_readers_is_kept_until_both_are_done(path: Path) -> None:
    made = create(path)
    slot = commit(made, 0, 0)
    readers = [Reader(), Reader()]
    for reader in readers:
        made.pin(slot, reader.released)
    readers[0].done = True
    assert slot not in [commit(made, 0, version) for version in range(1, 8)]
    readers[1].done = True
    assert slot in [commit(made, 0, version) for version in range(8, 12)]


def test_a_slot_cannot_be_pinned_if_fewer_than_three_would_be_left(path: Path) -> None:
    made = create(path, slots=5)
    readers = []
    for version in range(2):
        assert made.can_pin()
        readers.append(Reader())
        made.pin(commit(made, 0, version), readers[-1].released)
    assert not made.can_pin()
    for version in range(2, 20):  # there is always a free slot
        commit(made, 0, version)
        assert_holds(made.previous, (0, version - 1))
    readers[0].done = True
    assert made.can_pin()


def test_a_pinned_slot_accepts_more_readers(path: Path) -> None:
    made = create(path, slots=4)
    slot = commit(made, 0, 0)
    made.pin(slot, Reader().released)
    assert not made.can_pin()
    made.pin(slot, Reader().released)


def test_three_slots_are_enough_for_a_store_but_none_of_them_can_be_pinned(path: Path) -> None:
    made = create(path, slots=3)
    commit(made, 0, 0)
    assert not made.can_pin()


def test_views_stay_readable_after_close(path: Path) -> None:
    made = create(path)
    slot = commit(made, 0, 3)
    made.close()
    assert_holds(slot, (0, 3))
    assert_survives(path, [(0, 3)])


def test_a_slot_can_be_committed_only_once(path: Path) -> None:
    made = create(path)
    slot = commit(made, 0, 0)
    with pytest.raises(AssertionError, match="free_slot"):
        made.commit(slot, generation=0, version=1, record=b"", crc32=0)


def test_the_longest_record_fits_and_a_longer_one_does_not(path: Path) -> None:
    made = create(path)
    slot = made.free_slot()
    record = bytes(range(256)) * (store.MAX_RECORD_BYTES // 256)
    with pytest.raises(AssertionError, match="record"):
        made.commit(slot, generation=0, version=0, record=record + b"1", crc32=0)
    made.commit(slot, generation=0, version=0, record=record, crc32=2**32 - 1)
    found = reopen(path).newest
    assert found is not None
    assert (found.record, found.crc32) == (record, 2**32 - 1)


VICTIM = """
import os, sys
from pathlib import Path
import numpy as np
from zmqrl.ps.shard.store import SlotStore

count = 60_000
base = np.arange(1, count + 1, dtype=np.float32)
shape = {"identity": b"victim", "count": count, "state_names": ["a", "b"]}
path = Path(sys.argv[1])
store = SlotStore.open(path, **shape) or SlotStore.create(path, **shape)
version = store.newest.version + 1 if store.newest else 0
while True:
    slot = store.free_slot()
    np.multiply(base, version, out=slot.weights)
    np.add(base, version, out=slot.state["a"])
    np.subtract(base, version, out=slot.state["b"])
    store.commit(slot, generation=1, version=version, record=b"%d" % version * 1000, crc32=version)
    os.write(1, version.to_bytes(8, "little"))
    version += 1
"""


def killed_after(path: Path, wait_s: float) -> int:
    """Run the victim until its first report, wait ``wait_s``, then kill it. Returns the last reported version."""
    with ending(subprocess.Popen([sys.executable, "-c", VICTIM, str(path)], stdout=subprocess.PIPE)) as victim:
        assert victim.stdout is not None
        reports = victim.stdout.read(8)
        time.sleep(wait_s)
        victim.kill()
        reports += victim.stdout.read()
    last: int = struct.unpack("<Q", reports[len(reports) // 8 * 8 - 8 :][:8])[0]
    return last


def expected_of(version: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    base, number = np.arange(1, 60_001, dtype=np.float32), np.float32(version)
    return base * number, base + number, base - number


@pytest.mark.processes
def test_a_process_killed_at_any_moment_leaves_its_last_reported_version_or_the_next(path: Path) -> None:
    waits: Callable[[], float] = np.random.default_rng().random
    for _ in range(20):
        reported = killed_after(path, wait_s=waits() * 0.02)
        found = SlotStore.open(path, identity=b"victim", count=60_000, state_names=["a", "b"])
        assert found is not None
        assert found.newest is not None
        assert found.newest.version in (reported, reported + 1)
        for slot in (found.newest, found.previous):
            if slot is None:
                assert found.newest.version == 0
                continue
            weights, a, b = expected_of(slot.version)
            np.testing.assert_array_equal(slot.weights, weights)
            np.testing.assert_array_equal(slot.state["a"], a)
            np.testing.assert_array_equal(slot.state["b"], b)
            assert (slot.generation, slot.crc32, slot.record) == (1, slot.version, b"%d" % slot.version * 1000)
        found.close()
