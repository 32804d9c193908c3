"""The scripts in ``launch/`` and the zmqrl commands that they run."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.paths import ROOT

from zmqrl.process import usable_cores

pytestmark = pytest.mark.processes

LAUNCH = ROOT / "launch"
SLURM = {"SLURM_JOB_NAME": "first", "SLURM_JOB_ID": "7"}


@pytest.fixture
def zmqrl(tmp_path: Path) -> Path:
    """A program that prints its name and its arguments."""
    program = tmp_path / ".venv" / "bin" / "zmqrl"
    program.parent.mkdir(parents=True)
    program.write_text('#!/bin/sh\necho "zmqrl $*"\n')
    program.chmod(0o755)
    return program


def commands(script: str, *arguments: str, **variables: str) -> list[str]:
    environment = {key: value for key, value in os.environ.items() if key != "ZMQRL"} | variables
    command = [str(LAUNCH / script), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment, timeout=180)
    return done.stdout.splitlines()


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, True),
        ({"PIP_EXTRA_INDEX_URL": "https://index.example/simple"}, False),
        ({"PIP_INDEX_URL": "https://index.example/simple"}, False),
        ({"PIP_ARGS": ""}, False),
    ],
    ids=["pypi", "extra-index", "own-index", "cuda"],
)
def test_setup_takes_the_cpu_build_of_torch_unless_the_user_has_another_index(
    variables: dict[str, str], expected: bool, tmp_path: Path
) -> None:
    plain = {key: value for key, value in os.environ.items() if not key.startswith(("PIP_", "MAKE"))}
    environment = plain | {"PIP_CONFIG_FILE": os.devnull, "HOME": str(tmp_path)} | variables
    command = ["make", "-n", "-B", "setup", f"PYTHON={sys.executable}"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT, env=environment, timeout=180)
    assert " torch\n" in done.stdout
    assert ("--extra-index-url https://download.pytorch.org/whl/cpu " in done.stdout) is expected


@pytest.mark.parametrize("arguments", ["pong --workers 4", "--workers 4", "--resume --run-dir rp"])
def test_the_ssh_script_does_a_dry_run_and_then_launches_with_the_given_options(zmqrl: Path, arguments: str) -> None:
    said = commands("ssh.sh", "one", *arguments.split(), ZMQRL=str(zmqrl))
    assert said == [f"zmqrl launch -H one --dry-run {arguments}", f"zmqrl launch -H one {arguments}"]


def test_the_ssh_script_refuses_hosts_from_a_pipe_because_it_reads_them_twice(zmqrl: Path, tmp_path: Path) -> None:
    pipe = tmp_path / "hosts"
    os.mkfifo(pipe)
    with pytest.raises(subprocess.CalledProcessError) as refused:
        commands("ssh.sh", str(pipe), "pong", ZMQRL=str(zmqrl))
    assert (refused.value.returncode, refused.value.stdout) == (2, "")
    remedy = "which can be read only once: write the hosts to a file."
    assert refused.value.stderr == f"ssh.sh: {pipe} is a pipe, {remedy}\n"


def test_the_local_script_starts_a_worker_for_each_core_that_a_quota_leaves(zmqrl: Path, tmp_path: Path) -> None:
    quota = tmp_path / "quota.py"  # the quota of this machine's control groups
    quota.write_text("import sys, zmqrl.process as process; process.quota = lambda proc: 1.5; exec(sys.argv[2])\n")
    python, limits = zmqrl.with_name("python"), {"OMP_NUM_THREADS": "1000", "OMP_THREAD_LIMIT": "1"}
    cores = len(os.sched_getaffinity(0))  # the Python of zmqrl is in another directory
    assert commands("local.sh", ZMQRL=str(zmqrl), **limits) == [f"zmqrl train --workers {cores}"]
    for command, cores in ((f'"{sys.executable}"', usable_cores()), (f'"{sys.executable}" "{quota}"', 1)):
        python.write_text(f'#!/bin/sh\nexec {command} "$@"\n')
        python.chmod(0o755)
        for given in ("", "pong", "--updates 3 pong"):
            said = commands("local.sh", *given.split(), ZMQRL=str(zmqrl))
            assert said == [f"zmqrl train --workers {cores} {given}".rstrip()]


def test_the_local_script_says_what_to_do_if_zmqrl_is_not_installed() -> None:
    with pytest.raises(subprocess.CalledProcessError) as refused:
        commands("local.sh", "pong", ZMQRL="/no/zmqrl")
    remedy = "/no/zmqrl cannot be found: run make setup, or set ZMQRL"
    assert (refused.value.returncode, refused.value.stderr) == (2, f"local.sh: {remedy}\n")


def test_the_local_script_leaves_the_number_of_workers_to_the_user_a_scenario_or_a_resumed_run(zmqrl: Path) -> None:
    resumed = ("--resume --run-dir rp", "pong --run-dir rp --resume")
    for given in ("pong --workers 3", "--workers=3", "pong --scenario s.toml", "--scenario=s.toml", *resumed):
        assert commands("local.sh", *given.split(), ZMQRL=str(zmqrl)) == [f"zmqrl train {given}"]


def test_a_slurm_job_has_its_own_run_directory_unless_one_is_given(zmqrl: Path, tmp_path: Path) -> None:
    def said(*arguments: str, submitted_in: Path = tmp_path, **variables: str) -> list[str]:
        return commands("slurm/train.sbatch", *arguments, SLURM_SUBMIT_DIR=str(submitted_in), **SLURM, **variables)

    start = "zmqrl launch --slurm --requeue"
    assert said("pong", "--updates", "3") == [f"{start} pong --updates 3 --run-dir runs/first-7"]
    assert said() == [f"{start} --run-dir runs/first-7"]
    assert said("pong", "--resume") == [f"{start} pong --resume --run-dir runs/first-7"]
    assert said("--resume", "--updates", "3") == [f"{start} --resume --updates 3 --run-dir runs/first-7"]
    for named in ("--resume --run-dir runs/first-5", "pong --run-dir=mine", "--resume runs/first-5 --updates 3"):
        assert said(*named.split()) == [f"{start} {named}"]
    path = f"{zmqrl.parent}:{os.environ['PATH']}"
    assert said("--run-dir", "r", submitted_in=tmp_path / "elsewhere", PATH=path) == [f"{start} --run-dir r"]
