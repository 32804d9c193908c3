"""No test waits forever for a process that it has started, leaves a process, or is skipped unnoticed."""

import ast
import os
import subprocess

import pytest
from support.paths import ROOT
from support.rig import eventually, is_alive, nothing_left
from support.sources import ABOUT_SOURCES, TEST_FILES, calls, nodes_of

pytestmark = ABOUT_SOURCES

# The host daemons end what the first starts. The second kills what it has started.
THE_TESTED = {"a_child.py", "a_killing_command.py"}


def test_every_process_that_a_test_starts_is_ended() -> None:
    faults = list[str]()
    for path in (path for path in TEST_FILES if path.name not in THE_TESTED):
        nodes, place = nodes_of(path), path.relative_to(ROOT)
        ended = {id(call.args[0]) for call in calls(nodes, "ending") if call.args}
        made = {id(node.value) for node in nodes if isinstance(node, ast.Return)}  # the caller must use `ending`
        for call in calls(nodes, "Popen"):
            if id(call) not in ended | made:
                faults.append(f"{place}:{call.lineno}: nothing ends this process: use rig.ending")
        for call in calls(nodes, "run"):
            if ast.unparse(call.func) == "subprocess.run" and "timeout" not in {each.arg for each in call.keywords}:
                faults.append(f"{place}:{call.lineno}: no timeout")
    assert not faults


def orphan(seconds: float, environment: dict[str, str]) -> int:
    """Start a process whose parent ends at once. Returns its process id."""
    command = ["sh", "-c", f"sleep {seconds:g} >/dev/null 2>&1 & echo $!"]
    done = subprocess.run(command, env=os.environ | environment, capture_output=True, check=True, timeout=60)
    return int(done.stdout)


def test_only_two_tests_are_skipped_even_if_all_is_required() -> None:
    """They need a builder of containers, or the history of git. All others call ``skip_or_fail`` of conftest.py."""
    skips = {path.name for path in TEST_FILES if [*calls(nodes_of(path), "skip", "skipif", "importorskip")]}
    assert skips == {"conftest.py", "test_packaging.py", "test_results.py"}


@pytest.mark.processes
def test_a_block_that_leaves_nothing_waits_for_orphans() -> None:
    with nothing_left() as mark:
        pid = orphan(0.5, mark)
    assert not is_alive(pid)


@pytest.mark.processes
def test_an_orphan_that_does_not_end_is_reported_and_killed() -> None:
    reported = pytest.raises(AssertionError, match=r"did not end within 0\.1 s: .*sleep 600")
    with reported, nothing_left(within_s=0.1) as mark:
        pid = orphan(600, mark)
        assert is_alive(pid)
    eventually(lambda: not is_alive(pid), "the end of the orphan")
