import pytest
import torch


def force(env) -> torch.Tensor:
    return env.sim.bind("xfrc_applied")[:, env.model.body("block").id]


def test_pushes_come_at_random_times_with_the_given_size_and_length(slider):
    env = slider(64, push=5.0, goal=0.0, episode_steps=1000, start=0.0)
    pushed = []
    for _ in range(100):
        env.step(torch.zeros(64, 2))
        pushed.append(force(env)[:, :2].norm(dim=-1).clone())
        assert not force(env)[:, 2:].any()
    on = torch.stack(pushed)
    assert on[on > 0] == pytest.approx(torch.full_like(on[on > 0], 5.0), rel=1e-6)
    starts = ((on[1:] > 0) & (on[:-1] == 0)).sum().item() / 64 / 99
    free, length = 0.5 * 20, 0.1 * 20  # mean wait and length, steps
    assert starts == pytest.approx(1 / (free + length), rel=0.15)
    assert (on > 0).float().mean() == pytest.approx(length / (free + length), rel=0.2)


def test_pushes_move_the_block(slider):
    still, pushed = (slider(8, push=p, goal=0.0, start=0.0) for p in (0.0, 5.0))
    for env in (still, pushed):
        for _ in range(15):
            env.step(torch.zeros(8, 2))
    assert still.state.joint_pos.abs().max() < 1e-6
    assert pushed.state.joint_pos.abs().max() > 0.005


def test_a_curriculum_scales_the_force(slider):
    env = slider(64, push=5.0, goal=0.0, episode_steps=1000, start=0.0)
    for scale in (0.0, 2.0):
        env.state.scale["push"] = scale
        env.reset()
        sizes = []
        for _ in range(60):
            env.step(torch.zeros(64, 2))
            sizes.append(force(env)[:, :2].norm(dim=-1).clone())
        assert float(torch.stack(sizes).max()) == pytest.approx(5.0 * scale, rel=1e-6)


def test_a_new_episode_starts_without_a_push(slider):
    env = slider(16, push=5.0, goal=0.0, episode_steps=10)
    for _ in range(10):
        env.step(torch.zeros(16, 2))
    assert not force(env).any()
    assert not env.state_dict()["pushes/left"].any()


def test_pushes_can_be_switched_off(slider):
    env = slider(16, push=5.0, goal=0.0, env={"pushes": False})
    for _ in range(15):
        env.step(torch.zeros(16, 2))
    assert not force(env).any()
