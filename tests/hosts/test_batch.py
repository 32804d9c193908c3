"""The nodes of a PBS or LSF job, from the environment of the job. The environments are as the manuals describe them."""

import sys
from collections.abc import Callable
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
    path.write_text("hostA\nhostA\nhostA\nhostA\nhostB\nhostB\nhostC\n", encoding="utf-8")
    monkeypatch.setenv(source, str(path) if source == "LSB_DJOB_HOSTFILE" else "hostA 4 hostB 2 hostC 1 ")
    reach = HostOptions(lsf=True).reach()
    assert [(host.name, host.slots) for host in reach.hosts] == [("hostA", 4), ("hostB", 2), ("hostC", 1)]
    assert reach.command(reach.hosts[1])[:4] == ["blaunch", "-no-shell", "hostB", sys.executable]
    assert reach.cores_given == {"hostA": 4, "hostB": 2, "hostC": 1}


def test_a_node_list_is_refused_outside_a_job() -> None:
    with pytest.raises(UsageError, match=r"--pbs: not inside a PBS job\. Submit a script with qsub"):
        pbs_hosts({})
    with pytest.raises(UsageError, match=r"--lsf: not inside an LSF job\. Submit a script with bsub"):
        lsf_hosts({})


NO_FILE = "is {path}, and there is no such file here: start zmqrl on the first node of the job."
NO_LIST = "is {text}, but must list hosts with their slots, such as 'hostA 4 hostB 2'."


@pytest.mark.parametrize(
    ("listed", "complaint"),
    [
        ("n1 2 n2", NO_LIST),
        ("n1 x", NO_LIST),
        ("n1 0", NO_LIST),
        ("n1 -2", NO_LIST),
        ("2", NO_LIST),
        (" ", NO_LIST),
        ("", NO_LIST),
        ("n1 " + "9" * 5000, "must list hosts with their slots"),
        ("a/b 2", ": 'a/b' is not a host name: use letters, digits, '.', '_' and '-', and do not begin with"),
        ("n1:3 2", ": 'n1:3' has a colon. Write slots as h1:4."),
        ("n[1- 2", ": the brackets in n[1- do not match."),
    ],
)
def test_an_odd_list_of_lsf_is_refused_in_a_sentence_with_the_name_of_its_variable(listed: str, complaint: str) -> None:
    with pytest.raises(UsageError) as error:
        lsf_hosts({"LSB_DJOB_HOSTFILE": "/nowhere/hostfile", "LSB_MCPU_HOSTS": listed})
    assert str(error.value).startswith("--lsf: LSB_MCPU_HOSTS")
    assert complaint.format(text=repr(listed)) in str(error.value)


def test_the_slots_of_a_host_that_lsf_lists_twice_are_added() -> None:
    hosts = lsf_hosts({"LSB_MCPU_HOSTS": "n1 2 n2 1 n1 3"})
    assert [(host.name, host.slots) for host in hosts] == [("n1", 5), ("n2", 1)]


@pytest.mark.parametrize(
    ("option", "variable", "hosts"), [("--pbs", "PBS_NODEFILE", pbs_hosts), ("--lsf", "LSB_DJOB_HOSTFILE", lsf_hosts)]
)
def test_an_odd_node_file_is_refused_in_a_sentence_with_the_name_of_its_variable(
    tmp_path: Path, option: str, variable: str, hosts: Callable[[dict[str, str]], object]
) -> None:
    def refusal(path: Path | str) -> str:
        with pytest.raises(UsageError) as error:
            hosts({variable: str(path)})
        return str(error.value)

    for path in ("/nowhere/1234", tmp_path, tmp_path / ("x" * 300)):
        assert refusal(path) == f"{option}: {variable} {NO_FILE.format(path=path)}"
    assert refusal("") == f"{option}: {variable} {NO_FILE.format(path=repr(''))}"
    path = tmp_path / "1234.server"
    for content, complaint in (
        (b"", " names no hosts."),
        (b"n1\n-x\n", ", line 2: '-x' is not a host name: use letters"),
        (b"n1 4\n", ", line 1: unknown setting '4'; other settings need a TOML file."),
        (b"\xff\n", " is not text in UTF-8."),
    ):
        path.write_bytes(content)
        assert refusal(path).startswith(f"{option}: {variable}: {path}{complaint}")


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (HostOptions(), "no hosts given: use -H HOSTS, or --slurm, --pbs or --lsf inside a job, or --ray ADDRESS."),
        (HostOptions(hosts="h1", lsf=True), "-H and --lsf cannot be combined: use only one of them."),
        (HostOptions(slurm=True, pbs=True), "--slurm and --pbs cannot be combined: use only one of them."),
    ],
)
def test_hosts_have_one_source(options: HostOptions, sentence: str) -> None:
    with pytest.raises(UsageError) as error:
        options.reach()
    assert str(error.value) == sentence
