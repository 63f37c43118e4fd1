"""Demonstrations before they are a data set: what stands with which action, noise, replay, interrupted collections."""

import contextlib

import filmed
import numpy as np
import pytest

from deftly.commands import demos as demos_command
from deftly.config import SimConfig
from deftly.data import dataset, lerobot
from deftly.data import lerobot_checks as checks
from deftly.data.demonstrations import Source, replay, simulate
from deftly.errors import DeftlyError
from deftly.files import write_npz
from deftly.render import NoGLError
from deftly.tasks import Report, load
from deftly.vla.features import seen_contract


@pytest.fixture
def task():
    cls = load(filmed.FILE)
    return cls(cls.Config(episode_steps=40, goal=0.08))


def source(task, **changes):
    return Source(**{"task": task, "sim": SimConfig(threads=1), "seed": 3, "batch": 4, **changes})


def plan(task, **changes):
    settings = {
        "source": source(task),
        "seen": seen_contract(task.contract(), ("front",), 32, task.prompts[0]),
        "layout": "contract",
        "prompts": task.prompts,
        "only_success": True,
        "policy": "expert",
        "policy_sha256": "",
        "settings": {},
    }
    return lerobot.Plan(**{**settings, **changes})


def test_what_was_seen_stands_with_the_action_that_followed(task):
    """The policy's action is a function of the positions: each row must obey it, and no row's neighbour does."""
    _, episodes = simulate(source(task), filmed.expert(task), 0)
    assert all(episode.success for episode in episodes)
    for episode in episodes:
        seen, decided = np.stack(episode.joint_pos), np.stack(episode.actions)
        np.testing.assert_allclose(decided, np.clip(-4.0 * seen, -1, 1), atol=1e-5)
        assert np.abs(decided[:-1] - np.clip(-4.0 * seen[1:], -1, 1)).max() > 1e-3


def test_a_state_is_of_before_its_action(task):
    env, episodes = simulate(source(task), filmed.expert(task), 0)
    episode = episodes[1]
    joints = [env.model.joint(name).qposadr[0] for name in ("x", "y")]
    for state, seen in zip(episode.states, episode.joint_pos):
        np.testing.assert_allclose(state[1:][joints], seen, atol=1e-6)  # time comes first


def test_stored_actions_replay_open_loop_from_the_stored_starts(task):
    noisy = source(task, perturb=0.4)
    _, episodes = simulate(noisy, filmed.expert(task), 0)
    told = {(each.batch, each.env): np.stack(each.executed) for each in episodes}
    want = {(each.batch, each.env): each.success for each in episodes}
    assert replay(noisy, told) == want
    # what the policy wanted is not what happened
    wanted = {(each.batch, each.env): np.zeros_like(np.stack(each.actions)) for each in episodes}
    assert not any(replay(noisy, wanted).values())


def test_noise_is_on_what_is_executed_and_stops(task):
    _, clean = simulate(source(task), filmed.expert(task), 0)
    _, noisy = simulate(source(task, perturb=0.4), filmed.expert(task), 0)
    assert all(np.array_equal(each.actions, each.executed) for each in clean)
    different = [
        np.abs(np.stack(each.actions) - np.stack(each.executed)).max(-1) > 0 for each in noisy
    ]
    assert any(each.any() for each in different)
    for each, rows in zip(noisy, different):
        seen, decided = np.stack(each.joint_pos), np.stack(each.actions)
        np.testing.assert_allclose(decided, np.clip(-4.0 * seen, -1, 1), atol=1e-5)
        last = 2.0 * task.contract().rate
        assert not rows[int(last) :].any()


@pytest.fixture
def rendered(monkeypatch):
    """Rendering is replaced: these tests need no OpenGL."""

    def stand_in(plan, env, episode, film):
        frames = np.zeros((len(episode), 8, 8, 3), np.uint8)
        facts = {
            "batch": episode.batch,
            "env": episode.env,
            "success": episode.success,
            "steps": len(episode),
            "checks": {},
        }
        rows = {"joint_pos": np.stack(episode.joint_pos), "observation.images.front": frames}
        rows |= {"action": np.stack(episode.actions), "executed_action": np.stack(episode.executed)}
        return rows, facts

    monkeypatch.setattr(lerobot, "_rendered", stand_in)


class Cut(BaseException):
    pass


def test_an_interrupted_collection_goes_on_and_is_the_uninterrupted_one(
    task, tmp_path, monkeypatch, rendered
):
    whole = lerobot.Parts(tmp_path / "whole.partial", plan(task))
    lerobot._fill(whole, plan(task), filmed.expert(task), 7)
    assert len(whole) == 7

    cut = lerobot.Parts(tmp_path / "cut.partial", plan(task))
    write = lerobot.Parts.write

    def dies(self, number, *content):
        if number == 5:
            raise Cut
        write(self, number, *content)

    monkeypatch.setattr(lerobot.Parts, "write", dies)
    with contextlib.suppress(Cut):
        lerobot._fill(cut, plan(task), filmed.expert(task), 7)
    monkeypatch.undo()
    assert len(lerobot.Parts(tmp_path / "cut.partial", plan(task))) == 5


def test_going_on_starts_after_the_last_episode(task, tmp_path, rendered):
    parts = lerobot.Parts(tmp_path / "d.partial", plan(task))
    lerobot._fill(parts, plan(task), filmed.expert(task), 5)
    again = lerobot.Parts(tmp_path / "d.partial", plan(task))
    lerobot._fill(again, plan(task), filmed.expert(task), 7)
    places = [(f["batch"], f["env"]) for f in (again.read(i)[1] for i in range(7))]
    assert places == sorted(set(places))
    other = lerobot.Parts(tmp_path / "e.partial", plan(task))
    lerobot._fill(other, plan(task), filmed.expert(task), 7)
    for i in range(7):
        mine, theirs = again.read(i), other.read(i)
        assert mine[1] == theirs[1]
        assert all(np.array_equal(mine[0][name], theirs[0][name]) for name in mine[0])


def test_episodes_of_another_plan_are_refused_by_what_differs(task, tmp_path):
    lerobot.Parts(tmp_path / "d.partial", plan(task))
    with pytest.raises(DeftlyError, match="whose layout is contract, and this is droid"):
        lerobot.Parts(tmp_path / "d.partial", plan(task, layout="droid"))
    (tmp_path / "f.partial").mkdir()
    with pytest.raises(DeftlyError, match="no unfinished collection"):
        lerobot.Parts(tmp_path / "f.partial", plan(task))


@pytest.mark.parametrize("text", ["[]", '"x"', "null", "3"])
def test_a_plan_that_is_none_is_refused_in_one_line(task, tmp_path, text):
    parts = lerobot.Parts(tmp_path / "d.partial", plan(task))
    (parts.folder / parts.PLAN).write_text(text)
    with pytest.raises(DeftlyError, match=r"plan\.json' is no plan of a collection: choose"):
        lerobot.Parts(tmp_path / "d.partial", plan(task))


@pytest.mark.parametrize("number", [0, 2])
@pytest.mark.parametrize("facts", ["[]", "{}", "3", "no json", '{"batch": "a"}', None])
def test_a_damaged_episode_is_named_before_more_are_simulated(
    task, tmp_path, rendered, number, facts
):
    parts = lerobot.Parts(tmp_path / "d.partial", plan(task))
    lerobot._fill(parts, plan(task), filmed.expert(task), 3)
    parts.require_whole(3)
    arrays, own = parts.read(number)
    if facts is None:
        parts.path(number).write_bytes(parts.path(number).read_bytes()[:-50])
    elif facts.startswith('{"batch'):
        parts.write(number, arrays, {**own, "batch": "a"})
    else:
        write_npz(parts.path(number), {**arrays, "facts": np.array(facts)})
    with pytest.raises(DeftlyError, match=f"episode_00000{number}.*delete it, and the same comm"):
        parts.require_whole(5)


def test_fewer_episodes_than_there_are_lose_none(task, tmp_path, rendered, monkeypatch):
    monkeypatch.setattr(lerobot, "require_lerobot", lambda: None)
    monkeypatch.setattr(lerobot, "_require_possible", lambda plan: None)
    parts = lerobot.Parts(tmp_path / "d.partial", plan(task))
    lerobot._fill(parts, plan(task), filmed.expert(task), 3)
    with pytest.raises(DeftlyError, match="holds 3 episodes, more than the 2 asked for"):
        lerobot.collect(plan(task), filmed.expert(task), 2, tmp_path / "d")
    assert len(parts) == 3


def test_two_collections_into_one_folder_are_not_mixed(task, tmp_path, monkeypatch):
    monkeypatch.setattr(lerobot, "require_lerobot", lambda: None)
    monkeypatch.setattr(lerobot, "_require_possible", lambda plan: None)
    parts = lerobot.Parts(tmp_path / "d.partial", plan(task))
    with (
        parts.lock(),
        pytest.raises(DeftlyError, match=r"d\.partial' is being written by process \d+"),
    ):
        lerobot.collect(plan(task), filmed.expert(task), 2, tmp_path / "d")


def test_what_exists_is_never_written_over(task, tmp_path, monkeypatch):
    monkeypatch.setattr(lerobot, "require_lerobot", lambda: None)
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "precious").write_text("mine")
    with pytest.raises(DeftlyError, match="is not empty, and a data set is never written over"):
        lerobot.collect(plan(task), filmed.expert(task), 2, tmp_path / "d")
    assert (tmp_path / "d" / "precious").read_text() == "mine"


def test_a_policy_that_never_succeeds_ends_the_collection(task, tmp_path, monkeypatch, rendered):
    monkeypatch.setattr(lerobot, "MAX_BARREN", 8)
    policy = filmed.expert(task)
    policy.network = lambda obs: np.ones((len(obs), 2), np.float32)
    parts = lerobot.Parts(tmp_path / "d.partial", plan(task))
    with pytest.raises(DeftlyError, match="none of 8 episodes succeeded"):
        lerobot._fill(parts, plan(task), policy, 2)


def test_what_would_fail_after_a_while_is_refused_before(task, monkeypatch):
    monkeypatch.setattr(lerobot, "MAX_PART", 2 * lerobot.MB)
    large = seen_contract(task.contract(), ("front",), 512, "go")
    with pytest.raises(DeftlyError, match=r"take up to 30 MB, more than 2: a smaller --size"):
        lerobot._require_possible(plan(task, seen=large))
    monkeypatch.setattr(lerobot, "Renderer", no_gl)
    with pytest.raises(NoGLError, match="no OpenGL"):
        lerobot._require_possible(plan(task))
    cls = load(filmed.FILE)
    odd = cls(cls.Config(rate=12.5))
    with pytest.raises(DeftlyError, match=r"whole number of frames in a second.* 12.5"):
        lerobot._require_possible(
            plan(odd, seen=seen_contract(odd.contract(), ("front",), 32, "go"))
        )


def no_gl(*_, **__):
    raise NoGLError("no OpenGL to render with")


def test_an_episode_knows_what_was_drawn(task, monkeypatch):
    """Of a task whose report counts through kinds, such as objects."""
    report = Report(breakdown=("corner", ()), kinds=("left", "right"))
    monkeypatch.setattr(type(task), "report", report)

    def corner(self, s):
        return {"corner": (s.joint_pos[:, 0] > 0).float()}

    monkeypatch.setattr(type(task), "metrics", corner)
    _, episodes = simulate(source(task), filmed.expert(task), 0)
    assert all(each.object in ("left", "right") for each in episodes)
    assert len({each.object for each in episodes}) == 2


def test_a_frozen_camera_is_found():
    rng = np.random.default_rng(0)
    joints = np.linspace(0, 1, 30)[:, None]
    images = rng.integers(0, 255, (30, 4, 4, 3)).astype(np.uint8)
    assert checks.moving({"front": images}, joints)["front moves"]["fine"]
    stuck = np.repeat(images[:1], 30, 0)
    assert not checks.moving({"front": stuck}, joints)["front moves"]["fine"]
    assert checks.moving({"front": stuck}, np.zeros((30, 1)))["front moves"]["fine"]


def test_jitter_is_found(task):
    contract = task.contract()
    ticks = np.arange(40)[:, None] / contract.rate
    smooth = np.concatenate([np.sin(ticks), np.cos(ticks)], -1)
    assert checks.smooth(contract, smooth)["smooth"]["fine"]
    shaking = smooth + 0.05 * (-1.0) ** np.arange(40)[:, None]
    assert not checks.smooth(contract, shaking)["smooth"]["fine"]


def test_without_lerobot_a_line_says_what_to_type(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(DeftlyError, match=r"make vla.*Python 3"):
        lerobot.require_lerobot()


def test_a_task_that_is_none_is_said_before_lerobot_is_asked_for(monkeypatch, tmp_path):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(DeftlyError, match="no task 'nosuch'"):
        demos_command.main(["nosuch", "--check", str(tmp_path)])


@pytest.mark.parametrize(
    ("files", "says"),
    [((), "has no meta/info.json"), (("info.json",), "has no meta/deftly.json")],
)
def test_half_a_data_set_is_refused(tmp_path, files, says):
    (tmp_path / "meta").mkdir()
    for name in files:
        (tmp_path / "meta" / name).write_text("{}")
    with pytest.raises(DeftlyError, match=says):
        dataset.open_dataset(tmp_path)
    with pytest.raises(DeftlyError, match="deftly demos TASK --out"):
        dataset.open_dataset(tmp_path / "nothing")


def test_the_report_names_what_failed_and_shows_the_first_episodes(tmp_path):
    def fact(fine):
        return {
            "steps": 20,
            "success": True,
            "checks": {
                "front moves": {"fine": fine, "value": 0.5},
                "smooth": {"fine": True, "value": 0},
            },
        }

    facts = [fact(True), *(fact(False) for _ in range(9))]
    line = "front moves: 9 of 10 episodes fail (1, 2, 3, 4, 5, 6, 7, 8, ...)"
    assert checks.failures(facts) == [line]
    assert checks.failures(facts[:1]) == []
    sheet = {"front": np.zeros((2, 8, 8, 3), np.uint8)}
    checks.write_report(tmp_path, facts, [sheet] * 10)
    page = (tmp_path / "report.html").read_text()
    assert f"<li>{line}</li>" in page
    assert "<td>front moves</td><td>1 of 10</td><td>0.5 .. 0.5</td><td>fraction of frames" in page
    assert page.count("<img src=") == 20
    checks.write_report(tmp_path, facts[:1], [sheet])
    assert "<li>none</li>" in (tmp_path / "report.html").read_text()
