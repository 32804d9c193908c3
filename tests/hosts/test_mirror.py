"""Files are copied back complete and in order, whatever breaks. Each file comes only from the host that owns it."""

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from support.rig import file_size_limit

from zmqrl.errors import ClusterError
from zmqrl.hostd import files
from zmqrl.hostd import messages as h
from zmqrl.hostd.files import PIECE_BYTES
from zmqrl.hosts.mirror import Mirror
from zmqrl.process_id import RECORDER, shard_id, worker_id
from zmqrl.ps.shard.history import last_version
from zmqrl.rundir import DAEMON_LOCK, RunDirectory


class Host:
    """A host whose daemon answers a request only when the test tells it to."""

    def __init__(self, name: str, place: Path) -> None:
        self.host, self.place = name, place
        self.up: str | None = "up"
        self.asked: list[h.Request] = []
        place.mkdir()

    def send(self, request: h.Request) -> None:
        self.asked.append(request)

    def write(self, name: str, text: str) -> None:
        path = self.place / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")

    def read(self, name: str) -> str:
        return (self.place / name).read_text(encoding="utf-8")

    def answer(self) -> h.Listing | h.Piece | h.Written | None:
        """Carry out the oldest request."""
        match self.asked.pop(0):
            case h.List(under):
                return h.Listing(files.sizes(self.place, under))
            case h.FetchPiece(path, offset):
                return files.read(self.place, path, offset)
            case h.Put(path, offset, data, unless):
                return h.Written(path, files.write(self.place, path, offset, base64.b64decode(data), unless))
            case h.Clean(whole):
                files.clean(self.place, whole=whole)
        return None


class World:
    def __init__(self, path: Path) -> None:
        self.home = RunDirectory(path / "home")
        self.home.path.mkdir()
        self.hosts = {name: Host(name, path / name) for name in ("h1", "h2")}
        host_of = {shard_id(0): "h1", shard_id(1): "h2", worker_id(0): "h2", RECORDER: "h2"}
        links: Any = self.hosts
        self.mirror = Mirror(links, self.home, host_of)

    def answer(self) -> None:
        """Let all hosts answer all of their requests."""
        while any(host.asked for host in self.hosts.values()):
            for name, host in self.hosts.items():
                if host.asked and (event := host.answer()) is not None:
                    self.mirror.take(name, event)

    def begin(self) -> None:
        """Begin the session, so that its processes write files from now on."""
        for shard in (0, 1):
            self.mirror.put_history(shard)
        self.answer()

    def look(self) -> None:
        self.mirror.step(1e9)
        self.mirror._listed_at = 0.0
        self.answer()

    def at_home(self, name: str) -> str:
        return (self.home.path / name).read_text(encoding="utf-8")


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def lines(first: int, last: int, generation: int = 1) -> str:
    return "".join(
        json.dumps({"version": version, "generation": generation}) + "\n" for version in range(first, last + 1)
    )


NAME = "history/shard-0.jsonl"


def test_a_growing_file_is_copied_back_piece_by_piece(world: World) -> None:
    text = lines(1, 80_000)
    assert len(text) > 2 * PIECE_BYTES
    for part in (10, 1000, len(text) // 2, len(text)):
        world.hosts["h1"].write(NAME, text[:part])
        world.look()
        assert world.at_home(NAME) == text[:part]


def test_each_file_is_copied_only_from_the_host_of_its_process(world: World) -> None:
    world.begin()
    world.hosts["h1"].write(NAME, lines(1, 5))
    world.hosts["h2"].write(NAME, lines(1, 9, generation=7))
    world.hosts["h2"].write("profile/worker-0.7.0.trace.blocks", "{}")
    world.hosts["h1"].write("profile/worker-0.7.0.trace.blocks", "{stale}")
    world.hosts["h2"].write("videos/minute-000-v00000000.mp4", "film")
    world.look()
    assert world.at_home(NAME) == lines(1, 5)
    assert world.at_home("profile/worker-0.7.0.trace.blocks") == "{}"
    assert world.at_home("videos/minute-000-v00000000.mp4") == "film"


OUTSIDE = [
    "../../.ssh/authorized_keys",
    "history/../../x",
    "/etc/passwd",
    "config.json",
    "history/",
    "logs/shard-0.log",
    "videos/a/../../../x",
    "videos/a/b",
    "videos/.x",
    "videos/..",
    "history/shard-0.jsonl/../../x",
    "history/shard-1.jsonl/../../x",
    "profile/worker-0.1.1.blocks/../../x",
]


@pytest.mark.parametrize("host", ["h1", "h2"])
@pytest.mark.parametrize("name", OUTSIDE)
def test_a_file_name_outside_the_mirrored_folders_is_ignored(world: World, name: str, host: str) -> None:
    world.mirror.take(host, h.Listing({name: 10}))
    assert world.hosts[host].asked == []


@pytest.mark.parametrize("name", OUTSIDE)
def test_a_host_cannot_answer_with_another_file_than_the_one_that_was_asked_for(world: World, name: str) -> None:
    world.mirror.take("h2", h.Listing({"videos/minute-000-v00000000.mp4": 4}))
    assert world.hosts["h2"].asked == [h.FetchPiece("videos/minute-000-v00000000.mp4", 0)]
    data = base64.b64encode(b"evil").decode()
    world.mirror.take("h2", h.Piece(name, 0, 4, data))
    assert not [path for path in world.home.path.parent.rglob("*") if path.is_file()]


def test_a_resume_copies_newer_history_lines_in_both_directions(world: World) -> None:
    for shard in (0, 1):
        path = world.home.history(shard)
        path.parent.mkdir(exist_ok=True)
        path.write_text(lines(1, 88))
    world.hosts["h1"].write(NAME, lines(1, 95))
    world.hosts["h2"].write("history/shard-1.jsonl", lines(1, 20, generation=9))  # from a session long ago
    assert world.mirror.copy_back(world.answer, within_s=5) == []
    assert last_version(world.home.history(0)) == 95
    assert last_version(world.home.history(1)) == 88
    for shard in (0, 1):
        world.mirror.put_history(shard)
    assert not world.hosts["h1"].asked, "it already has its history"
    world.answer()
    assert world.hosts["h1"].read(NAME) == lines(1, 95)
    assert world.hosts["h2"].read("history/shard-1.jsonl") == lines(1, 88)


@pytest.mark.parametrize("longest", [120, 150])
def test_a_history_that_does_not_continue_ours_is_replaced(world: World, longest: int) -> None:
    path = world.home.history(0)
    path.parent.mkdir(exist_ok=True)
    path.write_text(lines(1, 100) + lines(101, 120, generation=2))
    world.hosts["h1"].write(NAME, lines(1, longest))  # from a host that was away while another host took its place
    assert world.mirror.copy_back(world.answer, within_s=5) == []
    assert world.at_home(NAME) == lines(1, 100) + lines(101, 120, generation=2)
    world.begin()
    assert world.hosts["h1"].read(NAME) == world.at_home(NAME)


def test_a_host_that_lost_its_files_gets_them_again_and_our_copy_stays(world: World) -> None:
    host = world.hosts["h1"]
    world.begin()
    host.write(NAME, lines(1, 150))
    world.look()
    (host.place / NAME).write_text("")
    world.look()
    assert world.at_home(NAME) == lines(1, 150)
    world.mirror.reopened("h1")
    world.answer()
    assert host.read(NAME) == lines(1, 150)
    host.write(NAME, lines(1, 155))
    world.mirror.reopened("h1")
    world.answer()
    assert host.read(NAME) == lines(1, 155), "the host had more lines than our copy"


def test_a_follower_finds_its_checkpoints_after_its_host_was_lost(world: World) -> None:
    for version in (100, 200):
        path = world.home.checkpoints / f"v{version:08d}"
        path.mkdir(parents=True)
        for name in ("manifest.json", "model.safetensors", "optimizer-shard-00.safetensors"):
            (path / name).write_text(name)
        world.mirror.put_checkpoint(RECORDER, version)
    world.mirror.drop_checkpoint(RECORDER, 100)
    host = world.hosts["h2"]
    host.asked.clear()  # all requests were lost with the connection
    world.mirror.reopened("h2")
    world.answer()
    there = sorted(str(path.relative_to(host.place)) for path in host.place.rglob("*") if path.is_file())
    assert there == ["checkpoints/v00000200/manifest.json", "checkpoints/v00000200/model.safetensors"]


@pytest.mark.parametrize("to", [8, 10])
@pytest.mark.parametrize("something_else_first", [False, True])
def test_lines_from_before_and_after_a_rollback_are_never_mixed(
    world: World, to: int, something_else_first: bool
) -> None:
    host = world.hosts["h1"]
    host.write(NAME, lines(1, 10))
    world.begin()
    world.look()
    host.write(NAME, lines(1, 15))
    world.mirror.take("h1", h.Listing(files.sizes(host.place, ["history"])))
    answer = host.answer()  # lines 11 to 15, in transit
    world.mirror.rewind(lambda shard: to, generation=2)
    host.write(NAME, lines(1, to) + lines(to + 1, 12, generation=2))
    assert answer is not None
    if something_else_first:
        world.mirror.take("h1", h.Written("config.json", None))
    world.mirror.take("h1", answer)
    world.look()
    assert world.at_home(NAME) == lines(1, to) + lines(to + 1, 12, generation=2)


def test_a_rollback_cuts_each_history_to_the_version_of_its_shard(world: World) -> None:
    world.begin()
    for host, shard in (("h1", 0), ("h2", 1)):
        world.hosts[host].write(f"history/shard-{shard}.jsonl", lines(1, 15))
    world.look()
    world.mirror.rewind({0: 7, 1: 9}.__getitem__, generation=2)
    assert [last_version(world.home.history(shard)) for shard in (0, 1)] == [7, 9]


@pytest.mark.parametrize("in_transit", [False, True])
def test_a_history_that_cannot_be_rolled_back_here_is_copied_again_from_its_host(
    world: World, in_transit: bool
) -> None:
    host = world.hosts["h1"]
    world.begin()
    host.write(NAME, lines(1, 15))
    world.look()
    world.home.history(0).with_name("shard-0.before-generation-2.jsonl").mkdir()  # so even root cannot write this file
    if in_transit:
        host.write(NAME, lines(1, 16))
        world.mirror.take("h1", h.Listing(files.sizes(host.place, ["history"])))
    answer = host.answer() if in_transit else None
    world.mirror.rewind(lambda shard: 7, generation=2)
    (told,) = world.mirror.take_news()
    assert told.startswith(f"cannot write {world.home.history(0)}: ")
    assert told.endswith("; the file will be copied again from h1")
    host.write(NAME, lines(1, 7) + lines(8, 12, generation=2))
    if answer is not None:
        world.mirror.take("h1", answer)
    with file_size_limit(100):
        world.look()
    assert len(world.mirror.take_news()) == 1, "the disk is still full"
    world.look()
    assert world.at_home(NAME) == host.read(NAME)


def test_a_file_in_transit_still_arrives_after_its_host_was_lost(world: World) -> None:
    host = world.hosts["h1"]
    host.write(NAME, lines(1, 5))
    world.mirror.take("h1", h.Listing(files.sizes(host.place, ["history"])))
    host.asked.clear()  # the request was lost with the connection
    world.mirror.lost("h1")
    world.look()
    assert world.at_home(NAME) == lines(1, 5)


def test_copying_back_waits_for_every_host_and_names_those_that_do_not_answer(world: World) -> None:
    world.hosts["h1"].write(NAME, lines(1, 5))
    world.mirror.take("h1", h.Listing({NAME: 5}))  # a file is in transit at the start
    assert world.mirror.copy_back(world.answer, within_s=5) == []
    assert world.at_home(NAME) == lines(1, 5)
    world.hosts["h2"].up = None
    assert world.mirror.copy_back(world.answer, within_s=60) == ["h2"], "lost hosts must not delay the end"
    world.mirror.clean(whole=True, but=["h2"])
    assert [host.asked for host in world.hosts.values()] == [[h.Clean(whole=True)], []]
    world.hosts["h1"].asked.clear()
    world.hosts["h2"].up = "up"
    assert world.mirror.copy_back(lambda: None, within_s=0.1) == ["h1", "h2"]


def test_a_history_that_a_host_cannot_write_is_an_error(world: World) -> None:
    with pytest.raises(ClusterError, match=r"host h1 cannot write history/shard-0\.jsonl: no space"):
        world.mirror.take("h1", h.Written(NAME, "no space"))


def test_a_checkpoint_that_a_host_cannot_write_is_reported_once_with_the_error(world: World) -> None:
    put_checkpoints(world, 100, 200)
    with file_size_limit(1):
        for version in (100, 200):
            world.mirror.put_checkpoint(RECORDER, version)
        world.answer()
    error = "host h2 cannot write {}: File too large"
    assert world.mirror.why_missing(RECORDER, 200) == error.format("config.json")
    assert world.mirror.take_news() == [
        error.format("config.json") + "; recorder-0 skips the checkpoints that this host cannot write"
    ]
    world.mirror.drop_checkpoint(RECORDER, 100)
    world.mirror.put_checkpoint(RECORDER, 200)
    world.answer()
    assert world.mirror.why_missing(RECORDER, 200) is None
    assert world.hosts["h2"].read("checkpoints/v00000200/manifest.json") == "manifest.json"
    with file_size_limit(len("manifest.json")):  # the configuration fits, but the model does not
        world.mirror.put_checkpoint(RECORDER, 200)
        world.answer()
    model = "checkpoints/v00000200/model.safetensors"
    assert world.mirror.why_missing(RECORDER, 200) == error.format(model)
    (told,) = world.mirror.take_news()
    assert told.startswith(error.format(model)), "the host had written a whole checkpoint since the last notice"


def test_a_later_piece_does_not_hide_that_an_earlier_one_could_not_be_written(world: World) -> None:
    put_checkpoints(world, 100)
    model, manifest = "checkpoints/v00000100/model.safetensors", "checkpoints/v00000100/manifest.json"
    (world.home.path / model).write_bytes(bytes(PIECE_BYTES + 1))
    world.mirror.put_checkpoint(RECORDER, 100)
    for path, error in (("config.json", None), (model, "no space"), (model, None), (manifest, None)):
        world.mirror.take("h2", h.Written(path, error))
    assert world.mirror.why_missing(RECORDER, 100) == f"host h2 cannot write {model}: no space"
    world.mirror.take("h1", h.Written(model, "no space"))
    assert len(world.mirror.take_news()) == 1, "no process on h1 needs this file"


def put_checkpoints(world: World, *versions: int) -> None:
    """Write checkpoints of a run here. Each file contains its own name."""
    world.home.config.write_text("{}")
    for version in versions:
        path = world.home.checkpoints / f"v{version:08d}"
        path.mkdir(parents=True)
        for name in ("manifest.json", "model.safetensors"):
            (path / name).write_text(name)


def test_cleaning_removes_the_files_or_the_whole_directory(world: World) -> None:
    host = world.hosts["h1"]
    host.write(NAME, lines(1, 5))
    (host.place / DAEMON_LOCK).touch()
    world.mirror.clean(whole=False)
    world.answer()
    assert [path.name for path in host.place.iterdir()] == [DAEMON_LOCK]
    world.mirror.clean(whole=True)
    world.answer()
    assert not host.place.exists()


def test_a_file_that_cannot_be_written_here_stays_on_its_host_until_it_can(world: World) -> None:
    world.begin()
    world.hosts["h1"].write(NAME, lines(1, 5))
    world.hosts["h2"].write("profile/worker-0.7.0.trace.blocks", "spans")
    with file_size_limit(10):
        world.look()
        world.look()
        assert world.mirror.copy_back(world.answer, within_s=60) == ["h1"], "the end does not wait for space here"
    assert world.at_home("profile/worker-0.7.0.trace.blocks") == "spans"
    (told,) = world.mirror.take_news()
    assert told.startswith(f"cannot write {world.home.path / NAME}: ")
    assert told.endswith("; h1 keeps it until it can be written")
    assert world.mirror.take_news() == []
    assert world.mirror.copy_back(world.answer, within_s=60) == []
    assert world.at_home(NAME) == lines(1, 5)


def test_a_kind_of_files_that_cannot_be_written_here_is_reported_once(world: World) -> None:
    world.begin()
    for block in range(5):
        world.hosts["h2"].write(f"profile/worker-0.7.{block}.trace.blocks", "a longer block")
    with file_size_limit(10):
        for block in range(4):  # the oldest file on the host is always another one
            world.look()
            (world.hosts["h2"].place / f"profile/worker-0.7.{block}.trace.blocks").unlink()
    assert len(world.mirror.take_news()) == 1
    world.hosts["h1"].write(NAME, lines(1, 5))
    with file_size_limit(10):
        world.look()
    assert [str(world.home.path / NAME) in text for text in world.mirror.take_news()] == [True]
    world.look()
    assert world.at_home("profile/worker-0.7.4.trace.blocks") == "a longer block"
    world.hosts["h2"].write("profile/worker-0.7.5.trace.blocks", "a longer block")
    with file_size_limit(10):
        world.look()
    assert len(world.mirror.take_news()) == 1
