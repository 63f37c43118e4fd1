"""Watching a policy: agents, the swap of weights under a running viewer, viewers that are not there, videos."""

import ctypes.util
import os
import socket
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from deftly.commands import main as cli
from deftly.commands import play
from deftly.commands.play import PlayArgs, Reloaded
from deftly.config import EnvConfig, SimConfig
from deftly.contract import Joint
from deftly.errors import DeftlyError
from deftly.evaluate.source import of_checkpoint
from deftly.learn import checkpoint
from deftly.learn.networks import Network, NetworkSpec
from deftly.render import viewers
from deftly.render.viewers import View, Watch
from deftly.tasks import load

needs_gl = pytest.mark.skipif(
    not any(ctypes.util.find_library(name) for name in ("EGL", "OSMesa")),
    reason="no GL library is installed",
)
CONFIG = "train: {hidden: [8]}\n"
FEW = PlayArgs(env=EnvConfig(episode_steps=3), sim=SimConfig(threads=1))


@pytest.fixture
def task(slider):
    return slider(1).task


@pytest.fixture
def no_display(monkeypatch):
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)


def save(folder, task, contract, seed=0):
    torch.manual_seed(seed)
    actor = Network(
        NetworkSpec({"state": contract.obs_size()}, contract.action_size, (8,), head="gaussian")
    )
    checkpoint.write(
        folder, task, {"actor": actor}, contract=contract, config=CONFIG, iteration=seed
    )
    return folder


# ---------------------------------------------------------------------- reload


def reloaded(task, find, interval):
    """An agent whose policy is at the folder that `find` finds."""

    def source():
        return of_checkpoint(checkpoint.load(find()))

    return Reloaded(source(), source, task, PlayArgs(reload=interval))


@pytest.fixture
def agent(task, tmp_path):
    """An agent that looks for newer weights at each poll, and the place where it looks."""
    place = [save(tmp_path / "a", task, task.contract())]
    agent = reloaded(task, lambda: place[0], 1e-9)
    return agent, place


def action(agent, task):
    agent.reset()
    signals = {s.name: torch.full((1, s.size), 0.5) for s in task.contract().signals}
    return agent.infer(signals).action.clone()


def test_newer_weights_are_swapped_in(agent, task, tmp_path, capsys):
    agent, place = agent
    first = action(agent, task)
    agent.poll()
    assert torch.equal(action(agent, task), first)
    capsys.readouterr()
    place[0] = save(tmp_path / "b", task, task.contract(), seed=1)
    agent.poll()
    agent.poll()
    assert not torch.equal(action(agent, task), first)
    assert capsys.readouterr().out == f"policy: checkpoint {place[0]} (iteration 1)\n"


def test_weights_replaced_in_place_are_seen(agent, task, capsys):
    agent, place = agent
    first = action(agent, task)
    save(place[0], task, task.contract(), seed=2)
    os.utime(place[0] / "weights.safetensors", (1, 1))
    agent.poll()
    assert not torch.equal(action(agent, task), first)


def test_a_half_written_checkpoint_is_skipped(agent, task, tmp_path, capsys):
    agent, place = agent
    first = action(agent, task)
    whole = (place[0] / "weights.safetensors").read_bytes()
    place[0] = tmp_path / "half"
    place[0].mkdir()
    agent.poll()  # not even a file
    (place[0] / "weights.safetensors").write_bytes(whole[:100])
    agent.poll()
    agent.poll()
    error = capsys.readouterr().err
    assert error.count("warning: kept the policy, ") == 2
    assert error.count("\n") == 2
    assert torch.equal(action(agent, task), first)


def test_a_foreign_checkpoint_is_skipped(agent, task, tmp_path, capsys):
    agent, place = agent
    contract = task.contract()
    place[0] = save(tmp_path / "c", task, replace(contract, rate=99.0), seed=3)
    agent.poll()
    joints = (Joint("x", -2, 2, 0, 2, "m"), contract.joints[1])
    other = replace(contract, robot=replace(contract.robot, joints=joints))
    place[0] = save(tmp_path / "d", task, other, seed=4)
    agent.poll()
    error = capsys.readouterr().err
    assert error.count("another contract") == 2
    assert error.count("\n") == 2


def test_a_place_that_vanishes_is_no_crash(task, tmp_path, capsys):
    def find():
        if not places:
            raise DeftlyError("no run")
        return places.pop()

    places = [save(tmp_path / "a", task, task.contract())]
    agent = reloaded(task, find, 1e-9)
    agent.poll()
    assert capsys.readouterr().err == "warning: kept the policy, no run\n"


def test_no_reload_unless_asked(task, tmp_path):
    folder = save(tmp_path / "a", task, task.contract())
    places = [folder]
    agent = reloaded(task, places.pop, 0.0)
    agent.poll()


# --------------------------------------------------------------------- viewers


def fake_view(shown, running=lambda: True, speed=lambda: 100.0):
    return View(lambda data: shown.append(data.time), running, speed)


def live(slider, args, view, agent=None):
    import mujoco

    env = slider(1, env={"episode_steps": 3}, goal=0.0)
    play.play(
        env, agent or play._untrained("zero", env.contract), args, view, mujoco.MjData(env.model)
    )
    return env


def test_episodes_are_counted_and_told(slider, capsys):
    shown = []
    live(slider, PlayArgs(episodes=2), fake_view(shown))
    assert len(shown) == 6
    out = capsys.readouterr().out.splitlines()
    assert len(out) == 2
    assert out[0].startswith("failed: time is up after 0.1 s, return ")


def test_real_time(slider):
    start = time.perf_counter()
    live(slider, PlayArgs(episodes=2), fake_view([], speed=lambda: 1.0))
    assert 6 / 20 - 0.06 <= time.perf_counter() - start < 1.0


def test_closing_and_pausing(slider):
    shown, speeds = [], iter([0.0, 0.0, 100.0, 100.0])
    left = iter([True] * 4 + [False])
    env = live(
        slider, PlayArgs(), fake_view(shown, lambda: next(left), lambda: next(speeds) or 0.0)
    )
    assert len(shown) == 4
    assert int(env.state.steps[0]) == 2


class Spoken:
    """Stands in for an environment: what it was told, step by step."""

    def __init__(self, contract):
        self.contract = contract
        self.state = SimpleNamespace(steps=torch.zeros(1))
        self.told = []

    def hear(self, inputs):
        self.told.append({name: value.tolist() for name, value in inputs.items()})
        self.state.steps += 1


def test_a_file_of_commands_speaks_in_each_episode_anew(tmp_path):
    contract = load("wildrobot-walk")(load("wildrobot-walk").Config()).contract()
    path = tmp_path / "commands.csv"
    path.write_text("time,speed\n0,0.9\n0.02,0.4\n0.06,0\n")
    env = Spoken(contract)
    with play._listener(PlayArgs(operator=str(path)), contract) as listen:
        for _ in range(2):
            env.state.steps[:] = 0
            for _ in range(4):
                listen(env)
    speeds = [told["speed"][0] for told in env.told]
    assert speeds == [0.7, 0.4, 0.4, 0.0] * 2
    with play._listener(PlayArgs(), contract) as listen:
        assert listen is None


def test_an_operator_who_is_not_heard_says_the_defaults_and_one_who_quits_ends(monkeypatch):
    contract = load("wildrobot-walk")(load("wildrobot-walk").Config()).contract()
    keys = []
    operator = SimpleNamespace(hear=lambda now, driving: None, words=lambda: keys, notes=list)
    env = Spoken(contract)
    listen = play.Listener(operator)
    listen(env)
    assert env.told == [{"speed": [0.0], "turn": [0.0]}]
    keys.append("q")
    with pytest.raises(KeyboardInterrupt):
        listen(env)


class Page:
    """Stands in for the controls of a page."""

    def __init__(self):
        self.made = {}

    def add_checkbox(self, label, initial_value):
        return self.made.setdefault(label, SimpleNamespace(value=initial_value))

    def add_slider(self, label, initial_value, **bounds):
        return self.made.setdefault(label, SimpleNamespace(value=initial_value, **bounds))


def test_the_page_has_a_slider_for_each_number_that_the_policy_hears(task):
    contract = load("wildrobot-walk")(load("wildrobot-walk").Config()).contract()
    page = Page()
    said = viewers.sliders(page, contract)
    assert [*page.made] == ["Say the inputs", "speed, m/s", "turn, rad/s"]
    turn = page.made["turn, rad/s"]
    assert (turn.min, turn.max, turn.value) == (-0.3, 0.3, 0.0)
    assert said() is None, "the task says them"
    page.made["Say the inputs"].value = True
    turn.value = 0.2
    assert {name: value.tolist() for name, value in said().items()} == {
        "speed": [0.0],
        "turn": [0.2],
    }
    plain = Page()
    assert viewers.sliders(plain, task.contract())() is None
    assert plain.made == {}


def test_an_operator_of_a_video_is_a_file():
    with pytest.raises(DeftlyError, match="needs somebody who sees the robot: leave out --video"):
        PlayArgs(operator="keyboard", video=Path("a.mp4"))


def test_ctrl_c_ends_cleanly(task, monkeypatch, capsys):
    closed = []

    @contextmanager
    def window(env, data, args):
        try:
            yield View(
                lambda data: (_ for _ in ()).throw(KeyboardInterrupt), lambda: True, lambda: 1.0
            )
        finally:
            closed.append(True)

    monkeypatch.setattr(viewers, "web", window)
    monkeypatch.setattr(viewers, "pick_viewer", lambda wanted: "web")
    play._live(task, play._untrained("random", task.contract()), FEW)
    assert closed == [True]


def test_without_a_display(no_display, monkeypatch):
    assert viewers.pick_viewer("auto") == "web"
    with pytest.raises(DeftlyError, match="no display for --viewer native: use --viewer web"):
        viewers.pick_viewer("native")
    with pytest.raises(DeftlyError, match="write a video with --video"):
        viewers.pick_viewer("none")
    monkeypatch.setattr(viewers.importlib.util, "find_spec", lambda name: None)
    for wanted in ("web", "auto"):
        with pytest.raises(DeftlyError, match=r'pip install "deftly\[viewer\]"'):
            viewers.pick_viewer(wanted)


def test_a_display_nobody_serves_is_none(no_display, monkeypatch):
    monkeypatch.setenv("DISPLAY", ":987")
    assert viewers.pick_viewer("auto") == "web"


def test_the_web_viewer_serves_and_follows(task, capsys):
    pytest.importorskip("mjviser")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    play._live(
        task,
        play._untrained("random", task.contract()),
        replace(FEW, viewer="web", port=port, episodes=1, speed=4),
    )
    out = capsys.readouterr().out
    assert out.startswith(f"open http://127.0.0.1:{port} in a browser; Ctrl-C ends\n")


def test_a_port_that_is_taken(task, monkeypatch):
    monkeypatch.setattr(viewers, "pick_viewer", lambda wanted: "web")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(
            DeftlyError, match=f"cannot serve on 127.0.0.1:{port}: Address already in use; choose"
        ):
            play._live(
                task,
                play._untrained("zero", task.contract()),
                replace(FEW, viewer="web", port=port),
            )


def test_a_training_shows_its_first_environment(slider, monkeypatch):
    """At most 30 images a second of the training's own clock, none while it is paused, none afterwards."""
    shown, speeds, now = [], iter([1.0, 0.0, 1.0, 1.0]), iter([0.0, 0.01, 0.1, 0.2, 0.3])
    view = fake_view(shown, speed=lambda: next(speeds))

    @contextmanager
    def opened(env, data, options):
        assert options.port == 8080
        yield view

    monkeypatch.setattr(viewers, "pick_viewer", lambda wanted: "web")
    monkeypatch.setattr(viewers, "web", opened)
    trainer = SimpleNamespace(env=slider(2))
    step = torch.zeros(2, 2)
    with Watch(clock=lambda: next(now)) as watch:
        watch(trainer, {})
        watch(trainer, {})
        for _ in range(5):  # shown, too early, paused, shown, shown
            trainer.env.step(step)
    trainer.env.step(step)
    assert len(shown) == 3
    assert shown == sorted(shown)


def test_a_training_that_cannot_be_shown_is_refused(tmp_path, no_display, monkeypatch, capsys):
    monkeypatch.setattr(viewers.importlib.util, "find_spec", lambda name: None)
    monkeypatch.chdir(tmp_path)
    assert cli.main(["train", "jaka-pick-cube", "render=true"]) == 2
    assert "no display and no web viewer" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


# ----------------------------------------------------------------------- video


@needs_gl
@pytest.mark.parametrize("name", ["zero", "random"])
def test_video(task, tmp_path, name, capsys):
    path = tmp_path / "a.mp4"
    play.record(task, play._untrained(name, task.contract()), replace(FEW, episodes=2), path)
    assert path.stat().st_size > 500
    first, *episodes = capsys.readouterr().out.splitlines()
    assert first.startswith(f"{path}: 2 episodes, success ")
    assert [line.split(":")[0] for line in episodes] == ["episode 1", "episode 2"]


@pytest.mark.parametrize(
    ("ended", "said"),
    [
        ({"success": 1.0, "failed/dropped": 0.0}, "success"),
        ({"success": 0.0, "failed/dropped": 1.0, "failed/tipped": 1.0}, "failed: dropped, tipped"),
        ({"success": 0.0, "failed/dropped": 0.0, "time_out": 1.0}, "failed: time is up"),
    ],
)
def test_an_episode_that_failed_says_why(ended, said):
    assert play.outcome(ended) == said


def test_a_video_needs_its_folder(task, tmp_path):
    with pytest.raises(DeftlyError, match="no folder"):
        play.record(task, play._untrained("zero", task.contract()), FEW, tmp_path / "none/a.mp4")


# ---------------------------------------------------------------- command line


def test_errors_are_one_line(tmp_path, capsys, no_display, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cases = {
        (): "play needs a task: deftly play TASK",
        (
            "jaka-pick-cube",
            "--agent",
            "zero",
            "--viewer",
            "none",
        ): "write a video with --video FILE.mp4",
        ("jaka-pick-cube", "--video", "a.mp4"): "no policy for jaka-pick-cube",
        ("jaka-pick-cube", "--port", "70000"): "port is 70000",
        ("jaka-pick-cube", "speed=0"): "speed is 0",
        ("jaka-pick-cube", "reload=-1"): "reload is -1",
        ("jaka-pick-cube", "--agent", "zero", "--video", "none/a.mp4"): "no folder 'none'",
    }
    for words, expected in cases.items():
        if expected.startswith("no policy") and checkpoint.shipped("jaka-pick-cube"):
            continue
        assert cli.main(["play", *words]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert expected in error


@pytest.mark.parametrize("name", ["zero", "random"])
def test_who_has_no_policy_drives_a_robot_that_sees_too(name):
    cls = load(str(Path(__file__).parents[1] / "assets/watcher.py"))
    seeing = cls(cls.Config()).contract()
    numbers = {s.name: torch.zeros(3, *s.shape) for s in seeing.signals if not s.is_image}
    signals = {**numbers, "front": torch.zeros(3, 48, 48, 3, dtype=torch.uint8)}
    action = play._untrained(name, seeing).infer(signals).action
    assert action.shape == (3, 2)
    assert bool(action.any()) == (name == "random")
