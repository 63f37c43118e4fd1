"""Tasks as Gymnasium environments; numpy outside, torch inside.

Importing this module registers every shipped task, which Gymnasium (1.0 and later, without entry points) also does by
itself for an id with the module in front. `make` builds those of a task file of your own as well:

    envs = gymnasium.make_vec("deftly.env.gym:deftly/jaka-pick-cube-v0", num_envs=64)  # one batch, fast
    env = gymnasium.make("deftly.env.gym:deftly/jaka-pick-cube-v0")                    # one environment
    env = make("my_task.py", env={"noise": False}, task={"rate": 30.0})
"""

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any

import gymnasium
import numpy as np
import torch
from gymnasium.error import ResetNeeded
from gymnasium.spaces import Box, Dict, Space
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from typing_extensions import Doc

from deftly.config import EnvConfig, SimConfig, suggest, with_task
from deftly.config.mapping import settings_from
from deftly.contract import ACTION, COMMAND, STATE, PolicyContract
from deftly.env import Env, group_of
from deftly.errors import DeftlyError
from deftly.policy.protocol import single_input
from deftly.render import Renderer
from deftly.tasks import load, shipped

Array = np.ndarray
Obs = Array | dict[str, Array]
"""What the policy sees: numbers, or where there are images each group of the contract's observation by name."""
Infos = dict[str, Any]
Seeds = int | Sequence[int | None] | None


@dataclass(frozen=True)
class GymSettings:
    """Sections that an environment takes, besides the task's own."""

    sim: Annotated[SimConfig, Doc("The physics engine.")] = field(default_factory=SimConfig)
    env: Annotated[EnvConfig, Doc("The batch of environments and what disturbs it.")] = field(
        default_factory=EnvConfig
    )


class TaskVectorEnv(VectorEnv[Obs, Array, Array]):
    """`num_envs` environments of a task in one batch.

    What happens when an episode ends is Gymnasium's `autoreset_mode`:
        same_step: the next episode starts in the step that ends one; `infos["final_obs"][i]` and `infos["final_info"]`
            are then of the episode that ended. Fastest, and what training uses.
        next_step: the next episode starts in the step after, whose action is not used and whose reward is 0.
            Gymnasium's wrappers of vector observations need it.
        disabled: the caller resets, with `reset(options={"reset_mask": ended})`.
    """

    metadata = {
        "render_modes": ["rgb_array"],
        "render_fps": 30,
        "autoreset_mode": AutoresetMode.SAME_STEP,
    }

    def __init__(
        self,
        name: str,
        num_envs: int = 1,
        render_mode: str | None = None,
        max_episode_steps: int | None = None,
        autoreset_mode: AutoresetMode | str = AutoresetMode.SAME_STEP,
        **settings: Any,
    ):
        """Build the batch.

        Args:
            name: The task's name or file.
            num_envs: Environments in the batch.
            render_mode: None or `rgb_array`.
            max_episode_steps: Control steps after which an episode is cut off; None: the task's own length.
            autoreset_mode: One of Gymnasium's modes, or its name: `same_step`, `next_step`, `disabled`.
            settings: The sections `sim`, `env` and `task`, as in a configuration file: `env={"noise": False}`.
        """
        if render_mode not in (None, "rgb_array"):
            raise DeftlyError(f"render_mode is '{render_mode}', expected None or 'rgb_array'")
        cls = load(name)
        args: Any = settings_from(with_task(GymSettings, cls.Config), settings, prog=f"make {name}")
        env_cfg = replace(args.env, num_envs=num_envs)
        if max_episode_steps is not None:
            env_cfg = replace(env_cfg, episode_steps=max_episode_steps)
        self.autoreset_mode = _autoreset_mode(autoreset_mode)
        self.batch = Env(cls(args.task), env_cfg, args.sim, secrets.randbits(31))
        self.batch.auto_reset = self.autoreset_mode is AutoresetMode.SAME_STEP
        contract = self.batch.contract
        fps = max(1, round(contract.rate))
        self.metadata = {**self.metadata, "render_fps": fps, "autoreset_mode": self.autoreset_mode}
        self.num_envs = num_envs
        self.render_mode = render_mode
        self._renderer: Renderer | None = None
        self._ended = np.zeros(num_envs, bool)
        self.single_observation_space = observation_space(contract)
        self.single_action_space = action_space(contract)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)

    def reset(
        self, *, seed: Seeds = None, options: dict[str, Any] | None = None
    ) -> tuple[Obs, Infos]:
        """Start an episode everywhere, or where `options["reset_mask"]`, `(num_envs,)` bool, says so.

        The environments share one stream of draws: several seeds make one.
        """
        mask = (options or {}).get("reset_mask")
        if mask is not None:
            mask = self._reset_mask(mask)
        if isinstance(seed, Sequence):
            given = [s for s in seed if s is not None]
            seed = int(np.random.SeedSequence(given).generate_state(1)[0]) if given else None
        super().reset(seed=seed)
        if seed is not None:
            self.batch.seed(seed)
        obs = self._seen(self.batch.reset(None if mask is None else torch.from_numpy(mask)))
        self._ended = np.zeros(self.num_envs, bool) if mask is None else self._ended & ~mask
        infos = {
            "is_success": np.zeros(self.num_envs, bool),
            "_is_success": np.ones(self.num_envs, bool),
        }
        return obs, infos

    def _reset_mask(self, mask: Any) -> Array:
        if self.autoreset_mode is not AutoresetMode.DISABLED:
            mode = self.autoreset_mode.value
            raise DeftlyError(
                f"reset_mask needs autoreset_mode='disabled', here environments reset in mode '{mode}'"
            )
        mask = np.asarray(mask)
        if mask.dtype != bool or mask.shape != (self.num_envs,):
            raise DeftlyError(
                f"reset_mask is {mask.dtype} {mask.shape}, but it must be bool ({self.num_envs},)"
            )
        return mask.copy()

    def step(self, actions: Array) -> tuple[Obs, Array, Array, Array, Infos]:
        """One control step of all environments. Raises DeftlyError for actions of a wrong shape."""
        if self.autoreset_mode is AutoresetMode.DISABLED and self._ended.any():
            raise ResetNeeded(
                "episodes are over: call reset(options={'reset_mask': ended}) before step()"
            )
        step = self.batch.step(torch.from_numpy(np.array(actions, np.float32)))
        judged = (step.reward, step.terminated, step.truncated, step.success)
        reward, terminated, truncated, success = (t.numpy().copy() for t in judged)  # they change
        obs, last = self._seen(step.obs), self._seen(step.final_obs)
        if self.autoreset_mode is AutoresetMode.NEXT_STEP and self._ended.any():
            fresh = self._ended
            obs = self._seen(self.batch.reset(torch.from_numpy(fresh)))
            reward[fresh] = 0.0
            for flags in (terminated, truncated, success):
                flags[fresh] = False
        done = terminated | truncated
        self._ended = done.copy()
        infos: Infos = {"is_success": success, "_is_success": np.ones(self.num_envs, bool)}
        if done.any() and self.autoreset_mode is AutoresetMode.SAME_STEP:
            infos["is_success"] = success & ~done
            final_obs = np.full(self.num_envs, None, object)
            for i in np.flatnonzero(done).tolist():
                final_obs[i] = _row(last, i)
            infos |= {"final_obs": final_obs, "_final_obs": done, "_final_info": done.copy()}
            infos["final_info"] = {"is_success": success & done, "_is_success": done}
        return obs, reward, terminated, truncated, infos

    def _seen(self, obs: Mapping[str, torch.Tensor]) -> Obs:
        """What the policy sees of all environments, a copy."""
        contract = self.batch.contract
        groups = {name: obs[group_of(name)].numpy().copy() for name in contract.groups}
        return groups[STATE] if single_input(contract) else groups

    def render(self) -> tuple[Array, ...] | None:
        """An image of each environment, `(height, width, 3)` uint8, in render mode "rgb_array".

        The renderer is made at the first call: a process that never renders opens no OpenGL context.
        """
        if self.render_mode is None:
            return None
        if self._renderer is None:
            self._renderer = Renderer(self.batch.drawn)
        renderer = self._renderer
        return tuple(renderer.environment(self.batch, i) for i in range(self.num_envs))

    def close_extras(self, **kwargs: Any) -> None:
        """Release the renderer."""
        if self._renderer:
            self._renderer.close()
        self._renderer = None


class TaskEnv(gymnasium.Env[Obs, Array]):
    """One environment of a task, with the settings of `TaskVectorEnv`; after the end of an episode, call `reset`."""

    metadata = {
        name: value for name, value in TaskVectorEnv.metadata.items() if name != "autoreset_mode"
    }

    def __init__(self, name: str, **config: Any):
        sim = config.pop("sim", {})
        if isinstance(sim, Mapping):
            sim = {"threads": 1, **sim}
        self._envs = TaskVectorEnv(
            name, 1, sim=sim, autoreset_mode=AutoresetMode.SAME_STEP, **config
        )
        self.batch = self._envs.batch
        self.batch.auto_reset = False
        self.metadata = {**self.metadata, "render_fps": self._envs.metadata["render_fps"]}
        self.render_mode = self._envs.render_mode
        self.observation_space = self._envs.single_observation_space
        self.action_space = self._envs.single_action_space
        self._done = True

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Obs, Infos]:
        """Start an episode; with a seed, the one that this seed always gives."""
        super().reset(seed=seed)
        self._done = False
        return _row(self._envs.reset(seed=seed)[0], 0), {"is_success": False}

    def step(self, action: Array) -> tuple[Obs, float, bool, bool, Infos]:
        """One control step. `info["is_success"]` says whether the task is done."""
        if self._done:
            raise ResetNeeded("the episode is over: call reset() before step()")
        obs, reward, terminated, truncated, infos = self._envs.step(np.asarray(action)[None])
        self._done = bool(terminated[0] or truncated[0])
        success = infos.get("final_info", infos)["is_success"]
        return (
            _row(obs, 0),
            float(reward[0]),
            bool(terminated[0]),
            bool(truncated[0]),
            {"is_success": bool(success[0])},
        )

    def render(self) -> Any:
        """An image of the scene, `(height, width, 3)` uint8, in render mode "rgb_array"."""
        images = self._envs.render()
        return images and images[0]

    def close(self) -> None:
        """Release the renderer."""
        self._envs.close()


def make(name: str, num_envs: int | None = None, **config: Any) -> TaskEnv | TaskVectorEnv:
    """The environment of a shipped task's name or of a task file, by `config`; a batch if `num_envs` is given."""
    return TaskEnv(name, **config) if num_envs is None else TaskVectorEnv(name, num_envs, **config)


def observation_space(contract: PolicyContract) -> Box | Dict:
    """What the policy sees: a box of numbers, or where there are images a box of each group of the observation."""
    if single_input(contract):
        return _numbers_space(contract, STATE)
    spaces: dict[str, Space[Any]] = {}
    for group in contract.groups:
        if contract.is_image(group):
            spaces[group] = Box(0, 255, contract.group_shape(group), np.uint8)
        else:
            spaces[group] = _numbers_space(contract, group)
    return Dict(spaces)


def _numbers_space(contract: PolicyContract, group: str) -> Box:
    """A group of numbers, bounded by commands, actions and clips; a joint may be pressed past its limits."""
    limits = [j.lower for j in contract.joints], [j.upper for j in contract.joints]
    bounds, parts = {COMMAND: limits, ACTION: ([-1.0], [1.0])}, []
    for term in contract.observe_terms:
        if term.group != group:
            continue
        bound = bounds.get(term.term, ([-np.inf], [np.inf]))
        source = np.broadcast_to(bound, (2, contract.source_size(term.term)))
        ends = np.sort(np.array(term.scale) * (source - np.array(term.offset)), axis=0)
        parts += [ends.clip(*term.clip) if term.clip else ends] * term.frames
    low, high = np.concatenate(parts, axis=1).astype(np.float32)
    return Box(low, high, dtype=np.float32)


def _row(obs: Obs, index: int) -> Obs:
    """What the policy sees of one environment."""
    if isinstance(obs, dict):
        return {name: value[index] for name, value in obs.items()}
    return obs[index]


def action_space(contract: PolicyContract) -> Box:
    """Every action is in [-1, 1]."""
    return Box(-1.0, 1.0, (contract.action_size,), np.float32)


def _autoreset_mode(given: AutoresetMode | str) -> AutoresetMode:
    """Gymnasium's mode of a mode or its name. Raises DeftlyError for another word."""
    if isinstance(given, AutoresetMode):
        return given
    names = {mode.name.lower(): mode for mode in AutoresetMode}
    if given not in names:
        raise DeftlyError(
            f"autoreset_mode is '{given}'{suggest(given, names)}, expected one of {sorted(names)}"
        )
    return names[given]


for _name in shipped():
    _single, _batch = "deftly.env.gym:TaskEnv", "deftly.env.gym:TaskVectorEnv"
    gymnasium.register(
        f"deftly/{_name}-v0", _single, vector_entry_point=_batch, kwargs={"name": _name}
    )
