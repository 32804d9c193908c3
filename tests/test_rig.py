"""No test waits forever for a process that it has started."""

import ast

from support.paths import ROOT
from support.sources import ABOUT_SOURCES, TEST_FILES, calls, nodes_of

pytestmark = ABOUT_SOURCES

# The host daemons end what the first starts. The second kills what it has started.
THE_TESTED = {"a_child.py", "a_killing_command.py"}


def test_every_process_that_a_test_starts_is_ended() -> None:
    faults = list[str]()
    for path in (path for path in TEST_FILES if path.name not in THE_TESTED):
        nodes, place = nodes_of(path), path.relative_to(ROOT)
        ended = {id(call.args[0]) for call in calls(nodes, "ending") if call.args}
        made = {id(node.value) for node in nodes if isinstance(node, ast.Return)}  # the caller must use `ending`
        for call in calls(nodes, "Popen"):
            if id(call) not in ended | made:
                faults.append(f"{place}:{call.lineno}: nothing ends this process: use rig.ending")
        for call in calls(nodes, "run"):
            if ast.unparse(call.func) == "subprocess.run" and "timeout" not in {each.arg for each in call.keywords}:
                faults.append(f"{place}:{call.lineno}: no timeout")
    assert not faults
