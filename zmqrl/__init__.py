"""zmqrl: synchronous distributed actor-critic over ZeroMQ parameter servers with backup workers."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from zmqrl.policy import load_policy

__all__ = ["__version__", "load_policy"]

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Import torch and the games, which takes seconds, only for those who ask for a policy."""
    if name == "load_policy":
        from zmqrl.policy import load_policy

        return load_policy
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
