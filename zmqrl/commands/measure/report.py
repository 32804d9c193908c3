"""``zmqrl report``: a page about the result of a run."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from zmqrl.commands.measure.plot import write_picture
from zmqrl.commands.options import RunPath
from zmqrl.errors import UsageError, naming, refusal, require
from zmqrl.local.extras import require_extra
from zmqrl.observe.curves import Group
from zmqrl.process import interruptible
from zmqrl.results.kept import Result
from zmqrl.results.pages import report_page


@dataclass(frozen=True, kw_only=True)
class Options:
    """Write a page about a run that has ended: settings, curves, scores and evaluation."""

    run: RunPath
    """The run directory, or a result in benchmarks/results."""
    output: Annotated[Path | None, tyro.conf.arg(metavar="PAGE.md")] = None
    """Page to write, with a picture of the same name beside it. None: report.md in the run directory."""


@interruptible()
def run(options: Options) -> int:
    """Write the page and print its path."""
    require_extra("plot", "pictures need")
    output = options.output or options.run / "report.md"
    require(output.suffix == ".md", f"--output {output}: the name must end with .md.")
    result = Result.read(options.run)
    picture = output.with_suffix(".svg")
    write_page(output, report_page(result, picture.name), [Group(label=result.record.name, runs=(result.record,))])
    sys.stdout.write(f"{output}\n")
    return 0


def write_page(path: Path, page: str, groups: list[Group]) -> None:
    """Write a page, and the curves of ``groups`` as an SVG beside it. Raises UsageError."""
    try:
        write_picture(groups, ("minutes", "agent-steps"), ("score",), path.with_suffix(".svg"))
        with naming(path):
            path.write_text(page, encoding="utf-8", errors="backslashreplace")  # settings can have surrogates
    except OSError as error:
        raise UsageError(refusal(error, path, "choose another path")) from error
