"""Recovery of a killed run and its counters from the slots of its shards. See also test_run_faults.py."""

import contextlib
import dataclasses
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.messages import stats_with
from support.record_rig import row, run_directory
from support.rig import SGD, damage_newest_slot, file_size_limit, forget_totals, served, toy_workers

from zmqrl import cli
from zmqrl.checkpoint import Checkpoint, checkpoints
from zmqrl.errors import ClusterError
from zmqrl.hosts.daemons import DaemonLauncher
from zmqrl.hosts.deployment import on_this_machine
from zmqrl.hosts.link import DAEMON, Link
from zmqrl.hosts.reach import HostOptions
from zmqrl.learner.envs import describe_env
from zmqrl.observe.metrics import OUTCOMES, SCORES_KEPT, Counters
from zmqrl.process_id import shard_id
from zmqrl.ps.control import ShardControl
from zmqrl.ps.layout import Layout
from zmqrl.ps.shard.history import History
from zmqrl.ps.wire import messages as m
from zmqrl.recipes import cartpole
from zmqrl.rundir import RunDirectory, write_json
from zmqrl.start.initial import initial_checkpoint
from zmqrl.supervisor import salvage as salvage_module
from zmqrl.supervisor.salvage import counters_at, remove_files, salvage, to_save
from zmqrl.supervisor.tasks import RunTasks

pytestmark = pytest.mark.processes

LAYOUT = Layout.of([("w", (40,))], 2)


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(salvage_module, "PAUSE_S", 0.0)


def checkpoint(version: int, counters: dict[str, Any], versions: tuple[int, ...] = ()) -> Checkpoint:
    return Checkpoint(
        layout=LAYOUT,
        generation=1,
        version=version,
        versions=versions,
        optimizer="sgd",
        state_names=(),
        states=tuple(np.zeros(cut.count, "<f4").tobytes() for cut in LAYOUT.slices),
        counters=counters,
    )


# which versions


def welcome(shard: int, version: int, **fields: Any) -> m.Welcome:
    about: dict[str, Any] = {"run": "r", "incarnation": 1, "generation": 2, "view": 1, "quorum": 1, "members": (0,)}
    about |= {"codec": "f32", "state": "ended", "published": True, **fields}
    return m.Welcome(shard=shard, version=version, **about)


def saved(first: m.Welcome, second: m.Welcome, made: int = 0, **options: Any) -> dict[int, int] | None:
    newest = options.pop("newest", checkpoint(5, {}))
    return to_save({0: first, 1: second}, {0: made, 1: made}, newest, **{"together": True, **options})


def test_of_two_consecutive_versions_the_lower_one_is_saved() -> None:
    assert saved(welcome(0, 7), welcome(1, 7)) == {0: 7, 1: 7}
    assert saved(welcome(0, 8), welcome(1, 7)) == {0: 7, 1: 7}


def test_the_version_before_a_damaged_one_is_saved_only_if_the_other_shard_still_has_it() -> None:
    assert saved(welcome(0, 99), welcome(1, 100), made=100) == {0: 99, 1: 99}
    with pytest.raises(ClusterError, match="the shards hold no version in common: they are at 99 to 101"):
        saved(welcome(0, 99), welcome(1, 101), made=100)


def test_asynchronous_shards_are_saved_at_their_own_versions() -> None:
    assert saved(welcome(0, 709), welcome(1, 711), together=False) == {0: 709, 1: 711}
    newest = checkpoint(709, {}, (709, 711))
    assert saved(welcome(0, 709), welcome(1, 711), together=False, newest=newest) is None
    assert saved(welcome(0, 709), welcome(1, 712), together=False, newest=newest) == {0: 709, 1: 712}


@pytest.mark.parametrize(
    ("first", "second", "made"),
    [
        (welcome(0, 5), welcome(1, 5), 5),
        (welcome(0, 6), welcome(1, 5), 5),
        (welcome(0, 5), welcome(1, 5, generation=1), 5),
        (welcome(0, 5), welcome(1, 0, state="empty"), 0),  # killed while the run started
        (welcome(0, 0, state="empty"), welcome(1, 0, state="empty"), 5),
    ],
)
def test_nothing_is_saved_if_nothing_was_learned_since_the_checkpoint(
    first: m.Welcome, second: m.Welcome, made: int
) -> None:
    assert saved(first, second, made) is None


@pytest.mark.parametrize(
    ("other", "why"),
    [
        (welcome(1, 0, state="empty"), "shard 1 has no intact version, but it had made version 7."),
        (welcome(1, 8, generation=3), "only some of its shards had gone back to a checkpoint when it was killed"),
        (welcome(1, 5, generation=3), "the shards were going back to version 5 when the run was killed."),
        (welcome(1, 10), "the shards hold no version in common: they are at 7 to 10."),
    ],
)
def test_an_error_says_why_there_is_no_common_version(other: m.Welcome, why: str) -> None:
    with pytest.raises(ClusterError, match=why):
        saved(welcome(0, 7), other, made=7)


def test_a_shard_without_versions_and_history_is_named() -> None:
    welcomes = {0: welcome(0, 7), 1: welcome(1, 0, state="empty")}
    with pytest.raises(ClusterError, match=r"shard 1 has no intact version, but other shards have made version 7\."):
        to_save(welcomes, {0: 7, 1: 0}, checkpoint(5, {}), together=True)


# which figures


def test_the_figures_come_from_the_shards_and_the_newest_row(tmp_path: Path) -> None:
    rows = [row(1), row(2), row(4, episodes=30, abandoned_steps=5)]
    directory = RunDirectory(run_directory(tmp_path / "run", rows))
    start = Counters(version=20, agent_steps=2000, wall_s=2.0, scores=(1.0, 2.0), compute=("float32",)).to_json()
    counters = counters_at(42, told((168, 3, 0, 40), (168, 22, 0, 40)), checkpoint(20, start), directory, no_news)
    assert counters.contributions == {"used": 336, "late": 25, "duplicate": 0, "rejected": 80, "skipped": 0}
    assert (counters.version, counters.agent_steps, counters.abandoned_steps, counters.episodes) == (42, 4200, 5, 30)
    assert counters.wall_s == pytest.approx(4.2)
    assert counters.scores == (4.0,) * 30
    assert counters.compute == ("float32",)
    many = RunDirectory(run_directory(tmp_path / "many", [row(1), row(4, episodes=300)]))
    assert len(counters_at(40, told(), checkpoint(20, {}), many, no_news).scores) == SCORES_KEPT


def test_the_figures_of_the_checkpoint_are_kept_if_no_row_is_newer(tmp_path: Path) -> None:
    directory = RunDirectory(run_directory(tmp_path / "run", [row(1), row(2)]))
    contributions = dict.fromkeys(OUTCOMES, 0) | {"skipped": 4}
    start = Counters(version=20, agent_steps=2000, wall_s=2.0, scores=(1.0, 2.0), contributions=contributions)
    counters = counters_at(21, told(), checkpoint(20, start.to_json()), directory, no_news)
    assert (counters.version, counters.agent_steps, counters.scores) == (21, 2100, (1.0, 2.0))
    assert counters.contributions["skipped"] == 4
    new = RunDirectory(run_directory(tmp_path / "new"))
    assert counters_at(3, told(), checkpoint(0, {}), new, no_news).agent_steps == 0


@pytest.mark.parametrize("damage", [b"\xff", b'{"version": 1e999}', b"[]", b'{"version": 40, "wall_s": null}'])
def test_damaged_rows_are_reported_and_left_out(tmp_path: Path, damage: bytes) -> None:
    directory, news = RunDirectory(run_directory(tmp_path / "run", [row(3), row(4)])), list[str]()
    with directory.metrics.open("ab") as file:
        file.write(damage + b"\n")
    assert counters_at(42, told(), checkpoint(20, {}), directory, news.append).agent_steps == 4200
    assert news == [f"{directory.metrics} is damaged: line 3 cannot be read; the run continues without that data"]


def test_a_row_that_lacks_some_figures_supplies_its_other_figures(tmp_path: Path) -> None:
    short: dict[str, Any] = {"version": 40, "wall_s": 4.0, "agent_steps": 4000, "episodes": None, "abandoned_steps": {}}
    directory = RunDirectory(run_directory(tmp_path / "run", [short]))
    counters = counters_at(40, told(), checkpoint(20, Counters(version=20, episodes=3).to_json()), directory, no_news)
    assert (counters.agent_steps, counters.episodes, counters.contributions["skipped"]) == (4000, 3, 0)


def no_news(text: str) -> None:
    pytest.fail(text)


def told(*totals: tuple[int, int, int, int]) -> dict[int, m.Stats]:
    """The statistics of shards that have captured a version."""
    stats = stats_with(version=43, quorum=2, state="ended", captured=42, totals=(500, 500, 500, 500), stop=43)
    each = totals or ((0, 0, 0, 0), (0, 0, 0, 0))
    return {shard: dataclasses.replace(stats, shard=shard, captured_totals=of) for shard, of in enumerate(each)}


# real shards


@dataclass
class Killed:
    """A run that was killed when it had only its first checkpoint. Its shards hold ``vector``."""

    directory: RunDirectory
    checkpoint: Checkpoint
    vector: Any
    news: list[str]

    def salvage(self) -> Checkpoint:
        return salvage(self.directory, self.checkpoint, self.news.append)

    def refusal(self) -> str:
        """Try to save, and assert that this fails and changes no file. Returns the error."""
        before = self.state()
        with pytest.raises(ClusterError) as refused:
            self.salvage()
        assert self.state() == before
        assert refused.value.exit_status == 3
        return str(refused.value)

    def state(self) -> dict[str, bytes]:
        paths = [self.directory.left, *(self.directory.path / "state").iterdir(), self.directory.checkpoints]
        return {path.name: path.read_bytes() if path.is_file() else b"" for path in paths if path.exists()}


def killed(path: Path, first: int, second: int, *, mode: str = "sync", workers: int = 2) -> Killed:
    """Let workers train until the two shards have made these versions, then leave the run as after a kill."""
    directory, apart = RunDirectory(path), first != second
    path.mkdir()
    config = dataclasses.replace(cartpole(), optimizer=SGD, shards=2, mode=mode)  # type: ignore[arg-type]
    initial = initial_checkpoint(config, describe_env(config.env, config.envs))
    initial.write(directory.checkpoints)
    write_json(directory.config, config.to_json())
    options: dict[str, Any] = {"layout": initial.layout, "start": initial.vector(), "workers": workers}
    with served(path, asynchronous=apart or mode == "async", **options) as running:
        for shard, version in enumerate((first, second)):
            assert running.shards.control.send(shard, m.Stop(run=running.cluster.run, version=version))
        with toy_workers([running.cluster] * workers):
            pass
        assert [stats.version for stats in running.stats()] == [first, second]
        held = running.end_with(first) if not apart else None
    here: dict[str, Any] = {"host": "localhost", "command": [], "work": str(path), "lease_s": None}
    shards = [{"shard": shard, "host": "h", "control": f"ipc://{path}/{shard}-control"} for shard in range(2)]
    left = {"run": running.cluster.run, "config": config.to_json(), "hosts": [here], "shards": shards}
    write_json(directory.left, left)
    return Killed(directory, initial, held, [])


@pytest.fixture
def run(tmp_path: Path) -> Killed:
    return killed(tmp_path / "run", 7, 7)


def assert_saved(run: Killed) -> None:
    found = run.salvage()
    assert (found.version, found.versions) == (7, ())
    np.testing.assert_array_equal(found.vector(), run.vector)
    assert Checkpoint.read(checkpoints(run.directory.checkpoints)[-1]).states == found.states
    assert found.counters["contributions"]["used"] == 7 * 2 * 2
    assert not run.directory.left.exists()


def test_the_current_version_of_the_shards_becomes_a_checkpoint(run: Killed) -> None:
    assert_saved(run)
    assert run.news == ["saved version 7 of the shards as a checkpoint"]
    assert run.salvage() is run.checkpoint, "there is nothing more to save"


def test_the_lower_version_of_two_shards_becomes_a_checkpoint(tmp_path: Path) -> None:
    found = killed(tmp_path / "run", 8, 7, workers=1).salvage()
    assert (found.version, found.versions) == (7, ())


def test_asynchronous_shards_become_a_checkpoint_with_their_own_versions(tmp_path: Path) -> None:
    run = killed(tmp_path / "run", 9, 12, mode="async")
    found = run.salvage()
    assert (found.version, found.versions) == (9, (9, 12))
    assert found.counters["contributions"]["used"] == 9 + 12
    assert run.news == ["saved versions 9 to 12 of the shards as a checkpoint"]


def damage_slots(run: Killed) -> None:
    path = run.directory.state(1)
    content = path.read_bytes()
    path.write_bytes(content[:4096] + bytes(byte ^ 1 for byte in content[4096:]))


def cut_slots(run: Killed) -> None:
    path = run.directory.state(1)
    path.write_bytes(path.read_bytes()[:-1])


def block_history(run: Killed) -> None:
    run.directory.history(1).rename(run.directory.path / "aside")
    run.directory.history(1).mkdir()


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (damage_slots, "shard 1 has no intact version, but it had made version 7"),
        (cut_slots, "state/shard-1.slots is damaged, or belongs to another run"),
        (block_history, "cannot write {}/history/shard-1.jsonl: Is a directory"),
    ],
)
def test_state_that_cannot_be_read_now_is_kept_for_another_attempt(
    run: Killed, damage: Callable[[Killed], None], why: str
) -> None:
    passing = damage is not damage_slots
    whole = run.directory.state(1).read_bytes()
    damage(run)
    refusal = run.refusal()
    assert refusal.startswith("cannot read the state of the killed run: ")
    assert why.format(run.directory.path) in refusal
    assert refusal.endswith(
        f". The state is kept in {run.directory.path}/state: {'try --resume again, or ' if passing else ''}remove "
        f"{run.directory.left} to resume from checkpoint v00000000 and lose everything after it."
    )
    assert len(run.news) == (2 if passing else 0), "a temporary problem must be retried twice"
    run.news.clear()
    run.directory.state(1).write_bytes(whole)
    if run.directory.history(1).is_dir():
        run.directory.history(1).rmdir()
        (run.directory.path / "aside").rename(run.directory.history(1))
    assert_saved(run)


def test_the_previous_version_is_saved_if_the_newest_of_a_shard_is_damaged(run: Killed) -> None:
    assert damage_newest_slot(run.directory.state(1)) == 7
    found = run.salvage()
    assert (found.version, found.counters["contributions"]["used"]) == (6, 2 * 2 * 6)
    assert run.news[0] == "version 7 of shard 1 is lost: its state was damaged"


def test_a_version_that_a_rollback_undid_is_not_saved(run: Killed) -> None:
    """Both shards have gone back to the checkpoint, but the version that they loaded is damaged."""
    for shard in range(2):
        history = History(run.directory.history(shard))
        history.rewind(0, generation=9)
        history.close()
    assert run.salvage() is run.checkpoint
    assert run.news == []


def test_a_resume_does_not_wait_for_the_state_of_a_shard_that_never_had_one(run: Killed) -> None:
    path = run.directory.state(1)
    path.write_bytes(path.read_bytes()[:4096] + bytes(path.stat().st_size - 4096))
    assert run.salvage() is run.checkpoint
    assert run.news == [f"everything after version 0 is lost: there is no state in {path} on localhost."]


def test_slots_without_totals_from_an_older_zmqrl_are_read(tmp_path: Path) -> None:
    run = killed(tmp_path / "run", 9, 8, workers=1)
    forget_totals(run.directory.state(0))
    found = run.salvage()
    assert (found.version, found.counters["contributions"]["used"]) == (8, 2 * 8)


def test_shards_without_a_common_version_are_not_changed(tmp_path: Path) -> None:
    assert "no version in common: they are at 9 to 12. The state is kept" in killed(tmp_path / "run", 9, 12).refusal()


def test_shards_in_an_incomplete_rollback_are_not_changed(run: Killed, monkeypatch: pytest.MonkeyPatch) -> None:
    greet = ShardControl.greet

    def greet_one_that_went_back(*arguments: Any, **options: Any) -> dict[int, m.Welcome]:
        welcomes = greet(*arguments, **options)
        return welcomes | {1: dataclasses.replace(welcomes[1], generation=9)}

    monkeypatch.setattr(ShardControl, "greet", greet_one_that_went_back)
    assert "only some of its shards had gone back to a checkpoint" in run.refusal()


def test_a_resume_that_cannot_read_the_state_ends_and_changes_nothing(run: Killed) -> None:
    damage_slots(run)
    before = run.state()
    with pytest.raises(ClusterError, match="cannot read the state of the killed run"):
        cli.run(["train", "--resume", "--run-dir", str(run.directory.path)])
    assert run.state() == before


def test_a_temporary_problem_is_retried(run: Killed) -> None:
    block_history(run)

    def mend(text: str) -> None:
        if "cannot read the state of the killed run yet: shard-1 died (exit status 3)" in text:
            run.directory.history(1).rmdir()
            (run.directory.path / "aside").rename(run.directory.history(1))
        run.news.append(text)

    found = salvage(run.directory, run.checkpoint, mend)
    assert (found.version, len(run.news)) == (7, 2)


def test_a_shard_killed_while_its_state_is_read_is_read_again(run: Killed, monkeypatch: pytest.MonkeyPatch) -> None:
    frozen_shards, kills = salvage_module._frozen_shards, iter([True])

    @contextlib.contextmanager
    def killing(tasks: RunTasks, launcher: DaemonLauncher, notice: Callable[[str], None]) -> Iterator[ShardControl]:
        with frozen_shards(tasks, launcher, notice) as control:
            if next(kills, False):
                os.kill(launcher.pids()[shard_id(1)], signal.SIGKILL)
            yield control

    monkeypatch.setattr(salvage_module, "_frozen_shards", killing)
    assert_saved(run)
    assert "shard-1 died (killed by SIGKILL)" in run.news[0]


def test_damaged_figures_do_not_lose_versions(run: Killed) -> None:
    for path in (run.directory.metrics, run.directory.evaluations, run.directory.summary):
        path.write_bytes(b"\xff\n\n")
    assert_saved(run)
    assert f"{run.directory.metrics} is damaged: line 1 and 1 other line cannot be read" in run.news[0]


def test_a_lost_history_does_not_lose_versions(run: Killed) -> None:
    run.directory.history(0).unlink()
    assert_saved(run)


def test_a_run_continues_from_the_checkpoint_if_the_state_of_a_shard_no_longer_exists(run: Killed) -> None:
    run.directory.state(1).unlink()
    assert run.salvage() is run.checkpoint
    assert run.news == [
        f"everything after version 0 is lost: there is no state in {run.directory.state(1)} on localhost."
    ]
    assert not run.directory.left.exists()
    assert not run.directory.state(1).exists()


def test_slots_that_seem_damaged_are_kept(run: Killed) -> None:
    left = json.loads(run.directory.left.read_text(encoding="utf-8"))
    left["run"] = "0" * 16  # now the slots are those of another run
    write_json(run.directory.left, left)
    assert "state/shard-0.slots is damaged, or belongs to another run" in run.refusal().replace(
        "shard-1.slots", "shard-0.slots"
    )


@pytest.mark.parametrize(
    ("options", "bound"),
    [
        ({}, "ipc://{}/sockets/1-frozen"),
        ({"transport": "tcp"}, "tcp://127.0.0.1:0"),
        ({"port_range": "9000-9005"}, "tcp://127.0.0.1:9005"),
    ],
)
def test_a_shard_started_only_to_be_read_avoids_its_old_address_if_it_can(
    tmp_path: Path, options: dict[str, Any], bound: str
) -> None:
    wire = dataclasses.replace(cartpole().wire, **options)
    config, directory = dataclasses.replace(cartpole(), wire=wire), RunDirectory(tmp_path)
    deployment = on_this_machine(config, directory)
    with contextlib.closing(deployment.launcher):
        job = RunTasks(config, directory, LAYOUT, deployment).shard_task(1, None, frozen=True).job
    assert job is not None
    assert (job["frozen"], job["bind"]) == (True, {"control": bound.format(tmp_path)})


# left.json and the hosts


@pytest.mark.parametrize(
    "left",
    [
        "{",
        "[]",
        "{}",
        '{"run": "r", "config": {"nonsense": 1}}',
        '{"run": "r", "config": {}, "hosts": [{}], "shards": []}',
        '{"run": "r", "config": {}, "hosts": [], "shards": 3}',
        '{"run": "r", "config": {}, "hosts": [], "shards": []}',
        '{"run": "r", "config": {"shards": 1}, "hosts": [{"host": "h1", "command": [], "work": "w", "lease_s": 8.0}], '
        '"shards": [{"shard": 0, "host": "h2", "control": "tcp://h2:1"}]}',
    ],
)
def test_a_resume_changes_nothing_if_left_json_is_damaged(tmp_path: Path, left: str) -> None:
    directory, news = RunDirectory(tmp_path), list[str]()
    newest = checkpoint(20, {})
    assert salvage(directory, newest, news.append) is newest
    assert news == []
    directory.left.write_text(left)
    with pytest.raises(ClusterError, match=f"the killed run: {directory.left} is damaged: .* remove {directory.left}"):
        salvage(directory, newest, news.append)
    assert directory.left.read_text() == left


def left_on_a_host(directory: RunDirectory, says: str, **settings: Any) -> None:
    command = ["sh", "-c", f"echo {says} >&2; exit 1"]
    host = {"host": "h9", "command": command, "work": "run", "lease_s": 8.0}
    shards = [{"shard": shard, "host": "h9", "control": f"tcp://10.0.0.1:{9000 + shard}"} for shard in range(2)]
    config = cartpole().to_json() | settings
    write_json(directory.left, {"run": "r", "config": config, "hosts": [host], "shards": shards})


@pytest.mark.parametrize("stored", [{"metrics_port": "0.0.0.0:80"}, {"wire": {"address": "10.9.9.9"}}])
def test_left_json_is_read_even_if_its_settings_cannot_start_a_run(tmp_path: Path, stored: dict[str, Any]) -> None:
    directory, news = RunDirectory(tmp_path), list[str]()
    left_on_a_host(directory, "no route to host", **stored)
    with pytest.raises(ClusterError, match=r"the killed run: h9: no route to host\. The state is kept on h9"):
        salvage(directory, checkpoint(20, {}), news.append)


def test_an_unreachable_host_is_named_and_left_json_stays(tmp_path: Path) -> None:
    directory, news = RunDirectory(tmp_path), list[str]()
    left_on_a_host(directory, "no route to host")
    with pytest.raises(
        ClusterError, match=r"the killed run: h9: no route to host\. The state is kept on h9: try --resume again"
    ):
        salvage(directory, checkpoint(20, {}), news.append)
    assert directory.left.exists()


def test_a_run_that_also_used_the_machine_of_its_launcher_is_resumed_only_there(tmp_path: Path) -> None:
    directory, asked = RunDirectory(tmp_path), tmp_path / "asked"
    left_on_a_host(directory, "no route to host")
    left = json.loads(directory.left.read_text(encoding="utf-8"))
    left["hosts"][0] |= {"host": "localhost", "command": ["sh", "-c", f"touch {asked}"]}
    left["shards"][1]["host"] = "localhost"
    left["hosts"].append(left["hosts"][0] | {"host": "h9"})
    write_json(directory.left, left | {"supervisor": {"host": "another", "pid": 1}})
    before = directory.left.read_bytes()
    with pytest.raises(ClusterError) as refused:
        salvage(directory, checkpoint(20, {}), no_news)
    assert str(refused.value).startswith(
        "cannot read the state of the killed run: localhost was the machine another, which launched the run: resume it "
        "there. The state is kept on h9, localhost: remove "
    )
    assert refused.value.exit_status == 3
    assert directory.left.read_bytes() == before
    assert not asked.exists()


@pytest.mark.parametrize(
    "says",
    [
        "srun: Check SLURM_JOB_ID environment variable. Expired or invalid job 1",
        # The job was requeued and now has other nodes.
        "srun: error: Unable to create step for job 2: Requested node configuration is not available",
    ],
)
def test_a_node_that_was_returned_to_slurm_is_not_asked_again(tmp_path: Path, says: str) -> None:
    directory, news = RunDirectory(tmp_path), list[str]()
    left_on_a_host(directory, says)
    newest = checkpoint(20, {})
    assert salvage(directory, newest, news.append) is newest
    assert news == [f"everything after version 20 is lost: h9: {says}"]
    assert not directory.left.exists()
    remove_files(directory, news.append)
    assert len(news) == 1, "its files are gone, too"
    assert not directory.old_hosts.exists()


def test_shards_that_are_read_get_the_variables_of_the_hosts_file_again(tmp_path: Path) -> None:
    directory, hosts = RunDirectory(tmp_path), tmp_path / "hosts.toml"
    left_on_a_host(directory, "no route to host")
    left = json.loads(directory.left.read_text(encoding="utf-8"))
    left["hosts"][0] |= {"command": [sys.executable, *DAEMON], "work": str(tmp_path / "h9")}
    write_json(directory.left, left)
    hosts.write_text('[[host]]\nname = "h9"\nenv = { A_TOKEN = "secret" }\n')
    write_json(directory.hosts, {"hosts": [], "given": HostOptions(hosts=str(hosts)).read().to_json()})

    def variables() -> dict[str, str]:
        with salvage_module._where_it_was(salvage_module._Left.read(directory.left), directory) as deployment:
            return deployment.files.links["h9"].environment

    assert variables() == {"A_TOKEN": "secret"}
    hosts.unlink()
    assert variables() == {}


@pytest.fixture
def old_hosts(tmp_path: Path) -> RunDirectory:
    """A run whose state has been read. It had a shard on h9, which cannot be reached, and its recorder on h1."""
    directory = RunDirectory(tmp_path / "run")
    directory.path.mkdir()
    left_on_a_host(directory, "no route to host")
    left = json.loads(directory.left.read_text(encoding="utf-8"))
    for host in ("h1", "h2"):
        (tmp_path / host / "videos").mkdir(parents=True)
        (tmp_path / host / "videos" / "v00000020.mp4").write_text(f"of {host}")
        at = {"command": [sys.executable, *DAEMON], "work": str(tmp_path / host), "lease_s": 8.0}
        left["hosts"].append({"host": host, **at})
    write_json(directory.old_hosts, left | {"followers": [{"name": "recorder-0", "host": "h1", "pid": 1}]})
    directory.left.unlink()
    return directory


def new_link(run: RunDirectory, host: str) -> Link:
    """A link of the resumed run to ``host``, with the same directory there."""
    work = "run" if host == "h9" else str(run.path.parent / host)
    return Link(host, [], work=work, lease_s=None)


def test_the_files_of_a_killed_run_are_moved_from_another_directory_on_the_same_host(old_hosts: RunDirectory) -> None:
    """The name of the directory depends on the machine of the launcher, and on the path of the run directory."""
    moved = Link("h1", [], work=str(old_hosts.path.parent / "moved"), lease_s=None)
    others = {host: new_link(old_hosts, host) for host in ("h2", "h9")}
    news: list[str] = []
    remove_files(old_hosts, news.append, but={"h1": moved, **others})
    assert news == []
    assert [path.read_text() for path in (old_hosts.path / "videos").iterdir()] == ["of h1"]
    assert not (old_hosts.path.parent / "h1").exists()


@pytest.mark.parametrize("work", ["h1", "/var/tmp/h1"])
def test_a_directory_whose_whole_path_is_unknown_is_known_by_its_name(old_hosts: RunDirectory, work: str) -> None:
    """A link to a lost host has only the name."""
    left = json.loads(old_hosts.old_hosts.read_text())
    left["hosts"][1]["work"] = "h1" if work != "h1" else str(old_hosts.path.parent / "h1")
    write_json(old_hosts.old_hosts, left)
    others = {host: new_link(old_hosts, host) for host in ("h2", "h9")}
    remove_files(old_hosts, no_news, but={"h1": Link("h1", [], work=work, lease_s=None), **others})
    assert (old_hosts.path.parent / "h1" / "videos").exists()


def test_the_files_of_a_killed_run_are_moved_from_hosts_that_are_no_longer_used(old_hosts: RunDirectory) -> None:
    news: list[str] = []
    remove_files(old_hosts, news.append, but={"h2": new_link(old_hosts, "h2")})
    assert news == ["h9: files of the killed run are still in run: no route to host"]
    assert [path.read_text() for path in (old_hosts.path / "videos").iterdir()] == ["of h1"]
    assert not (old_hosts.path.parent / "h1").exists()
    assert (old_hosts.path.parent / "h2" / "videos").exists(), "the resumed run uses h2"
    assert not old_hosts.old_hosts.exists()


def test_a_host_keeps_the_files_of_a_killed_run_that_cannot_be_copied(old_hosts: RunDirectory) -> None:
    news: list[str] = []
    with file_size_limit(2):
        remove_files(old_hosts, news.append, but={host: new_link(old_hosts, host) for host in ("h2", "h9")})
    kept = old_hosts.path.parent / "h1"
    assert news[1:] == [f"h1: files of the killed run are still in {kept}: they could not be copied to this machine"]
    assert (kept / "videos" / "v00000020.mp4").exists()


def test_a_run_on_this_machine_has_left_nothing_on_other_hosts(run: Killed) -> None:
    run.salvage()
    assert not run.directory.old_hosts.exists()
    remove_files(run.directory, run.news.append)
    assert run.news == ["saved version 7 of the shards as a checkpoint"]


def test_left_json_stays_while_a_killed_run_is_resumed(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path)
    directory.cluster.write_text("of a killed run")
    for _ in range(2):  # as if its hosts could not be reached the first time
        directory.claim()
        directory.release()
        assert (directory.cluster.exists(), directory.left.read_text()) == (False, "of a killed run")
