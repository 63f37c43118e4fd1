import io
import math
import re
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import mujoco
import numpy as np
import pytest
import torch
from rich.console import Console

from deftly.commands.gait import Progress
from deftly.commands.gait import main as gait_main
from deftly.config import RunsConfig
from deftly.errors import DeftlyError
from deftly.learn import checkpoint
from deftly.recipes.in_hand.gait import dagger
from deftly.recipes.in_hand.gait.gaits import Gaits
from deftly.recipes.in_hand.gait.search import CMASearch, EvolutionStrategy, GaitSettings
from deftly.recipes.in_hand.gait.strokes import POINTS, TipPaths
from deftly.tasks import load
from deftly.workspace import find_checkpoint

TASK = "leap-right-cube-rotate"


def make(start: str = "sample"):
    cls = load(TASK)
    return cls(cls.Config(start=start))


def some(n: int = 3) -> Gaits:
    return Gaits(
        torch.full((n,), 0.7),
        0.1 * torch.randn(n, 5, 16, generator=torch.Generator().manual_seed(0)),
    )


def standing(home: torch.Tensor) -> Gaits:
    return Gaits(torch.tensor([0.6]), torch.cat((home[None], torch.zeros(4, 16)))[None])


def test_parameters_and_gaits_are_inverse():
    home = torch.linspace(-1, 1, 16)
    numbers = np.random.default_rng(0).normal(size=(5, 80))
    assert Gaits.decode(numbers, home, 0.6).encode(home) == pytest.approx(numbers, abs=1e-4)
    still = Gaits.decode(np.zeros((1, 80)), home, 0.6)
    assert still.targets(torch.tensor([1.3]))[0] == pytest.approx(home)


def test_a_cycle_is_what_commands_can_follow():
    contract = make().contract()
    gait = some(1)
    gait.shape[:, 0] += torch.tensor(contract.home())
    here, after = gait.cycle(contract)
    assert (after - here).abs().max() <= 1 / 24 + 1e-6
    assert torch.equal(here[1:], after[:-1])
    lower, upper = torch.tensor([(j.lower, j.upper) for j in contract.joints]).T
    assert (here >= lower).all()
    assert (here <= upper).all()
    closed = torch.cdist(after[-1:], here[:-40]).min()
    assert closed < 0.05  # it comes back to where it was


def test_files_are_checked(tmp_path):
    task, path = make(), tmp_path / "gait.npz"
    some(2).save(path, task)
    back = Gaits.load(path, task)
    assert (back.shape == some(2).shape).all()
    (tmp_path / "bad.npz").write_text("no")
    with pytest.raises(DeftlyError, match=r"as a gait.*deftly gait"):
        Gaits.load(tmp_path / "bad.npz", task)
    with np.load(path) as file:
        np.savez(tmp_path / "other.npz", **{**file, "joint_names": np.array(["a"] * 16)})
    with pytest.raises(DeftlyError, match="joints"):
        Gaits.load(tmp_path / "other.npz", task)
    some(3).save(tmp_path / "three.npz", task)
    with pytest.raises(DeftlyError, match=r"corrupt.*\(3, 5, 16\)"):
        Gaits.load(tmp_path / "three.npz", task)


def test_gaits_are_mixed_by_the_size_of_the_cube():
    ends = some(2)
    search = EvolutionStrategy(make(), GaitSettings(pairs=4), ends)
    for back, end in zip((search.best.frequency, search.best.shape), (ends.frequency, ends.shape)):
        assert torch.allclose(back, end, atol=1e-5)
    between = search.decode(search._parameters[None], torch.tensor([0.5]))
    mixed = ends.at(torch.tensor([0.5]))
    assert torch.allclose(between.shape, mixed.shape, atol=1e-5)
    assert torch.allclose(between.frequency, mixed.frequency, atol=1e-5)
    search.env.reset()
    edge, context = (
        search.env.task._half(search.env.state) * 2e3,
        search.env.task.context(search.env.state),
    )
    assert torch.allclose(edge.float(), 75 + 7.5 * context, atol=1e-4)
    one = EvolutionStrategy(make(), GaitSettings(pairs=4), some(1)).best
    assert torch.equal(one.shape[0], one.shape[1])


def test_evolution_strategies_keep_the_frequency_or_take_the_one_that_is_asked_for():
    gait = Gaits(torch.tensor([0.4, 0.9]), some(2).shape)
    for asked, wanted in ((None, 0.6), (0.7, 0.7)):
        search = EvolutionStrategy(
            make(), GaitSettings(pairs=4, seconds=0.1, frequency=asked), gait
        )
        search.generation()
        assert search.best.frequency == pytest.approx(torch.tensor([wanted] * 2))
        assert gait.timed(asked).frequency == pytest.approx(torch.tensor([wanted] * 2))


def test_each_hand_is_shown_the_gait_of_its_context():
    cycles = [(torch.zeros(3, 16), torch.full((3, 16), value)) for value in (1.0, 2.0)]
    change = dagger.along_cycle(
        torch.zeros(3, 16), torch.tensor([-0.9, 0.4, -0.2]), torch.tensor([-1.0, 1.0]), cycles
    )
    assert change[:, 0].tolist() == [1.0, 2.0, 1.0]


def test_a_command_goes_on_along_the_cycle_and_a_part_of_the_way_back_to_it():
    cycle = torch.eye(16)[:4]
    beside = cycle[2] + torch.tensor([0.0] * 15 + [0.5])
    change = dagger.along_cycle(
        beside[None], torch.zeros(1), torch.zeros(1), [(cycle, cycle + 0.1)]
    )
    assert change[0] == pytest.approx(torch.tensor([0.1] * 15 + [0.1 - 0.5 * dagger.RETURN]))


def test_evolution_strategies_improve_where_rewards_differ_by_context():
    """Joints shall be the further from home the larger the cube is: two gaits that differ are found, and in step."""
    task = make()
    home = torch.tensor(task.contract().home())

    def rewards(s):
        near = -(s.command - home - 0.1 * task.context(s)[:, None]).square().sum(-1)
        return {name: near * (name == "rotate") for name in vars(task.cfg.weights)}

    task.rewards = rewards
    search = EvolutionStrategy(task, GaitSettings(pairs=24, seconds=0.3, step=0.1), standing(home))
    means = [search.generation()["around"] for _ in range(12)]
    low, high = search.best.shape[:, 0].mean(-1) - home.mean()
    assert means[-1] > 0.5 * means[0]
    assert high - low > 0.05


def improve(task, generations: int) -> list[float]:
    """Means of generations on a reward of our own: joints shall be where the sine takes them."""
    want = torch.tensor(task.contract().home()) + 0.2

    def rewards(s):
        near = -(s.command - want).square().sum(-1)
        return {name: near * (name == "rotate") for name in vars(task.cfg.weights)}

    task.rewards = rewards
    search = CMASearch(task, GaitSettings(population=12, trials=1, seconds=0.3))
    return [search.generation()["middle"] for _ in range(generations)]


@pytest.mark.parametrize(("strokes", "generations"), [(True, 3), (False, 6)])
def test_search_improves_the_tasks_own_reward(strokes, generations):
    tasks = [make() for _ in range(2)]
    for task in () if strokes else tasks:
        task.strokes = lambda: None
    means = improve(tasks[0], generations)
    assert means[-1] > means[0]
    assert improve(tasks[1], 2) == means[:2]


def test_all_candidates_meet_the_same_hands_and_each_generation_others():
    settings = GaitSettings(population=4, trials=2, seconds=0.5)
    search = CMASearch(make("cache"), settings)  # without random pushes
    same = np.zeros((5, len(search._cma.mean)))
    first, second = search.rewards(same), search.rewards(same)
    assert first.tolist() == [first[0].item()] * 5
    assert second.tolist() == [second[0].item()] * 5
    assert first[0] != second[0]


def test_a_given_gait_is_cloned_into_a_checkpoint_that_training_starts_from(
    tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(dagger, "ROUND_STEPS", 8)
    monkeypatch.setattr(dagger, "ROUND_BATCHES", 4)
    some(2).save(tmp_path / "gait.npz", make())
    flags = [
        "--task.start",
        "sample",
        "--gait",
        "gait.npz",
        "--ascent",
        "0",
        "--rounds",
        "2",
        "task.episode_steps=3",
    ]
    assert gait_main([TASK, *flags]) == 0
    said = capsys.readouterr().out
    assert "yaw_rate" in said
    folder = said.split("--init ")[1].strip()
    found = checkpoint.load(find_checkpoint(folder, TASK, RunsConfig()))
    assert float(found.policy()(torch.zeros(1, 320)).abs().sum()) > 0


def test_generations_say_how_long_the_rest_takes(tmp_path):
    best = SimpleNamespace(save=lambda path, task: None)
    env = SimpleNamespace(num_envs=8, contract=SimpleNamespace(rate=20.0))
    rewards = {"around": 0.5}
    args = SimpleNamespace(seconds=2.0)
    search: Any = SimpleNamespace(args=args, env=env, best=best, generation=lambda: rewards)
    out = io.StringIO()
    Progress(make(), tmp_path, Console(file=out)).generations(search, 2, "generation")
    first, last = out.getvalue().splitlines()
    assert re.fullmatch(r"generation 1 of 2: reward around 0.500/s, .* M steps, 0:0\d left", first)
    assert last.startswith("generation 2 of 2: ")
    assert last.endswith(", 0:00 left")


def test_a_student_starts_from_the_weights_of_a_checkpoint(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(dagger, "ROUND_STEPS", 4)
    monkeypatch.setattr(dagger, "ROUND_BATCHES", 0)
    some(2).save(tmp_path / "gait.npz", make())
    short = ["--task.start", "sample", "task.episode_steps=3"]
    common = [*short, "--gait", "gait.npz", "--ascent", "0", "--rounds", "1"]
    assert gait_main([TASK, *common, "--init", "shipped"]) == 0
    found = checkpoint.load(find_checkpoint("latest", TASK, RunsConfig()))
    shipped = checkpoint.shipped(TASK)
    assert shipped is not None
    expected = checkpoint.load(shipped)
    assert found.weights.keys() == expected.weights.keys()
    for name, value in expected.weights.items():
        assert torch.equal(found.weights[name], value), name


def test_a_student_of_another_task_is_no_start(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    some(2).save(tmp_path / "gait.npz", make())
    other = str(checkpoint.shipped("jaka-pick-cube"))
    with pytest.raises(
        DeftlyError, match="another contract: its robot is jaka-zu5, not leap-right"
    ):
        gait_main([TASK, "--gait", "gait.npz", "--ascent", "0", "--init", other])
    assert not (tmp_path / "runs").exists()


def test_tasks_without_delta_actions_are_refused():
    with pytest.raises(DeftlyError, match="deltas"):
        gait_main(["jaka-pick-cube"])
    with pytest.raises(DeftlyError, match="give it"):
        gait_main([TASK, "--generations", "0"])


def paths(hand: str = "right", **change) -> TipPaths:
    cls = load(f"leap-{hand}-cube-rotate")
    task = cls(cls.Config())
    return TipPaths(task, replace(task.strokes(), **change), task.contract(), 0.65)


def test_tips_go_the_way_that_the_hand_turns():
    """Those of one pair push while those of the other are further out and go back."""
    where = paths().targets(np.zeros((1, 32)))[0]
    from_centre = where - np.array(paths().strokes.centre)
    ahead = np.roll(where, -1, 0) - np.roll(where, 1, 0)
    # counter-clockwise, POINTS x 4
    turning = from_centre[..., 0] * ahead[..., 1] - from_centre[..., 1] * ahead[..., 0]
    distance = np.linalg.norm(from_centre[..., :2], axis=-1)
    inner = distance < np.median(distance, 0)
    for tip in range(4):
        assert turning[inner[:, tip], tip].mean() > 0 > turning[~inner[:, tip], tip].mean()
    assert (turning[:, 0] > 0).tolist() == np.roll(turning[:, 1] > 0, POINTS // 2).tolist()


def test_strokes_of_what_is_not_there_are_refused():
    with pytest.raises(DeftlyError, match=r"'nose', but the scene's sites are .*th_tip"):
        paths(sites=("if_tip", "nose"))
    with pytest.raises(DeftlyError, match="an angle and a phase for each"):
        paths(phases=(0.0, 0.5))


def test_tips_reach_where_they_shall():
    """The gait's own joints, simulated, bring the tips to the targets, as far as two harmonics and the hand allow."""
    found, task = paths(), make()
    gait, where = found.gaits(np.zeros((1, 32))), found.targets(np.zeros((1, 32)))[0]
    model = task.scene().compile()
    data = mujoco.MjData(model)
    miss = np.zeros((POINTS, 4))
    for i in range(POINTS):
        data.qpos[:16] = gait.targets(torch.tensor([2 * math.pi * i / POINTS]))[0].numpy()
        mujoco.mj_kinematics(model, data)
        miss[i] = [
            np.linalg.norm(data.site(n).xpos - where[i, k])
            for k, n in enumerate(found.strokes.sites)
        ]
    assert miss[:, [0, 2, 3]].mean() < 0.02
    assert miss.mean() < 0.03


def test_strokes_of_the_left_hand_are_mirrored():
    numbers = np.random.default_rng(0).normal(size=(3, 32))
    left, right = paths("left").gaits(numbers), paths().gaits(numbers)
    assert torch.allclose(left.shape, right.shape, atol=1e-5)
    assert torch.equal(left.frequency, right.frequency)
