"""Stand-ins for the files about the control groups of a process."""

from pathlib import Path

V1 = "33 32 0:29 / {} rw,nosuid shared:9 - cgroup cgroup rw,cpu,cpuacct"
V2 = "31 23 0:28 / {} rw,relatime - cgroup2 cgroup2 rw,nsdelegate"


def process(where: Path, group: str, mount: str, files: dict[str, str]) -> Path:
    """A directory like ``/proc/self``: a process in ``group``, and control groups with ``files``."""
    for name, text in files.items():
        (where / "groups" / name).parent.mkdir(parents=True, exist_ok=True)
        (where / "groups" / name).write_text(text, encoding="ascii")
    (where / "cgroup").write_text(f"{group}\n", encoding="ascii")
    line = mount.format(where / "groups")
    (where / "mountinfo").write_text(f"22 1 8:1 / / rw - ext4 /dev/sda1 rw\n{line}\n", encoding="ascii")
    return where
