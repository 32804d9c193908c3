"""In the documents, every link leads to an existing file and heading, and every path named for contributors exists."""

import dataclasses
import re
import unicodedata
from pathlib import Path

import pytest
from support.paths import ROOT

from zmqrl.learner.settings import ALGORITHMS

LINK = re.compile(r"\]\(([^)\s]+)\)")
GENERATED = {"security.md": "SECURITY.md", "contributing.md": "CONTRIBUTING.md", "changelog.md": "CHANGELOG.md"}
PAGES = sorted(
    path
    for pattern in ("*.md", "docs/**/*.md", "launch/**/*.md", "benchmarks/**/*.md", ".github/**/*.md")
    for path in ROOT.glob(pattern)
)


def prose(page: Path) -> str:
    """A page without its code blocks."""
    return re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and mkdocs generate them."""
    found = set()
    for heading in re.findall(r"^#+ +(.*?)\s*$", prose(page), re.MULTILINE):
        text = unicodedata.normalize("NFKD", re.sub(r"\[([^]]*)\]\([^)]*\)|[`*]", r"\1", heading))
        found.add(re.sub(r"[^\w\s-]", "", text).strip().lower().replace(" ", "-"))
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_of_a_page_has_a_target(page: Path) -> None:
    for link in LINK.findall(prose(page)):
        if re.match(r"[a-z]+:", link):
            continue
        name, _, anchor = link.partition("#")
        target = page.parent / name if name else page
        assert target.exists(), f"{page.name}: there is no {link}"
        if anchor:
            assert anchor in anchors(target), f"{page.name}: {link}: {target.name} has {sorted(anchors(target))}"


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "docs/index.md", "docs/install.md"])
def test_every_page_with_make_names_the_same_requirements(page: str) -> None:
    python = "Python 3.11 or newer with venv (Debian and Ubuntu: `python3-venv`)"
    needs = f"You need Linux 5.3 or newer, {python}, pip, make and git."
    assert needs in " ".join(prose(ROOT / page).split())


@pytest.mark.parametrize("page", ["docs/architecture.md", "CONTRIBUTING.md"])
def test_every_path_named_for_contributors_exists(page: str) -> None:
    named = re.findall(r"`([\w./-]+(?:\.py|\.txt|/))`", prose(ROOT / page))
    assert len(named) > 8
    for path in named:
        roots = (ROOT, ROOT / "zmqrl", ROOT / "tests/support")
        assert any((root / path).exists() for root in roots), f"there is no {path}"


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_the_python_page_shows_exactly_the_settings_of_an_algorithm(algorithm: str) -> None:
    settings = ALGORITHMS[algorithm]
    page = (ROOT / "docs" / "reference" / "python.md").read_text(encoding="utf-8")
    _, _, after = page.partition(f"\n::: {settings.__module__}.{settings.__name__}\n")
    shown = re.findall(r"^ +- (\w+)$", after.partition("\n\n")[0], re.MULTILINE)
    assert shown == [each.name for each in dataclasses.fields(settings)]  # type: ignore[arg-type]


def test_every_page_of_the_site_exists() -> None:
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:")[2].partition("\n\n")[0]
    pages = re.findall(r": (\S+\.md)$", navigation, re.MULTILINE)
    assert len(pages) > 10
    for page in pages:
        source = ROOT / GENERATED[page] if page in GENERATED else ROOT / "docs" / page
        assert source.exists() or page == "reference/commands.md", f"there is no {page}"
    listed = {str(path.relative_to(ROOT / "docs")) for path in (ROOT / "docs").rglob("*.md")}
    assert listed <= set(pages), "a page is missing from the navigation"
