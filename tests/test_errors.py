"""Errors from user code, and which of them a retry may fix."""

import pytest

from zmqrl.errors import UsageError, UserCodeError, blaming


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (ConnectionError("no route to the licence server"), UserCodeError),
        (ValueError("no display"), UserCodeError),
        (SystemExit("no licence"), UserCodeError),
        (ModuleNotFoundError("No module named 'mine'"), UsageError),
        (NameError("name 'x' is not defined"), UsageError),
        (NotImplementedError(), UsageError),
        (SyntaxError("invalid syntax"), UsageError),
    ],
)
def test_an_exception_of_user_code_may_pass_unless_it_is_about_the_code_itself(
    error: BaseException, kind: type[UsageError]
) -> None:
    with pytest.raises(UsageError, match=r"^Maze-v0 fails: ") as raised, blaming("Maze-v0 fails"):
        raise error
    assert type(raised.value) is kind
    assert raised.value.exit_status == 2


def test_a_refusal_of_zmqrl_stays_as_it_is() -> None:
    refusal = UsageError("Maze-v0 returned a reward of nan.")
    with pytest.raises(UsageError) as raised, blaming("Maze-v0 fails"):
        raise refusal
    assert raised.value is refusal
