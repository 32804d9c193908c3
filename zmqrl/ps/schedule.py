"""The progress of a run, which schedules follow: an integer in millionths, from 0 to ``WHOLE``."""

WHOLE = 1_000_000


def elapsed_at(version: int, *, horizon: float | None, told: int) -> int:
    """The progress that a shard publishes with ``version``.

    This is the progress that the supervisor has measured (``told``) or the progress in versions, whichever is greater.
    ``horizon`` is the version at which the progress is ``WHOLE``, or None if unknown.
    """
    by_version = 0 if horizon is None else round(WHOLE * min(1.0, version / horizon))
    return min(WHOLE, max(told, by_version))
