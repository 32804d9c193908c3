"""Identifies a process of a run by its role, and by its number within this role.

This module uses only the standard library.
"""

from dataclasses import dataclass
from typing import Literal, Self, TypeAlias, get_args

ProcessRole: TypeAlias = Literal["shard", "worker", "evaluator", "recorder", "probe"]
ROLES: tuple[ProcessRole, ...] = get_args(ProcessRole)


@dataclass(frozen=True, slots=True, order=True)
class ProcessId:
    """A process, written as ``worker-3`` in names of logs and traces, in cluster.json and in messages."""

    role: ProcessRole
    number: int

    def __str__(self) -> str:
        return f"{self.role}-{self.number}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Inverse of ``str``. Raises ValueError."""
        name, _, number = text.rpartition("-")
        role = next((role for role in ROLES if role == name), None)
        if role is None or not (number.isascii() and number.isdigit()):
            raise ValueError(f"{text!r} is not the name of a process")
        return cls(role, int(number))


EVALUATOR, RECORDER = ProcessId("evaluator", 0), ProcessId("recorder", 0)


def shard_id(shard: int) -> ProcessId:
    return ProcessId("shard", shard)


def worker_id(rank: int) -> ProcessId:
    return ProcessId("worker", rank)
