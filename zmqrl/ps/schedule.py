"""The progress of a run, which schedules follow: an integer in millionths of the run, from 0 to ``WHOLE``."""

WHOLE = 1_000_000


def elapsed_at(version: int, *, horizon: float | None, told: int) -> int:
    """The progress that a shard publishes with ``version``.

    It is the greater of two values: ``told``, which the supervisor has measured, and the progress by versions.
    ``horizon`` is the version at which the progress is ``WHOLE``, if it is known beforehand.
    """
    by_version = 0 if horizon is None else round(WHOLE * min(1.0, version / horizon))
    return min(WHOLE, max(told, by_version))
