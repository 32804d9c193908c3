"""The daemon of a host: when it ends by itself."""

import errno
import os
import subprocess
import sys
from typing import NoReturn

import pytest
from support.rig import WITHIN_S, ending

from zmqrl.hostd import daemon

pytestmark = pytest.mark.processes

DAEMON = "from zmqrl.hostd import daemon; daemon.BEGIN_WITHIN_S = 0.5; daemon.main()"


@pytest.mark.parametrize("says", [b"", b"{"])
def test_a_daemon_ends_if_its_launcher_is_there_but_never_begins(says: bytes) -> None:
    command = [sys.executable, "-c", DAEMON]
    with ending(subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE)) as process:
        assert process.stdin is not None
        assert process.stderr is not None
        process.stdin.write(says)
        process.stdin.flush()
        process.wait(WITHIN_S)
        assert process.stderr.read() == b"zmqrl hostd: no message for 0.5 s\n"


def test_a_kernel_that_is_too_old_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(_: int) -> NoReturn:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(os, "pidfd_open", unknown)
    with pytest.raises(SystemExit) as stop:
        daemon.main()
    assert str(stop.value) == (
        "zmqrl needs Linux 5.3 or newer, and a sandbox that allows pidfd_open: Function not implemented."
    )
