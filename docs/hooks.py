"""Hooks of mkdocs: pages that are generated from other files, and links that lead out of docs/."""

import os
import re
import subprocess
import sys
from pathlib import Path, PurePosixPath

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parent.parent
FROM_THE_TOP = {"security.md": "SECURITY.md", "contributing.md": "CONTRIBUTING.md", "changelog.md": "CHANGELOG.md"}
LINK = re.compile(r"\]\((?!https?:|#|mailto:)([^)#\s]*)(#[^)\s]*)?\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are not files of docs/."""
    for page, name in FROM_THE_TOP.items():
        files.append(File.generated(config, page, content=(ROOT / name).read_text(encoding="utf-8")))
    files.append(File.generated(config, "reference/commands.md", content=commands()))
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Point links to the pages of the site if they exist there, and all other links to the repository."""
    source = PurePosixPath("docs") / page.file.src_uri
    base = PurePosixPath(FROM_THE_TOP.get(page.file.src_uri, source)).parent
    pages = {f"docs/{file.src_uri}": file for file in files} | {
        name: files.src_uris[uri] for uri, name in FROM_THE_TOP.items()
    }

    def led(match: re.Match[str]) -> str:
        link, anchor = match[1], match[2] or ""
        target = os.path.normpath(base / link)
        if target in pages:
            return f"]({os.path.relpath(pages[target].src_uri, source.relative_to('docs').parent)}{anchor})"
        kind = "tree" if (ROOT / target).is_dir() else "blob"
        return f"]({config.repo_url}/{kind}/main/{target}{anchor})"

    return LINK.sub(led, markdown)


def commands() -> str:
    """The help of each command, as printed."""
    overview = help_of()
    names = re.findall(r"^  zmqrl ([a-z-]+) ", overview, re.MULTILINE)
    parts = ["# Commands", "Each command prints this help with `--help`.", f"```text\n{overview}```"]
    benchmarks = [("bench", name) for name in re.findall(r"^zmqrl bench ([a-z-]+)", help_of("bench"), re.MULTILINE)]
    for command in [*((name,) for name in names), *benchmarks]:
        parts += [f"## zmqrl {' '.join(command)}", f"```text\n{help_of(*command)}```"]
    return "\n\n".join(parts) + "\n"


def help_of(*command: str) -> str:
    """What ``zmqrl COMMAND --help`` prints, without colours."""
    environment = os.environ | {"COLUMNS": "100", "NO_COLOR": "1", "TERM": "dumb", "PYTHONPATH": str(ROOT)}
    arguments = [sys.executable, "-m", "zmqrl", *command, "--help"]
    done = subprocess.run(arguments, env=environment, capture_output=True, text=True, check=True, timeout=120)
    return "".join(f"{line.rstrip()}\n" for line in done.stdout.splitlines())
