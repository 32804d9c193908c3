"""The nodes of a PBS or LSF job, from the environment of the job. The environments are as the manuals describe them."""

import sys
from pathlib import Path

import pytest

from zmqrl.errors import UsageError
from zmqrl.hosts.reach import HostOptions
from zmqrl.hosts.ways.batch import lsf_hosts, pbs_hosts

BATCH = ("PBS_NODEFILE", "LSB_DJOB_HOSTFILE", "LSB_MCPU_HOSTS")


@pytest.fixture(autouse=True)
def outside_any_job(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in BATCH:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def node_file(tmp_path: Path) -> Path:
    """`qsub -l select=2:ncpus=4:mpiprocs=4+1:ncpus=8`."""
    path = tmp_path / "1234.server"
    path.write_text(4 * "node01.cluster\n" + 4 * "node02.cluster\n" + "big.cluster\n", encoding="utf-8")
    return path


def test_nodes_of_pbs_are_reached_by_ssh_and_their_lines_limit_workers_and_cores(
    node_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PBS_NODEFILE", str(node_file))
    reach = HostOptions(pbs=True).reach()
    assert [(host.name, host.slots) for host in reach.hosts] == [
        ("node01.cluster", 4),
        ("node02.cluster", 4),
        ("big.cluster", None),
    ]
    assert reach.command(reach.hosts[0])[0] == "ssh"
    assert reach.cores_given == {"node01.cluster": 4, "node02.cluster": 4}
    assert HostOptions(pbs=True).reach().home == reach.home, "the next job may begin on another node"
    other = HostOptions(pbs=True, via="pbsssh {host}", exclude="big.cluster").reach()
    assert [other.command(host)[:3] for host in other.hosts] == [
        ["pbsssh", f"node0{number}.cluster", sys.executable] for number in (1, 2)
    ]


@pytest.mark.parametrize("source", ["LSB_DJOB_HOSTFILE", "LSB_MCPU_HOSTS"])
def test_hosts_of_lsf_are_reached_by_blaunch(source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / ".1234.hostfile"
    path.write_text("hostA\nhostA\nhostA\nhostA\nhostB\nhostB\n", encoding="utf-8")
    monkeypatch.setenv(source, str(path) if source == "LSB_DJOB_HOSTFILE" else "hostA 4 hostB 2 ")
    reach = HostOptions(lsf=True).reach()
    assert [(host.name, host.slots) for host in reach.hosts] == [("hostA", 4), ("hostB", 2)]
    assert reach.command(reach.hosts[1])[:4] == ["blaunch", "-no-shell", "hostB", sys.executable]
    assert reach.cores_given == {"hostA": 4, "hostB": 2}


def test_a_node_list_is_refused_outside_a_job() -> None:
    with pytest.raises(UsageError, match="--pbs: not inside a PBS job: submit a script with qsub"):
        pbs_hosts({})
    with pytest.raises(UsageError, match="--pbs: there is no /nowhere/1234 here: start zmqrl on the first node"):
        pbs_hosts({"PBS_NODEFILE": "/nowhere/1234"})
    for environment in ({}, {"LSB_MCPU_HOSTS": " "}, {"LSB_DJOB_HOSTFILE": "/nowhere/hostfile"}):
        with pytest.raises(UsageError, match="--lsf: not inside an LSF job: submit a script with bsub"):
            lsf_hosts(environment)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (HostOptions(), "no hosts given: use -H HOSTS, or --slurm, --pbs or --lsf inside a job."),
        (HostOptions(hosts="h1", lsf=True), "-H and --lsf cannot be combined: use only one of them."),
        (HostOptions(slurm=True, pbs=True), "--slurm and --pbs cannot be combined: use only one of them."),
    ],
)
def test_hosts_have_one_source(options: HostOptions, sentence: str) -> None:
    with pytest.raises(UsageError) as error:
        options.reach()
    assert str(error.value) == sentence
