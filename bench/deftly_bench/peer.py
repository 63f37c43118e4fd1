"""How the JAKA project trains, as a peer: Stable-Baselines3's PPO, a process with plain MuJoCo for each environment.

Physics, observation, action and reset are those of `jaka-pick-cube`; reward and termination are a simple twin of
its own, written in numpy as the seed wrote them. Nothing of Deftly's environment runs here.
"""

from __future__ import annotations

import time
from functools import partial
from typing import Any

import gymnasium
import mujoco
import numpy as np

from deftly.config import SimConfig
from deftly.config.presets import Preset
from deftly.contract import PolicyContract
from deftly.sim.scene import compile_scene
from deftly.tasks import load
from deftly_bench.entry import no_program

HALF_PI = np.pi / 2
TASK = "jaka-pick-cube"


class PickCube(gymnasium.Env[np.ndarray, np.ndarray]):
    """One environment of the task in plain MuJoCo and numpy."""

    def __init__(self, preset: Preset = "default", seed: int = 0):
        cls, sim = load(TASK), SimConfig(preset=preset)
        task = cls(cls.Config())
        self.cfg, self.contract = task.cfg, task.contract()
        self.model = compile_scene(task.scene(), self.contract.rate, sim)
        self.data = mujoco.MjData(self.model)
        self._substeps = sim.substeps_at(self.contract.rate)
        self._rng = np.random.default_rng(seed)
        self._lower, self._upper, self._travel = _limits(self.contract)
        self._cube = int(self.model.joint("cube").qposadr[0])
        self._pinch = self.model.site("pinch").id
        self._ctrl = [self.model.actuator(name).id for name in self.contract.joint_names]
        self._pads = {self.model.geom(f"pad_{side}").id for side in ("left", "right")}
        self._box = self.model.geom("cube").id
        self._filtered, self._command = np.zeros(3), np.zeros(7)
        self._steps = self._held = 0
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (11,), np.float32)
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (4,), np.float32)

    def reset(
        self, *, seed: int | None = None, options: Any = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Start an episode as the task does."""
        data, rng, cfg = self.data, self._rng, self.cfg
        mujoco.mj_resetDataKeyframe(self.model, data, 0)
        arm = data.qpos[:3] + rng.uniform(-cfg.home_noise, cfg.home_noise, 3)
        data.qpos[:6] = *arm, HALF_PI - arm[1] - arm[2], HALF_PI, HALF_PI + arm[0]
        yaw, cube = rng.uniform(-cfg.cube_yaw, cfg.cube_yaw) / 2, self._cube
        data.qpos[cube : cube + 2] = rng.uniform(*cfg.cube_x), rng.uniform(*cfg.cube_y)
        data.qpos[cube + 3], data.qpos[cube + 6] = np.cos(yaw), np.sin(yaw)
        mujoco.mj_forward(self.model, data)
        self._filtered, self._command = np.zeros(3), data.qpos[:7].copy()
        self._steps = self._held = 0
        return self._observe(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """One control step."""
        self.data.ctrl[self._ctrl] = self.targets(action)
        mujoco.mj_step(self.model, self.data, self._substeps)
        obs = self._observe()
        gripped, height = self._gripped(), float(obs[9])
        self._steps += 1
        self._held = self._held + 1 if gripped and height >= self.cfg.success_height else 0
        success, fell = self._held >= self.cfg.hold_steps, height < -0.05
        reward = -2.0 * float(obs[10]) + gripped * (1 + 5 * height) + 10 * success - 5 * fell
        return obs, reward, success or fell, self._steps >= self.cfg.episode_steps, {}

    def targets(self, action: np.ndarray) -> np.ndarray:
        """Joint targets of an action, as the contract has them."""
        action, cfg, q = np.clip(action, -1.0, 1.0), self.cfg, self._command
        self._filtered = cfg.lowpass * self._filtered + (1 - cfg.lowpass) * action[:3]
        q[:3] += self._filtered * cfg.speed / cfg.rate
        q[:3] = np.clip(q[:3], self._lower[:3], self._upper[:3])
        q[3], q[4], q[5] = HALF_PI - q[1] - q[2], HALF_PI, HALF_PI + q[0]
        q[6] += -self._travel if action[3] > 0 else self._travel
        np.clip(q, self._lower, self._upper, out=q)
        return q

    def _observe(self) -> np.ndarray:
        data, cube = self.data, self.data.qpos[self._cube : self._cube + 3]
        away = np.linalg.norm(data.site_xpos[self._pinch] - cube)
        finger = data.qpos[6] / self._upper[6]
        return np.array([*data.qpos[:6], finger, *cube, away], np.float32)

    def _gripped(self) -> bool:
        pairs = self.data.contact.geom
        touching = pairs[(pairs == self._box).any(1)]
        return self._pads <= set(touching.ravel().tolist())


def _limits(contract: PolicyContract) -> tuple[np.ndarray, np.ndarray, float]:
    """Limits of the joints, and how far the gripper moves in a step."""
    lower, upper = ([getattr(j, end) for j in contract.joints] for end in ("lower", "upper"))
    return np.array(lower), np.array(upper), contract.joints[6].velocity / contract.rate


def learn(task: str, preset: Preset, num_envs: int, steps: int, seconds: float) -> float:
    """Control steps a second of SB3's PPO with that project's settings, without the first rollout and update."""
    from stable_baselines3 import PPO
    from stable_baselines3.common.callbacks import BaseCallback
    from stable_baselines3.common.vec_env import SubprocVecEnv

    assert task == TASK, task
    marks: list[tuple[float, int]] = []

    class Clock(BaseCallback):
        def _on_rollout_start(self) -> None:
            marks.append((time.perf_counter(), self.num_timesteps))

        def _on_step(self) -> bool:
            return len(marks) < 3 or marks[-1][0] - marks[1][0] < seconds

    envs = SubprocVecEnv([partial(PickCube, preset, seed) for seed in range(num_envs)])
    try:
        policy = {"net_arch": [256, 256]}
        batch = min(64, steps * num_envs)
        ppo = PPO(
            "MlpPolicy", envs, n_steps=steps, batch_size=batch, policy_kwargs=policy, device="cpu"
        )
        ppo.learn(10**9, callback=Clock())
    finally:
        envs.close()
    (start, before), (end, after) = marks[1], marks[-1]
    return (after - before) / (end - start)


if __name__ == "__main__":
    no_program()
