"""The progress of a run, which schedules follow: an integer in millionths of the run, from 0 to ``WHOLE``."""

WHOLE = 1_000_000


def elapsed_at(version: int, *, horizon: float | None, told: int) -> int:
    """The progress that a shard publishes with ``version``.

    ``told``: the progress that the supervisor has measured. ``horizon``: the version at which the run has wholly
    elapsed, if it is known beforehand. The greater of the two counts.
    """
    by_version = 0 if horizon is None else round(WHOLE * min(1.0, version / horizon))
    return min(WHOLE, max(told, by_version))
