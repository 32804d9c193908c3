"""Damaged files and pipes in a run directory: every command that reads them prints one sentence, and no traceback."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.page_rig import write_profile
from support.paths import TESTS
from support.profiles import synthetic_run

from zmqrl import cli
from zmqrl.errors import ZmqrlError

OLD_RUN = TESTS / "old_run"
NEW = (
    b'{"supervisor": {"host": "h1", "pid": 2}, "shards": [{"shard": 2}], "workers": [], "followers": [], "version": 2}'
)
DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda _: b"",
    "binary": lambda _: b"\xff\x00\xfe\n" * 7,
    "cut": lambda content: content[: len(content) // 2],
    "null": lambda _: b"null\n",
    "a list": lambda _: b"[]\n",
    "an object": lambda _: b"{}\n",
    "nested": lambda _: b"[" * 5000,
    "not a number": lambda content: content.replace(b"1", b"NaN", 3),
    "an item more": lambda content: content.replace(b"[", b"[{}, "),
    "other values": lambda content: content.replace(b": 2", b": -2").replace(b": 1", b": 1e999"),
    "other types": lambda content: (
        content.replace(b": 2", b': "x"').replace(b": 1", b": null").replace(b": 0", b": []")
    ),
    "huge numbers": lambda content: content.replace(b": 2", b": 2" + b"0" * 400),
}
# The damages that no command reports. A killed process leaves a last line without its end, or no line at all.
HARMLESS = {
    "metrics.jsonl": {"empty", "cut", "nested"},
    "evaluations.jsonl": {"empty", "cut", "nested"},
    "cluster.json": {"null"},
    "stalled.json": {*DAMAGES},  # only the page of a live run shows it
}
COMMANDS = (["status", "RUN", "--json"], ["check-history", "RUN"], ["compare", "RUN", str(OLD_RUN)])


@pytest.mark.parametrize(
    "name",
    [
        *("config.json", "metrics.jsonl", "evaluations.jsonl", "summary.json", "history/shard-0.jsonl"),
        *("checkpoints/v00000020/manifest.json", "checkpoints/v00000020/model.safetensors"),
        *("cluster.json", "stalled.json"),
    ],
)
def test_a_command_that_reads_a_damaged_file_prints_one_sentence(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(OLD_RUN, run)
    whole = (run / name).read_bytes() if (run / name).exists() else NEW
    unnoticed = set()
    for title, damage in DAMAGES.items():
        (run / name).write_bytes(damage(whole))
        said = [outcome([str(run) if word == "RUN" else word for word in command]) for command in COMMANDS]
        assert all(isinstance(each, int) or (str(run / name) in each and "\n" not in each) for each in said), title
        if damage(whole) != whole and not any(said):
            unnoticed.add(title)
    assert unnoticed == HARMLESS.get(name, set())
    assert "Traceback" not in "".join(capsys.readouterr())


WRONG: dict[str, list[Any]] = {
    "workers": ["two", None, 0, -1, 2.5, 10**400],
    "backups": ["x", -1],
    "quorum": [7, 0, "2"],
    "shards": ["2", 0, 3, 10**9],
    "envs": [3, {"num_envs": "8"}],
    "wire": [5, {"need_s": "x"}, {"codec": ["f32"]}],
    "algo": [None],
}
SIMULATED = [("shards", 3), ("wire", 5)]  # simulate does without these


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in WRONG.items() for value in values])
def test_a_profile_with_a_wrong_setting_is_shown_but_not_simulated(
    tmp_path: Path, name: str, value: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(OLD_RUN, run)
    write_profile(run / "profile", synthetic_run(workers=2, versions=8))
    settings = json.loads((run / "config.json").read_text(encoding="utf-8"))
    wrong = settings[name] | value if isinstance(value, dict) else value
    (run / "config.json").write_text(json.dumps(settings | {name: wrong}), encoding="utf-8")
    assert outcome(["profile", str(run)]) == 0
    for command in (["profile", str(run), "--without", "1"], ["simulate", "--from", str(run)]):
        said = outcome(command)
        assert said == 0 or (isinstance(said, str) and str(run / "config.json") in said and "\n" not in said)
    assert (said == 0) == ((name, value) in SIMULATED), said
    printed = "".join(capsys.readouterr())
    assert "Traceback" not in printed
    assert "gradient" in printed, "the report does not need the setting"


UNREAD = {"hosts.json", "stalled.json", "live.json", ".lock", "logs/worker-0.log"}  # commands skip these pipes


@pytest.mark.timeout(60)  # a pipe has no writer, so it would keep its reader waiting
@pytest.mark.parametrize(
    "name",
    [
        *("config.json", "metrics.jsonl", "evaluations.jsonl", "summary.json", "hosts.json", "history/shard-0.jsonl"),
        *("checkpoints/v00000020/manifest.json", "checkpoints/v00000020/model.safetensors"),
        *("checkpoints/v00000020/optimizer-shard-00.safetensors", "cluster.json", "left.json", "submitted.json"),
        *("stalled.json", "live.json", ".lock", "logs/worker-0.log", "profile/worker-0.1.0.blocks"),
    ],
)
def test_a_pipe_in_a_run_directory_keeps_no_command_waiting(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(OLD_RUN, run)
    (run / name).parent.mkdir(exist_ok=True)
    (run / name).unlink(missing_ok=True)
    os.mkfifo(run / name)
    told = ""
    for command in (*COMMANDS, ["logs", "RUN"], ["profile", "RUN"], ["stop", "RUN"]):
        said = outcome([str(run) if word == "RUN" else word for word in command])
        assert isinstance(said, int) or (str(run) in said and "\n" not in said and "Errno" not in said)
        told += f"{said}\n"
    told += capsys.readouterr().out  # check-history lists what it cannot read
    assert (str(run / name) in told) == (name not in UNREAD), told


def outcome(command: list[str]) -> int | str:
    """The exit status of a command, or its error. Any other exception would be printed as a traceback."""
    try:
        return cli.run(command)
    except ZmqrlError as error:
        return str(error)
