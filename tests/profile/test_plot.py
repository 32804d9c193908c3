"""The plot of a profile."""

from pathlib import Path

import pytest
from matplotlib.figure import Figure
from support.profiles import synthetic_run

from zmqrl.profile import plot
from zmqrl.profile.report import Analysis
from zmqrl.profile.run_tables import RunTables

pytestmark = pytest.mark.processes


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Figure:
    figures: list[Figure] = []

    def keep(figure: Figure, path: Path) -> None:
        figure.savefig(path)
        figures.append(figure)

    monkeypatch.setattr(plot, "save", keep)
    extra_s = {(span, 1): 0.1 for span in ("straggle", "encode", "push", "assemble")}
    analysis = Analysis.of(RunTables(tuple(synthetic_run(versions=40, worker_extra_s=extra_s))))
    found = analysis.to_json()
    assert len(found["path_ms"]) > plot.CAUSES_SHOWN
    plot.plot_profile(analysis, found, tmp_path / "plot.svg", "a run")
    return figures[0]


def test_every_part_of_the_path_has_its_own_colour(drawn: Figure) -> None:
    legend = drawn.axes[0].get_legend()
    assert legend is not None
    colours = [handle.get_facecolor() for handle in legend.legend_handles]  # type: ignore[union-attr]
    assert len(set(map(str, colours))) == len(colours) == plot.CAUSES_SHOWN + 1


def test_no_legend_covers_the_data(drawn: Figure) -> None:
    for axes in (drawn.axes[0], drawn.axes[3]):
        legend = axes.get_legend()
        assert legend is not None
        assert legend.get_window_extent().x0 >= axes.get_window_extent().x1


def test_numbers_are_printed_without_markup(drawn: Figure) -> None:
    texts = [label.get_text() for axes in drawn.axes for label in (*axes.get_xticklabels(), *axes.get_yticklabels())]
    assert texts
    assert not [text for text in texts if "$" in text or "\\" in text]
