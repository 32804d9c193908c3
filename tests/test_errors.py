"""Errors from user code, and which of them a retry may fix."""

import importlib
import logging
import sys
from collections.abc import Callable, Generator
from pathlib import Path
from types import ModuleType

import pytest

from zmqrl.errors import UsageError, UserCodeError, blaming, closing


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


GAME = """
import json

class Game:
    table = {}

    def __init__(self, pieces="[]", depth=0):
        json.loads(pieces)
        self.look(depth)

    def look(self, depth):
        return self.look(depth - 1) if depth else self.table["x"]

def use_a_package():
    import package_of_others
    package_of_others.parse()

def ask(): raise SyntaxError("invalid syntax", ("rules.py", 3, 1, "", 3, 1))
"""


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        (lambda own: own.Game(depth=2), "KeyError: 'x' (own_game/__init__.py, line 12)."),
        (
            lambda own: own.Game("["),
            "JSONDecodeError: Expecting value: line 1 column 2 (char 1) (own_game/__init__.py, line 8).",
        ),
        (lambda own: own.use_a_package(), "KeyError: 'column' (own_game/__init__.py, line 16)."),
        (lambda own: own.ask(), "SyntaxError: invalid syntax (rules.py, line 3)."),
    ],
)
def test_an_error_names_the_innermost_line_of_the_users_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: Callable[[ModuleType], object], reason: str
) -> None:
    (tmp_path / "own_game").mkdir()
    (tmp_path / "own_game" / "__init__.py").write_text(GAME, encoding="utf-8")
    installed = tmp_path / "site-packages"
    installed.mkdir()
    (installed / "package_of_others.py").write_text("def parse():\n    raise KeyError('column')\n", encoding="utf-8")
    monkeypatch.syspath_prepend(installed)
    monkeypatch.syspath_prepend(tmp_path)
    own = importlib.import_module("own_game")
    with pytest.raises(UsageError) as raised, blaming("Maze-v0 fails"):
        call(own)
    for module in ("own_game", "package_of_others"):
        sys.modules.pop(module, None)
    assert str(raised.value) == f"Maze-v0 fails: {reason}"


def test_a_refusal_of_zmqrl_stays_as_it_is() -> None:
    refusal = UsageError("Maze-v0 returned a reward of nan.")
    with pytest.raises(UsageError) as raised, blaming("Maze-v0 fails"):
        raise refusal
    assert raised.value is refusal


class Game:
    """Counts how often it is closed. Closing raises ``error``."""

    def __init__(self, error: BaseException | None = None) -> None:
        self.error, self.closed = error, 0

    def close(self) -> None:
        self.closed += 1
        if self.error is not None:
            raise self.error


@pytest.mark.parametrize("first", [FileNotFoundError("level.txt"), KeyboardInterrupt(), SystemExit(0)])
@pytest.mark.parametrize("second", [None, AttributeError("no window"), SystemExit("no window")])
def test_an_error_of_close_does_not_replace_an_earlier_error(
    first: BaseException, second: BaseException | None, caplog: pytest.LogCaptureFixture
) -> None:
    game = Game(second)
    with caplog.at_level(logging.INFO), pytest.raises(type(first)) as raised, closing(game):
        raise first
    assert raised.value is first
    assert game.closed == 1
    assert caplog.messages == ([] if second is None else ["close() failed after another error: no window"])


def test_an_error_of_close_alone_is_raised() -> None:
    game = Game(AttributeError("no window"))
    with pytest.raises(AttributeError, match="no window"), closing(game) as same:
        assert same is game
    assert game.closed == 1


def test_an_error_of_close_is_raised_when_a_generator_is_left_early() -> None:
    game = Game(AttributeError("no window"))

    def turns() -> Generator[int]:
        with closing(game):
            yield from range(3)

    left = turns()
    next(left)
    with pytest.raises(AttributeError, match="no window"):
        left.close()
    assert game.closed == 1
