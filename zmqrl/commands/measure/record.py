"""``zmqrl record``: one full game of a policy as a video."""

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import tyro

import zmqrl
from zmqrl.commands.measure.play import Turn, whole_game
from zmqrl.commands.options import RunPath
from zmqrl.commands.output import print_json, prints_to_stderr
from zmqrl.errors import UsageError, closing, refusal, require
from zmqrl.local.extras import require_extra
from zmqrl.process import Messages, interruptible, log_to_stderr, read_job, say
from zmqrl.start.jobs import FollowerJob, Recorded, RecordingRequest, Skipped
from zmqrl.words import figure

if TYPE_CHECKING:
    from zmqrl.learner.picture import ScreenPixels, Shown
    from zmqrl.policy import Policy

HEIGHT, WIDTH = 640, 1280  # pixels of the largest enlarged video
FORMATS = {".mp4": 16384, ".gif": 65535}  # pixels of the longest side
ENOUGH_TO_FAIL_BYTES = 1 << 16
OPENED_WITHIN_S = 60.0
GIF_END = b"\0;"
GIF_FRAMES_PER_S = 50  # at most: browsers show shorter frames for a tenth of a second
PALETTES = "split[frame][colours];[colours]palettegen=stats_mode=single[palette];[frame][palette]paletteuse=new=1"

# Without this variable, imageio-ffmpeg runs Python code in a fork while the emulator's threads run, to protect ffmpeg
# from Ctrl-C.
os.environ["IMAGEIO_FFMPEG_NO_PREVENT_SIGINT"] = "1"


@dataclass(frozen=True, kw_only=True)
class Options:
    """Play one full game with the policy of a run and write it as a video."""

    run: RunPath
    """The run directory."""
    checkpoint: Annotated[int | None, tyro.conf.arg(metavar="V")] = None
    """Version of the checkpoint to play. None: the newest."""
    output: Path | None = None
    """Video to write: .mp4 or .gif. None: RUN/videos/v<version>.mp4."""
    seed: int = 0
    """Seed of the game. `zmqrl eval` plays the same game for the same seed."""
    greedy: bool = False
    """Take the most probable action instead of sampling one."""
    seconds: float = 120.0
    """Maximum length of the video in seconds. A longer game is cut."""
    json: bool = False
    """Print one JSON object."""


@interruptible()
def run(options: Options) -> int:
    """Record one game and print its result."""
    require_extra("video", "zmqrl record needs")
    output, seconds = options.output, options.seconds
    require(0 <= options.seed < 2**32, f"--seed {options.seed}: must be at least 0 and below 2^32.")
    require(0 < seconds < 86_400, f"--seconds {seconds:g}: must be above 0 and below 86400 (a day).")
    require(output is None or output.suffix in FORMATS, f"--output {output}: the name must end with .mp4 or .gif.")
    here = Path.cwd()  # the user's code may change the working directory
    with prints_to_stderr():
        policy = zmqrl.load_policy(options.run, options.checkpoint)
        path = options.output or video_path(options.run, policy)
        result = record(policy, here / path, seed=options.seed, greedy=options.greedy, seconds=options.seconds)
    if options.json:
        print_json(result)
        return 0
    end = "" if result["whole"] else ", cut at the maximum length (--seconds)"
    sys.stdout.write(
        f"{path}: {result['video_s']:.0f} s of {policy.env_id}, version {policy.version}, "
        f"seed {options.seed}, score {figure(result['score'])}{end}\n"
    )
    return 0


def video_path(run: Path, policy: "Policy", name: str = "") -> Path:
    """The path of a video in a run directory: ``videos/<name>-v00001234.mp4``."""
    return run / "videos" / f"{name}{'-' if name else ''}v{policy.version:08d}.mp4"


def record(
    policy: "Policy", path: Path, *, seed: int, greedy: bool, seconds: float = Options.seconds
) -> dict[str, Any]:
    """Play the game of ``seed`` and write it to ``path``. Returns the result as ``--json`` prints it.

    The policy sees its own frames. The video shows a second game in colour, with the same seed and actions. Raises
    UsageError if the environment cannot be drawn, or if ffmpeg cannot be run or cannot write the file.
    """
    from zmqrl.learner.picture import make_picture  # takes seconds

    ffmpeg()
    picture = make_picture(policy.env_id, policy.config.envs)
    whole = False
    with closing(picture), closing(whole_game(policy, seed, greedy=greedy)) as turns:
        shown = picture.reset(seed)
        with video_at(path, picture.frames_per_s, *shown.screens) as video:
            for turn in turns:
                before, shown = shown, picture.step(turn.action)
                if not _is_same(turn, before, shown):
                    raise UsageError(
                        f"{policy.env_id} cannot be recorded: it does not repeat a game for the same seed and actions."
                    )
                for screen in shown.screens:
                    video.add(screen)
                if video.frames >= seconds * picture.frames_per_s:
                    break
            else:
                whole = True
    return {
        "path": str(path),
        "env": policy.env_id,
        "version": policy.version,
        "wall_s": policy.wall_s,
        "agent_steps": policy.agent_steps,
        "greedy": greedy,
        "seed": seed,
        "score": turn.score,
        "steps": turn.agent_steps,
        "video_s": video.frames / picture.frames_per_s,
        "whole": whole,
    }


@cache
def ffmpeg() -> str:
    """The path of ffmpeg. Raises UsageError if it cannot be run."""
    from imageio_ffmpeg import get_ffmpeg_exe

    try:
        program = str(get_ffmpeg_exe())
        quiet = subprocess.DEVNULL
        command = [program, "-version"]
        subprocess.run(command, stdin=quiet, stdout=quiet, stderr=quiet, check=True, timeout=OPENED_WITHIN_S)
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:
        raise UsageError("no ffmpeg can be run: install ffmpeg, or set IMAGEIO_FFMPEG_EXE to its path.") from error
    return program


def _is_same(turn: Turn, before: "Shown", shown: "Shown") -> bool:
    """Whether the picture shows the ``turn`` that the policy plays."""
    is_seen = before.observation is None or np.array_equal(before.observation, turn.observation)
    return is_seen and float(np.float32(shown.reward)) == turn.reward and shown.over == turn.over


def main() -> None:
    """Record a game for each message of the supervisor: the version of a checkpoint, and a name for the video."""
    job = FollowerJob.from_json(read_job(signal.SIGKILL))
    log = log_to_stderr("zmqrl.commands.measure.record")
    told = Messages()
    while True:
        request = RecordingRequest.from_json(told.get())
        log.info("recording version %d as %s", request.version, request.name)
        try:
            policy = zmqrl.load_policy(job.run_dir, request.version)
            path = video_path(job.run_dir, policy, request.name)
            say(Recorded(record(policy, path, seed=0, greedy=job.greedy)).to_json())
        except UsageError as error:
            log.info("skipping version %d: %s", request.version, error, exc_info=error.__cause__)
            say(Skipped(request.version, str(error)).to_json())


class _Video:
    """An unfinished video. An integer factor enlarges the picture, so that it stays sharp."""

    def __init__(self, path: Path, frames_per_s: float, first: "ScreenPixels") -> None:
        """``first`` is the first picture. Raises UsageError if it is too large."""
        from imageio_ffmpeg import write_frames

        height, width, _ = first.shape
        longest = FORMATS[path.suffix]
        require(
            max(height, width) <= longest,
            f"pictures of {width} x {height} pixels are too large: the limit of {path.suffix} is {longest} per side.",
        )
        path.touch()  # raises a clearer error than ffmpeg
        self.frames = 0
        least = 1 if min(height, width) > 1 else 2  # the sides of a video are even
        self._path, self._scale = path, max(least, min(HEIGHT // height, WIDTH // width))
        self._height, self._width = (side * self._scale // 2 * 2 for side in (height, width))
        form: dict[str, Any] = {"codec": "libx264", "quality": 8}
        parameters = ["-threads", "1"]  # a run may train on the other cores
        if path.suffix == ".gif":
            form = {"codec": "gif", "quality": None, "pix_fmt_out": "pal8"}
            fewer = f"fps={GIF_FRAMES_PER_S}," if frames_per_s > GIF_FRAMES_PER_S else ""
            parameters += ["-filter_complex_threads", "1", "-filter_complex", f"{fewer}{PALETTES}"]
        self._writer = write_frames(
            path,
            (self._width, self._height),
            fps=frames_per_s,
            macro_block_size=1,
            ffmpeg_log_level="quiet",
            output_params=parameters,
            **form,
        )
        self._writer.send(None)

    def add(self, screen: "ScreenPixels") -> None:
        image = screen.repeat(self._scale, 0).repeat(self._scale, 1)
        try:
            # Colours have half the resolution in an mp4, so its sides must be even.
            self._writer.send(np.ascontiguousarray(image[: self._height, : self._width]))
        except OSError as error:  # ffmpeg has ended
            raise self._failure() from error
        self.frames += 1

    def close(self) -> None:
        self._writer.close()

    def finish(self) -> None:
        """Check that a closed video is whole. Raises OSError."""
        # The writer hides the exit status of ffmpeg. After a failure, an mp4 cannot be opened, and a gif has no end.
        command = [ffmpeg(), "-v", "quiet", "-i", str(self._path), "-t", "0", "-f", "null", "-"]
        try:
            is_whole = subprocess.run(command, stdin=subprocess.DEVNULL, timeout=OPENED_WITHIN_S).returncode == 0
        except subprocess.TimeoutExpired:
            raise OSError(errno.EIO, f"ffmpeg did not open it within {OPENED_WITHIN_S:.0f} s") from None
        if is_whole and self._path.suffix == ".gif":
            with self._path.open("rb") as file:
                file.seek(-len(GIF_END), os.SEEK_END)
                is_whole = file.read() == GIF_END
        if not is_whole:
            raise self._failure()

    def _failure(self) -> OSError:
        """The reason why ffmpeg has failed, such as a full disk."""
        try:
            with self._path.open("ab") as file:
                file.write(bytes(ENOUGH_TO_FAIL_BYTES))
        except OSError as error:
            return error
        return OSError(errno.EIO, "ffmpeg did not finish the file")


@contextmanager
def video_at(path: Path, frames_per_s: float, first: "ScreenPixels") -> Iterator[_Video]:
    """A video whose first picture is ``first``. The file appears at ``path`` complete or not at all."""
    unfinished = path.with_name(f".{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with closing(_Video(unfinished, frames_per_s, first)) as video:
                video.add(first)
                yield video
            video.finish()  # not after Ctrl-C, which ends ffmpeg, too
            unfinished.replace(path)
        finally:
            unfinished.unlink(missing_ok=True)
    except OSError as error:
        reason = OSError(error.errno, error.strerror or str(error).partition("\n")[0], str(path))
        raise UsageError(refusal(reason, path)) from error


if __name__ == "__main__":
    main()
