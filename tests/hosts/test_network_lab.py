"""The program that builds a network lab: steps that a lab cannot show, because they depend on the moment."""

import subprocess
from types import SimpleNamespace

import pytest
from network_lab import building
from support.rig import ending


@pytest.mark.processes
def test_a_process_that_ends_just_before_it_is_killed_does_not_disturb_the_end_of_a_lab(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with ending(subprocess.Popen(["sleep", "60"])) as process:
        listed = [str(process.pid), ""]

        def ended(pid: int, netns: str) -> bool:
            process.kill()
            process.wait()
            return True

        monkeypatch.setattr(building, "run", lambda *command: SimpleNamespace(stdout=listed.pop(0)))
        monkeypatch.setattr(building, "is_in", ended)
        building.end_processes(["lab"])
        assert process.returncode is not None
        assert not listed
