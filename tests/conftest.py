"""Hypothesis profiles: the default one takes seconds and tries the same each time, ``thorough`` looks for more.

``pytest --hypothesis-profile=thorough --timeout=0 tests/test_protocol.py`` takes some minutes.
"""

from hypothesis import HealthCheck, settings

settings.register_profile(
    "default", deadline=None, derandomize=True, print_blob=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile(
    "thorough", settings.get_profile("default"), derandomize=False, max_examples=1000, stateful_step_count=60
)
settings.load_profile("default")
