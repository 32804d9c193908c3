"""The style of plots, and how to write them to files."""

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from zmqrl.errors import naming
from zmqrl.json_lines import replacing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# The colours of Okabe and Ito, which colour-blind readers can tell apart, without yellow, which is faint on paper.
COLOURS: Final = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
LINES: Final = ("-", "--", ":", "-.")  # once all colours are used, lines take the next style
STYLE: Final[dict[Any, Any]] = {
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "figure.constrained_layout.use": True,
    "font.size": 10.0,
    "grid.color": "#E6E6E6",
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "savefig.dpi": 180,
    "svg.fonttype": "none",
    "text.parse_math": False,  # user-defined names can contain dollar signs
}


def look(number: int) -> dict[str, Any]:
    again, colour = divmod(number, len(COLOURS))
    return {"color": COLOURS[colour], "linestyle": LINES[again % len(LINES)]}


def save(figure: "Figure", path: Path) -> None:
    """Write a plot. The suffix of ``path`` sets the format. The file appears complete or not at all. Raises OSError."""
    picture = io.BytesIO()
    figure.savefig(picture, format=path.suffix[1:])
    with naming(path), replacing(path) as unfinished:
        unfinished.write_bytes(picture.getvalue())
