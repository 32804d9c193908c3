"""``zmqrl check-history`` finds violations in manipulated histories. test_run.py checks histories of real runs."""

import json
import re
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.record_rig import run_directory, summary

from zmqrl import cli
from zmqrl.checkpoint import Checkpoint
from zmqrl.commands.inspect.check_history import check
from zmqrl.errors import UsageError
from zmqrl.ps.layout import Layout
from zmqrl.ps.wire.codec import CODECS
from zmqrl.ps.wire.messages import Codec

Line = dict[str, Any]
Histories = list[list[Line]]
VERSIONS = 12


def line(version: int, **fields: Any) -> Line:
    """The line of a version made by ranks 0 and 2, with one late contribution."""
    made = {"view": 1, "quorum": 2, "ranks": [0, 2], "late": 1, "duplicate": 0, "rejected": 0, "crc32": 7}
    return {"version": version, **made, "generation": 1 + version // 7, **fields}


def ended(
    path: Path, histories: Histories, *, updates: int = VERSIONS, used: int = 48, late: int = 24, **settings: Any
) -> Path:
    """Write the files of a run that ended at version ``updates``, with the histories of its two shards."""
    contributions = {"used": used, "late": late, "duplicate": 0, "rejected": 0, "skipped": 3}
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
            "version 9 has the quorum 1, but view 1 of generation 2 requires 2",
        ),
        (
            change(9, ranks=[0, 1, 2], quorum=3),
            "version 9 has the quorum 3, but view 1 of generation 2 requires 2",
        ),
        (change(9, ranks=[1]), "version 9 used 1 contribution, but its quorum is 2"),
        (change(1, ranks=[1]), "version 1 used 1 contribution, but its quorum is 2"),
        (change(9, view=2), "version 10 of view 1 comes after view 2"),
        (change(9, made_at=10), "version 10 was made at progress 0, but an earlier version at 10"),
        (change(9, ranks=[], quorum=0), "line 9 cannot be read"),
        (change(9, late=-1), "line 9 cannot be read"),
        (change(9, rejected=1.5), "line 9 cannot be read"),
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


def test_a_history_that_was_kept_as_damaged_is_reported(tmp_path: Path) -> None:
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
        lines[8] |= {"ranks": [0, 2]}
    assert violations(ended(tmp_path / "run", histories, used=2 * (9 * 2 + 3))) == []
    for lines in histories:
        lines[8] |= {"quorum": 2}  # as an older zmqrl wrote it
    assert violations(ended(tmp_path / "old", histories, used=2 * (9 * 2 + 3))) == []
    histories[1][9] |= {"ranks": [0, 2]}
    assert violations(ended(tmp_path / "second", histories, used=2 * (9 * 2 + 3) + 1)) == [
        "shard 1: version 10 used 2 contributions, but its quorum is 1"
    ]


def test_a_run_that_always_used_too_few_contributions_is_reported(tmp_path: Path) -> None:
    histories = [[each | {"ranks": [2]} for each in lines] for lines in whole()]
    assert len(violations(ended(tmp_path / "run", histories, used=2 * VERSIONS))) == 2 * VERSIONS


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
        [
            line(version, quorum=1, ranks=[version % 2], staleness=[min(1, version - 1)], generation=1)
            for version in range(1, last + 1)
        ]
        for last in (11, 13)
    ]
    assert check(ended(tmp_path / "run", histories, updates=11, used=24, mode="async")) == {
        "shards": 2,
        "versions": 11,
        "violations": [],
    }


def test_totals_that_are_not_the_sum_of_the_lines_are_reported(tmp_path: Path) -> None:
    histories = with_totals()
    assert violations(ended(tmp_path / "run", histories)) == []
    for each in histories[1][8:]:
        each["totals"] = [each["totals"][0] + 2, *each["totals"][1:]]
    for each in histories[0]:
        each["totals"] = [*each["totals"][:3], 1]
    assert violations(ended(tmp_path / "other", histories)) == [
        "shard 0: version 1 has the totals 2, 1, 0, 1 instead of 2, 1, 0, 0",
        "shard 1: version 9 has the totals 20, 9, 0, 0 instead of 18, 9, 0, 0",
    ]
    for each in histories[0][:6]:
        del each["totals"]  # as an older zmqrl wrote it
    assert violations(ended(tmp_path / "old", histories))[0] == (
        "shard 0: version 7 has the totals 14, 7, 0, 1 instead of 14, 7, 0, 0"
    )


def with_totals() -> Histories:
    return [[each | {"totals": [2 * each["version"], each["version"], 0, 0]} for each in lines] for lines in whole()]


def test_other_counts_than_the_summary_has_are_reported_unless_an_older_zmqrl_made_the_run(tmp_path: Path) -> None:
    assert violations(ended(tmp_path / "run", with_totals(), late=25)) == [
        "summary.json counts 25 contributions as late, but the histories count 24"
    ]
    assert violations(ended(tmp_path / "old", whole(), late=25)) == []


def test_a_line_without_totals_after_lines_with_totals_is_reported(tmp_path: Path) -> None:
    histories = with_totals()
    del histories[1][-1]["totals"]
    assert violations(ended(tmp_path / "run", histories)) == [
        "shard 1: version 12 has no totals, but an earlier version has"
    ]


def test_a_version_that_one_shard_kept_through_a_rollback_is_reported(tmp_path: Path) -> None:
    histories = whole()
    histories[1][6]["generation"] = 1
    assert violations(ended(tmp_path / "run", histories)) == [
        "version 7 is of generation 2 on shard 0, but of generation 1 on shard 1"
    ]


def test_a_contribution_that_an_asynchronous_shard_used_twice_is_reported(tmp_path: Path) -> None:
    histories = [
        [line(version, quorum=1, ranks=[0], staleness=[0], generation=1) for version in range(1, VERSIONS + 1)]
        for _ in range(2)
    ]
    assert violations(ended(tmp_path / "run", histories, used=24, mode="async")) == []
    histories[0][5]["staleness"] = [1]
    histories[1][7]["staleness"] = []
    histories[1][8]["staleness"] = [0, 0]
    assert violations(ended(tmp_path / "other", histories, used=24, mode="async")) == [
        "shard 0: version 6 used a contribution of rank 0 that version 5 had already used",
        "shard 1: version 8 lists 0 staleness values for 1 contribution",
        "shard 1: version 9 lists 2 staleness values for 1 contribution",
    ]


def test_an_asynchronous_contribution_from_before_a_rollback_is_reported(tmp_path: Path) -> None:
    histories = [
        [
            line(version, quorum=1, ranks=[version % 2], staleness=[min(1, (version - 1) % 7)])
            for version in range(1, VERSIONS + 1)
        ]
        for _ in range(2)
    ]
    for lines in histories:
        lines[6]["staleness"] = [0]
    assert violations(ended(tmp_path / "run", histories, used=24, mode="async")) == []
    histories[1][7]["staleness"] = [2]
    assert violations(ended(tmp_path / "other", histories, used=24, mode="async")) == [
        "shard 1: version 8 used a contribution of rank 0 that was computed on version 5, "
        "but generation 2 began at version 6"
    ]


def killed(path: Path, histories: Histories, *, lease_s: float | None = None) -> Path:
    """Write the files of a killed run. With ``lease_s``, it had another host."""
    ended(path, histories)
    (path / "summary.json").unlink()
    hosts = [{"host": "here", "lease_s": None}, {"host": "there", "lease_s": lease_s}]
    (path / "left.json").write_text(json.dumps({"hosts": hosts}), encoding="utf-8")
    return path


def test_shards_of_a_killed_run_that_are_more_than_one_version_apart_are_reported(tmp_path: Path) -> None:
    histories = whole()
    drop(VERSIONS)(histories[1])
    assert violations(killed(tmp_path / "run", histories)) == []
    drop(VERSIONS - 1)(histories[1])
    path = killed(tmp_path / "other", histories)
    assert violations(path) == ["shard 1: the history ends at version 10, but shard 0 made version 12"]
    # The other host may have the newest lines.
    assert violations(killed(tmp_path / "hosts", histories, lease_s=8.0)) == []
    # The run may have been killed while its shards removed the lines that a rollback undid.
    (path / "history" / "shard-1.before-generation-2.jsonl").touch()
    assert len(violations(path)) == 1
    (path / "history" / "shard-1.before-generation-3.jsonl").touch()
    assert violations(path) == []


def test_a_checkpoint_whose_versions_or_contributions_the_histories_lack_is_reported(tmp_path: Path) -> None:
    layout = Layout.of([("w", (100,))], 2)
    initial = Checkpoint.initial(layout, np.linspace(0, 1, 100, dtype=np.float32), "sgd", ("momentum",))
    histories = whole()
    for cut, lines in zip(layout.slices, histories, strict=True):
        lines[10]["crc32"] = zlib.crc32(initial.vector()[cut.start : cut.stop].tobytes())
    contributions = {"used": 44, "late": 22, "duplicate": 0, "rejected": 0, "skipped": 3}
    checkpoint = replace(initial, version=11, counters={"contributions": contributions})
    path = killed(tmp_path / "run", histories)
    checkpoint.write(path / "checkpoints")
    assert violations(path) == []
    replace(checkpoint, counters={"contributions": contributions | {"used": 43}}).write(path / "checkpoints")
    assert violations(path) == ["v00000011 counts 43 contributions as used, but the histories count 44"]
    drop(11, 12)(histories[0])
    drop(11, 12)(histories[1])
    path = killed(tmp_path / "other", histories)
    checkpoint.write(path / "checkpoints")
    assert violations(path) == [
        f"shard {shard}: the history ends at version 10, before the checkpoint v00000011" for shard in range(2)
    ]
    path = killed(tmp_path / "hosts", histories, lease_s=8.0)
    checkpoint.write(path / "checkpoints")
    assert violations(path) == []


@pytest.mark.parametrize("codec", ["f32", "bf16"])
def test_a_checkpoint_with_other_weights_than_its_shards_published_is_reported(tmp_path: Path, codec: Codec) -> None:
    layout = Layout.of([("w", (100,))], 2)
    initial = Checkpoint.initial(layout, np.linspace(0, 1, 100, dtype=np.float32), "sgd", ("momentum",))
    checkpoint, histories = replace(initial, version=VERSIONS), whole()
    for cut, lines in zip(layout.slices, histories, strict=True):
        lines[-1]["crc32"] = zlib.crc32(CODECS[codec].encode(initial.vector()[cut.start : cut.stop].copy()).data)
    path = ended(tmp_path / "run", histories, wire={"codec": codec})
    written = checkpoint.write(path / "checkpoints")
    assert violations(path) == []
    contributions = {"used": 48, "late": 24, "duplicate": 0, "rejected": 0, "skipped": 3}
    told = summary(updates=VERSIONS, contributions=contributions, params_sha256="5")
    (path / "summary.json").write_text(json.dumps(told), encoding="utf-8")
    assert violations(path) == [
        f"summary.json names parameters with the hash 5, but those of v00000012 have {checkpoint.params_sha256()}"
    ]
    (path / "summary.json").unlink()
    histories[1][-1]["crc32"] += 1
    other = ended(tmp_path / "other", histories, wire={"codec": codec})
    checkpoint.write(other / "checkpoints")
    assert violations(other) == ["shard 1: v00000012 does not hold the weights that were published as version 12"]
    (written / "model.safetensors").write_bytes(b"")
    (found,) = violations(path)
    assert "model.safetensors is damaged" in found


def test_a_codec_that_this_zmqrl_does_not_have_is_named_and_not_taken_for_f32(tmp_path: Path) -> None:
    checkpoint = Checkpoint.initial(Layout.of([("w", (100,))], 2), np.zeros(100, np.float32), "sgd", ("momentum",))
    for name in ("f8", 7, None, ["bf16"]):
        path = ended(tmp_path / str(name), whole(), wire={"codec": name})
        checkpoint.write(path / "checkpoints")
        with pytest.raises(UsageError, match=re.escape(f"{path / 'config.json'} names the codec {name!r}, but")):
            violations(path)
    assert violations(ended(tmp_path / "older", whole(), wire={})) == []


def test_the_command_prints_violations_and_exits_with_1_if_there_are_any(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, bad = ended(tmp_path / "run", with_totals()), with_totals()
    drop(4)(bad[1])
    other = ended(tmp_path / "other", bad)
    assert cli.run(["check-history", str(path)]) == 0
    assert capsys.readouterr().out == "2 shards, 12 versions, no violations\n"
    assert cli.run(["check-history", str(other), "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found == check(other)
    assert found["violations"][0] == "shard 1: version 4 is missing"
    assert cli.run(["check-history", str(other)]) == 1
    assert capsys.readouterr().out.splitlines() == [*found["violations"], "2 shards, 12 versions, 3 violations"]


def test_a_directory_without_a_run_is_bad_usage(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"is not a run directory: there is no config\.json in it"):
        cli.run(["check-history", str(tmp_path)])
    for shards in ('"2"', "-2", "true", "9" * 400):
        (tmp_path / "config.json").write_text(f'{{"shards": {shards}}}', encoding="utf-8")
        with pytest.raises(UsageError, match="shards is not a number from 1 to 64"):
            cli.run(["check-history", str(tmp_path)])
