"""What to change on this machine for a faster run: one sentence each. Pure."""

from collections.abc import Iterator
from typing import Final

from zmqrl.local.resources import Resources, TorchBuild
from zmqrl.words import counted

FAST_CLOCKS: Final = frozenset({"tsc", "kvm-clock", "hyperv_clocksource_tsc_page", "arch_sys_counter"})
OTHER_LOAD: Final = 0.25  # of a run's cores
# Variables that limit libraries to older instructions.
LIMITS: Final = ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA", "MKL_ENABLE_INSTRUCTIONS")
KERNELS: Final = {"avx2": "AVX2", "avx512f": "AVX512"}  # the best kernels of torch for the instructions of a processor


def advice(found: Resources, torch: TorchBuild, *, cuda: bool) -> list[str]:
    """Sentences without a full stop. ``cuda``: the run computes on a CUDA device."""
    return [*_about_cores(found), *_about_speed(found), *_about_torch(found, torch, cuda=cuda)]


def _about_cores(found: Resources) -> Iterator[str]:
    used = f"a run uses {found.usable_cores}"
    if found.bound_cores < found.cores:
        yield (
            f"this process is bound to {found.bound_cores} of {found.cores} cores, so {used}: "
            "ask for more cores (taskset, numactl, the options of a batch job)"
        )
    limit = found.quota_cores
    if limit is not None and limit < found.bound_cores:
        yield (
            f"the quota of the control group is {limit:g} of {counted(found.bound_cores, 'core')}, so {used}: "
            "raise the quota (docker run --cpus, CPUQuota of systemd, limits of a pod)"
        )
        if limit % 1 and limit > 1:
            yield f"a run uses whole cores: it leaves {limit - found.usable_cores:g} of the quota of {limit:g} unused"
    if found.busy_cores is not None and found.busy_cores > OTHER_LOAD * found.usable_cores:
        busy = f"{found.busy_cores:.1f} of {counted(found.cores, 'core')}"
        yield f"other programs use {busy}: end them, or expect a slower run"


def _about_speed(found: Resources) -> Iterator[str]:
    if found.variables.get("OMP_WAIT_POLICY", "").lower() == "active":
        yield "OMP_WAIT_POLICY=active makes waiting threads use whole cores: unset it"
    for name in LIMITS:
        if name in found.variables:
            yield f"{name}={found.variables[name]} limits the instructions that networks use: unset it"
    if found.clock_source is not None and found.clock_source not in FAST_CLOCKS:
        yield f"the clock source is {found.clock_source}, which is slow to read: use tsc if the machine has it"


def _about_torch(found: Resources, torch: TorchBuild, *, cuda: bool) -> Iterator[str]:
    if torch.cuda is not None and not cuda:
        yield (
            f"torch {torch.version} is a CUDA build: for --device cpu, its CPU build has the same speed and takes "
            "gigabytes less"
        )
    if torch.threading != "OpenMP":
        yield f"torch {torch.version} uses {torch.threading} threads, not OpenMP: install a build from PyPI"
    if not torch.onednn:
        yield f"torch {torch.version} has no oneDNN, so convolutions are slow: install a build from PyPI"
    best = [KERNELS[name] for name in found.instructions if name in KERNELS]
    if torch.capability == "DEFAULT" and best and "ATEN_CPU_CAPABILITY" not in found.variables:
        yield f"torch {torch.version} does not use {best[-1]}, which the processor has: install a build from PyPI"
