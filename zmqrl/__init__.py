"""zmqrl: synchronous distributed actor-critic over ZeroMQ parameter servers with backup workers."""

TYPE_CHECKING = False  # importing typing takes milliseconds, during which Ctrl-C shows a traceback
if TYPE_CHECKING:
    from typing import Any

    from zmqrl.policy import load_policy

__all__ = ["__version__", "load_policy"]

__version__ = "0.1.0"


def __getattr__(name: str) -> "Any":
    """Import ``load_policy`` on first use, because torch and the games take seconds to import."""
    if name == "load_policy":
        from zmqrl.policy import load_policy

        return load_policy
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
