"""The part of a page between ``<!-- NAME -->`` and ``<!-- end -->``, which a benchmark fills."""

import re
from pathlib import Path


def part(page: Path, name: str) -> str:
    """The lines between the marks. Exits if the page does not have the marks once."""
    return _split(page, name)[1]


def fill(page: Path, name: str, text: str) -> None:
    """Replace the lines between the marks. Exits if the page does not have the marks once."""
    before, _, after = _split(page, name)
    page.write_text(before + text + after, encoding="utf-8")


def fill_readme(directory: Path, name: str, text: str) -> None:
    """Replace the lines between the marks in the ``README.md`` of ``directory``, if there is one."""
    for page in directory.glob("README.md"):
        fill(page, name, text)


def _split(page: Path, name: str) -> tuple[str, str, str]:
    parts = re.split(rf"(?<=<!-- {name} -->\n)(.*?)(?=<!-- end -->)", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    if len(parts) != 3:
        raise SystemExit(f"{page} must have `<!-- {name} -->` and `<!-- end -->` exactly once.")
    return parts[0], parts[1], parts[2]
