"""Videos show the game of a policy as a person would see it."""

import dataclasses
import itertools
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import gymnasium
import imageio.v2 as imageio
import imageio_ffmpeg
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from gymnasium.spaces import Box, Discrete
from hypothesis import given
from hypothesis.extra.numpy import arrays
from PIL import Image, ImageSequence
from support.games_rig import RANDOM_SKIP, random_actions
from support.policy_rig import BREAKOUT, write_run

from zmqrl import cli
from zmqrl.commands.measure.play import whole_game
from zmqrl.commands.measure.record import ffmpeg, record, video_at
from zmqrl.config import Config
from zmqrl.errors import UsageError
from zmqrl.learner.dummy import DUMMY_ID
from zmqrl.learner.envs import EnvConfig, make_envs
from zmqrl.learner.picture import as_screen, check_drawn, make_picture
from zmqrl.policy import load_policy

pytestmark = pytest.mark.processes


def with_alpha(picture: np.ndarray) -> np.ndarray:
    return np.concatenate((picture, np.full((13, 20, 1), 255, np.uint8)), axis=2)


def doubled_later(picture: np.ndarray) -> np.ndarray:
    return picture.repeat(2, 0) if picture.max() > 60 else picture


# The forms in which an environment can return a picture of 13 x 20 pixels.
DRAWN: dict[str, Any] = {
    "rgb": lambda picture: picture,
    "grey": lambda picture: picture[..., 0],
    "grey channel": lambda picture: picture[..., :1],
    "rgba": with_alpha,
    "float": lambda picture: picture / 255,
    "float 32": lambda picture: (picture / 255).astype(np.float32),
    "float grey": lambda picture: picture[..., 0] / 255,
    "wide float": lambda picture: picture.astype(np.float32),
    "int": lambda picture: picture.astype(np.int64),
    "nothing later": lambda picture: picture,
    "speed": lambda picture: picture,
    "none": lambda picture: None,
    "list": lambda picture: [picture],
    "channels first": lambda picture: picture.transpose(2, 0, 1),
    "text": lambda picture: np.array("lamp"),
    "nan": lambda picture: np.where(picture > 60, np.nan, picture),
    "negative": lambda picture: -picture.astype(float),
    "bright": lambda picture: picture.astype(int) * 10,
    "larger later": doubled_later,
    "float later": lambda picture: picture / 255 if picture.max() > 60 else picture,
    "wide later": lambda picture: picture.astype(float) if picture.max() > 60 else picture / 255,
    "none later": lambda picture: None if picture.max() > 60 else picture,
    "slow": lambda picture: picture,
    "above one": lambda picture: picture / picture.max() + 0.009 if picture.max() else picture / 255,
    "line": lambda picture: picture[:1],
    "long": lambda picture: picture.repeat(1000, 1),
    "empty": lambda picture: picture[:0],
}


LENGTHS = itertools.count(3)  # lengths of games, all different


class Lamp(gymnasium.Env[np.ndarray, np.int64]):
    """A lamp, drawn in 13 x 20 pixels, that grows brighter in each of nine steps. Each step has a reward of 0.1."""

    observation_space = Box(-1.0, 1.0, (2,), np.float32)
    action_space = Discrete(2, start=3)
    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 5}  # noqa: RUF012 - as in the base class

    def __init__(self, render_mode: str | None = None, drawn: str = "rgb", chance: str = "none") -> None:
        self.render_mode, self.drawn, self.chance = render_mode, drawn, chance
        self.steps = next(LENGTHS) if chance == "end" else 9
        if drawn in ("speed", "slow"):
            self.metadata = {"render_modes": ["rgb_array"], "render_fps": "fast" if drawn == "speed" else 0.001}

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.time = 0
        return np.zeros(2, np.float32), {}

    def step(self, action: np.int64) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(action)
        self.time += 1
        number = np.random.default_rng().random()  # does not depend on the seed
        seen = np.full(2, number if self.chance == "observation" else 0, np.float32)
        reward = number if self.chance == "reward" else 0.1
        return seen, reward, self.time == self.steps, False, {}

    def render(self) -> Any:
        if self.drawn == "nothing" or (self.drawn == "nothing later" and self.time > 3):
            raise RuntimeError("the lamp is broken.\nfor good")
        return DRAWN[self.drawn](np.full((13, 20, 3), 20 * self.time, np.uint8))


BROKEN = f"(test_record.py, line {Lamp.render.__code__.co_firstlineno + 2})"


@pytest.fixture
def lamps() -> Iterator[None]:
    names = {"Lamp-v0": {}, "BrokenLamp-v0": {"drawn": "nothing"}}
    names |= {f"{drawn.title().replace(' ', '')}Lamp-v0": {"drawn": drawn} for drawn in DRAWN}
    names |= {f"{chance.title()}Lottery-v0": {"chance": chance} for chance in ("reward", "observation", "end")}
    for name, kwargs in names.items():
        gymnasium.register(f"zmqrl-test/{name}", f"{__name__}:Lamp", kwargs=kwargs)
    yield
    for name in names:
        del gymnasium.registry[f"zmqrl-test/{name}"]


def lamp(path: Path, name: str = "Lamp-v0") -> Path:
    return write_run(path, Config(env=f"zmqrl-test/{name}", model="mlp"), 0, 1234)


def frames_of_mp4(path: Path, height: int, width: int) -> np.ndarray:
    """All frames: uint8 (n, height, width, 3)."""
    decode = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-i", str(path)]
    raw = subprocess.run(
        [*decode, "-f", "rawvideo", "-pix_fmt", "rgb24", "-"], capture_output=True, check=True, timeout=180
    ).stdout
    return np.frombuffer(raw, np.uint8).reshape(-1, height, width, 3)


@pytest.mark.parametrize("env_id", ["ALE/SpaceInvaders-v5", "ALE/Carnival-v5"])
def test_the_picture_shows_the_game_that_is_played(env_id: str) -> None:
    """The game uses every source of randomness. The screen of Carnival has 214 lines instead of 210."""
    config = EnvConfig(num_envs=1, sticky_actions=0.25, clip_rewards=False)
    envs = make_envs(env_id, config, threads=1)
    picture = make_picture(env_id, config)
    newest, (screen,) = envs.reset(3)[0, -1], picture.reset(3).screens
    assert screen.shape == (214 if "Carnival" in env_id else 210, 160, 3)
    score = 0.0
    actions = np.random.default_rng(0)
    for _ in range(150):
        grey = torch.from_numpy(screen @ np.array([0.299, 0.587, 0.114]))
        shrunk = F.interpolate(grey[None, None], (84, 84), mode="area")[0, 0].numpy()
        assert np.abs(shrunk - newest).mean() < 2.5
        action = int(actions.integers(envs.spec.actions.outputs))
        step = envs.step(np.array([action]))
        newest = step.observations[0, -1]
        shown = picture.step(action)
        (screen,) = shown.screens
        assert (shown.reward, shown.over) == (step.rewards[0], bool(step.games))
        score += shown.reward
    assert score > 0
    envs.close()
    picture.close()


@pytest.mark.parametrize("env_id", ["ALE/SpaceInvaders-v5", "ALE/Carnival-v5"])
def test_a_recording_with_random_frame_skip_shows_every_frame_of_the_game(env_id: str) -> None:
    config = dataclasses.replace(RANDOM_SKIP, grayscale=False, screen_size=84, frame_stack=1)
    envs = make_envs(env_id, config, threads=1)
    picture = make_picture(env_id, config)
    seen, screens = envs.reset(3)[0], picture.reset(3).screens
    frames, score = [], 0.0
    for actions in random_actions(envs, 150):
        shrunk = F.interpolate(torch.from_numpy(screens[-1]).movedim(-1, 0)[None], (84, 84), mode="bilinear")[0]
        np.testing.assert_array_equal(shrunk.numpy(), seen)
        step = envs.step(actions)
        seen = step.observations[0]
        shown = picture.step(int(actions[0]))
        screens = shown.screens
        assert (shown.reward, shown.over) == (step.rewards[0], bool(step.games))
        frames.append(len(screens))
        score += shown.reward
    assert set(frames) == {2, 3, 4}
    assert score > 0
    envs.close()
    picture.close()


def test_a_game_with_random_frame_skip_is_recorded_at_its_true_speed(tmp_path: Path) -> None:
    envs = dataclasses.replace(RANDOM_SKIP, num_envs=8, max_frames=120)
    run = write_run(tmp_path / "run", dataclasses.replace(BREAKOUT, envs=envs), 0)
    result = record(load_policy(run), tmp_path / "game.mp4", seed=1, greedy=False)
    assert (result["whole"], result["video_s"]) == (True, pytest.approx(2.0, abs=0.1))
    assert imageio_ffmpeg.count_frames_and_secs(tmp_path / "game.mp4") == (
        round(60 * result["video_s"]),
        pytest.approx(result["video_s"], abs=0.02),
    )
    assert result["steps"] < 120 / 2


def test_a_gif_does_not_exceed_the_frame_rate_of_browsers(tmp_path: Path) -> None:
    envs = dataclasses.replace(RANDOM_SKIP, num_envs=8, max_frames=20)
    run = write_run(tmp_path / "run", dataclasses.replace(BREAKOUT, envs=envs), 0)
    result = record(load_policy(run), tmp_path / "game.gif", seed=1, greedy=False)
    durations = durations_ms(tmp_path / "game.gif")
    assert set(durations) == {20}
    assert sum(durations) == pytest.approx(1000 * result["video_s"], abs=20)


def durations_ms(path: Path) -> list[int]:
    """The duration of each frame of a gif."""
    with Image.open(path) as gif:
        return [frame.info["duration"] for frame in ImageSequence.Iterator(gif)]


def test_a_gif_shows_a_game_at_its_true_speed(tmp_path: Path) -> None:
    """A gif stores hundredths of a second, and a frame of an Atari game lasts 66.7 ms."""
    screens = np.arange(31, dtype=np.uint8)[:, np.newaxis, np.newaxis, np.newaxis].repeat(3, 3)
    with video_at(tmp_path / "a.gif", 15.0, screens[0]) as video:
        for screen in screens[1:]:
            video.add(screen)
    durations = durations_ms(tmp_path / "a.gif")
    assert (len(durations), set(durations)) == (31, {60, 70})
    assert sum(durations) == pytest.approx(31 * 1000 / 15, abs=10)


MEMORY_OF_A_GIF = """
import sys
from pathlib import Path
import numpy as np
from zmqrl.commands.measure.record import video_at
def peak_kib():
    return int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0])
screen = np.zeros((210, 160, 3), np.uint8)
with video_at(Path(sys.argv[1]), 15.0, screen) as video:
    before = peak_kib()
    for level in range(1, 60):
        video.add(screen + np.uint8(level))
print(peak_kib() - before)
"""


def test_a_long_gif_needs_little_memory(tmp_path: Path) -> None:
    command = [sys.executable, "-c", MEMORY_OF_A_GIF, str(tmp_path / "a.gif")]
    peak_kib = int(subprocess.run(command, capture_output=True, check=True, timeout=180).stdout)
    assert peak_kib < 20_000, "all 60 frames take 94 MB"
    assert len(durations_ms(tmp_path / "a.gif")) == 60


def test_a_gif_without_its_end_is_refused(tmp_path: Path) -> None:
    def write_cut() -> None:
        with video_at(tmp_path / "a.gif", 15.0, np.zeros((2, 2, 3), np.uint8)) as video:
            video.close()
            os.truncate(tmp_path / ".a.gif", (tmp_path / ".a.gif").stat().st_size - 1)

    with pytest.raises(UsageError, match=r"cannot write .*/a\.gif: ffmpeg did not finish the file"):
        write_cut()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("program", ["/nonexistent/ffmpeg", "false"])
def test_an_ffmpeg_that_cannot_be_run_is_refused_before_the_game(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: str
) -> None:
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", program)
    ffmpeg.cache_clear()
    with pytest.raises(UsageError, match=r"^no ffmpeg can be run: install ffmpeg, or set IMAGEIO_FFMPEG_EXE to "):
        record(load_policy(write_run(tmp_path / "run", BREAKOUT, 0)), tmp_path / "a.mp4", seed=0, greedy=False)
    assert not (tmp_path / "a.mp4").exists()


def test_a_video_that_cannot_be_opened_in_time_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    screen, path = np.zeros((13, 20, 3), np.uint8), tmp_path / "a.mp4"
    ffmpeg()
    with (
        pytest.raises(UsageError, match=r"cannot write .*/a\.mp4: ffmpeg did not open it within 0 s"),
        video_at(path, 5, screen),
    ):
        monkeypatch.setattr("zmqrl.commands.measure.record.OPENED_WITHIN_S", 0.0)
    assert list(tmp_path.iterdir()) == []


def test_a_video_has_a_frame_for_each_step_of_the_game(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write_run(tmp_path / "run", BREAKOUT, 0)
    assert cli.run(["record", str(run), "--seed", "2", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    *_, last = whole_game(load_policy(run), 2, greedy=False)
    assert (result["score"], result["steps"], result["whole"]) == (last.score, last.agent_steps, True)
    assert (result["version"], result["seed"], result["greedy"]) == (0, 2, False)
    path = run / "videos" / "v00000000.mp4"
    assert result["path"] == str(path)
    video = frames_of_mp4(path, 210 * 3, 160 * 3)
    assert len(video) == last.agent_steps + 1
    assert result["video_s"] == pytest.approx(len(video) / 15)
    assert imageio_ffmpeg.count_frames_and_secs(path) == (len(video), pytest.approx(len(video) / 15, abs=0.01))
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_the_rendering_of_an_environment_is_recorded(
    tmp_path: Path, lamps: None, capsys: pytest.CaptureFixture[str]
) -> None:
    run = lamp(tmp_path / "run")
    assert cli.run(["record", str(run), "--greedy"]) == 0
    path = run / "videos" / "v00001234.mp4"
    assert capsys.readouterr().out == f"{path}: 2 s of zmqrl-test/Lamp-v0, version 1234, seed 0, score 0.9\n"
    video = frames_of_mp4(path, 13 * 49 - 1, 20 * 49)  # enlarged to 637 lines, then cut to 636, an even number
    assert [frame.mean() for frame in video] == pytest.approx(range(0, 200, 20), abs=5)


def test_a_name_that_ends_in_gif_writes_a_gif(tmp_path: Path, lamps: None) -> None:
    path = tmp_path / "deep" / "lamp.gif"
    result = record(load_policy(lamp(tmp_path / "run"), 0), path, seed=0, greedy=True)
    assert (result["path"], result["version"]) == (str(path), 0)
    assert path.read_bytes().startswith(b"GIF89a")
    assert [frame[..., :3].mean() for frame in imageio.mimread(path)] == pytest.approx(range(0, 200, 20), abs=2)


def test_a_run_that_chose_a_render_mode_is_recorded(tmp_path: Path, lamps: None) -> None:
    config = Config(env="zmqrl-test/Lamp-v0", model="mlp", envs=EnvConfig(args=("render_mode=None",)))
    record(load_policy(write_run(tmp_path / "run", config, 0)), tmp_path / "lamp.gif", seed=0, greedy=True)
    assert len(imageio.mimread(tmp_path / "lamp.gif")) == 10


def test_a_game_longer_than_the_maximum_is_cut(tmp_path: Path, lamps: None, capsys: pytest.CaptureFixture[str]) -> None:
    run = lamp(tmp_path / "run")
    assert cli.run(["record", str(run), "--seconds", "1.2", "--output", str(tmp_path / "a.gif")]) == 0
    assert len(imageio.mimread(tmp_path / "a.gif")) == 6
    assert capsys.readouterr().out.endswith("score 0.5, cut at the maximum length (--seconds)\n")


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("BrokenLamp", f"drawn: RuntimeError: the lamp is broken {BROKEN}."),
        ("NothingLaterLamp", f"drawn: RuntimeError: the lamp is broken {BROKEN}."),
        ("NoneLamp", "drawn: ValueError: render returned NoneType, not an array, in render_mode rgb_array."),
        ("ListLamp", "drawn: ValueError: render returned list, not an array, in render_mode rgb_array."),
        ("ChannelsFirstLamp", "drawn: ValueError: render returned uint8 (3, 13, 20), not (height, width, 3)."),
        ("TextLamp", "drawn: ValueError: render returned <U4 (), not (height, width, 3)."),
        ("NanLamp", "drawn: ValueError: render returned levels from nan to nan, not from 0 to 255."),
        ("NegativeLamp", "drawn: ValueError: render returned levels from -20 to -20, not from 0 to 255."),
        ("BrightLamp", "drawn: ValueError: render returned levels from 400 to 400, not from 0 to 255."),
        (
            "LargerLaterLamp",
            "drawn: ValueError: render returned uint8 (26, 20, 3), but uint8 (13, 20, 3) at first.",
        ),
        (
            "FloatLaterLamp",
            "drawn: ValueError: render returned float64 (13, 20, 3), but uint8 (13, 20, 3) at first.",
        ),
        (
            "WideLaterLamp",
            "drawn: ValueError: render returned levels up to 0.235294 at first, and now 80: "
            "use levels from 0 to 1, or from 0 to 255.",
        ),
        ("NoneLaterLamp", "drawn: ValueError: render returned NoneType, not an array, in render_mode rgb_array."),
        ("SlowLamp", "drawn: ValueError: its render_fps is 0.001, not from 0.1 to 1000."),
        ("EmptyLamp", "drawn: ValueError: render returned uint8 (0, 20, 3), not (height, width, 3)."),
        ("SpeedLamp", "drawn: ValueError: could not convert string to float: 'fast'."),
        ("RewardLottery", "recorded: it does not repeat a game for the same seed and actions."),
        ("ObservationLottery", "recorded: it does not repeat a game for the same seed and actions."),
        ("EndLottery", "recorded: it does not repeat a game for the same seed and actions."),
    ],
)
def test_a_game_that_cannot_be_recorded_leaves_no_video(tmp_path: Path, lamps: None, name: str, sentence: str) -> None:
    run = lamp(tmp_path / "run", f"{name}-v0")
    with pytest.raises(UsageError) as refused:
        cli.run(["record", str(run)])
    assert str(refused.value) == f"zmqrl-test/{name}-v0 cannot be {sentence}"
    assert list(run.glob("videos/*")) == []


def test_a_game_that_also_fails_when_it_is_closed_is_refused_for_the_first_reason(
    tmp_path: Path, lamps: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def close(self: Lamp) -> None:
        if getattr(self, "time", 0):
            raise AttributeError("no lamp")

    monkeypatch.setattr(Lamp, "close", close)
    policy = load_policy(lamp(tmp_path / "run", "RewardLottery-v0"))
    with pytest.raises(UsageError, match="does not repeat a game for the same seed and actions"):
        record(policy, tmp_path / "v.mp4", seed=0, greedy=False)


@pytest.mark.parametrize(
    "drawn", ["Rgb", "Grey", "GreyChannel", "Rgba", "Float", "Float32", "FloatGrey", "WideFloat", "Int"]
)
def test_pictures_of_every_kind_are_recorded(tmp_path: Path, lamps: None, drawn: str) -> None:
    path = tmp_path / "lamp.gif"
    record(load_policy(lamp(tmp_path / "run", f"{drawn}Lamp-v0")), path, seed=0, greedy=True)
    frames = [frame[..., :3] for frame in imageio.mimread(path)]
    assert [frame.mean() for frame in frames] == pytest.approx(range(0, 200, 20), abs=2)
    assert {frame.shape for frame in frames} == {(13 * 49 - 1, 20 * 49, 3)}


def test_a_very_flat_picture_is_enlarged_to_the_width_of_a_video(tmp_path: Path, lamps: None) -> None:
    path = tmp_path / "lamp.mp4"
    record(load_policy(lamp(tmp_path / "run", "LineLamp-v0")), path, seed=0, greedy=True)
    assert len(frames_of_mp4(path, 64, 1280)) == 10


@pytest.mark.parametrize(("size", "expected"), [((1, 2000), (2, 4000)), ((700, 1), (1400, 2)), ((1, 1), (640, 640))])
def test_a_picture_of_a_single_line_makes_a_video(
    tmp_path: Path, size: tuple[int, int], expected: tuple[int, int]
) -> None:
    screen = np.full((*size, 3), 99, np.uint8)
    with video_at(tmp_path / "line.mp4", 5.0, screen) as video:
        video.add(screen)
    assert len(frames_of_mp4(tmp_path / "line.mp4", *expected)) == 2


def test_a_picture_that_is_too_large_for_a_video_is_refused(tmp_path: Path, lamps: None) -> None:
    with pytest.raises(UsageError) as refused:
        record(load_policy(lamp(tmp_path / "run", "LongLamp-v0")), tmp_path / "a.mp4", seed=0, greedy=True)
    assert str(refused.value) == "pictures of 20000 x 13 pixels are too large: the limit of .mp4 is 16384 per side."
    assert not (tmp_path / "a.mp4").exists()


def test_floats_just_above_one_are_as_bright_as_one(tmp_path: Path, lamps: None) -> None:
    path = tmp_path / "lamp.gif"
    record(load_policy(lamp(tmp_path / "run", "AboveOneLamp-v0")), path, seed=0, greedy=True)
    assert [frame[..., :3].mean() for frame in imageio.mimread(path)] == pytest.approx([0, *[255] * 9], abs=2)


LEVELS = arrays(np.uint8, (3, 4, 4))


@given(LEVELS)
def test_a_picture_is_the_same_in_every_format(rgba: np.ndarray) -> None:
    rgb, grey = rgba[..., :3], rgba[..., 0]
    in_grey = grey[..., np.newaxis].repeat(3, 2)
    opaque = np.concatenate((rgb, np.full((3, 4, 1), 255, np.uint8)), axis=2)
    for drawn, brightest, expected in (
        (rgb, 255, rgb),
        (grey, 255, in_grey),
        (grey[..., np.newaxis], 255, in_grey),
        (opaque, 255, rgb),
        (rgb.astype(np.int32), 255, rgb),
        (rgb.astype(np.float32), 255, rgb),
        (rgb / 255, 1, rgb),
        ((opaque / 255).astype(np.float32), 1, rgb),
        (grey > 127, 1, np.where(in_grey > 127, 255, 0)),
        (rgba, 255, (rgb * (rgba[..., 3:] / 255)).round()),
    ):
        check_drawn(drawn)
        screen = as_screen(drawn, brightest)
        assert screen.dtype == np.uint8
        assert screen.shape == (3, 4, 3)
        np.testing.assert_allclose(screen, expected, atol=1)


def test_a_game_that_begins_with_a_dark_picture_does_not_flicker(tmp_path: Path, lamps: None) -> None:
    """The first picture has only zeros, so its highest possible level could be 1 or 255. Later pictures show which of
    the two it is.
    """
    with closing(make_picture("zmqrl-test/WideFloatLamp-v0", EnvConfig())) as picture:
        levels = [picture.reset(0).screens[0].max(), *(picture.step(3).screens[0].max() for _ in range(3))]
    assert levels == [0, 20, 40, 60]


def test_the_dummy_environment_cannot_be_recorded() -> None:
    with pytest.raises(UsageError, match=r"zmqrl/Dummy-v0 is not a game: there is nothing to record\."):
        make_picture(DUMMY_ID, EnvConfig())


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ("--output a.avi", "--output a.avi: the name must end with .mp4 or .gif."),
        ("--seconds 0", "--seconds 0: must be above 0 and below 86400 (a day)."),
        ("--seconds nan", "--seconds nan: must be above 0 and below 86400 (a day)."),
        ("--seed -1", "--seed -1: must be at least 0 and below 2^32."),
        (
            "--output {run}/config.json/a.mp4",
            "cannot write {run}/config.json/a.mp4: File exists: move the file of that name out of the way.",
        ),
        (
            "--checkpoint 5",
            "there is no checkpoint of version 5 in {run}/checkpoints: choose one of v00000000, v00001234.",
        ),
    ],
)
def test_record_refuses_bad_usage_in_one_sentence(tmp_path: Path, lamps: None, options: str, sentence: str) -> None:
    run = lamp(tmp_path / "run")
    with pytest.raises(UsageError) as refused:
        cli.run(["record", str(run), *options.format(run=run).split()])
    assert str(refused.value) == sentence.format(run=run)
