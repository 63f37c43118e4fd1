import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from deftly import gait
from deftly.errors import DeftlyError
from deftly.gait import Ascent, GaitArgs, Gaits, Search
from deftly.learn import checkpoint
from deftly.runs import find_checkpoint
from deftly.tasks import load

TASK = "leap-right-cube-rotate"


def make(start: str = "sample"):
    cls = load(TASK)
    return cls(cls.Config(start=start))


def some(n: int = 3) -> Gaits:
    return Gaits(torch.full((n,), 0.7), 0.1 * torch.randn(n, 5, 16, generator=torch.Generator().manual_seed(0)))


def test_numbers_and_gaits_are_inverse():
    home = torch.linspace(-1, 1, 16)
    numbers = np.random.default_rng(0).normal(size=(5, 81))
    assert Gaits.decode(numbers, home, 0.6).encode(home, 0.6) == pytest.approx(numbers, abs=1e-4)
    still = Gaits.decode(np.zeros((1, 81)), home, 0.6)
    assert still.targets(torch.tensor([1.3]))[0] == pytest.approx(home)


def test_a_joint_that_is_ahead_does_earlier_what_it_did():
    gait, phase = some(1), torch.tensor([0.4])
    ahead = gait.ahead(torch.tensor([0.7] * 8 + [0.0] * 8))
    assert ahead.targets(phase)[0, :8] == pytest.approx(gait.targets(phase + 0.7)[0, :8], abs=1e-6)
    assert ahead.targets(phase)[0, 8:] == pytest.approx(gait.targets(phase)[0, 8:], abs=1e-6)


def test_fingers_are_tried_at_other_phases_together_and_the_best_is_kept():
    task = make()
    search = Search(task, GaitArgs(population=8, trials=1, phases=3))
    search.mix()
    seen = []

    def tried(numbers: np.ndarray) -> torch.Tensor:
        assert len(numbers) == 9  # as many as there are environments for
        seen.extend(numbers.tolist())
        small = search.trials.decode(numbers, -torch.ones(len(numbers)))
        return -(small.targets(torch.zeros(len(numbers))) - wish).abs().sum(-1)

    search._begin(search.trials.encode(some(2)), 0.1)
    fingers = [0] * 4 + [4] * 4 + [8] * 4 + [0] * 4
    wish = search.best.ahead(torch.tensor(fingers) * math.pi / 6).targets(torch.zeros(2))[:1]
    search._try = tried
    before, after = search.take_turns()
    assert len({tuple(numbers) for numbers in seen}) == 27
    assert before < -0.1
    for part in (1, 3):  # also where there are few combinations
        search.args = replace(search.args, phases=part)
        seen.clear()
        search.take_turns()
        assert len({tuple(numbers) for numbers in seen}) == part**3
    assert after == pytest.approx(0.0, abs=1e-5)


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
    with pytest.raises(DeftlyError, match=r"no gait.*deftly gait"):
        Gaits.load(tmp_path / "bad.npz", task)
    with np.load(path) as file:
        np.savez(tmp_path / "other.npz", **{**file, "joint_names": np.array(["a"] * 16)})
    with pytest.raises(DeftlyError, match="joints"):
        Gaits.load(tmp_path / "other.npz", task)
    some(3).save(tmp_path / "three.npz", task)
    with pytest.raises(DeftlyError, match=r"corrupt.*\(3, 5, 16\)"):
        Gaits.load(tmp_path / "three.npz", task)


def test_gaits_are_mixed_by_the_size_of_the_cube():
    search = Search(make(), GaitArgs(population=4, trials=2))
    assert len(search.best.frequency) == 1
    search.mix()
    ends = Gaits(torch.tensor([0.5, 0.8]), some(2).shape)
    search._begin(search.trials.encode(ends), 0.1)
    for back, end in zip((search.best.frequency, search.best.shape), (ends.frequency, ends.shape)):
        assert torch.allclose(back, end, atol=1e-5)
    between = search.trials.decode(np.asarray(search._cma.mean)[None], torch.tensor([0.5]))
    mixed = ends.at(torch.tensor([0.5]))
    assert torch.allclose(between.shape, mixed.shape, atol=1e-5)
    assert torch.allclose(between.frequency, mixed.frequency, atol=1e-5)
    search.env.reset()
    edge, context = search.env.task._half(search.env.state) * 2e3, search.env.task.context(search.env.state)
    assert torch.allclose(edge.float(), 75 + 7.5 * context, atol=1e-4)


def test_each_hand_is_shown_the_gait_of_its_context():
    cycles = [(torch.zeros(3, 16), torch.full((3, 16), value)) for value in (1.0, 2.0)]
    goals = gait._goals(torch.zeros(3, 16), torch.tensor([-0.9, 0.4, -0.2]), torch.tensor([-1.0, 1.0]), cycles)
    assert goals[:, 0].tolist() == [1.0, 2.0, 1.0]


def test_ascent_climbs_where_rewards_differ_by_context(tmp_path):
    """Joints shall be the further from home the larger the cube is: two gaits that differ are found, and in step."""
    task = make()
    home = torch.tensor(task.contract().home())

    def rewards(s):
        near = -(s.command - home - 0.1 * task.context(s)[:, None]).square().sum(-1)
        return {name: near * (name == "rotate") for name in vars(task.cfg.weights)}

    task.rewards = rewards
    still = Gaits(torch.tensor([0.6]), torch.cat((home[None], torch.zeros(4, 16)))[None])
    still.save(tmp_path / "gait.npz", task)
    how = GaitArgs(gait=tmp_path / "gait.npz", population=12, trials=8, seconds=0.3, optimizer="ascent", step=0.1)
    search = Ascent(task, how)
    means = [search.generation()["around"] for _ in range(12)]
    low, high = search.best.shape[:, 0].mean(-1) - home.mean()
    assert means[-1] > 0.5 * means[0]
    assert high - low > 0.05


def test_search_climbs_the_tasks_own_reward():
    """Six generations on a reward of our own: joints shall be where the sine takes them."""
    task = make()
    want = torch.tensor(task.contract().home()) + 0.2

    def rewards(s):
        near = -(s.command - want).square().sum(-1)
        return {name: near * (name == "rotate") for name in vars(task.cfg.weights)}

    task.rewards = rewards
    search = Search(task, GaitArgs(population=12, trials=1, seconds=0.3, generations=6))
    means = [search.generation()["middle"] for _ in range(6)]
    assert means[-1] > means[0]
    again = Search(task, GaitArgs(population=12, trials=1, seconds=0.3, generations=6))
    assert [again.generation()["middle"] for _ in range(2)] == means[:2]


def test_all_candidates_meet_the_same_hands_and_each_generation_others():
    search = Search(make("cache"), GaitArgs(population=4, trials=2, seconds=0.5))  # without random pushes
    still = np.zeros((5, 81))
    first, second = search._try(still), search._try(still)
    assert first.tolist() == [first[0].item()] * 5
    assert second.tolist() == [second[0].item()] * 5
    assert first[0] != second[0]


def test_a_given_gait_is_cloned_into_a_checkpoint_that_training_starts_from(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(gait, "ROUND_STEPS", 8)
    monkeypatch.setattr(gait, "ROUND_BATCHES", 4)
    some(2).save(tmp_path / "gait.npz", make())
    flags = ["--task.start", "sample", "--gait", "gait.npz", "--generations", "0", "--rounds", "2", "--population", "4"]
    assert gait.main([TASK, *flags, "--trials", "1", "task.episode_steps=3"]) == 0
    said = capsys.readouterr().out
    assert "yaw_rate" in said
    folder = said.split("--init ")[1].strip()
    found = checkpoint.load(find_checkpoint(folder, TASK, GaitArgs().runs))
    assert float(found.policy()(torch.zeros(1, 864)).abs().sum()) > 0


def test_tasks_without_delta_actions_are_refused():
    with pytest.raises(DeftlyError, match="deltas"):
        gait.main(["jaka-pick-cube"])
    with pytest.raises(DeftlyError, match="give it"):
        gait.main([TASK, "--generations", "0"])
