import ctypes.util
import dataclasses
import warnings
from pathlib import Path

import gymnasium
import numpy as np
import pytest
from gymnasium.error import ResetNeeded
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode

import deftly.env.gym
from deftly.contract import Observe
from deftly.errors import DeftlyError
from deftly.tasks import shipped

SLIDER = str(Path(__file__).parents[1] / "assets" / "slider.py")
CUBE = "deftly/jaka-pick-cube-v0"


def vector(num_envs=3, **config) -> deftly.env.gym.TaskVectorEnv:
    env = deftly.env.gym.make(SLIDER, num_envs, **config)
    assert isinstance(env, deftly.env.gym.TaskVectorEnv)
    return env


def single(**config) -> deftly.env.gym.TaskEnv:
    env = deftly.env.gym.make(SLIDER, **config)
    assert isinstance(env, deftly.env.gym.TaskEnv)
    return env


def test_every_shipped_task_is_registered():
    assert {f"deftly/{name}-v0" for name in shipped()} <= set(gymnasium.registry)


def test_gymnasium_finds_nothing_wrong():
    env = gymnasium.make(CUBE)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        check_env(env.unwrapped, skip_render_check=True)
    beyond = [str(w.message) for w in caught if "infinity" not in str(w.message)]
    assert beyond == []


def test_stable_baselines_learns(tmp_path):
    from stable_baselines3 import PPO
    from stable_baselines3.common.logger import configure

    env = gymnasium.make(CUBE, env={"episode_steps": 50})
    model = PPO("MlpPolicy", env, n_steps=128, batch_size=64, n_epochs=1, device="cpu", seed=1)
    model.set_logger(configure(str(tmp_path), []))  # else it makes a folder of its own in /tmp
    model.learn(256)
    assert model.num_timesteps == 256
    assert len(model.ep_info_buffer or ()) == 5


def test_make_vec_gives_one_batch():
    envs = gymnasium.make_vec(CUBE, num_envs=4, env={"episode_steps": 3})
    assert isinstance(envs, deftly.env.gym.TaskVectorEnv)
    assert envs.metadata["autoreset_mode"] == AutoresetMode.SAME_STEP
    assert envs.metadata["render_fps"] == 15
    obs, info = envs.reset(seed=1)
    assert obs.shape == (4, 11)
    assert obs.dtype == np.float32
    assert envs.observation_space.contains(obs)
    assert info["is_success"].tolist() == [False] * 4
    for i in range(3):
        obs, reward, terminated, truncated, info = envs.step(envs.action_space.sample())
        assert {a.dtype for a in (obs, reward)} == {np.dtype(np.float32)}
        assert {a.dtype for a in (terminated, truncated)} == {np.dtype(bool)}
        assert truncated.all() == (i == 2)
    envs.close()


def test_final_obs_and_info_follow_gymnasium():
    ours = vector(3, env={"episode_steps": 4}, task={"goal": 0.0})
    ours.reset(seed=5)
    ours.batch.state.steps[1] = 2
    for _ in range(2):
        obs, _, _, truncated, info = ours.step(np.ones((3, 2), np.float32))
    assert truncated.tolist() == [False, True, False]
    reference = gymnasium.vector.SyncVectorEnv(
        [lambda n=n: single(env={"episode_steps": n}, task={"goal": 0.0}) for n in (9, 2, 9)],
        autoreset_mode=AutoresetMode.SAME_STEP,
    )
    reference.reset(seed=5)
    for _ in range(2):
        *_, theirs = reference.step(np.ones((3, 2), np.float32))
    assert set(info) == set(theirs)
    assert set(info["final_info"]) == set(theirs["final_info"])
    for name in ("_final_obs", "_final_info", "_is_success"):
        assert info[name].tolist() == theirs[name].tolist()
    assert [x is None for x in info["final_obs"]] == [x is None for x in theirs["final_obs"]]
    assert info["final_obs"][1].shape == (8,)
    assert (info["final_obs"][1] != obs[1]).any()


def test_success_is_told_of_the_episode_that_ended():
    envs = vector(2, task={"start": 0.01, "goal": 0.1})
    envs.reset(seed=0)
    *_, info = envs.step(np.zeros((2, 2), np.float32))
    assert info["final_info"]["is_success"].tolist() == [True, True]
    assert info["is_success"].tolist() == [False, False]


def test_single_environment_ends_with_its_own_last_observation():
    env = single(env={"episode_steps": 3, "noise": False}, task={"goal": 0.0})
    env.reset(seed=1)
    for _ in range(3):
        obs, reward, terminated, truncated, info = env.step(np.ones(2, np.float32))
    assert truncated is True
    assert terminated is False
    assert isinstance(reward, float)
    assert info == {"is_success": False}
    assert obs[2:4] == pytest.approx(env.batch.state.joint_pos[0].numpy(), abs=1e-6)
    assert (obs[-2:] > 0.9).all()
    with pytest.raises(ResetNeeded, match="call reset"):
        env.step(np.ones(2, np.float32))
    assert (env.reset()[0][-2:] == 0).all()


def test_step_needs_a_reset():
    with pytest.raises(ResetNeeded):
        single().step(np.zeros(2, np.float32))


def episode(env, seed: int | None) -> np.ndarray:
    out = [env.reset(seed=seed)[0]]
    out += [env.step(np.full_like(env.action_space.sample(), 0.3))[0] for _ in range(10)]
    return np.stack(out)


@pytest.mark.parametrize("build", [single, vector])
def test_seeds_repeat_episodes(build):
    env, task = build(task={"goal": 0.0, "push": 5.0}), {"goal": 0.0, "push": 5.0}
    first = episode(env, 3)
    assert not np.array_equal(episode(env, None), first)
    assert np.array_equal(episode(env, 3), first)
    assert np.array_equal(episode(build(task=task), 3), first)
    assert not np.array_equal(episode(env, 4), first)


def test_unseeded_environments_differ():
    assert not np.array_equal(single().reset()[0], single().reset()[0])


def test_a_list_of_seeds_is_one_seed():
    env = vector(2)
    first = env.reset(seed=[1, 2])[0]
    assert np.array_equal(env.reset(seed=[1, 2])[0], first)
    assert not np.array_equal(env.reset(seed=[1, 3])[0], first)


def test_observations_handed_out_do_not_change_later():
    env = vector(2)
    obs, _ = env.reset(seed=0)
    kept = obs.copy()
    env.step(np.ones((2, 2), np.float32))
    assert np.array_equal(obs, kept)


def test_spaces_are_bounded_where_the_contract_knows():
    contract = single().batch.contract
    space = deftly.env.gym.observation_space(contract)
    assert np.isinf(space.high[:6]).all()
    assert np.allclose(space.high[6:], 1)
    terms = (
        Observe("command", (2.0, -1.0), (0.5, 0.0), history=4, stride=2),
        Observe("joint_vel", clip=(-3, 4)),
    )
    space = deftly.env.gym.observation_space(dataclasses.replace(contract, observe_terms=terms))
    assert space.low.tolist() == [-3, -1, -3, -1, -3, -3]
    assert space.high.tolist() == [1, 1, 1, 1, 4, 4]
    action = deftly.env.gym.action_space(contract)
    assert (action.low.tolist(), action.high.tolist()) == ([-1, -1], [1, 1])


def test_settings_are_those_of_a_configuration_file():
    env = deftly.env.gym.make(
        SLIDER,
        sim={"preset": "fast"},
        task={"rate": 10.0, "weights": {"near": 3.0}},
        env={"noise": False},
    )
    assert env.batch.contract.rate == 10
    assert env.batch.task.cfg.weights.near == 3
    assert env.batch.task.cfg.weights.moved == -0.1
    assert env.metadata["render_fps"] == 10


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"env": {"noize": True}}, "env has no setting 'noize', did you mean 'noise'"),
        (
            {"task": {"weights": {"neer": 1}}},
            "task.weights has no setting 'neer', did you mean 'near'",
        ),
        ({"render_mode": "human"}, "render_mode is 'human'"),
        ({"sim": {"threads": -1}}, "sim.threads is -1"),
    ],
)
def test_wrong_settings_are_refused_by_name(config, message):
    with pytest.raises(DeftlyError, match=message):
        deftly.env.gym.make(SLIDER, **config)


def test_render_gives_a_picture_of_the_episode():
    env, envs = single(render_mode="rgb_array"), vector(2, render_mode="rgb_array")
    env.reset(seed=0)
    try:
        image = env.render()
    except DeftlyError as error:
        pytest.skip(str(error))
    assert image.dtype == np.uint8
    assert image.ndim == 3
    assert image.std() > 0
    envs.reset(seed=0)
    assert len(envs.render() or ()) == 2
    assert single().render() is None
    env.close()
    env.close()
    envs.close()


def play(envs, steps):
    """What zero actions earn: observations, rewards, ends."""
    rows = [(envs.reset(seed=2)[0], None, None)]
    for _ in range(steps):
        obs, reward, terminated, truncated, _ = envs.step(
            np.zeros(envs.action_space.shape, np.float32)
        )
        rows.append((obs, reward, terminated | truncated))
    return rows


def test_next_step_resets_in_the_step_after_the_end():
    envs = vector(
        2, autoreset_mode="next_step", env={"episode_steps": 2, "noise": False}, task={"goal": 0.0}
    )
    assert envs.metadata["autoreset_mode"] == AutoresetMode.NEXT_STEP
    rows = play(envs, 5)
    assert [row[2].tolist() for row in rows[1:]] == [
        [False] * 2,
        [True] * 2,
        [False] * 2,
        [False] * 2,
        [True] * 2,
    ]
    assert rows[3][1].tolist() == [0.0, 0.0]
    assert rows[2][1].all()
    assert (rows[3][0][:, -2:] == 0).all()  # the last action, of an episode that has just begun
    assert (envs.batch.state.steps == 2).all()


def test_disabled_resets_what_the_caller_names():
    envs = vector(
        2, autoreset_mode=AutoresetMode.DISABLED, env={"episode_steps": 3}, task={"goal": 0.0}
    )
    envs.reset(seed=0)
    envs.batch.state.steps[1] = 2
    action = np.ones((2, 2), np.float32)
    before, _, _, truncated, infos = envs.step(action)
    assert truncated.tolist() == [False, True]
    assert "final_obs" not in infos
    with pytest.raises(ResetNeeded, match="reset_mask"):
        envs.step(action)
    after, _ = envs.reset(options={"reset_mask": truncated})
    assert (after[0] == before[0]).all()
    assert (after[1] != before[1]).any()
    assert envs.batch.state.steps.tolist() == [1, 0]
    envs.step(action)


def test_reset_masks_are_refused_by_name():
    with pytest.raises(DeftlyError, match="needs autoreset_mode='disabled'"):
        vector(2).reset(options={"reset_mask": np.ones(2, bool)})
    with pytest.raises(DeftlyError, match=r"must be bool \(2,\)"):
        vector(2, autoreset_mode="disabled").reset(options={"reset_mask": np.ones(3, bool)})
    with pytest.raises(DeftlyError, match="autoreset_mode is 'next', did you mean 'next_step'"):
        vector(2, autoreset_mode="next")


def test_observation_wrappers_work_in_next_step_mode():
    from gymnasium.wrappers.vector import ClipReward, NormalizeObservation, TransformObservation

    envs = vector(2, autoreset_mode="next_step", env={"episode_steps": 2})
    wrapped = NormalizeObservation(
        ClipReward(TransformObservation(envs, lambda obs: 2 * obs), -1, 1)
    )
    obs, _ = wrapped.reset(seed=0)
    for _ in range(4):
        obs, *_ = wrapped.step(envs.action_space.sample())
    assert obs.shape == (2, 8)
    assert np.isfinite(obs).all()


def test_make_vec_takes_an_episode_length_and_needs_no_import():
    spec = f"deftly.env.gym:{CUBE}"
    envs = gymnasium.make_vec(spec, num_envs=2, max_episode_steps=2, sim={"threads": 1})
    envs.reset(seed=0)
    ends = [envs.step(np.zeros((2, 4), np.float32))[3].tolist() for _ in range(2)]
    assert ends == [[False, False], [True, True]]
    assert gymnasium.make_vec(spec, 1, vectorization_mode="sync", max_episode_steps=2).num_envs == 1


@pytest.mark.parametrize("shape", [(2,), (1, 2), (3, 1), (2, 3)])
def test_actions_of_a_wrong_shape_are_refused(shape):
    envs = vector(3)
    envs.reset(seed=0)
    with pytest.raises(DeftlyError, match=r"action has shape .*takes \(3, 2\)"):
        envs.step(np.zeros(shape, np.float32))
    env = single()
    env.reset(seed=0)
    with pytest.raises(DeftlyError, match="action has shape"):
        env.step(np.zeros(3, np.float32))


def test_the_renderer_is_made_at_the_first_render(monkeypatch):
    made = []

    class Fake:
        def __init__(self, model):
            made.append(model)

        def environment(self, batch, index):
            return np.zeros((4, 4, 3), np.uint8)

        def close(self):
            made.append("closed")

    monkeypatch.setattr(deftly.env.gym, "Renderer", Fake)
    envs = vector(2, render_mode="rgb_array")
    envs.reset(seed=0)
    assert made == []
    assert len(envs.render() or ()) == len(envs.render() or ()) == 2
    assert made == [envs.batch.drawn]
    envs.close()
    assert made[-1] == "closed"


SEEKER = str(Path(__file__).parents[1] / "assets" / "seeker.py")
needs_gl = pytest.mark.skipif(
    not any(ctypes.util.find_library(name) for name in ("EGL", "OSMesa")),
    reason="no GL library is installed",
)


@needs_gl
def test_what_a_policy_sees_beside_numbers_is_in_a_dict():
    env = deftly.env.gym.make(SEEKER, task={"observation": "rgb"})
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        check_env(env, skip_render_check=True)
    assert [str(w.message) for w in caught if "infinity" not in str(w.message)] == []
    assert list(env.observation_space.keys()) == ["state", "top"]  # type: ignore[attr-defined]
    obs, _ = env.reset(seed=1)
    assert obs["top"].shape == (16, 16, 3)
    assert obs["top"].dtype == np.uint8


@needs_gl
@pytest.mark.parametrize("mode", ["same_step", "next_step"])
def test_a_batch_of_images_and_the_end_of_an_episode(mode):
    envs = deftly.env.gym.make(
        SEEKER, 3, task={"observation": "rgb"}, max_episode_steps=2, autoreset_mode=mode
    )
    first, _ = envs.reset(seed=0)
    assert first in envs.observation_space
    still = np.zeros((3, 2), np.float32)
    for _ in range(2):
        obs, *_, infos = envs.step(still)
        assert obs in envs.observation_space
    if mode == "same_step":
        final = infos["final_obs"][1]
        assert final in envs.single_observation_space  # type: ignore[attr-defined]
        assert not np.array_equal(final["top"], obs["top"][1])
    else:
        again = envs.step(still)[0]
        assert not np.array_equal(again["top"], obs["top"])
