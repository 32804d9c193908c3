"""Shared memory: others can read it but not change it, and it leaves nothing behind."""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from support.rig import WITHIN_S, ending

from zmqrl.ps.wire.memory import MFD_NOEXEC_SEAL, SLOTS, SharedMemory, SharedPayload

PAYLOAD = 10_000
OWNER = f"""
import sys
import numpy as np
from zmqrl.ps.wire.memory import SharedMemory
memory = SharedMemory.create({PAYLOAD})
memory.write(np.arange({PAYLOAD}, dtype=np.uint8))
print(memory.name, flush=True)
sys.stdin.read()
"""


def other(memory: SharedMemory, payload_bytes: int = PAYLOAD) -> SharedMemory | None:
    return SharedMemory.open(memory.name, payload_bytes)


def payload(first: int) -> np.ndarray:
    return np.full(PAYLOAD // 4, first, np.float32)


def test_another_process_reads_what_was_written_until_it_is_overwritten() -> None:
    memory = SharedMemory.create(PAYLOAD)
    there = other(memory)
    assert there is not None
    for number in range(1, 2 * SLOTS + 1):
        assert memory.write(payload(number)) == number
        assert [n for n in range(1, number + 1) if there.holds(n)] == list(range(max(1, number - 2), number + 1))
    shared = SharedPayload(there, 2 * SLOTS)
    assert len(shared) == PAYLOAD
    np.testing.assert_array_equal(np.frombuffer(shared.buffer, np.float32), payload(2 * SLOTS))
    assert shared.is_whole()
    memory.begin(3 * SLOTS)
    assert not shared.is_whole(), "another payload is being written there"
    memory.end(3 * SLOTS)
    assert not shared.is_whole()


def test_only_the_owner_can_write() -> None:
    memory = SharedMemory.create(PAYLOAD)
    there = other(memory)
    assert there is not None
    with pytest.raises(ValueError, match="read-only"):
        there.write(payload(1))
    with pytest.raises(ValueError, match="read-only"):
        there.handled[0] = 1


def test_the_size_cannot_change() -> None:
    """A reader of memory that has become shorter would be killed by SIGBUS."""
    memory = SharedMemory.create(PAYLOAD)
    process, descriptor, _ = memory.name.split("/")
    again = os.open(f"/proc/{process}/fd/{descriptor}", os.O_RDWR)
    try:
        for size in (0, 1 << 30):
            with pytest.raises(PermissionError):
                os.ftruncate(again, size)
    finally:
        os.close(again)


@pytest.mark.parametrize(
    "wrong",
    ["", "1", "a/b/c", "{process}/0/{token}", "{process}/{descriptor}/0123456789abcdef", "../{name}", "{name}/"],
)
def test_a_name_of_other_memory_or_of_none_is_not_opened(wrong: str) -> None:
    memory = SharedMemory.create(PAYLOAD)
    process, descriptor, token = memory.name.split("/")
    name = wrong.format(process=process, descriptor=descriptor, token=token, name=memory.name)
    assert SharedMemory.open(name, PAYLOAD) is None


def test_memory_of_another_size_or_without_seals_is_not_opened() -> None:
    memory = SharedMemory.create(PAYLOAD)
    assert other(memory, PAYLOAD + 1_000_000) is None
    size = os.fstat(int(memory.name.split("/")[1])).st_size
    descriptor = os.memfd_create("zmqrl-0123456789abcdef")
    try:
        os.ftruncate(descriptor, size)
        assert SharedMemory.open(f"{os.getpid()}/{descriptor}/0123456789abcdef", PAYLOAD) is None
    finally:
        os.close(descriptor)


def test_closed_memory_stays_readable_but_cannot_be_opened_again() -> None:
    memory = SharedMemory.create(PAYLOAD)
    there = other(memory)
    assert there is not None
    number = memory.write(payload(5))
    memory.close()
    memory.close()
    assert there.holds(number)
    np.testing.assert_array_equal(there.slot(number).view(np.float32), payload(5))
    assert other(memory) is None


def test_memory_without_references_leaves_no_descriptor() -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(5):
        memory = SharedMemory.create(PAYLOAD)
        there = other(memory)
        assert there is not None
        assert there.slot(1)[0] == 0
        del memory, there
    assert len(list(Path("/proc/self/fd").iterdir())) == before


@pytest.mark.parametrize(("refused", "error"), [(0, errno.EACCES), (MFD_NOEXEC_SEAL, errno.EINVAL)])
def test_systems_with_and_without_memory_that_can_never_be_executed(
    refused: int, error: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some systems refuse other memory (vm.memfd_noexec). Linux before 6.3 does not know this flag."""
    create = os.memfd_create

    def memfd_create(name: str, flags: int) -> int:
        if flags & MFD_NOEXEC_SEAL == refused:
            raise OSError(error, os.strerror(error))
        return create(name, flags & ~MFD_NOEXEC_SEAL)

    monkeypatch.setattr(os, "memfd_create", memfd_create)
    memory = SharedMemory.create(PAYLOAD)
    assert other(memory) is not None


@pytest.mark.processes
def test_a_python_that_was_built_with_an_old_c_library_shares_no_memory() -> None:
    program = (
        "import fcntl, os\n"
        "for name in [name for name in dir(fcntl) if 'SEAL' in name]: delattr(fcntl, name)\n"
        "for name in [name for name in dir(os) if 'MFD' in name or 'memfd' in name]: delattr(os, name)\n"
        "import zmqrl.ps.shard.server, zmqrl.ps.worker.connection, zmqrl.start.initial\n"
        "from zmqrl.ps.wire.memory import SharedMemory\n"
        "try: SharedMemory.create(100)\n"
        "except OSError as error: print(error.strerror)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=WITHIN_S)
    assert done.stdout == "this Python has no os.memfd_create\n", done.stderr


@pytest.mark.processes
def test_memory_of_a_killed_process_stays_readable_but_cannot_be_opened() -> None:
    command, pipe = [sys.executable, "-c", OWNER], subprocess.PIPE
    with ending(subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True)) as owner:
        assert owner.stdout is not None
        name = owner.stdout.readline().strip()
        there = SharedMemory.open(name, PAYLOAD)
        assert there is not None
        owner.send_signal(signal.SIGKILL)
        owner.wait(WITHIN_S)
    np.testing.assert_array_equal(there.slot(1), np.arange(PAYLOAD, dtype=np.uint8))
    assert SharedMemory.open(name, PAYLOAD) is None
