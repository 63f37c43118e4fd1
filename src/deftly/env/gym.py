"""Tasks as Gymnasium environments; numpy outside, torch inside.

Importing this module registers every shipped task; `make` builds those of a task file of your own as well:
    envs = gymnasium.make_vec("deftly/jaka-pick-cube-v0", num_envs=64)   # one batch, fast
    env = gymnasium.make("deftly/jaka-pick-cube-v0")                     # one environment
    env = make("my_task.py", env={"noise": False}, task={"rate": 30.0})
"""

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import is_dataclass, replace
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium.error import ResetNeeded
from gymnasium.spaces import Box
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from deftly.config import EnvConfig, SimConfig, suggest
from deftly.contract import ACTION, COMMAND, STATE, PolicyContract
from deftly.env import Env
from deftly.errors import DeftlyError
from deftly.render import Renderer
from deftly.tasks import load, shipped

Array = np.ndarray
Infos = dict[str, Any]
Seeds = int | Sequence[int | None] | None


class TaskVectorEnv(VectorEnv[Array, Array, Array]):
    """`num_envs` environments of a task in one batch; those whose episode ends start anew in the same step.

    `infos["final_obs"][i]` and `infos["final_info"]` are then those of the episode that ended. `config` is
    `render_mode`, None or "rgb_array", and settings of `sim`, `env` and `task` by name: `env={"noise": False}`.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 30, "autoreset_mode": AutoresetMode.SAME_STEP}

    def __init__(self, name: str, num_envs: int = 1, render_mode: str | None = None, **config: Mapping[str, Any]):
        if render_mode not in (None, "rgb_array"):
            raise DeftlyError(f"render_mode is '{render_mode}', expected None or 'rgb_array'")
        cls = load(name)
        sections = {"sim": SimConfig(), "env": EnvConfig(), "task": cls.Config()}
        if unknown := config.keys() - sections:
            raise TypeError(f"there are no settings {sorted(unknown)}, only those of {list(sections)}")
        sim, env, task = (_fill(section, config.get(key, {}), key) for key, section in sections.items())
        self.batch = Env(cls(task), replace(env, num_envs=num_envs), sim, secrets.randbits(31))
        contract = self.batch.contract
        self.metadata = {**self.metadata, "render_fps": max(1, round(contract.rate))}
        self.num_envs, self.render_mode = num_envs, render_mode
        self._renderer = Renderer(self.batch.model) if render_mode else None
        self.single_observation_space, self.single_action_space = observation_space(contract), action_space(contract)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)

    def reset(self, *, seed: Seeds = None, options: dict[str, Any] | None = None) -> tuple[Array, Infos]:
        """Start an episode everywhere. The environments share one stream of draws: several seeds make one."""
        if options and "reset_mask" in options:
            raise DeftlyError("reset_mask is not supported: environments reset themselves in the step that ends")
        if isinstance(seed, Sequence):
            given = [s for s in seed if s is not None]
            seed = int(np.random.SeedSequence(given).generate_state(1)[0]) if given else None
        super().reset(seed=seed)
        if seed is not None:
            self.batch.seed(seed)
        infos = {"is_success": np.zeros(self.num_envs, bool), "_is_success": np.ones(self.num_envs, bool)}
        return self.batch.reset()["policy"].numpy().copy(), infos

    def step(self, actions: Array) -> tuple[Array, Array, Array, Array, Infos]:
        """One control step of all environments."""
        step = self.batch.step(torch.from_numpy(np.array(actions, np.float32)))
        judged = (step.reward, step.terminated, step.truncated, step.success)
        tensors = (*judged, step.obs["policy"], step.final_obs["policy"])
        reward, terminated, truncated, success, obs, last = (t.numpy().copy() for t in tensors)  # they change later
        done = terminated | truncated
        infos: Infos = {"is_success": success & ~done, "_is_success": np.ones(self.num_envs, bool)}
        if done.any():
            final_obs = np.fromiter((o if ended else None for o, ended in zip(last, done)), object, self.num_envs)
            infos |= {"final_obs": final_obs, "_final_obs": done, "_final_info": done.copy()}
            infos["final_info"] = {"is_success": success & done, "_is_success": done}
        return obs, reward, terminated, truncated, infos

    def render(self) -> tuple[Array, ...] | None:
        """A picture of each environment, `(height, width, 3)` uint8, in render mode "rgb_array"."""
        return self._renderer and tuple(self._renderer.environment(self.batch, i) for i in range(self.num_envs))

    def close_extras(self, **kwargs: Any) -> None:
        """Release the renderer."""
        if self._renderer:
            self._renderer.close()
        self._renderer = None


class TaskEnv(gymnasium.Env[Array, Array]):
    """One environment of a task, with `TaskVectorEnv`'s `config`; after the end of an episode, call `reset`."""

    metadata = TaskVectorEnv.metadata

    def __init__(self, name: str, **config: Any):
        self._envs = TaskVectorEnv(name, 1, sim={"threads": 1, **config.pop("sim", {})}, **config)
        self.batch, self.metadata, self.render_mode = self._envs.batch, self._envs.metadata, self._envs.render_mode
        self.batch.auto_reset = False
        self.observation_space = self._envs.single_observation_space
        self.action_space = self._envs.single_action_space
        self._done = True

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Array, Infos]:
        """Start an episode; with a seed, the one that this seed always gives."""
        super().reset(seed=seed)
        self._done = False
        return self._envs.reset(seed=seed)[0][0], {"is_success": False}

    def step(self, action: Array) -> tuple[Array, float, bool, bool, Infos]:
        """One control step. `info["is_success"]` says whether the task is done."""
        if self._done:
            raise ResetNeeded("the episode is over: call reset() before step()")
        obs, reward, terminated, truncated, infos = self._envs.step(np.asarray(action)[None])
        self._done = bool(terminated[0] or truncated[0])
        success = infos.get("final_info", infos)["is_success"]
        return obs[0], float(reward[0]), bool(terminated[0]), bool(truncated[0]), {"is_success": bool(success[0])}

    def render(self) -> Any:
        """A picture of the scene, `(height, width, 3)` uint8, in render mode "rgb_array"."""
        pictures = self._envs.render()
        return pictures and pictures[0]

    def close(self) -> None:
        """Release the renderer."""
        self._envs.close()


def make(name: str, num_envs: int | None = None, **config: Any) -> TaskEnv | TaskVectorEnv:
    """The environment of a shipped task's name or of a task file, by `config`; a batch if `num_envs` is given."""
    return TaskEnv(name, **config) if num_envs is None else TaskVectorEnv(name, num_envs, **config)


def observation_space(contract: PolicyContract) -> Box:
    """The policy's observation, bounded by commands, actions and clips; a joint may be pressed past its limits."""
    limits = [j.lower for j in contract.joints], [j.upper for j in contract.joints]
    bounds, parts = {COMMAND: limits, ACTION: ([-1.0], [1.0])}, []
    for term in contract.observe_terms:
        if term.group != STATE:
            continue
        bound = bounds.get(term.term, ([-np.inf], [np.inf]))
        source = np.broadcast_to(bound, (2, contract.source_size(term.term)))
        ends = np.sort(np.array(term.scale) * (source - np.array(term.offset)), axis=0)
        parts += [ends.clip(*term.clip) if term.clip else ends] * term.frames
    low, high = np.concatenate(parts, axis=1).astype(np.float32)
    return Box(low, high, dtype=np.float32)


def action_space(contract: PolicyContract) -> Box:
    """Every action is in [-1, 1]."""
    return Box(-1.0, 1.0, (contract.action_size,), np.float32)


def _fill(config: Any, values: Mapping[str, Any], where: str) -> Any:
    """A configuration with some of its values replaced, nested ones by nested mappings."""
    known, new = vars(config), dict(values)
    for name, value in values.items():
        if name not in known:
            raise DeftlyError(f"{where} has no setting '{name}'{suggest(name, known)}: it has {sorted(known)}")
        if is_dataclass(known[name]) and isinstance(value, Mapping):
            new[name] = _fill(known[name], value, f"{where}.{name}")
    return replace(config, **new)


for _name in shipped():
    _single, _batch = "deftly.env.gym:TaskEnv", "deftly.env.gym:TaskVectorEnv"
    gymnasium.register(f"deftly/{_name}-v0", _single, vector_entry_point=_batch, kwargs={"name": _name})
