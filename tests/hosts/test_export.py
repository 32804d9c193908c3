"""``-x VAR``: environment variables that the launcher hands on to the processes on all hosts."""

import pytest

from zmqrl.commands.options import parse
from zmqrl.errors import UsageError
from zmqrl.hosts.inventory import Host
from zmqrl.hosts.reach import HostOptions, read_exported
from zmqrl.process import unset, use_all_cores

SECRET = "a secret = 'value'"


def test_the_values_of_the_launcher_are_handed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_TOKEN", SECRET)
    monkeypatch.setenv("EMPTY", "")
    options = parse(HostOptions, ["-H", "h1", "-x", "A_TOKEN", "--export", "EMPTY"], "zmqrl launch")
    reach = options.reach()
    assert reach.exported == {"A_TOKEN": SECRET, "EMPTY": ""}
    host = Host(name="h1", env={"A_TOKEN": "of the host", "ANOTHER": "another secret"})
    link = reach.link(host, work="run", lease_s=8.0)
    assert link.environment == {"A_TOKEN": SECRET, "EMPTY": "", "ANOTHER": "another secret"}
    for shown in (options, reach, link.command, link.first, link.to_dict()):
        assert "secret" not in str(shown)


def test_a_variable_that_zmqrl_has_unset_for_itself_is_handed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_PROC_BIND", "close")
    monkeypatch.setitem(unset, "OMP_PROC_BIND", "")  # forgets the variable after the test
    use_all_cores()
    options = parse(HostOptions, ["-H", "h1", "-x", "OMP_PROC_BIND"], "zmqrl launch")
    assert options.reach().exported == {"OMP_PROC_BIND": "close"}


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("A_TOKEN", "-x A_TOKEN: this variable is not set here. Set it, or remove the option."),
        ("A-TOKEN", "-x A-TOKEN: not the name of an environment variable."),
        ("", "-x : not the name of an environment variable."),
        (
            f"A_TOKEN={SECRET}",
            "-x A_TOKEN=...: other users can read the arguments of a command. Set A_TOKEN in the environment, and use "
            "-x A_TOKEN.",
        ),
    ],
)
def test_a_variable_that_cannot_be_handed_on_is_refused_without_its_value(name: str, sentence: str) -> None:
    with pytest.raises(UsageError) as error:
        read_exported([name], {})
    assert str(error.value) == sentence
