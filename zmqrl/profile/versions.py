"""Lists the rank, the shard and the part of the path for which each version waited."""

from collections.abc import Sequence
from typing import Any

from rich.console import Console

from zmqrl.errors import UsageError
from zmqrl.observe.tables import plain_table
from zmqrl.profile.critical_path import CriticalPath
from zmqrl.words import whole_number


def version_range(text: str) -> range:
    """Read ``812`` or ``800-820`` as a range of versions. Raises UsageError."""
    first, dash, last = text.partition("-")
    begin, end = whole_number(first), whole_number(last if dash else first)
    if begin is not None and end is not None and begin <= end:
        return range(begin, end + 1)
    raise UsageError(f"--versions {text}: write a version, such as 812, or the first and the last, such as 800-820.")


def held_up(paths: Sequence[CriticalPath], shown: range) -> list[dict[str, Any]]:
    """The K-th rank, the last shard and the worst part of the path, for each version in ``shown`` with a known path.

    The worst part has the most time beyond the usual time: ``part_ms`` in total, ``excess_ms`` more than usual.
    """
    rows = []
    for path in paths:
        if path.version + 1 in shown:
            worst = max(path.parts, key=lambda part: (part.excess_s, part.seconds))
            rows.append(
                {
                    "generation": path.generation,
                    "version": path.version + 1,
                    "update_ms": 1e3 * path.seconds,
                    "kth": path.kth.number,
                    "shard": path.shard.number,
                    "cause": worst.cause,
                    "process": str(worst.process),
                    "host": worst.host,
                    "part_ms": 1e3 * worst.seconds,
                    "excess_ms": 1e3 * worst.excess_s,
                }
            )
    return rows


def print_versions(rows: Sequence[dict[str, Any]], console: Console) -> None:
    titles = ("version", "update ms", "K-th rank", "last shard", "waited most for", "who", "host", "ms", "beyond usual")
    several = len({row["generation"] for row in rows}) > 1  # a rollback or a resume has undone versions
    table = plain_table("what each version waited for", *(["generation"] if several else []), *titles)
    for row in rows:
        numbers = (
            *([str(row["generation"])] if several else []),
            str(row["version"]),
            f"{row['update_ms']:.2f}",
            str(row["kth"]),
            str(row["shard"]),
        )
        part = f"{row['part_ms']:.2f}", f"{row['excess_ms']:.2f}"
        table.add_row(*numbers, row["cause"], row["process"], row["host"], *part)
    console.print(table, "")
