"""What the probe of a host finds."""

from pathlib import Path

import pytest
from support.control_groups import V1, V2, process

from zmqrl.hosts.probe import memory_bytes

OF_MEMORY = V1.replace("cpu,cpuacct", "memory")
HERE = 5_000_000 * 1024  # what the machine has left


@pytest.mark.parametrize(
    ("group", "mount", "files", "expected"),
    [
        ("0::/job", V2, {}, HERE),
        ("0::/job", V2, {"job/memory.max": "max\n", "job/memory.current": "7000\n"}, HERE),
        ("0::/job", V2, {"job/memory.max": "9000\n", "job/memory.current": "7000\n"}, 2000),
        # The kernel frees cached files that were not used for a while.
        (
            "0::/job",
            V2,
            {
                "job/memory.max": "9000\n",
                "job/memory.current": "7000\n",
                "job/memory.stat": "anon 6500\ninactive_file 400\nactive_file 100\n",
            },
            2400,
        ),
        ("0::/job", V2, {"job/memory.max": "9000\n", "job/memory.current": "9500\n"}, 0),
        ("0::/job/step", V2, {"job/memory.max": "9000\n", "job/memory.current": "7000\n"}, 2000),
        (
            "4:memory:/job",
            OF_MEMORY,
            {
                "job/memory.limit_in_bytes": "9000\n",
                "job/memory.usage_in_bytes": "7000\n",
                "job/memory.stat": "inactive_file 1\ntotal_inactive_file 300\n",
            },
            2300,
        ),
        (
            "4:memory:/job",
            OF_MEMORY,
            {"job/memory.limit_in_bytes": "9223372036854771712\n", "job/memory.usage_in_bytes": "7000\n"},
            HERE,
        ),
        ("4:cpu:/job", V1, {"job/memory.limit_in_bytes": "9000\n", "job/memory.usage_in_bytes": "7000\n"}, HERE),
        ("0::/job", V2, {"job/memory.max": "no number\n", "job/memory.current": "7000\n"}, HERE),
    ],
)
def test_the_limit_of_a_control_group_counts_as_much_as_the_memory_of_the_machine(
    tmp_path: Path, group: str, mount: str, files: dict[str, str], expected: int
) -> None:
    proc = process(tmp_path, group, mount, files)
    (tmp_path / "meminfo").write_text("MemTotal: 8000000 kB\nMemAvailable: 5000000 kB\n", encoding="ascii")
    assert memory_bytes(proc, tmp_path / "meminfo") == expected


def test_a_kernel_that_does_not_tell_its_memory_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "meminfo").write_text("MemTotal: 8000000 kB\n", encoding="ascii")
    assert memory_bytes(process(tmp_path, "0::/", V2, {}), tmp_path / "meminfo") is None
