"""Decoders of bytes from outside raise only their declared errors, whatever the bytes: see ``support/decoders.py``."""

import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from support.decoders import DECODERS, HOSTILE, VALUES, large_counts, message, single_changes, survives
from support.paths import ROOT, TESTS

EACH = pytest.mark.parametrize("name", DECODERS)
SAMPLE = 100
IN_MEMORY = {
    "header",
    "shard",
    "worker",
    "supervisor",
    "report",
    "request",
    "event",
    "said",
}  # decoders that need no file
FUZZ = TESTS / "support/fuzz.py"
# libFuzzer ends with an error if one message takes longer (seconds) or if the process uses more memory (MiB).
LIMITS = ("-timeout=10", "-rss_limit_mb=1024", "-max_len=4096", "-verbosity=0")


@EACH
def test_valid_messages_are_decoded(name: str, tmp_path: Path) -> None:
    for seed in DECODERS[name].seeds:
        DECODERS[name].decode(seed, tmp_path)


@EACH
def test_hostile_bytes_raise_only_the_declared_errors(name: str, tmp_path: Path) -> None:
    for data in HOSTILE:
        survives(DECODERS[name], b"\0" + data, tmp_path)


@EACH
def test_a_message_with_a_wrong_value_raises_only_the_declared_errors(name: str, tmp_path: Path) -> None:
    changes = list(single_changes(DECODERS[name]))
    for variant in random.Random(1).sample(changes, min(len(changes), SAMPLE)):
        survives(DECODERS[name], variant, tmp_path)


@EACH
def test_a_message_with_a_large_number_raises_only_the_declared_errors(name: str, tmp_path: Path) -> None:
    for variant in large_counts(DECODERS[name]):
        survives(DECODERS[name], variant, tmp_path)


@pytest.mark.soak
@EACH
def test_a_message_with_any_single_change_raises_only_the_declared_errors(name: str, tmp_path: Path) -> None:
    for variant in single_changes(DECODERS[name]):
        survives(DECODERS[name], variant, tmp_path)


def test_a_variant_describes_changes_of_a_valid_message() -> None:
    decoder = DECODERS["keys"]
    assert message(decoder, b"\0anything") == b"anything"
    assert message(decoder, bytes([1, 0])) == decoder.seeds[0]
    null = message(decoder, bytes([1, 0, 0, 1, 0, VALUES.index(None)]))
    assert null == decoder.seeds[0].replace(b'"run": "r"', b'"run": null')
    assert b'"rank"' not in message(decoder, bytes([1, 0, 0, 2, 1, 0]))


def fuzz(name: str, messages: int, scratch: Path) -> str:
    """Fuzz a decoder in another process. Returns what it printed."""
    for directory in (scratch / "corpus", scratch / "temporary"):
        directory.mkdir()
    command = [sys.executable, str(FUZZ), name, str(scratch / "corpus"), f"-runs={messages}", "-seed=1", *LIMITS]
    environment = os.environ | {
        "TMPDIR": str(scratch / "temporary"),
        "PYTHONPATH": os.pathsep.join(map(str, (ROOT, TESTS))),
    }
    done = subprocess.run(
        command, cwd=scratch, env=environment, capture_output=True, text=True, errors="replace", timeout=3000
    )
    said = done.stdout + done.stderr
    assert done.returncode == 0, said[-3000:]
    return said


@pytest.mark.processes
@pytest.mark.parametrize("name", ["shard"])
def test_messages_found_by_coverage_raise_only_the_declared_errors(
    name: str, tmp_path: Path, need_modules: Callable[..., None]
) -> None:
    need_modules("atheris")
    fuzz(name, 4000, tmp_path)
    assert len(list((tmp_path / "corpus").glob("[0-9a-f]*"))) > 10, "the fuzzer must have found new branches"


@pytest.mark.soak
@pytest.mark.timeout(3600)
@EACH
def test_many_messages_found_by_coverage_raise_only_the_declared_errors(
    name: str, tmp_path: Path, need_modules: Callable[..., None]
) -> None:
    """About a million messages in total, shared among the decoders."""
    need_modules("atheris")
    fuzz(name, 120_000 if name in IN_MEMORY else 10_000, tmp_path)
