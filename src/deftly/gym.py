"""Tasks as Gymnasium environments; numpy outside, torch inside.

Importing this module registers every shipped task:

    import deftly.gym
    envs = gymnasium.make_vec("deftly/jaka-pick-cube-v0", num_envs=64)  # one batch, fast
    env = gymnasium.make("deftly/jaka-pick-cube-v0")                    # one environment

`make` builds those of a task file of your own. The observation is the policy's; its space is bounded where
the contract knows a bound.
"""

from __future__ import annotations

import dataclasses
import secrets
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import gymnasium
import numpy as np
import torch
from gymnasium.error import ResetNeeded
from gymnasium.spaces import Box
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from torch import Tensor

from deftly.config import EnvConfig, SimConfig, suggest
from deftly.contract import ACTION, COMMAND, Contract
from deftly.env import Env
from deftly.errors import DeftlyError
from deftly.tasks import load, shipped

if TYPE_CHECKING:
    from deftly.sim.render import Renderer

T = TypeVar("T")
Array = np.ndarray
Infos = dict[str, Any]


class TaskEnv(gymnasium.Env[Array, Array]):
    """One environment of a task. It does not reset itself: after the end of an episode, call `reset`.

    Args:
        name: a shipped task, or a file `my_task.py`.
        render_mode: None or "rgb_array".
        sim, env, task: settings by name, as in a configuration file: `env={"noise": False}`.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 30}

    def __init__(
        self,
        name: str,
        render_mode: str | None = None,
        sim: Mapping[str, Any] = {},
        env: Mapping[str, Any] = {},
        task: Mapping[str, Any] = {},
    ):
        self.batch = _build(name, {"threads": 1, **sim}, {**env, "num_envs": 1}, task)
        self.batch.auto_reset = False
        self.metadata = {**self.metadata, "render_fps": max(1, round(self.batch.contract.rate))}
        self.observation_space = observation_space(self.batch.contract)
        self.action_space = action_space(self.batch.contract)
        self.render_mode = render_mode
        self._frames = Frames(self.batch, render_mode)
        self._done = True

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Array, Infos]:
        """Start an episode; with a seed, the one that this seed always gives."""
        super().reset(seed=seed)
        if seed is not None:
            self.batch.seed(seed)
        self._done = False
        return _numpy(self.batch.reset()["policy"])[0], {"is_success": False}

    def step(self, action: Array) -> tuple[Array, float, bool, bool, Infos]:
        """One control step. `info["is_success"]` says whether the task is done."""
        if self._done:
            raise ResetNeeded("the episode is over: call reset() before step()")
        step = self.batch.step(_tensor(action)[None])
        terminated, truncated = bool(step.terminated[0]), bool(step.truncated[0])
        self._done = terminated or truncated
        obs = _numpy(step.final_obs["policy"])[0]
        return obs, float(step.reward[0]), terminated, truncated, {"is_success": bool(step.success[0])}

    def render(self) -> Any:
        """A picture of the scene, `(height, width, 3)` uint8, in render mode "rgb_array"."""
        return None if self.render_mode is None else self._frames.take(0)

    def close(self) -> None:
        """Release the renderer."""
        self._frames.close()


class TaskVectorEnv(VectorEnv[Array, Array, Array]):
    """`num_envs` environments of a task in one batch; those whose episode ends start anew in the same step.

    `infos["final_obs"][i]` and `infos["final_info"]` are then those of the episode that ended.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 30, "autoreset_mode": AutoresetMode.SAME_STEP}

    def __init__(
        self,
        name: str,
        num_envs: int = 1,
        render_mode: str | None = None,
        sim: Mapping[str, Any] = {},
        env: Mapping[str, Any] = {},
        task: Mapping[str, Any] = {},
    ):
        self.batch = _build(name, sim, {**env, "num_envs": num_envs}, task)
        self.metadata = {**self.metadata, "render_fps": max(1, round(self.batch.contract.rate))}
        self.num_envs, self.render_mode = num_envs, render_mode
        self.single_observation_space = observation_space(self.batch.contract)
        self.single_action_space = action_space(self.batch.contract)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._frames = Frames(self.batch, render_mode)

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Array, Infos]:
        """Start an episode everywhere. The environments share one stream of draws: several seeds make one."""
        if options and "reset_mask" in options:
            raise DeftlyError("reset_mask is not supported: environments reset themselves in the step that ends")
        if isinstance(seed, Sequence):
            given = [s for s in seed if s is not None]
            seed = int(np.random.SeedSequence(given).generate_state(1)[0]) if given else None
        super().reset(seed=seed)
        if seed is not None:
            self.batch.seed(seed)
        return _numpy(self.batch.reset()["policy"]), self._info(np.zeros(self.num_envs, bool))

    def step(self, actions: Array) -> tuple[Array, Array, Array, Array, Infos]:
        """One control step of all environments."""
        step = self.batch.step(_tensor(actions))
        terminated, truncated = _numpy(step.terminated), _numpy(step.truncated)
        done, success = terminated | truncated, _numpy(step.success)
        infos = self._info(success & ~done)
        if done.any():
            final_obs = np.full(self.num_envs, None, dtype=object)
            for i in np.flatnonzero(done):
                final_obs[i] = _numpy(step.final_obs["policy"][i])
            infos |= {"final_obs": final_obs, "_final_obs": done}
            final_info = {"is_success": success & done, "_is_success": done}
            infos |= {"final_info": final_info, "_final_info": done.copy()}
        return _numpy(step.obs["policy"]), _numpy(step.reward), terminated, truncated, infos

    def render(self) -> tuple[Array, ...] | None:
        """A picture of each environment, `(height, width, 3)` uint8, in render mode "rgb_array"."""
        return None if self.render_mode is None else tuple(map(self._frames.take, range(self.num_envs)))

    def close_extras(self, **kwargs: Any) -> None:
        """Release the renderer."""
        self._frames.close()

    def _info(self, success: Array) -> Infos:
        return {"is_success": success, "_is_success": np.ones(self.num_envs, bool)}


def make(name: str, num_envs: int | None = None, **config: Any) -> TaskEnv | TaskVectorEnv:
    """The environment of a shipped task's name or of a task file; a batch if `num_envs` is given.

    `config` holds what `TaskEnv` takes: `make("my_task.py", 64, env={"noise": False}, task={"rate": 30.0})`.
    """
    return TaskEnv(name, **config) if num_envs is None else TaskVectorEnv(name, num_envs, **config)


def observation_space(contract: Contract) -> Box:
    """Bounds of the observation: finite for commands, actions and clipped terms.

    A measured signal has none: even a joint is pressed past its limits now and then.
    """
    parts = [np.tile(_bounds(contract, i), term.history) for i, term in enumerate(contract.observe_terms)]
    low, high = np.concatenate(parts, axis=1).astype(np.float32)
    return Box(low, high, dtype=np.float32)


def action_space(contract: Contract) -> Box:
    """Every action is in [-1, 1]."""
    return Box(-1.0, 1.0, (contract.action_size,), np.float32)


class Frames:
    """Pictures of single environments. The renderer is made for the first of them."""

    def __init__(self, env: Env, render_mode: str | None):
        if render_mode not in (None, "rgb_array"):
            raise DeftlyError(f"render_mode is '{render_mode}', expected None or 'rgb_array'")
        self._env = env
        self._renderer: Renderer | None = None

    def take(self, i: int) -> Array:
        """A picture of environment `i`, `(height, width, 3)` uint8."""
        from deftly.sim.render import Renderer

        self._renderer = self._renderer or Renderer(self._env.model)
        return self._renderer.environment(self._env, i)

    def close(self) -> None:
        """Release the renderer, if there is one."""
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None


def _bounds(contract: Contract, i: int) -> Array:
    """Lowest and highest value of one observation term, `(2, size)`."""
    term = contract.observe_terms[i]
    if term.signal == COMMAND:
        source = np.array([(j.lower, j.upper) for j in contract.joints]).T
    else:
        bound = 1.0 if term.signal == ACTION else np.inf
        source = np.array([[-bound], [bound]]).repeat(contract.source_size(term.signal), axis=1)
    ends = np.sort(np.array(term.scale) * (source - np.array(term.offset)), axis=0)
    return ends if term.clip is None else ends.clip(*term.clip)


def _build(name: str, sim: Mapping[str, Any], env: Mapping[str, Any], task: Mapping[str, Any]) -> Env:
    cls = load(name)
    cfg = _fill(cls.Config(), task, "task")
    return Env(cls(cfg), _fill(EnvConfig(), env, "env"), _fill(SimConfig(), sim, "sim"), secrets.randbits(31))


def _fill(config: T, values: Mapping[str, Any], where: str) -> T:
    """A configuration with some of its values replaced, nested ones by nested mappings."""
    known = {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}  # type: ignore[arg-type]
    for name, value in values.items():
        if name not in known:
            raise DeftlyError(f"{where} has no setting '{name}'{suggest(name, known)}: it has {sorted(known)}")
        nested = dataclasses.is_dataclass(known[name]) and isinstance(value, Mapping)
        known[name] = _fill(known[name], value, f"{where}.{name}") if nested else value
    return type(config)(**known)


def _tensor(action: Any) -> Tensor:
    return torch.from_numpy(np.array(action, dtype=np.float32))


def _numpy(tensor: Tensor) -> Array:
    """A copy: what is handed out must not change with the next step."""
    return tensor.numpy().copy()


for _name in shipped():
    gymnasium.register(
        id=f"deftly/{_name}-v0",
        entry_point="deftly.gym:TaskEnv",
        vector_entry_point="deftly.gym:TaskVectorEnv",
        kwargs={"name": _name},
    )
