"""Hosts given by the user: lists, hostfiles and TOML files, and the errors about invalid hosts."""

import itertools
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.paths import ROOT

from zmqrl.errors import UsageError
from zmqrl.hosts.inventory import MAX_RANGE, Host, read_hosts, select

EXAMPLES = ROOT / "launch" / "hosts"

Written = Callable[..., str]


@pytest.fixture
def written(tmp_path: Path) -> Written:
    """Write a hosts file. Returns its path as given to -H."""

    def write(text: str, name: str = "hosts.toml") -> str:
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return str(path)

    return write


def names(text: str) -> list[str]:
    return [host.name for host in read_hosts(text)]


def test_a_list_names_hosts_and_optionally_their_slots() -> None:
    assert read_hosts("h1,h2:4, alice@node[01-02]:2,h9:0") == (
        Host(name="h1"),
        Host(name="h2", slots=4),
        Host(name="alice@node01", slots=2),
        Host(name="alice@node02", slots=2),
        Host(name="h9", slots=0),
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("node[1-3,7]", ["node1", "node2", "node3", "node7"]),
        ("node[08-10]", ["node08", "node09", "node10"]),
        ("node[8-10]", ["node8", "node9", "node10"]),
        ("node[099-101]-ib", ["node099-ib", "node100-ib", "node101-ib"]),
        ("rack[1-2]n[01-02]", ["rack1n01", "rack1n02", "rack2n01", "rack2n02"]),
        ("10.0.0.[9-10]", ["10.0.0.9", "10.0.0.10"]),
        ("a[1,02,3]", ["a1", "a02", "a3"]),
    ],
)
def test_a_range_stands_for_its_hosts_in_order(text: str, expected: list[str]) -> None:
    assert names(text) == expected


pieces = st.tuples(
    st.sampled_from(["a", "n-", "x.", "R2_"]),
    st.lists(st.tuples(st.integers(0, 120), st.integers(0, 9), st.integers(1, 4)), min_size=1, max_size=3),
)


@given(st.lists(pieces, min_size=1, max_size=2), st.integers(0, 99) | st.none())
def test_several_ranges_expand_like_nested_loops(
    parts: list[tuple[str, list[tuple[int, int, int]]]], slots: int | None
) -> None:
    text, choices = "", []
    for prefix, ranges in parts:
        text += prefix + "[" + ",".join(f"{first:0{width}}-{first + more}" for first, more, width in ranges) + "]"
        numbers = [
            f"{n:0{max(width, len(str(first)))}}"
            for first, more, width in ranges
            for n in range(first, first + more + 1)
        ]
        choices.append([prefix + number for number in numbers])
    expected = ["".join(chosen) for chosen in itertools.product(*choices)]
    whole = text if slots is None else f"{text}:{slots}"
    if len(expected) > MAX_RANGE:
        with pytest.raises(UsageError, match="more than 1024 hosts"):
            read_hosts(whole)
    elif len(set(expected)) < len(expected):
        with pytest.raises(UsageError, match="is listed"):
            read_hosts(whole)
    else:
        assert read_hosts(f"first,{whole}") == (Host(name="first"), *(Host(name=n, slots=slots) for n in expected))


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "a name is missing in ''"),
        ("h1,,h2", "a name is missing in 'h1,,h2'"),
        ("h1,", "a name is missing"),
        (":4", "there is no name before :4"),
        (
            "alice@h1:2222",
            "'alice@h1:2222' would be a host with 2222 slots. To use a port, set it as Port for a name",
        ),
        ("alice@h1:22", "would be a host with 22 slots"),
        (
            "alice@gw:443",
            "'alice@gw:443' would be a host with 443 slots. To use a port, set it as Port for a name in ssh_config. "
            "For slots, write a hostfile with the line 'alice@gw slots=443'",
        ),
        ("alice@gw:513", "would be a host with 513 slots"),
        ("h1:2222", "would be a host with 2222 slots"),
        ("h1:four", "'h1:four' has a colon. Write slots as h1:4"),
        ("h1:-2", "'h1:-2' has a colon"),
        ("[::1]", "IPv6 address, give that host a name in ssh_config"),
        ("[fe80::1]:2", "IPv6 address, give that host a name in ssh_config"),
        ("fe80::1", "IPv6 address, give that host a name in ssh_config"),
        ("h[1-3", r"the brackets in h\[1-3 do not match"),
        ("h1-3],h2", r"the brackets in h1-3\] do not match"),
        ("h[[1-3]]", "do not match"),
        ("h[]", r"\[\] is not a range such as \[01-16\] or \[1-3,7\]"),
        ("h[a-c]", r"\[a-c\] is not a range"),
        ("h[1--9]", r"\[1--9\] is not a range"),
        ("h[1-1000000000]", "is not a range"),
        ("h[²]", "is not a range"),
        ("h[16-01]", r"the range \[16-01\] is reversed; write \[01-16\]"),
        ("h[1-1025]", r"the range \[1-1025\] stands for more than 1024 hosts"),
        ("h[1-33]x[1-32]", r"h\[1-33\]x\[1-32\] stands for more than 1024 hosts"),
        ("h1,h2,h1:4", "host h1 is listed 2 times. List it once"),
        ("h[1-3],h2", "host h2 is listed 2 times"),
        ("h[1,1]", "host h1 is listed 2 times"),
        ("-oProxyCommand=id", "'-oProxyCommand=id' is not a host name"),
        ("alice@-v", "'alice@-v' is not a host name"),
        (".hidden", "do not begin with"),
        ("two words", "'two words' is not a host name"),
        ("h1\x07", r"'h1\\x07' is not a host name"),
        ("h1\nh2", r"'h1\\nh2' is not a host name"),
        ("h1\0", r"'h1\\x00' is not a host name"),
        ("h1;reboot", "'h1;reboot' is not a host name"),
        ("$(id)", "is not a host name"),
        ("a@b@c", "is not a host name"),
        ("@h1", "is not a host name"),
        ("hosts.toml", "-H hosts.toml: no such file"),
        ("hosts.txt", "-H hosts.txt: no such file"),
        ("./hosts", "-H ./hosts: no such file"),
        ("launch/nowhere", "-H launch/nowhere: no such file"),
    ],
)
def test_an_invalid_list_is_refused_with_a_clear_error(
    text: str, sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=sentence) as refusal:
        read_hosts(text)
    assert str(refusal.value).endswith(".")


@given(st.text() | st.text(alphabet="ab1-[],:@. "))
def test_any_list_gives_valid_host_names_or_a_usage_error(text: str) -> None:
    try:
        hosts = read_hosts(text)
    except UsageError:
        return
    for host in hosts:
        assert not host.name.startswith("-")
        assert "@-" not in host.name
        assert set(host.name) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-@")


def test_a_list_can_be_longer_than_a_file_name() -> None:
    assert len(names(",".join(f"node{number}" for number in range(1000)))) == 1000


def test_a_directory_is_not_accepted_as_a_hosts_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "h1").mkdir()
    monkeypatch.chdir(tmp_path)
    assert names("h1") == ["h1"]
    with pytest.raises(UsageError, match="this is a directory"):
        read_hosts(str(tmp_path / "h1"))


def test_a_hostfile_names_one_host_per_line(written: Written) -> None:
    path = written("# all\n\nh1\n  node[1-2] slots=4 # two\nh2 slots=8 max_slots=6\nh3 max_slots=2\n", "hostfile")
    assert read_hosts(path) == (
        Host(name="h1"),
        Host(name="node1", slots=4),
        Host(name="node2", slots=4),
        Host(name="h2", slots=6),
        Host(name="h3", slots=2),
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("h1:8\nnode[1-2]:4\nalice@h2:22000", None),
        ("h1:8\nalice@h2:24", [("h1", 8), ("alice@h2", 24)]),  # as MPICH writes it
        ("h1:443\nalice@h2:256\nalice@h3 slots=443", [("h1", 443), ("alice@h2", 256), ("alice@h3", 443)]),
        ("h1:8 max-slots=6\nh2 max-slots = 4", [("h1", 6), ("h2", 4)]),
        ("h1 slots = 4\nh2 slots= 3 # two\nh3 slots =2 max_slots  =  1", [("h1", 4), ("h2", 3), ("h3", 1)]),
        ("h1\nh2\nh1\nh1\n", [("h1", 3), ("h2", None)]),  # as PBS writes it: a line for each core
        ("h1 slots=2\nh2\nh1 slots=3\nh2:4", [("h1", 5), ("h2", 5)]),
        ("node[1-2]\nnode2", [("node1", None), ("node2", 2)]),
    ],
)
def test_hostfiles_of_every_mpi_implementation_are_read(
    text: str, expected: list[tuple[str, int | None]] | None, written: Written
) -> None:
    if expected is None:
        with pytest.raises(UsageError, match="line 3: 'alice@h2:22000' would be a host with 22000 slots"):
            read_hosts(written(text, "hostfile"))
        return
    assert [(host.name, host.slots) for host in read_hosts(written(text, "hostfile"))] == expected


@pytest.mark.parametrize("name", ["hostfile", "hosts.toml"])
def test_a_file_may_begin_with_a_bom(tmp_path: Path, name: str) -> None:
    text = HOST if name.endswith(".toml") else "h1 slots=2\n"
    (tmp_path / name).write_text(text, encoding="utf-8-sig")
    assert names(str(tmp_path / name)) == ["h1"]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "hostfile names no hosts"),
        ("# nothing\n", "hostfile names no hosts"),
        ("h1\nh2 slot=4", r"hostfile, line 2: unknown setting 'slot' \(did you mean slots\?\)"),
        ("h1 max-slot=4", r"unknown setting 'max-slot' \(did you mean max_slots\?\)"),
        ("h1 h2", "line 1: unknown setting 'h2'; other settings need a TOML file"),
        ("h1 slots=many", "slots=many must be slots=N, such as slots=4"),
        ("h1 slots", "slots must be slots=N"),
        ("h1:four", "hostfile, line 1: 'h1:four' has a colon. Write slots as h1:4"),
        ("fe80::1", "hostfile, line 1: 'fe80:' has a colon"),
        ("alice@h1:2222", "line 1: 'alice@h1:2222' would be a host with 2222 slots. To use a port, set it as Port"),
        ("h1 slots = many", "slots=many must be slots=N, such as slots=4"),
        ("h1 slots =", "slots= must be slots=N"),
        ("h1,h2", "'h1,h2' is not a host name"),
        ("-v slots=2", "'-v' is not a host name"),
        ("node[3-1]", "line 1: the range .* is reversed"),
    ],
)
def test_an_error_names_the_invalid_line_of_a_hostfile(text: str, sentence: str, written: Written) -> None:
    with pytest.raises(UsageError, match=sentence):
        read_hosts(written(text, "hostfile"))


def test_a_binary_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "hostfile").write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match="is not text in UTF-8"):
        read_hosts(str(tmp_path / "hostfile"))


def test_hosts_can_be_read_from_a_pipe(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_text, args=("h1\nh2\n",), daemon=True)
    writer.start()
    assert names(str(pipe)) == ["h1", "h2"]
    writer.join(30)
    assert not writer.is_alive()


def test_a_toml_file_can_set_everything_about_a_host(written: Written) -> None:
    path = written("""
        [[host]]
        name = "alice@h1"
        slots = 4
        address = "10.0.0.1"
        python = "/opt/my python/bin/python"
        threads = 2
        env = { A = "1", B = "" }
        shards = 1
        workers = 0
        evaluator = true
        recorder = true
    """)
    assert read_hosts(path) == (
        Host(
            name="alice@h1",
            slots=4,
            address="10.0.0.1",
            python="/opt/my python/bin/python",
            threads=2,
            env={"A": "1", "B": ""},
            shards=1,
            workers=0,
            evaluator=True,
            recorder=True,
        ),
    )


def test_defaults_apply_to_hosts_that_do_not_override_them(written: Written) -> None:
    path = written("""
        [defaults]
        slots = 4
        env = { A = "1", B = "1" }

        [[host]]
        name = "h1"

        [[host]]
        name = "h2"
        slots = 2
        env = { B = "2", C = "2" }
    """)
    assert read_hosts(path) == (
        Host(name="h1", slots=4, env={"A": "1", "B": "1"}),
        Host(name="h2", slots=2, env={"A": "1", "B": "2", "C": "2"}),
    )


def test_a_range_of_hosts_has_a_range_of_addresses(written: Written) -> None:
    path = written('[[host]]\nname = "node[01-02]"\naddress = "10.0.0.[7-8]"\nworkers = 3\n')
    assert read_hosts(path) == (
        Host(name="node01", address="10.0.0.7", workers=3),
        Host(name="node02", address="10.0.0.8", workers=3),
    )


HOST = '[[host]]\nname = "h1"\n'


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "hosts.toml names no hosts"),
        ("[defaults]\nslots = 4\n", "hosts.toml names no hosts"),
        ("[[host]\n", "hosts.toml is not valid TOML: "),
        (f"[defaults]\nslots = {'9' * 5000}\n", "hosts.toml is not valid TOML: it has a number with too many digits"),
        (f"[[host]]\nname = 0x{'f' * 5000}\n", "hosts.toml is not valid TOML: it has a number with too many digits"),
        (
            "[[hosts]]\n",
            r"unknown key 'hosts' \(did you mean host\?\); the file can have \[defaults\] and \[\[host\]\]",
        ),
        ('[host]\nname = "h1"\n', r"each host must be below a line \[\[host\]\]"),
        ('host = ["h1"]\n', r"each host must be below a line \[\[host\]\]"),
        ("defaults = 3\n", r"defaults must be below a line \[defaults\]"),
        ('[defaults]\nname = "h1"\n', r"\[defaults\]: name is a setting of one host. Move it below its \[\[host\]\]"),
        ('[defaults]\naddress = "h1"\n', r"\[defaults\]: address is a setting of one host"),
        ("[defaults]\nslot = 4\n", r"hosts.toml, \[defaults\]: unknown key 'slot' \(did you mean slots\?\)"),
        (HOST + "[[host]]\nslots = 4\n", r"\[\[host\]\] number 2 needs a name"),
        ("[[host]]\nname = 4\n", r"\[\[host\]\] number 1 needs a name"),
        ('[[host]]\nname = "a\\nb"\n', "needs a name, a string on one line"),
        ('[[host]]\nname = "a,b"\n', "'a,b' is not a host name"),
        ('[[host]]\nname = "-v"\n', "'-v' is not a host name"),
        (HOST + "worker = 4\n", r"hosts.toml, host h1: unknown key 'worker' \(did you mean workers\?\)"),
        (HOST + 'slots = "4"\n', "host h1: slots is '4', but it must be an integer of at least 0"),
        (HOST + "workers = -1\n", "workers is -1, but it must be an integer of at least 0"),
        (HOST + "workers = true\n", "workers is True, but it must be an integer"),
        (HOST + "shards = 1.0\n", "shards is 1.0, but it must be an integer"),
        (HOST + "threads = 0\n", "threads is 0, but it must be an integer of at least 1"),
        (HOST + "evaluator = 1\n", "evaluator is 1, but it must be true or false"),
        (HOST + 'python = ""\n', "python is '', but it must be an absolute path or a name on the PATH of the host"),
        (HOST + 'python = "~/bin/python"\n', "python is '~/bin/python', but it must be an absolute path or a name"),
        (HOST + "env = { A = 1 }\n", "env is {'A': 1}, but it must be a table of strings"),
        (HOST + 'env = { "A=B" = "1" }\n', "but it must be a table of strings"),
        (HOST + 'env = { A = "\\u0000" }\n', "but it must be a table of strings"),
        (HOST + 'env = "A=1"\n', "but it must be a table of strings"),
        (HOST + 'address = "alice@h2"\n', "the address 'alice@h2' is neither an IPv4 address nor a name"),
        (HOST + 'address = "fe80::1"\n', "the address 'fe80::1' is neither"),
        (HOST + 'address = "h[1-2]"\n', r"host h1: the numbers of hosts \(1\) and of addresses \(2\) must"),
        (HOST + 'address = "0.0.0.0"\n', "the address 0.0.0.0 would listen on every network"),
        (HOST + 'address = "00.0"\n', r"the address 00\.0 would listen on every network"),
        ('[[host]]\nname = "h[1-2]"\naddress = "a"\n', r"numbers of hosts \(2\) and of addresses \(1\) must"),
        (HOST + HOST, "hosts.toml: host h1 is listed 2 times"),
    ],
)
def test_an_error_names_the_invalid_key_its_file_and_its_host(text: str, sentence: str, written: Written) -> None:
    with pytest.raises(UsageError, match=sentence):
        read_hosts(written(text))


HOSTS = read_hosts("head,node[01-04]:2")


@pytest.mark.parametrize(
    ("include", "exclude", "expected"),
    [
        (None, None, ["head", "node01", "node02", "node03", "node04"]),
        ("node[03,01]", None, ["node01", "node03"]),
        ("node02,head", None, ["head", "node02"]),
        (None, "node[02-04]", ["head", "node01"]),
        ("node[01-03]", "head, node02", ["node01", "node03"]),
    ],
)
def test_lists_include_and_exclude_hosts(include: str | None, exclude: str | None, expected: list[str]) -> None:
    chosen = select(HOSTS, include, exclude)
    assert [host.name for host in chosen] == expected
    assert set(map(id, chosen)) <= set(map(id, HOSTS))


@pytest.mark.parametrize(
    ("include", "exclude", "sentence"),
    [
        ("node1", None, r"--include node1: no such host \(did you mean node01\?\)"),
        (None, "node[03-05]", r"--exclude node05: no such host \(did you mean"),
        (None, "zzz", r"--exclude zzz: no such host\.$"),
        ("node01:2", None, "--include node01:2: no such host"),
        ("node[2-1]", None, r"--include: the range \[2-1\] is reversed"),
        ("", None, "--include: a name is missing"),
        (None, "head,node[01-04]", "--include and --exclude leave no host"),
        ("head", "head", "--include and --exclude leave no host"),
    ],
)
def test_an_error_names_an_invalid_include_or_exclude(include: str | None, exclude: str | None, sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        select(HOSTS, include, exclude)


def test_the_example_with_three_hosts_does_not_place_processes() -> None:
    big, small, login = read_hosts(str(EXAMPLES / "three.toml"))
    assert (big.name, small.name, login.name) == ("alice@big", "small", "login")
    assert (big.slots, small.slots, login.slots) == (None, 2, 0)
    assert big.address == "10.0.0.1"
    assert {host.python for host in (big, small, login)} == {"/opt/zmqrl/.venv/bin/python"}
    assert login.env == {"NO_COLOR": "1"}
    assert all(host.shards is None and host.workers is None for host in (big, small, login))


def test_the_example_with_placement_by_hand_places_every_process() -> None:
    hosts = {host.name: host for host in read_hosts(str(EXAMPLES / "by-hand.toml"))}
    assert list(hosts) == ["params1", "params2", "node01", "node02", "node03", "node04", "watcher"]
    assert sum(host.shards or 0 for host in hosts.values()) == 2
    assert sum(host.workers or 0 for host in hosts.values()) == 16
    assert [name for name, host in hosts.items() if host.evaluator] == ["watcher"]
    assert hosts["node03"].address == "10.0.1.3"


def test_the_example_hostfile_has_the_format_of_mpirun() -> None:
    hosts = read_hosts(str(EXAMPLES / "hostfile"))
    assert [(host.name, host.slots) for host in hosts] == [
        ("big", 8),
        ("node01", 4),
        ("node02", 4),
        ("node03", 4),
        ("node04", 4),
        ("old", None),
    ]
