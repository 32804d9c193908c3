"""docs/reliability.md promises the times and limits that the code has."""

import re

import pytest
import zmq
from support.paths import ROOT

from zmqrl.commands.run.launch import Options
from zmqrl.hostd import daemon, fork_server, guard
from zmqrl.json_lines import PIECE_BYTES
from zmqrl.ps.shard import START_WITHIN_S
from zmqrl.ps.wire.sockets import new_context, new_socket, shard_sockets
from zmqrl.ps.worker.known_shard import LEASES_FOR_A_SLICE
from zmqrl.ps.worker.machine import WorkerTiming
from zmqrl.supervisor.processes import FAILURES_IN_A_ROW, HUNG_S, KILLS_IN_A_ROW, SILENCE_S

PAGE = " ".join((ROOT / "docs" / "reliability.md").read_text(encoding="utf-8").split())
ENDS_WITHIN_S = daemon.GRACE_S + daemon.KILLED_WITHIN_S


@pytest.mark.parametrize(
    "promise",
    [
        f"| a worker is stopped, or its machine is frozen | no PING for {SILENCE_S:g} s |",
        f"After {HUNG_S:g} s, it kills and restarts the worker |",
        f"in a row without any work, or {KILLS_IN_A_ROW} by SIGKILL |",
        f"| a shard is stopped | no answer for {SILENCE_S:g} s |",
        f"After {HUNG_S:g} s, it kills and restarts the shard |",
        f"| a restarted shard hangs before it is up | it is not up after {START_WITHIN_S:g} s |",
        f"A shard is killed after {HUNG_S:g} s without an answer.",
        f"A worker is killed {HUNG_S:g} s after its last message.",
        f"If the fork server was stopped, the first of these processes starts {fork_server.FORKS_WITHIN_S:g} s late |",
        f"`--lease-s` is {Options.lease_s:g} s by default.",
        f"After {WorkerTiming().lease_s:g} s, or after {LEASES_FOR_A_SLICE * WorkerTiming().lease_s:g} s if only one "
        "connection fails, it ends and is restarted |",
        f"every process on every host ends within `--lease-s` plus {ENDS_WITHIN_S:g} s.",
    ],
)
def test_the_page_has_the_times_of_the_code(promise: str) -> None:
    assert promise in PAGE


def test_a_start_reads_as_much_of_a_history_as_the_page_says() -> None:
    assert PIECE_BYTES == 1 << 20
    assert "| the next start, if the line is in the last MiB of the file." in PAGE


def test_a_process_is_given_up_after_the_number_of_deaths_on_the_page() -> None:
    numbers = {"four": 4}
    assert {numbers[word] for word in re.findall(r"(\w+) (?:deaths|failures) in a row", PAGE)} == {FAILURES_IN_A_ROW}


def test_a_guard_ends_the_processes_of_a_stopped_daemon_within_the_time_on_the_page() -> None:
    promised = {int(seconds) for seconds in re.findall(r"within (\d+) s", PAGE)}
    noticed_s = guard.FROZEN_S + 2 * guard.TURN_S  # the guard looks every TURN_S, and the daemon ran in the first turn
    assert promised == {15}
    assert noticed_s + guard.GRACE_S + guard.KILLED_WITHIN_S <= 15


def test_libzmq_closes_silent_connections_and_limits_messages_as_the_page_says() -> None:
    context = new_context()
    try:
        ours = [*shard_sockets(context, 1 << 20).values(), new_socket(context, zmq.SUB, send_most=1, receive_most=1)]
        for socket in ours:
            assert f"libzmq closes each after {int(socket.handshake_ivl) / 1000:g} s" in PAGE
        assert all(0 < int(socket.maxmsgsize) < 1 << 21 for socket in ours[:-1]), "a huge message would be read"
    finally:
        context.destroy(linger=0)
