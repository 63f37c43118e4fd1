import pytest
import torch

from deftly.errors import DeftlyError
from deftly.sim.rows import Rows
from deftly.sim.sensors import Noise, Sensors

N = 4000
SIZES = {"joint_pos": 1, "pose": 2}


def rows(*ids: int, count: int = N) -> Rows:
    """The environments of some indices; all without any."""
    mask = torch.zeros(count, dtype=torch.bool)
    mask[list(ids) or slice(None)] = True
    return Rows(mask)


def sensors(**noise) -> Sensors:
    s = Sensors({"pose": Noise(**noise)}, SIZES, N, torch.Generator().manual_seed(0))
    s.reset({"pose": torch.zeros(N, 2)}, rows())
    return s


def read(s: Sensors, value: float) -> torch.Tensor:
    return s.read({"pose": torch.full((N, 2), float(value))})["pose"]


def test_signal_without_noise_passes_unchanged():
    s, signal = sensors(uniform=1), torch.rand(N, 1)
    assert s.read({"joint_pos": signal, "pose": torch.zeros(N, 2)})["joint_pos"] is signal
    assert torch.equal(read(sensors(), 0.3), torch.full((N, 2), 0.3))


def test_uniform_noise():
    error = read(sensors(uniform=0.2), 1.0) - 1.0
    assert error.abs().max() <= 0.2
    assert error.mean() == pytest.approx(0, abs=0.01)
    assert error.std() == pytest.approx(0.2 / 3**0.5, rel=0.05)


def test_gaussian_noise_is_white():
    s = sensors(gaussian=0.1)
    first, second = read(s, 1.0) - 1.0, read(s, 1.0) - 1.0
    assert first.std() == pytest.approx(0.1, rel=0.05)
    assert (first * second).mean() == pytest.approx(0, abs=0.001)
    assert (first[:, 0] * first[:, 1]).mean() == pytest.approx(0, abs=0.001)


def test_bias_lasts_for_the_episode_and_differs_between_episodes():
    s = sensors(bias=0.3)
    first = read(s, 0.0)
    assert first.abs().max() <= 0.3
    assert first.std() == pytest.approx(0.3 / 3**0.5, rel=0.05)
    assert torch.equal(read(s, 0.0), first)
    s.reset({"pose": torch.zeros(1, 2)}, rows(5))
    changed = (read(s, 0.0) != first).any(1)
    assert changed.nonzero().flatten().tolist() == [5]


def test_delay_is_whole_steps_of_the_episode():
    s = sensors(delay=3)
    history = torch.stack([read(s, t)[:, 0] for t in range(1, 10)])
    lag = torch.arange(1, 10)[:, None] - history
    assert (lag[3:] == lag[3]).all()
    assert torch.equal(lag[3], s.state["pose/delay"].float())
    counts = lag[3].long().bincount() / N
    assert counts.tolist() == pytest.approx([0.25] * 4, abs=0.03)
    assert (history[0] >= 0).all()
    assert (history.diff(dim=0) >= 0).all()


def test_dropout_repeats_the_last_reading():
    s = sensors(dropout=0.25)
    last, repeats = torch.zeros(N, 2), []
    for t in range(1, 9):
        now = read(s, t)
        old = (now == last).all(1)
        assert ((now == t).all(1) | old).all()
        repeats.append(old.float().mean().item())
        last = now
    assert sum(repeats) / len(repeats) == pytest.approx(0.25, abs=0.02)


def test_readings_handed_out_do_not_change_later():
    s = sensors(delay=1)
    first = read(s, 1.0)
    copy = first.clone()
    read(s, 2.0)
    assert torch.equal(first, copy)


def test_reset_forgets_the_old_episode():
    s = sensors(delay=3, dropout=0.5)
    for t in range(5):
        read(s, 100.0 + t)
    first = s.reset({"pose": torch.full((N, 2), -1.0)}, rows())["pose"]
    assert torch.equal(first, torch.full((N, 2), -1.0))
    assert (read(s, -1.0) == -1.0).all()


def test_noise_on_an_unknown_signal_is_named():
    with pytest.raises(DeftlyError, match="noise on 'poze', which is no signal"):
        Sensors({"poze": Noise()}, SIZES, 1, torch.Generator())


def test_environment_applies_noise_unless_told_not_to(slider):
    noisy = slider(64, noise=Noise(uniform=0.1))
    error = noisy.obs["policy"][:, 2:4] - noisy.state.joint_pos
    assert 0.05 < error.abs().max() <= 0.1
    clean = slider(64, noise=Noise(uniform=0.1), env={"noise": False})
    assert torch.allclose(clean.obs["policy"][:, 2:4].double(), clean.state.joint_pos, atol=1e-6)


@pytest.mark.parametrize(
    "noise", [{"gaussian": -1}, {"uniform": -0.1}, {"dropout": 1.5}, {"delay": -1}, {"bias": -1}]
)
def test_noise_that_is_none_is_refused(noise):
    with pytest.raises(DeftlyError, match=rf"^noise of pose.{next(iter(noise))} is "):
        sensors(**noise)
