"""Earlier times of the bare parts, which show whether a machine or a part has become slow."""

from typing import Final, NamedTuple

from zmqrl.config import Config
from zmqrl.learner.games import EnvConfig


class Reference(NamedTuple):
    """Seconds per agent step or sample of one worker with one thread, while another worker used the other core."""

    seconds: float
    machine: str


AVX512: Final = "2 cores of an AMD EPYC with AVX-512 and bfloat16, torch 2.13, 2026-11-22"
AMX: Final = "2 cores with AVX-512, bfloat16 and AMX, 2026-11-28"

# By environment, with the default settings of games.
GAMES: Final = {"ALE/Breakout-v5": Reference(437e-6, AMX)}
# By network and number format, for frames of 4x84x84: a forward pass, then forward and backward. The batches of
# ``narrow`` had 128 samples. ``narrow`` has not been measured in float32.
NETWORKS: Final = {
    ("small", "float32"): (Reference(86e-6, AVX512), Reference(250e-6, AVX512)),
    ("small", "bfloat16"): (Reference(45e-6, AVX512), Reference(133e-6, AVX512)),
    ("nature", "float32"): (Reference(244e-6, AVX512), Reference(625e-6, AVX512)),
    ("nature", "bfloat16"): (Reference(112e-6, AVX512), Reference(345e-6, AVX512)),
    ("narrow", "bfloat16"): (Reference(36e-6, AMX), Reference(145e-6, AMX)),
}


def references(
    config: Config, *, threads: int, compute: str, passes: float, backward_only: bool
) -> dict[str, Reference]:
    """The known references for the parts of ``config``, by part.

    A gradient needs ``passes`` passes per agent step, which have no forward part if ``backward_only``.
    """
    found: dict[str, Reference] = {}
    default, envs = EnvConfig(), config.envs
    same_frames = (envs.atari_shape, envs.mean_frame_skip) == (default.atari_shape, default.mean_frame_skip)
    if threads > 1 or not same_frames:
        return found
    if config.env in GAMES:
        found["env_step"] = GAMES[config.env]
    network = NETWORKS.get((config.model, compute))
    if network is not None and config.network.hidden is None:
        forward, both = network
        found["act"] = forward
        found["gradient"] = Reference(passes * (both.seconds - backward_only * forward.seconds), both.machine)
    return found
