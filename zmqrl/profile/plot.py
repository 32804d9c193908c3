"""A profile as a picture."""

from pathlib import Path
from typing import Any

import numpy as np

from zmqrl.profile.report import Profile

BINS = 60
CAUSES_SHOWN = 8


def plot_profile(profile: Profile, found: dict[str, Any], path: Path, title: str) -> None:
    """Draw the critical path over the versions, the times of updates, the blame and the K-th workers.

    ``found`` is ``profile.to_json()``. Raises OSError or ValueError when the file cannot be written.
    """
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(2, 2, figsize=(13, 8), layout="constrained")
    figure.suptitle(title)
    _over_versions(profile, list(found["path_ms"]), axes[0, 0])
    milliseconds = [1e3 * step.seconds for step in profile.steps]
    axes[0, 1].hist(milliseconds, bins=BINS, log=True)
    axes[0, 1].set(title="time of an update", xlabel="ms", ylabel="updates")
    rows = found["blame"][:CAUSES_SHOWN][::-1]
    who = [f"rank {row['rank']}" if row["rank"] is not None else f"shard {row['shard']}" for row in rows]
    labels = [f"{row['cause']}, {each} on {row['host']}" for row, each in zip(rows, who, strict=True)]
    axes[1, 0].barh(labels, [row["seconds"] for row in rows])
    axes[1, 0].set(title="what updates waited for beyond the usual", xlabel="s")
    ranks = found["ranks"]
    places = np.arange(len(ranks))
    axes[1, 1].bar(places - 0.2, [100 * each["inclusion"] for each in ranks.values()], 0.4, label="counted")
    axes[1, 1].bar(places + 0.2, [100 * each["kth"] for each in ranks.values()], 0.4, label="was K-th")
    axes[1, 1].set(title="ranks", xlabel="rank", ylabel="% of updates")
    axes[1, 1].set_xticks(places, list(ranks))
    axes[1, 1].legend()
    figure.savefig(path, dpi=100)
    plt.close(figure)


def _over_versions(profile: Profile, causes: list[str], axes: Any) -> None:
    """Mean milliseconds of the parts of the path, over the versions."""
    steps = profile.steps
    groups = np.array_split(np.arange(len(steps)), min(BINS, max(len(steps), 1)))
    groups = [group for group in groups if len(group)]
    middle = [steps[int(group[len(group) // 2])].version for group in groups]
    values = np.zeros((len(causes), len(groups)))
    for column, group in enumerate(groups):
        for i in group:
            for part in steps[int(i)].parts:
                values[causes.index(part.cause), column] += 1e3 * part.seconds / len(group)
    shown = values[:CAUSES_SHOWN]
    axes.stackplot(middle, [*shown, values[CAUSES_SHOWN:].sum(axis=0)], labels=[*causes[:CAUSES_SHOWN], "rest"])
    axes.set(title="critical path of an update", xlabel="version", ylabel="ms")
    axes.legend(loc="upper right", fontsize="small")
