"""Hosts behind any command, such as ``docker exec -i {host}`` or ``kubectl exec -i {host} --``.

The command is a list of words. No shell on this machine reads it.
"""

import re
import shlex
from collections.abc import Sequence

from zmqrl.errors import UsageError

HOST, COMMAND = "{host}", "{command}"
JOINING = ("ssh", "rsh")  # they join their arguments with spaces, for a shell on the host
A_COMMAND = re.compile(r"--command|-[A-Za-z]*c")  # the option before a whole command, as in `sh -c`


def read_via(text: str) -> tuple[str, ...]:
    """The words of ``--via text``, split as a shell would. Raises UsageError."""
    try:
        words = tuple(shlex.split(text))
    except ValueError as error:
        raise UsageError(f"--via {text!r}: {str(error).lower()}.") from error
    check_via(words, f"--via {text!r}")
    return words


def check_via(words: Sequence[str], where: str) -> None:
    """Raise UsageError unless ``words`` can reach different hosts."""
    if not any(HOST in word for word in words):
        raise UsageError(f"{where}: {HOST} is missing. Write it where the name of the host belongs.")


def via_command(via: Sequence[str], host: str, words: Sequence[str]) -> list[str]:
    """The command that runs ``words`` on ``host``.

    The name of the host replaces ``{host}``. ``words``, joined and quoted for a shell, replace ``{command}``. Without
    ``{command}``, they come last: as one quoted word for ssh, or after a final option such as ``--command`` or ``-c``.
    Other commands get them as separate words.
    """
    one = shlex.join(words)
    filled = [re.sub(r"\{(host|command)\}", lambda found: host if found[1] == "host" else one, word) for word in via]
    if any(COMMAND in word for word in via):
        return filled
    return [*filled, *([one] if _reads_one_word(via) else words)]


def shown(via: Sequence[str], host: str) -> str:
    """The part of the command that the user wrote, for messages."""
    return shlex.join(word.replace(HOST, host) for word in via)


def _reads_one_word(via: Sequence[str]) -> bool:
    return A_COMMAND.fullmatch(via[-1]) is not None or any(_runs_ssh(via, at) for at in range(len(via)))


def _runs_ssh(via: Sequence[str], at: int) -> bool:
    """Whether the word ``at`` is a program such as ssh, and not the name of a user, container or namespace.

    Its host follows it, or none is in ``via``. In a command with ``exec``, a word after an option is its value.
    """
    if via[at].rpartition("/")[2] not in JOINING:
        return False
    has_host = [HOST in word for word in via]
    is_value = at > 0 and re.fullmatch("--?[^-].*", via[at - 1]) is not None and "exec" in via
    return not is_value and (any(has_host[at:]) or not any(has_host))
