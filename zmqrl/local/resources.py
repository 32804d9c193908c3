"""What this machine offers a run: processor, cores, clock, and variables that affect the speed of libraries."""

import contextlib
import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from zmqrl.process import CORES, quota

# The instructions that make networks fast: their names in /proc/cpuinfo and for people.
INSTRUCTIONS: Final = {
    "avx2": "AVX2",
    "avx512f": "AVX-512",
    "avx512_bf16": "AVX-512 bf16",
    "amx_bf16": "AMX bf16",
}
BFLOAT16: Final = frozenset({"avx512_bf16", "amx_bf16"})
# Variables that change how fast libraries compute. A run sets its own OMP_NUM_THREADS and MKL_NUM_THREADS.
VARIABLES: Final = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "OMP_WAIT_POLICY",
    "ATEN_CPU_CAPABILITY",
    "ONEDNN_MAX_CPU_ISA",
    "DNNL_MAX_CPU_ISA",
    "MKL_ENABLE_INSTRUCTIONS",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Resources:
    """The resources of a machine. None: an unknown value, or no quota.

    This process is bound to ``bound_cores``, and a run uses ``usable_cores``. All other programs together used
    ``busy_cores`` a moment ago.
    """

    processor: str
    instructions: tuple[str, ...]
    cores: int
    bound_cores: int
    quota_cores: float | None
    usable_cores: int
    busy_cores: float | None
    clock_source: str | None
    variables: Mapping[str, str]

    @property
    def has_bfloat16(self) -> bool:
        """Whether the processor computes in bfloat16. Otherwise networks compute in float32."""
        return not BFLOAT16.isdisjoint(self.instructions)


@dataclass(frozen=True, kw_only=True, slots=True)
class TorchBuild:
    """The build of torch.

    ``cuda``: the CUDA version that it was built for. ``threading``: its threading library. ``capability``: its vector
    kernels for this machine, such as AVX2. ``onednn``: whether it has oneDNN, which computes convolutions.
    """

    version: str
    cuda: str | None
    threading: str
    capability: str
    onednn: bool


def resources(
    busy_cores: float | None, root: Path = Path("/"), environment: Mapping[str, str] = os.environ
) -> Resources:
    """The resources of this machine. ``root`` has the directories ``proc`` and ``sys``."""
    facts, flags = cpu_facts(root), cpu_flags(root)
    limit = quota(root / "proc/self")
    return Resources(
        processor=facts.get("model name", "unknown"),
        instructions=tuple(flag for flag in INSTRUCTIONS if flag in flags),
        cores=os.cpu_count() or 1,
        bound_cores=len(os.sched_getaffinity(0)),
        quota_cores=None if math.isinf(limit) else limit,
        usable_cores=CORES,
        busy_cores=busy_cores,
        clock_source=_text(root / "sys/devices/system/clocksource/clocksource0/current_clocksource").strip() or None,
        variables={name: environment[name] for name in VARIABLES if name in environment},
    )


def cpu_facts(root: Path = Path("/")) -> dict[str, str]:
    """What ``/proc/cpuinfo`` says, such as ``model name`` and ``flags``. Empty if it cannot be read."""
    lines = _text(root / "proc/cpuinfo").splitlines()
    return {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}


def cpu_flags(root: Path = Path("/")) -> frozenset[str]:
    """The ``flags`` of :func:`cpu_facts`: the instruction sets of the processor."""
    return frozenset(cpu_facts(root).get("flags", "").split())


def torch_build() -> TorchBuild:
    """The build of torch. Takes seconds for the import."""
    import torch

    name = "ATen parallel backend: "
    lines = torch.__config__.parallel_info().splitlines()
    return TorchBuild(
        version=torch.__version__,
        cuda=torch.version.cuda,
        threading=next((line.removeprefix(name) for line in lines if line.startswith(name)), "unknown"),
        capability=torch.backends.cpu.get_cpu_capability(),
        onednn=torch.backends.mkldnn.is_available(),  # type: ignore[no-untyped-call]
    )


def _text(path: Path) -> str:
    with contextlib.suppress(OSError):
        return path.read_text(encoding="utf-8", errors="replace")
    return ""


def to_json(found: Resources, torch: TorchBuild) -> dict[str, Any]:
    """The resources as plain data."""
    return asdict(found) | {"bfloat16": found.has_bfloat16, "torch": asdict(torch)}
