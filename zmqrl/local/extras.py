"""Finds missing optional packages. ``pip install 'zmqrl[EXTRA]'`` installs those of one feature.

This module uses only the standard library.
"""

import shlex
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from zmqrl.errors import UsageError

# The packages of each extra: their names for pip, and for import.
EXTRAS: Final = {
    "atari": {"ale-py": "ale_py"},
    "plot": {"matplotlib": "matplotlib"},
    "video": {
        "imageio-ffmpeg": "imageio_ffmpeg",
        "gymnasium[classic-control]": "pygame",  # pygame-ce, or pygame for an older Gymnasium
    },
    "tensorboard": {"tensorboard": "tensorboard"},
    "page": {"starlette": "starlette", "uvicorn": "uvicorn"},
    "mlflow": {"mlflow-skinny": "mlflow", "sqlalchemy": "sqlalchemy", "alembic": "alembic"},
    "wandb": {"wandb": "wandb"},
    "ray": {"ray[client]": "ray"},
}
ON_HOSTS: Final = ("atari", "video")  # for processes on hosts. The launcher needs the others
# The extras that zmqrl and Gymnasium both have, and a module of each. Their packages are those of Gymnasium.
OF_GYMNASIUM: Final = {"box2d": "Box2D", "mujoco": "mujoco"}


def missing(extra: str) -> list[str]:
    """The pip names of the missing packages of ``extra``."""
    return [package for package, module in EXTRAS[extra].items() if not is_installed(module)]


def lack(extra: str, what: str) -> str | None:
    """A clause with the missing packages of ``extra`` and the remedy, or None. It begins with ``what``, as in ``--page
    needs``.
    """
    packages = missing(extra)
    return f"{what} {' and '.join(packages)}: run {install_command(extra)}" if packages else None


def require_extra(extra: str, what: str) -> None:
    """Raise UsageError unless all packages of ``extra`` are installed. ``what`` begins the error: see ``lack``."""
    if clause := lack(extra, what):
        raise UsageError(f"{clause}.")


def install_command(extra: str) -> str:
    """The command that adds ``extra`` to the environment of this Python, even if the environment is not active."""
    wanted = f"install 'zmqrl[{extra}]'"
    if Path(shutil.which("pip") or "").parent == Path(sys.executable).parent:
        return f"pip {wanted}"
    python = shlex.quote(sys.executable)
    return f"{python} -m pip {wanted}" if is_installed("pip") else f"uv pip {wanted} --python {python}"


def is_installed(module: str) -> bool:
    """Whether Python can import ``module``. Does not import it."""
    # Python takes any directory of this name for a namespace package, whose origin is None. W&B leaves a directory
    # wandb/, for example.
    spec = find_spec(module)
    return spec is not None and spec.origin is not None
