"""Prepares the game and the initial parameters in a separate process, because torch and games load slowly."""

if __name__ == "__main__":
    from zmqrl.hostd.import_path import search_here_last

    search_here_last()  # before the first import that a file in the current directory can hide

import contextlib
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import numpy as np

from zmqrl.checkpoint import Checkpoint
from zmqrl.child_process import ChildEnded, ChildProcess
from zmqrl.config import Config
from zmqrl.errors import UsageError, blaming, closing, refusal, require
from zmqrl.hostd.guard import END
from zmqrl.hostd.user_code import take_guard
from zmqrl.learner.games import EnvSpec
from zmqrl.process import LOOK_UP_EVERY_S, look_for_modules_there, read_job, say, staying_here
from zmqrl.ps.layout import Layout
from zmqrl.ps.shard.optimizer import Optimizer
from zmqrl.ps.wire.codec import FloatVector
from zmqrl.rundir import RunDirectory


class Preparation:
    """Checks the game of a run, and then draws the initial parameters. Use it in a ``with`` block.

    A separate process does both, so that this process can do other things, and needs neither torch nor the user's code.
    When the block ends, so do the programs that the user's code started. If this process has already imported torch, it
    does both itself, and does not end such programs.

    After :meth:`flavour`, ``notice`` tells the user what a policy does not see, unless it is None.
    """

    def __init__(self, config: Config, *, needs_cuda: bool = False, draws: bool = False) -> None:
        """``needs_cuda``: whether this machine must have a CUDA device. ``draws``: whether it must draw the game."""
        self.notice: str | None = None
        self._config = config
        self._child: ChildProcess | None = None
        self._held = contextlib.ExitStack()
        try:
            file = tempfile.TemporaryFile()  # noqa: SIM115 - closed by the stack
        except OSError as error:
            raise UsageError(refusal(error, "the initial parameters to a temporary file")) from error
        self._file = self._held.enter_context(file).fileno()
        self._answers = _answers(config, self._file, needs_cuda, draws)
        if "torch" not in sys.modules:
            job = {"config": config.to_json(), "file": self._file, "needs_cuda": needs_cuda, "draws": draws}
            program = ["-m", "zmqrl.start.initial"]
            self._child = ChildProcess("the check of the game", program, job, pass_fds=[self._file], guarded_by=END)
            self._held.callback(self._child.kill)

    def flavour(self) -> str:
        """Wait until the game is checked. Returns the flavour, a line to print with the scores. Call this first.

        Raises UsageError if :func:`zmqrl.learner.envs.try_env` does, if the game crashes the process, if a consistent
        run would play a game that does not repeat, or if the game cannot be drawn.
        """
        answer = self._answer(self._config.env)
        self.notice = answer["notice"]
        flavour: str = answer["flavour"]
        return flavour

    def checkpoint(self) -> Checkpoint:
        """Wait for version 0 of the run.

        Raises UsageError if settings are contradictory, a needed device is missing, or the network crashes the process.
        """
        layout = Layout.from_json(self._answer(_checked(self._config))["layout"])
        vector = np.fromfile(f"/proc/self/fd/{self._file}", "<f4")
        self._held.close()
        return _version_0(self._config, layout, vector)

    def _answer(self, checked: str) -> dict[str, Any]:
        """The next answer. ``checked`` names what the process checks before this answer."""
        if self._child is None:
            with staying_here():
                return next(self._answers)
        try:
            while (answer := self._child.hear(LOOK_UP_EVERY_S)) is None:
                pass
        except ChildEnded as ended:
            raise UsageError(f"{checked} fails: the process that checks it ended ({ended.how}).") from None
        if "refused" in answer:
            raise UsageError(answer["refused"])
        return answer

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._held.close()


def initial_checkpoint(config: Config, spec: EnvSpec) -> Checkpoint:
    """Version 0 of a run, with parameters drawn from its seed. Raises UsageError for contradictory settings."""
    from zmqrl.learner.networks import make_model
    from zmqrl.learner.plugin import load_loss, seed_global_generators
    from zmqrl.ps.flat import FlatParameters

    if config.loss is not None:
        load_loss(config.loss, config.algorithm, spec.actions)
    seed_global_generators(config.seed)
    parameters = FlatParameters(make_model(config.model, spec, config.network))
    return _version_0(config, parameters.layout(config.shards), parameters.vector())


def _checked(config: Config) -> str:
    """The options that the initial parameters depend on."""
    return f"--model {config.model}" if config.loss is None else f"--model {config.model} or --loss {config.loss}"


def _version_0(config: Config, layout: Layout, vector: FloatVector) -> Checkpoint:
    return Checkpoint.initial(layout, vector, config.optimizer.name, Optimizer(config.optimizer).state_names)


def _answers(config: Config, file: int, needs_cuda: bool, draws: bool) -> Iterator[dict[str, Any]]:
    """The answers of a :class:`Preparation`. Writes the parameter vector to the open file ``file``."""
    with blaming(f"{config.env} fails"):
        from zmqrl.learner.envs import repeats_games, try_env

        resumed = config.run_dir if config.resume else None
        stored = None if resumed is None else Config.read(RunDirectory(resumed).config).envs
        spec = try_env(config.env, config.envs, stored)
        repeats = repeats_games(config.env)
    require(
        not config.consistent or repeats,
        f"--consistent: {config.env} is registered as nondeterministic, so it does not repeat games. "
        "Remove --consistent, or change the registration.",
    )
    if draws:
        with blaming(f"{config.env} cannot be drawn"):
            from zmqrl.learner.picture import make_picture

            with closing(make_picture(config.env, config.envs)) as picture:
                picture.reset(config.seed)
    yield {"flavour": spec.flavour, "notice": spec.notice}
    with blaming("cannot import torch"):
        import torch

    if needs_cuda and not torch.cuda.is_available():
        require(
            torch.version.cuda is not None,
            f"--device cuda: torch {torch.__version__} was built without CUDA. Install its build on PyPI, in a "
            "checkout with `make clean && make setup PIP_ARGS=`.",
        )
        raise UsageError("--device cuda: torch sees no CUDA device on this machine.")
    with blaming(f"{_checked(config)} fails"):
        initial = initial_checkpoint(config, spec)
        vector = initial.vector().tobytes()
    try:
        Path(f"/proc/self/fd/{file}").write_bytes(vector)
    except OSError as error:
        raise UsageError(refusal(error, "the initial parameters to a temporary file")) from error
    yield {"layout": initial.layout.to_json()}


def main() -> None:
    take_guard()
    job = read_job(signal.SIGKILL)
    look_for_modules_there()
    try:
        for answer in _answers(Config.from_json(job["config"]), job["file"], job["needs_cuda"], job["draws"]):
            say(answer)
    except UsageError as error:
        say({"refused": str(error)})


if __name__ == "__main__":
    main()
