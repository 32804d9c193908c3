"""The pages about results."""

import dataclasses
import re
from html import unescape
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from support.paths import ROOT
from support.result_rig import write_result

from zmqrl import cli
from zmqrl.observe.folding import printable
from zmqrl.results.kept import Result
from zmqrl.results.pages import _cells, _round_points, _text, report_page, reproduction_page, score_table
from zmqrl.results.rerun import Verdict

RESULTS = ROOT / "benchmarks" / "results"
KEPT = sorted(path.parent for path in RESULTS.rglob("summary.json"))


@given(st.floats(1e-3, 1e9), st.floats(1e-3, 1e9))
def test_a_table_has_about_ten_round_points(end: float, other: float) -> None:
    points = _round_points(end, other)
    assert len(points) <= 10
    assert all(0 < point < max(end, other) for point in points)
    assert len(_round_points(end)) >= 3


def test_a_table_has_the_score_at_round_minutes_and_at_the_end(tmp_path: Path) -> None:
    record = Result.read(write_result(tmp_path / "run", seconds=300)).record
    lines = score_table({"": record}, "minutes")
    assert lines[0] == "| minutes | agent steps | score |"
    assert lines[2] == "| 0.5 | 30,000 | 30.0 |"
    assert lines[-1] == "| 5.0 | 300,000 | 300.0 |"


def test_runs_of_different_lengths_are_side_by_side(tmp_path: Path) -> None:
    records = {
        "recorded": Result.read(write_result(tmp_path / "a", seconds=100)).record,
        "again": Result.read(write_result(tmp_path / "b", seconds=60)).record,
    }
    lines = score_table(records, "agent-steps")
    assert lines[0] == "| agent steps | minutes | score, recorded | minutes | score, again |"
    assert "| 60,000 | 1.0 | 60.0 | 1.0 | 60.0 |" in lines
    assert lines[-1] == "| 100,000 | 1.7 | 100.0 | - | - |"


@pytest.mark.processes  # draws for seconds
def test_a_page_names_flavour_machine_commit_and_command(tmp_path: Path) -> None:
    path = write_result(tmp_path / "run", seed=5)
    assert cli.run(["report", str(path)]) == 0
    page = (path / "report.md").read_text(encoding="utf-8")
    assert page.startswith("# run: 6.5 (95 % interval 5.5 to 7.5) in 4 games\n")
    assert "| flavour | a vector |" in page
    assert "| machine | EPYC, 2 cores |" in page
    assert "| commit | abc |" in page
    assert "| number format of the network | not recorded |" in page
    assert "\nzmqrl train cartpole --seed 5\n" in page
    assert (path / "report.svg").stat().st_size > 1000


NASTY = st.text(st.sampled_from("\\`*_[](){}<>&|~$#!\"'-+.ab1 é\x1b\n\udcff"), max_size=20)


@given(NASTY)
def test_no_name_is_read_as_markdown_or_html(name: str) -> None:
    markdown = MarkdownIt("commonmark").enable(["table", "strikethrough"])
    expected = printable(name).strip()
    for page, before, after in (
        (f"# {_text(name)}: 6.5", "<h1>", ": 6.5</h1>"),
        (f"{_cells('a', 'b')}\n|---|---|\n{_cells(f'x{name}x', 'c')}", "<td>x", "x</td>\n<td>c</td>"),
    ):
        shown = markdown.render(page)
        assert before in shown
        assert after in shown
        inside = shown.partition(before)[2].partition(after)[0]
        assert not set(inside) & set("<>"), inside
        assert unescape(inside).strip() == expected


def test_a_page_about_a_run_with_an_odd_name_is_still_a_page(tmp_path: Path) -> None:
    path = write_result(tmp_path / "<img src=x onerror=alert(1)>", env="x\n```\n<b>")
    result = Result.read(path)
    verdict = Verdict(word="within", reason="it is", difference=None)
    for page in (
        report_page(result, "a (b).svg"),
        reproduction_page(result, result, "minutes", verdict, "a (b).svg"),
    ):
        assert page.startswith("# &#60;img src=x onerror=alert(1)&#62;: ")
        assert "](a%20%28b%29.svg)" in page
        outside, *command, rest = re.split(r"^````(?:sh)?\n", page, flags=re.MULTILINE)
        assert "```" in command[0]
        assert "<" not in outside + rest


def test_a_page_names_the_number_formats_of_the_network(tmp_path: Path) -> None:
    result = Result.read(write_result(tmp_path / "run"))
    mixed = dataclasses.replace(result, summary={**result.summary, "compute": ["bfloat16", "float32"]})
    assert "| number format of the network | bfloat16, float32 |" in report_page(mixed, "report.svg")


def test_a_page_names_the_hosts_if_there_are_several(tmp_path: Path) -> None:
    result = Result.read(write_result(tmp_path / "run"))
    hosts = [{"host": f"h{number}", "cores": 8, "processes": [f"worker-{number}"]} for number in (1, 2, 3)]
    for found, cell in ((hosts[:1], "EPYC, 2 cores"), (hosts, "EPYC, 2 cores; hosts h1..h3 with 24 cores in total")):
        spread = dataclasses.replace(result, summary={**result.summary, "hosts": found})
        assert f"| machine | {cell} |" in report_page(spread, "report.svg")


def test_a_result_without_an_evaluation_has_a_page_too(tmp_path: Path) -> None:
    path = write_result(tmp_path / "run")
    (path / "evaluation.json").unlink()
    result = Result.read(path)
    assert "5.5 in the last 50 games of training" in report_page(result, "report.svg")
    few = dataclasses.replace(result, summary={**result.summary, "episodes": 40})
    assert "5.5 in the last 40 games of training" in report_page(few, "report.svg")


@pytest.mark.parametrize("path", KEPT, ids=lambda path: str(path.relative_to(RESULTS)))
def test_every_result_in_the_repository_has_the_page_of_the_command(path: Path) -> None:
    page = (path / "report.md").read_text(encoding="utf-8")
    assert page == report_page(Result.read(path), "report.svg")
    assert (path / "report.svg").stat().st_size > 1000


def test_the_results_in_the_repository_are_found_at_any_depth() -> None:
    found = {str(path.relative_to(RESULTS)) for path in KEPT}
    assert {"cartpole", "pong-width/128", "sync-async/wait"} <= found
