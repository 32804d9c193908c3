"""Checks before a run on several hosts: addresses, facts and routes, and the judgement on them."""

import dataclasses
import re
import socket
from typing import Any

import pytest
from rich.console import Console

from zmqrl.commands.inspect.doctor import host_table, route_table, to_json
from zmqrl.config import WireConfig
from zmqrl.errors import ClusterError, UsageError
from zmqrl.hostd.interfaces import interfaces
from zmqrl.hostd.messages import Up
from zmqrl.hosts import probe
from zmqrl.hosts.connecting import listed_twice
from zmqrl.hosts.inventory import Host, read_addresses
from zmqrl.hosts.placement import Placement, files_needed, place
from zmqrl.hosts.preflight import Judgement, Survey, judge, loopbacks, ports_on
from zmqrl.hosts.probe import ONLY_LITTLE_PASSES, SOMEBODY_ELSE, game_error, lacks, listen, measure
from zmqrl.hosts.probing import Route, rounds
from zmqrl.hosts.reach import addresses_of, check_interface
from zmqrl.local.extras import EXTRAS
from zmqrl.process_id import shard_id, worker_id
from zmqrl.recipes import cartpole

HOSTS = (Host(name="h1"), Host(name="h2", address="10.0.0.2"))
UP = {
    name: Up(
        host=name,
        pid=1,
        zmqrl="1",
        code="0123",
        python="3.11.2",
        cores=4,
        work="/var/tmp/work",
        address=f"192.168.0.{number}",
        interfaces={"lo": ["127.0.0.1"], "eth0": [f"192.168.0.{number}"], "ib0": [f"10.0.0.{number}"]},
    )
    for number, name in ((1, "h1"), (2, "h2"))
}
ABOUT = {name: dataclasses.asdict(up) for name, up in UP.items()}
FINE: dict[str, Any] = {
    "game_error": None,
    "memory_bytes": 8 * 10**9,
    "open_files": 1024,
    "disk_bytes": 50 * 10**9,
    "shm_bytes": 10**9,
    "clock_ahead_s": 0.002,
    "machine_cores": 4,
    "busy_cores": 0.1,
    "load_average": 0.3,
    "steal_share": 0.0,
    "ports": [42000],
}
RUN = dataclasses.replace(cartpole(), wire=WireConfig(port_range="42000-42009"))


def addresses(up: dict[str, Up] = UP, iface: str | None = None, **by_hand: str) -> tuple[dict[str, str], list[str]]:
    return addresses_of([host for host in HOSTS if host.name in up], up, by_hand=by_hand, iface=iface)


def placed() -> Placement:
    return place(HOSTS, {"h1": 4, "h2": 4}, shards=2, workers=2, evaluator=False, recorder=False)


# addresses


def test_options_take_precedence_over_the_hosts_file_which_overrides_ssh() -> None:
    assert addresses() == ({"h1": "192.168.0.1", "h2": "10.0.0.2"}, [])
    assert addresses(iface="eth0") == ({"h1": "192.168.0.1", "h2": "192.168.0.2"}, [])
    assert addresses(iface="10.0.0.0/24") == ({"h1": "10.0.0.1", "h2": "10.0.0.2"}, [])
    assert addresses(iface="ib0", h2="172.16.0.2") == ({"h1": "10.0.0.1", "h2": "172.16.0.2"}, [])


def test_an_error_about_a_missing_interface_lists_those_of_the_host() -> None:
    found, unknown = addresses(
        UP | {"h2": dataclasses.replace(UP["h2"], interfaces={"eth1": ["192.168.0.2"]})}, iface="eth0"
    )
    assert found == {"h1": "192.168.0.1"}
    assert unknown == [
        "h2: no interface or network eth0, only eth1 192.168.0.2: choose one with --iface, --address h2=ADDRESS "
        "or `address` in the hosts file."
    ]


def test_a_loopback_address_is_refused_in_a_run_with_other_hosts() -> None:
    _, unknown = addresses(h1="127.0.0.1")
    assert unknown[0].startswith("h1: 127.0.0.1 is a loopback address that other hosts cannot reach: ")
    alone = {"h1": dataclasses.replace(UP["h1"], address="127.0.0.1")}
    assert addresses(alone) == ({"h1": "127.0.0.1"}, [])


def test_a_name_that_resolves_to_loopback_on_its_own_host_is_refused() -> None:
    assert listen("localhost", [0], "t" * 32)["bound"] == "127.0.0.1"
    facts = {"h1": ABOUT["h1"] | FINE | {"bound": "127.0.1.1"}, "h2": ABOUT["h2"] | FINE | {"bound": "10.0.0.2"}}
    found = loopbacks(facts, {"h1": "h1", "h2": "10.0.0.2"})
    (problem,) = judge(Survey(facts=facts, loopback=found), RUN, placed()).problems
    assert problem.startswith("h1: h1 (127.0.1.1) is a loopback address that other hosts cannot reach: ")
    assert loopbacks({"h1": facts["h1"]}, {"h1": "h1"}) == {}


def test_an_error_names_a_host_without_a_known_address() -> None:
    _, unknown = addresses(UP | {"h1": dataclasses.replace(UP["h1"], address=None)})
    assert unknown[0].startswith("h1: the address at which other hosts reach it is unknown")


def test_addresses_can_be_given_in_a_list_or_one_by_one() -> None:
    hosts = [Host(name="h1"), *(Host(name=f"node{number}") for number in (1, 2))]
    expected = {"h1": "10.0.0.9", "node1": "10.0.0.1", "node2": "10.0.0.2"}
    assert read_addresses(["h1=10.0.0.9,node[1-2]=10.0.0.[1-2]"], hosts) == expected
    assert read_addresses(["h1=10.0.0.9", "node[1-2]=10.0.0.[1-2]"], hosts) == expected


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("10.0.0.1", "--address 10.0.0.1 is not HOST=ADDRESS, such as h1=10.0.0.1."),
        ("h3=10.0.0.1", "--address h3: no such host"),
        ("h1=0.0.0.0", "would listen on every network"),
        ("h1=0", "the address 0 would listen on every network"),
        ("h1=0x0.0", "the address 0x0.0 would listen on every network"),
        ("h1=fe80::1", "--address h1=fe80::1: must be an IPv4 address or a name, not an IPv6 address."),
        ("h1=[2001:db8::1]", "--address h1=[2001:db8::1]: must be an IPv4 address or a name"),
        ("h1=10.0.0.[1-2]", "the numbers of hosts (1) and of addresses (2) must be equal"),
    ],
)
def test_an_invalid_address_is_refused(text: str, sentence: str) -> None:
    with pytest.raises(UsageError, match=re.escape(sentence)):
        read_addresses([text], HOSTS)


@pytest.mark.parametrize(
    "iface", ["10.0.0.0/99", "10.0.0.1", "::1", "[::1]", "fe80::/64", "fe80::1%eth0", "2001:db8::"]
)
def test_an_invalid_interface_or_network_is_refused(iface: str) -> None:
    for fine in (None, "ib0", "eth0.12", "br-1f2e", "10.0.0.5/24"):
        check_interface(fine)
    sentence = f"--iface {iface}: not an interface or an IPv4 network such as 10.0.0.0/24."
    with pytest.raises(UsageError, match=f"^{re.escape(sentence)}$"):
        check_interface(iface)


def test_a_host_that_ssh_reaches_over_ipv6_still_needs_an_ipv4_address() -> None:
    _, unknown = addresses({"h1": dataclasses.replace(UP["h1"], address="2001:db8::1")})
    assert unknown == [
        "h1: 2001:db8::1 is an IPv6 address, but zmqrl needs an IPv4 address: choose one with --iface, "
        "--address h1=ADDRESS or `address` in the hosts file."
    ]


def test_two_names_of_the_same_machine_are_detected() -> None:
    """The daemons of two users have different directories, so they cannot see each other."""
    machines = {"alice@h1": "boot-1", "h2": "boot-2", "bob@h1": "boot-1", "old": "", "older": ""}
    up = {name: dataclasses.replace(UP["h1"], machine=machine) for name, machine in machines.items()}
    assert listed_twice(up) == {"bob@h1": "this is the same machine as alice@h1: list it once"}


def test_the_interfaces_of_this_machine_are_known() -> None:
    assert "127.0.0.1" in interfaces()["lo"]


# the judgement


def judged(route: dict[str, Any] | None = None, failed: dict[str, str] | None = None, **facts: Any) -> Judgement:
    routes = {Route("h2", "h1", "10.0.0.1", (42000, 42001)): route or {"round_trip_s": 0.001}}
    return judge(Survey(facts={"h1": ABOUT["h1"] | FINE | facts}, failed=failed or {}, routes=routes), RUN, placed())


def test_usable_hosts_have_no_problems_and_no_warnings() -> None:
    assert judged() == Judgement([], [])
    judged().check()


@pytest.mark.parametrize(
    ("facts", "sentence"),
    [
        ({"game_error": "no ROM"}, "h1: CartPole-v1 cannot be played there: no ROM."),
        ({"lacks": ["--recorder needs imageio: run X"]}, "h1: --recorder needs imageio: run X."),
        ({"cuda": False}, "h1: --device cuda: torch sees no CUDA device there."),
        ({"disk_bytes": 5e6}, "h1: the disk of /var/tmp/work is full (5.0 MB left): free at least 100.0 MB."),
        (
            {"open_files": 60},
            "h1: a process may open 60 files there, but this run needs 73: raise the limit "
            "(`ulimit -n`, /etc/security/limits.conf).",
        ),
        (
            {"listen_error": {"errno": 98, "why": "Address already in use", "where": "10.0.0.1:42000"}},
            "h1: 10.0.0.1:42000 is in use there: choose another --port-range.",
        ),
        (
            {"listen_error": {"errno": 99, "why": "Cannot assign requested address", "where": "10.0.9.1:42000"}},
            "h1: cannot listen at 10.0.9.1:42000 (Cannot assign requested address); it has lo 127.0.0.1, "
            "eth0 192.168.0.1, ib0 10.0.0.1: choose one of them with --iface or --address.",
        ),
    ],
)
def test_conditions_that_prevent_a_run_are_problems(facts: dict[str, Any], sentence: str) -> None:
    judgement = judged(**facts)
    assert judgement == Judgement([sentence], [])
    with pytest.raises(ClusterError, match="the run cannot start:\n  h1: "):
        judgement.check()


@pytest.mark.parametrize(
    ("facts", "sentence"),
    [
        (
            {"disk_bytes": 5e8},
            "h1: the disk of /var/tmp/work has only 500.0 MB left: free at least 1.0 GB.",
        ),
        (
            {"shm_bytes": 1e6},
            "h1: /dev/shm has only 1.0 MB left: remove files from it, or enlarge it (`mount -o remount,size=1G "
            "/dev/shm`, or `--shm-size 1g` of docker).",
        ),
        (
            {"memory_bytes": 10**8},
            "h1: only 100.0 MB of memory is free, but its 2 processes need about 460.0 MB: end other programs, or use "
            "fewer workers or more hosts.",
        ),
        (
            {"busy_cores": 2.9, "load_average": 3.14},
            "h1: other work keeps 2.9 of its 4 cores busy (load average 3.1): the run is slower while this lasts.",
        ),
        (
            {"steal_share": 0.12},
            "h1: its hypervisor gives 12 % of its processor time to other machines (steal).",
        ),
        ({"clock_ahead_s": -3.0}, "h1: its clock is 3.0 s behind this machine's: times in logs will not match."),
    ],
)
def test_conditions_that_do_not_prevent_a_run_are_warnings(facts: dict[str, Any], sentence: str) -> None:
    assert judged(**facts) == Judgement([], [sentence])


def test_a_blocked_route_is_reported_with_its_remedy() -> None:
    judgement = judged({"port": 42001, "error": "refused"})
    assert judgement.problems == [
        "h2 -> h1 (10.0.0.1:42001): refused: allow TCP connections from h2 to ports 42000-42009 of h1, "
        "or choose another --port-range."
    ]


def test_blocked_routes_from_many_hosts_to_one_are_reported_together() -> None:
    routes = {Route(f"h{n}", "h1", "10.0.0.1", (1024,)): {"port": 1024, "error": "refused"} for n in range(2, 11)}
    (problem,) = judge(Survey(facts={}, routes=routes), RUN, placed()).problems
    assert problem.startswith("h2, h3, h4, h5, 5 others -> h1 (10.0.0.1:1024): refused: ")


@pytest.mark.parametrize(
    ("error", "way_out"), [(SOMEBODY_ELSE, "choose another address"), (ONLY_LITTLE_PASSES, "set the same MTU")]
)
def test_a_wrong_or_slow_route_is_not_reported_as_a_closed_port(error: str, way_out: str) -> None:
    (problem,) = judged({"port": 42000, "error": error}).problems
    assert way_out in problem
    assert "allow TCP connections" not in problem


def test_a_host_whose_probe_does_not_answer_is_a_problem() -> None:
    assert judged(failed={"h2": "its probe did not answer within 15 s"}).problems == [
        "h2: its probe did not answer within 15 s."
    ]


def test_a_host_needs_ports_and_open_files_for_its_shards() -> None:
    assert ports_on("h1", RUN, placed()) == [42000, 42001, 42002]
    assert ports_on("h2", RUN, placed()) == [42003, 42004, 42005]
    assert ports_on("h2", cartpole(), placed()) == [0]
    crowded = dataclasses.replace(RUN, workers=99)
    assert files_needed(crowded, [shard_id(0), worker_id(0)]) == 64 + 3 * 100
    assert files_needed(crowded, [worker_id(0)]) == 64 + 3 * 2
    sharing = dataclasses.replace(crowded, wire=WireConfig())
    assert files_needed(sharing, [shard_id(0), worker_id(0)]) == 64 + 4 * 100


def test_each_round_uses_a_host_once_and_all_rounds_cover_all_routes() -> None:
    names = ["launcher", *(f"h{number}" for number in range(9))]
    routes = [Route(a, b, b, (1,)) for a in names for b in names[1:] if a != b]
    apart = rounds(routes)
    assert sorted(route for together in apart for route in together) == sorted(routes)
    for together in apart:
        ends = [end for route in together for end in route[:2]]
        assert len(ends) == len(set(ends))
    assert len(apart) <= 4 * len(names)


# tables


def found() -> Survey:
    return Survey(
        facts={"h1": ABOUT["h1"] | FINE},
        failed={"h2": "ssh: connect to host h2 port 22: Connection refused"},
        routes={
            Route("launcher", "h1", "10.0.0.1", (42000,)): {"round_trip_s": 0.00012, "bytes_per_s": 94e6},
            Route("h3", "h1", "10.0.0.1", (42000,)): {"port": 42000, "error": "refused"},
        },
    )


@pytest.mark.parametrize(
    ("torch", "python", "warnings"),
    [
        ("2.9.1", "3.11.2", []),
        ("2.9.1+cu128", "3.11.9", []),
        (None, "3.11.2", []),  # the check of the game reports it
        ("2.8.0", "3.11.2", ["hosts have different versions of torch (2.9.1 on h1; 2.8.0 on h2)"]),
        ("2.9.1", "3.12.1", ["hosts have different versions of Python (3.11 on h1; 3.12 on h2)"]),
    ],
)
def test_hosts_with_different_versions_are_named(torch: str | None, python: str, warnings: list[str]) -> None:
    facts = {host: about | FINE | {"torch": "2.9.1+cpu"} for host, about in ABOUT.items()}
    facts["h2"] |= {"torch": torch, "python": python}
    judged = judge(Survey(facts=facts), RUN, placed())
    assert judged.problems == []
    assert judged.warnings == [
        f"{text}: results can differ, so install the same version everywhere." for text in warnings
    ]


def test_the_tables_have_a_line_for_each_host_and_route() -> None:
    console = Console(width=200, record=True)
    with console.capture() as capture:
        console.print(host_table(HOSTS, {"h1": UP["h1"]}, found()), route_table(found().routes))
    lines = [" ".join(line.split()) for line in capture.get().splitlines()]
    assert "h1 1 3.11.2 yes 4 8.0 GB 1024 50.0 GB 1.0 GB +2 ms 0.1 of 4 cores" in lines
    assert "h2 - - - - - - - - - -" in lines
    assert "launcher h1 10.0.0.1 0.12 ms 94.0 MB/s" in lines
    assert "h3 h1 10.0.0.1 refused -" in lines
    named = dataclasses.replace(UP["h1"], python="\033[31m")
    with console.capture() as capture:
        console.print(host_table(HOSTS[:1], {"h1": named}, Survey(facts={})))
    assert "\033" not in capture.get()


def test_of_many_routes_the_worst_are_shown_in_the_order_of_the_hosts() -> None:
    def measured(number: int) -> dict[str, Any]:
        if number == 37:
            return {"port": 1, "error": "refused"}
        return {"round_trip_s": 1e-4, "bytes_per_s": 1e6 if number in (3, 20) else 1e8}

    routes = {Route(f"h{number}", "target", "10.0.0.1", (1,)): measured(number) for number in range(60)}
    console = Console(width=200, record=True)
    with console.capture() as capture:
        console.print(route_table(routes))
    shown = [int(line.split()[0][1:]) for line in capture.get().splitlines() if line.strip().startswith("h")]
    assert shown == sorted(shown)
    assert {3, 20, 37} <= set(shown)
    assert len(shown) == 24


def test_a_slow_host_among_fast_ones_is_a_warning() -> None:
    names = ("h1", "h2", "h3")
    routes = {
        Route(a, b, b, (1,)): {"round_trip_s": 1e-4, "bytes_per_s": 125e3 if "h3" in (a, b) else 118e6}
        for a in ("launcher", *names)
        for b in names
        if a != b
    }
    facts = dict.fromkeys(names, ABOUT["h1"] | FINE)
    warnings = judge(Survey(facts=facts, routes=routes), RUN, placed()).warnings
    assert [text.partition(",")[0] for text in warnings] == [
        "h3: it sends at most 0.125 MB/s",
        "h3: it receives at most 0.125 MB/s",
    ]


def test_a_distant_host_is_a_warning_even_without_a_bandwidth() -> None:
    names = ("h1", "h2", "h3")
    ends = [(a, b) for a in ("launcher", *names) for b in names if a != b]
    routes = {Route(*pair, "h", (1,)): {"round_trip_s": 0.3 if "h3" in pair else 1e-4} for pair in ends}
    judgement = judge(Survey(facts=dict.fromkeys(names, ABOUT["h1"] | FINE), routes=routes), RUN, placed())
    (warning,) = judgement.warnings
    assert warning.startswith("h3: a round trip to it takes at least 300 ms, where 0.1 ms is usual")


def test_json_has_every_key_even_for_an_unknown_host() -> None:
    plain = to_json(HOSTS, {"h1": UP["h1"]}, found(), Judgement(["a"], ["b"]))
    assert [host["host"] for host in plain["hosts"]] == ["h1", "h2"]
    assert set(plain["hosts"][0]) == set(plain["hosts"][1])
    assert (plain["hosts"][0]["memory_bytes"], plain["hosts"][1]["memory_bytes"]) == (8 * 10**9, None)
    assert (plain["problems"], plain["warnings"]) == (["a"], ["b"])


# probes on this machine


def order(port: int, token: str = "t" * 32, transfer: bool = False) -> dict[str, Any]:
    return {"address": "127.0.0.1", "ports": [port], "token": token, "transfer": transfer}


def test_a_route_is_measured_only_with_the_right_token() -> None:
    (port,) = listen("127.0.0.1", [0], "t" * 32)["ports"]
    measured = measure(order(port, transfer=True))
    assert measured["round_trip_s"] > 0
    assert measured["bytes_per_s"] > 0
    assert measure(order(port, token="x" * 32)) == {"port": port, "error": SOMEBODY_ELSE}


class Line:
    """A connection and its clock. A sender has sent at most ``window`` bytes more than the receiver has confirmed.

    The window doubles in each round trip, as that of TCP does.
    """

    def __init__(self, round_trip_s: float, bytes_per_s: float) -> None:
        self.round_trip_s, self.bytes_per_s = round_trip_s, bytes_per_s
        self.now_s, self.window, self.sent = 0.0, 16_000, 0

    def perf_counter(self) -> float:
        return self.now_s

    def sendall(self, data: bytes) -> None:
        self.sent += len(data)

    def recv(self, count: int) -> bytes:
        while self.sent > self.window and self.window < self.bytes_per_s * self.round_trip_s:
            self.now_s += self.round_trip_s
            self.sent -= self.window
            self.window *= 2
        self.now_s += self.sent / self.bytes_per_s + self.round_trip_s
        self.sent = 0
        return b"\n"


@pytest.mark.parametrize("round_trip_s", [1e-4, 0.02, 0.1, 0.2, 0.25])
@pytest.mark.parametrize("bytes_per_s", [125e3, 1e6, 12e6, 118e6])
def test_a_long_round_trip_does_not_lower_the_measured_bandwidth(
    round_trip_s: float, bytes_per_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = Line(round_trip_s, bytes_per_s)
    monkeypatch.setattr(probe, "time", line)
    line.now_s = (2 + probe.PINGS) * round_trip_s  # the handshake, the token and the pings
    probe._send_packets(line)  # type: ignore[arg-type]
    measured = probe._bytes_per_s(line, round_trip_s, probe.LAST_AFTER_S)  # type: ignore[arg-type]
    assert 0.4 * bytes_per_s <= measured <= 1.01 * bytes_per_s
    assert line.now_s <= 10.0


def test_a_measurement_over_the_slowest_line_ends_after_one_transfer(monkeypatch: pytest.MonkeyPatch) -> None:
    line = Line(1.0, 1e9)
    monkeypatch.setattr(probe, "time", line)
    line.now_s = 7.5
    assert probe._bytes_per_s(line, 1.0, 7.0) > 0  # type: ignore[arg-type]
    assert line.now_s == pytest.approx(7.5 + 3.0, abs=0.1)


def test_a_closed_port_is_refused_and_a_silent_port_times_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("zmqrl.hosts.probe.ANSWER_WITHIN_S", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as mute:
        port = mute.getsockname()[1]
        assert measure(order(port)) == {"port": port, "error": "no answer within 0.1 s"}
    assert measure(order(port)) == {"port": port, "error": "refused"}


def test_a_network_that_drops_long_packets_is_detected() -> None:
    near, far = socket.socketpair()
    with near, far:
        near.settimeout(0.05)
        with pytest.raises(OSError, match=ONLY_LITTLE_PASSES):
            probe._send_packets(near)


def test_a_listener_closes_connections_without_a_valid_request() -> None:
    (port,) = listen("127.0.0.1", [0], "t" * 32)["ports"]
    with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
        connection.sendall(b"t" * 32 + (1 << 40).to_bytes(8, "big"))
        assert connection.recv(2) == b"\n"
        assert connection.recv(1) == b""


def test_a_probe_cannot_listen_at_an_address_of_another_machine() -> None:
    with pytest.raises(OSError) as error:
        listen("192.0.2.1", [4711], "t" * 32)
    assert error.value.filename == "192.0.2.1:4711"


def test_a_probe_does_not_listen_on_every_network(monkeypatch: pytest.MonkeyPatch) -> None:
    create = socket.create_server
    monkeypatch.setattr(socket, "create_server", lambda address, **options: create(("0.0.0.0", 0), **options))
    with pytest.raises(OSError, match="it would listen on every network") as error:
        listen("a-name-of-0.0.0.0", [0], "t" * 32)
    assert error.value.filename == "a-name-of-0.0.0.0:0"


def test_an_error_says_why_a_game_cannot_be_made() -> None:
    settings = dataclasses.asdict(RUN.envs)
    assert game_error("CartPole-v1", settings) is None
    assert "NoSuchGame" in str(game_error("ALE/NoSuchGame-v5", settings))


def test_a_host_reports_the_extras_that_it_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    assert lacks({"video": "--recorder needs"}) == []
    monkeypatch.setitem(EXTRAS, "video", {"imageio": "no_such_module"})
    (clause,) = lacks({"video": "--recorder needs"})
    assert clause.startswith("--recorder needs imageio: run ")
