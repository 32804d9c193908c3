"""The connection to a host daemon: other output on the connection, and the reasons why the connection is lost. Other
programs stand in for ssh.
"""

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from support.rig import WITHIN_S, eventually

from zmqrl.hostd import messages as h
from zmqrl.hostd.daemon import LONGEST_LINE_BYTES
from zmqrl.hosts import connecting
from zmqrl.hosts import link as link_module
from zmqrl.hosts.connecting import connect
from zmqrl.hosts.link import DAEMON, Link, LinkLost
from zmqrl.hosts.ways.way import ssh_command

UP = h.Up(host="h1", pid=1, zmqrl="0", code="c", python="3", cores=1, interfaces={}, address=None, work="/w")


def link_to(work: Path, script: str, *, lease_s: float | None = None) -> Link:
    """A link over which a shell runs ``script``."""
    return Link("h1", ["sh", "-c", script], work=str(work), lease_s=lease_s)


def lost(link: Link) -> str:
    """Open the link if it is not open. Returns the reason why the link is lost."""
    if link.process is None:
        link.open()
    reasons: list[str] = []

    def is_lost() -> bool:
        try:
            link.poll()
        except LinkLost as error:
            reasons.append(error.why)
        return bool(reasons)

    try:
        eventually(is_lost, "the link is lost")
    finally:
        link.cut()
    return reasons[0]


@pytest.mark.processes
def test_hosts_that_fail_are_named_in_the_order_of_the_list(tmp_path: Path) -> None:
    failed = tmp_path / "failed"
    late = link_to(tmp_path, f"while [ ! -e {failed} ]; do sleep 0.05; done; sleep 0.2; echo late >&2; exit 1")
    early = link_to(tmp_path, f"echo early >&2; touch {failed}; exit 1")
    early.host = "h0"
    assert list(connect([late, early])) == ["h1", "h0"]


STARTUP_FILES = {
    "lines": "echo Welcome; echo",
    "no line ending": "printf 'Loading modules ... '",
    "JSON": """echo '{"is": "nothing"}'; echo '[1]'; echo null""",
    "not text": r"printf '\377\376\n'; printf '\000\n'",
    "much": "seq 100000",
}


@pytest.mark.processes
@pytest.mark.parametrize("printing", STARTUP_FILES.values(), ids=STARTUP_FILES)
def test_what_startup_files_print_before_the_daemon_starts_is_skipped(tmp_path: Path, printing: str) -> None:
    link = link_to(tmp_path, f"{printing}; exec {shlex.join([sys.executable, *DAEMON])}")
    try:
        assert connect([link]) == {}
        assert link.up is not None
    finally:
        link.cut()
    assert link.look(WITHIN_S).directory == str(tmp_path)


@pytest.mark.processes
def test_variables_that_would_change_the_streams_of_srun_are_not_passed_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_CONF", "kept")
    for name in ("LABELIO", "UNBUFFEREDIO", "STDINMODE", "STDOUTMODE", "STDERRMODE"):
        monkeypatch.setenv(f"SLURM_{name}", "1")
    link = link_to(tmp_path, f"env | grep ^SLURM_ > {tmp_path}/variables; exec {shlex.join([sys.executable, *DAEMON])}")
    try:
        assert connect([link]) == {}
    finally:
        link.cut()
    assert (tmp_path / "variables").read_text() == "SLURM_CONF=kept\n"


@pytest.mark.processes
def test_a_host_with_many_files_answers_with_some_names_and_the_number_of_the_others(tmp_path: Path) -> None:
    directory = tmp_path / ("d" * 250) / ("e" * 250)
    directory.mkdir(parents=True)
    link = Link("h1", [sys.executable, *DAEMON], work=str(tmp_path), lease_s=None)
    for count, has_more in ((200, False), (400, True)):  # even the first names do not fit into a pipe
        for number in range(count):
            (directory / f"{number:0250}").touch()
        seen = link.look(WITHIN_S)
        assert (len(seen.files) + seen.more, seen.more > 0) == (count, has_more)
    assert len(h.encode(seen)) < LONGEST_LINE_BYTES // 2


def test_startup_files_that_print_without_end_are_an_error(tmp_path: Path) -> None:
    assert lost(link_to(tmp_path, "yes welcome")).startswith(
        "the shell's startup files on that host print without end: b'welcome"
    )
    assert "print without end" in lost(link_to(tmp_path, "cat /dev/zero"))


def test_output_after_the_first_message_of_the_daemon_is_an_error(tmp_path: Path) -> None:
    up = shlex.quote(h.encode(UP).decode())
    link = link_to(tmp_path, f"echo Welcome; printf '%s' {up}; echo a late word; sleep 600")
    assert lost(link).startswith("unexpected output b'a late word': ")


def test_an_account_that_cannot_log_in_is_named(tmp_path: Path) -> None:
    nologin = shutil.which("nologin", path="/usr/sbin:/sbin") or "echo This account is currently not available."
    assert connect([link_to(tmp_path, nologin)]) == {
        "h1": "This account is currently not available: its login shell is nologin: use another account (user@host)"
    }


def test_an_error_shows_the_last_words_on_both_streams(tmp_path: Path) -> None:
    link = link_to(tmp_path, "echo Welcome; echo See you; exec /nowhere/python -m zmqrl.hostd.daemon")
    failed = connect([link], instead="install it")
    assert failed["h1"].startswith("See you / sh: ")
    assert failed["h1"].endswith("not found: install it")


# ssh to a host behind a jump host ends with a line that gives no reason.
BEHIND = "Connection closed by UNKNOWN port 65535"


@pytest.mark.parametrize(
    ("reason", "starts"),
    [("Host key verification failed.", 1), ("me@jump: Permission denied (publickey).", 1), ("", 5)],
)
def test_a_failure_at_a_jump_host_is_shown_and_not_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reason: str, starts: int
) -> None:
    monkeypatch.setattr(connecting, "FIRST_PAUSE_S", 0.01)
    link = link_to(tmp_path, f"echo >> {tmp_path}/starts; printf '%s\\r\\n' '{reason}' '{BEHIND}' >&2; exit 255")
    assert connect([link]) == {"h1": f"{reason} / {BEHIND}" if reason else BEHIND}
    assert (tmp_path / "starts").read_text().count("\n") == starts


def test_ssh_at_a_jump_host_cannot_open_a_window_to_ask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSH_ASKPASS_REQUIRE", "prefer")
    assert lost(link_to(tmp_path, "echo $SSH_ASKPASS_REQUIRE >&2; exit 255")) == "never"


@pytest.mark.parametrize("stream", [1, 2])
def test_a_host_cannot_send_control_sequences_to_the_terminal(tmp_path: Path, stream: int) -> None:
    why = lost(link_to(tmp_path, rf"printf '\033]0;owned\007\033[31;5mred\n' >&{stream}; exit 1"))
    assert why == "]0;owned  [31;5mred"


def test_the_reason_of_a_host_that_refuses_is_shown_alone(tmp_path: Path) -> None:
    refusal = shlex.quote(h.encode(h.HostRefused("cannot use /var: \033[31mNo space left")).decode())
    why = lost(link_to(tmp_path, f"read begin; printf '%s' {refusal}; sleep 0.1; echo 'zmqrl hostd: No space' >&2"))
    assert why == "cannot use /var:  [31mNo space left"


@pytest.mark.parametrize(
    ("says", "reason"), [("", ""), ("the host daemon is stopped", ": the host daemon is stopped")], ids=["no", "yes"]
)
def test_the_reason_for_a_silence_is_named_if_there_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, says: str, reason: str
) -> None:
    now_s = 0.0
    monkeypatch.setattr(link_module, "time", SimpleNamespace(monotonic=lambda: now_s))
    up, alive = (shlex.quote(h.encode(event).decode()) for event in (UP, h.Alive()))
    daemon = f"read begin; echo an old warning >&2; printf '%s' {up}; read renew; printf '%s' {alive}"
    link = link_to(tmp_path, f"{daemon}; printf '%s' '{says}' >&2; printf '%s' {up}; sleep 600", lease_s=1.0)
    link.open()  # not connect, which can renew the lease itself
    eventually(lambda: UP in link.poll(), "the warning and the first message")
    link.renew()
    eventually(lambda: UP in link.poll(), "the last message, after which the daemon is silent")
    now_s = 1.1
    assert lost(link) == f"no message for 1 s{reason}"


@pytest.mark.processes
def test_a_command_that_cannot_be_killed_ends_with_its_pipes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killpg(group: int, number: int) -> None:  # as for sudo, which runs as another user
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "killpg", killpg)
    up = shlex.quote(h.encode(UP).decode())
    silent = link_to(tmp_path, f"printf '%s' {up}; exec cat >/dev/null", lease_s=0.2)
    silent.open()
    process = silent.process
    assert process is not None
    assert lost(silent) == "no message for 0.2 s"
    eventually(lambda: process.poll() is not None, "the command ends")


def test_settings_for_a_shell_in_the_ssh_configuration_have_no_effect(
    tmp_path: Path, need_programs: Callable[..., None]
) -> None:
    need_programs("ssh")
    config = tmp_path / "ssh_config"
    forwards = ("LocalForward 8888 localhost:8888", "RemoteForward 9999 localhost:9999", "DynamicForward 7777")
    settings = ["RemoteCommand tmux attach", "RequestTTY yes", "ExitOnForwardFailure yes", "ControlMaster auto"]
    settings += ["ControlPersist 10m", "SessionType none", "StdinNull yes", "ForkAfterAuthentication yes"]
    # The list of the user must stay in force.
    ignores = ("IgnoreUnknown UseKeychain,SessionType,StdinNull,ForkAfterAuthentication", "UseKeychain yes")
    config.write_text("\n".join(["Host h1", "User me", *ignores, *settings, *forwards, ""]), encoding="utf-8")
    program, *options = ssh_command("h1", ["python"], config=config)
    done = subprocess.run([program, "-G", *options], capture_output=True, text=True, timeout=WITHIN_S)
    shown = dict(line.split(" ", 1) for line in done.stdout.splitlines() if " " in line)
    assert done.returncode == 0, done.stderr
    assert shown["user"] == "me"
    assert shown.get("remotecommand", "none") == "none"
    assert (shown["requesttty"], shown["exitonforwardfailure"], shown["controlmaster"]) == ("false", "no", "false")
    assert shown["clearallforwardings"] == "yes"
    assert shown["controlpersist"] == "no"
    # An older OpenSSH has none of these.
    assert shown.get("sessiontype", "default") == "default"
    assert (shown.get("stdinnull", "no"), shown.get("forkafterauthentication", "no")) == ("no", "no")


def test_a_command_that_ends_without_a_word_is_reported_as_such(tmp_path: Path) -> None:
    assert lost(link_to(tmp_path, "exit 7")) == "exit status 7, and it printed nothing"
    assert lost(link_to(tmp_path, "kill -9 $$")) == "killed by SIGKILL, and it printed nothing"


@pytest.mark.parametrize(
    ("end", "why"),
    [
        ("exit 1", "exit status 1, and it printed nothing: its login shell may be one that runs no commands"),
        ("exit 255", "exit status 255, and it printed nothing"),
        ("kill -9 $$", "killed by SIGKILL, and it printed nothing"),
    ],
)
def test_a_login_shell_that_runs_no_commands_is_suspected(tmp_path: Path, end: str, why: str) -> None:
    ssh = tmp_path / "ssh"
    ssh.write_text(f"#!/bin/sh\n{end}\n", encoding="utf-8")
    ssh.chmod(0o755)
    failed = connect([Link("h1", [str(ssh)], work=str(tmp_path), lease_s=None)])
    assert failed == {"h1": why}
