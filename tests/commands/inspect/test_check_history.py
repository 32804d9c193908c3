"""``zmqrl check-history`` finds violations in manipulated histories. test_run.py checks histories of real runs."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.record_rig import run_directory, summary

from zmqrl import cli
from zmqrl.commands.inspect.check_history import check
from zmqrl.errors import UsageError

Line = dict[str, Any]
Histories = list[list[Line]]
VERSIONS = 12


def line(version: int, **fields: Any) -> Line:
    """The line of a version made by ranks 0 and 2, with one late contribution."""
    made = {"view": 1, "quorum": 2, "ranks": [0, 2], "late": 1, "duplicate": 0, "rejected": 0, "crc32": 7}
    return {"version": version, **made, "generation": 1 + version // 7, **fields}


def ended(path: Path, histories: Histories, *, updates: int = VERSIONS, used: int = 48, **settings: Any) -> Path:
    """Write the files of a run that ended at version ``updates``, with the histories of its two shards."""
    contributions = {"used": used, "late": 24, "duplicate": 0, "rejected": 0, "skipped": 3}
    run_directory(path, summary=summary(updates=updates, contributions=contributions), shards=2, **settings)
    (path / "history").mkdir()
    for shard, lines in enumerate(histories):
        text = "".join(json.dumps(each) + "\n" for each in lines)
        (path / "history" / f"shard-{shard}.jsonl").write_text(text, encoding="utf-8")
    return path


def whole() -> Histories:
    return [[line(version) for version in range(1, VERSIONS + 1)] for _ in range(2)]


def violations(path: Path) -> list[str]:
    found: list[str] = check(path)["violations"]
    return found


def test_complete_histories_have_no_violations(tmp_path: Path) -> None:
    assert check(ended(tmp_path / "run", whole())) == {"shards": 2, "versions": VERSIONS, "violations": []}


def drop(*versions: int) -> Callable[[list[Line]], None]:
    def tamper(lines: list[Line]) -> None:
        lines[:] = [each for each in lines if each["version"] not in versions]

    return tamper


def change(number: int, **fields: Any) -> Callable[[list[Line]], None]:
    return lambda lines: lines[number - 1].update(fields)


def swap(lines: list[Line]) -> None:
    lines[3], lines[4] = lines[4], lines[3]


def again(lines: list[Line]) -> None:
    lines.insert(5, lines[4])


@pytest.mark.parametrize(
    ("tamper", "sentence"),
    [
        (drop(4), "version 4 is missing"),
        (drop(1, 2), "versions 1 to 2 are missing"),
        (drop(5, 6, 7), "versions 5 to 7 are missing"),
        (again, "version 5 is listed twice, in lines 5 and 6"),
        (swap, "version 4 in line 5 comes after version 5"),
        (change(9, ranks=[2, 2]), "version 9 used a rank twice: 2, 2"),
        (change(9, ranks=[2, 0]), "version 9 has unsorted ranks: 2, 0"),
        (change(9, ranks=[0, 1, 2]), "version 9 used 3 contributions, but its quorum is 2"),
        (
            change(9, ranks=[1], quorum=1),
            "version 9 used 1 of the 2 contributions that view 1 of generation 2 requires",
        ),
        (change(9, generation=1), "version 9 of generation 1 comes after generation 2"),
        (change(9, ranks="02"), "line 9 cannot be read"),
        (change(9, ranks=[0, None]), "line 9 cannot be read"),
        (change(9, quorum=True), "line 9 cannot be read"),
        (change(9, late="many"), "line 9 cannot be read"),
        (change(9, version=-9), "line 9 cannot be read"),
        (drop(VERSIONS), "the history ends at version 11, but the run ended at 12"),
    ],
)
def test_a_damaged_history_is_reported_with_its_problem(
    tmp_path: Path, tamper: Callable[[list[Line]], None], sentence: str
) -> None:
    histories = whole()
    tamper(histories[1])
    found = violations(ended(tmp_path / "run", histories))
    assert f"shard 1: {sentence}" in found
    assert not [each for each in found if each.startswith("shard 0")]


def test_an_invalid_line_is_a_violation_but_an_unfinished_last_line_is_not(tmp_path: Path) -> None:
    path = ended(tmp_path / "run", whole())
    history = path / "history" / "shard-0.jsonl"
    history.write_bytes(history.read_bytes() + b'{"version": 13, "vi')
    assert violations(path) == []
    history.write_bytes(history.read_bytes() + b"\n\xff\n[3]\n")
    assert violations(path) == [f"shard 0: line {number} cannot be read" for number in (13, 14, 15)]


@pytest.mark.parametrize("key", ["late", "duplicate", "rejected", "crc32"])
def test_a_line_without_one_of_its_keys_cannot_be_read(tmp_path: Path, key: str) -> None:
    histories = whole()
    histories[1][3][f"{key[:-1]}q"] = histories[1][3].pop(key)
    assert "shard 1: line 4 cannot be read" in violations(ended(tmp_path / "run", histories))


def test_a_summary_that_disagrees_with_the_histories_is_a_violation(tmp_path: Path) -> None:
    path = ended(tmp_path / "run", whole(), used=50)
    assert violations(path) == ["summary.json counts 50 contributions as used, but the histories count 48"]


def test_a_shard_without_a_history_is_a_violation(tmp_path: Path) -> None:
    path = ended(tmp_path / "run", whole())
    (path / "history" / "shard-1.jsonl").unlink()
    assert "shard 1: there is no history" in violations(path)
    assert check(path)["versions"] == 0


def test_a_history_that_was_set_aside_as_damaged_is_reported(tmp_path: Path) -> None:
    path = ended(tmp_path / "run", whole())
    (path / "history" / "shard-1.damaged-17.jsonl").write_text("{", encoding="utf-8")
    assert violations(path) == [
        "shard 1: lines that could not be read were removed; the original file is kept as shard-1.damaged-17.jsonl"
    ]


def test_the_first_version_of_a_view_with_a_lower_quorum_can_use_more_ranks(tmp_path: Path) -> None:
    histories = whole()
    for lines in histories:
        for each in lines[8:]:
            each |= {"view": 2, "quorum": 1, "ranks": [0]}
        lines[8] |= {"quorum": 2, "ranks": [0, 2]}
    assert violations(ended(tmp_path / "run", histories, used=2 * (9 * 2 + 3))) == []


def test_the_summary_of_an_unfinished_run_is_not_checked(tmp_path: Path) -> None:
    path = ended(tmp_path / "run", whole(), updates=10, used=40)
    assert len(violations(path)) == 3
    (path / "left.json").write_text("{}", encoding="utf-8")
    assert violations(path) == []
    (path / "left.json").unlink()
    (path / "summary.json").unlink()
    assert violations(path) == []


def test_shards_that_disagree_on_the_progress_of_a_version_are_reported(tmp_path: Path) -> None:
    histories = [[each | {"made_at": 1000 * each["version"]} for each in lines] for lines in whole()]
    assert violations(ended(tmp_path / "run", histories)) == []
    histories[1][4] |= {"made_at": 5001}
    assert violations(ended(tmp_path / "other", histories)) == [
        "the progress of version 5 is 5000 on shard 0, but 5001 on shard 1"
    ]


def test_shards_in_asynchronous_mode_can_end_at_different_versions(tmp_path: Path) -> None:
    histories = [
        [line(version, quorum=1, ranks=[version % 2], staleness=[3], generation=1) for version in range(1, last + 1)]
        for last in (11, 13)
    ]
    assert check(ended(tmp_path / "run", histories, updates=11, used=24, mode="async")) == {
        "shards": 2,
        "versions": 11,
        "violations": [],
    }


def test_the_command_prints_violations_and_exits_with_1_if_there_are_any(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, bad = ended(tmp_path / "run", whole()), whole()
    drop(4)(bad[1])
    other = ended(tmp_path / "other", bad, used=46)
    assert cli.run(["check-history", str(path)]) == 0
    assert capsys.readouterr().out == "2 shards, 12 versions, no violations\n"
    assert cli.run(["check-history", str(other), "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found == check(other)
    assert found["violations"][0] == "shard 1: version 4 is missing"
    assert cli.run(["check-history", str(other)]) == 1
    assert capsys.readouterr().out.splitlines() == [*found["violations"], "2 shards, 12 versions, 2 violations"]


def test_a_directory_without_a_run_is_bad_usage(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"is not a run directory: there is no config\.json in it"):
        cli.run(["check-history", str(tmp_path)])
    (tmp_path / "config.json").write_text('{"shards": "2"}', encoding="utf-8")
    with pytest.raises(UsageError, match="shards is not a number"):
        cli.run(["check-history", str(tmp_path)])
