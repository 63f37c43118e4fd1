"""The engine on Warp: `mujoco_warp`, float32, on a GPU, or on a CPU, where it serves tests and not speed.

Torch and Warp share memory: the tensors of `bind` and `expand` are the arrays that the kernels read and write. Each
operation of the engine is a graph: it is run once as it is, which compiles its kernels, recorded the second time, and
from then on replayed without Python. Nothing in `step`, `forward` or `reset` waits for the device, unless broken
environments are to be written to disk.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import mujoco
import mujoco_warp as mjw
import numpy as np
import torch
import warp as wp
from torch import Tensor

from deftly.errors import DeftlyError
from deftly.sim.guard import dump
from deftly.sim.protocol import STATE_FIELDS

_CONSTANTS = (  # what `mjw.set_const` writes: of each environment, once a field that it reads is
    "body_subtreemass",
    "body_invweight0",
    "dof_invweight0",
    "tendon_length0",
    "tendon_invweight0",
    "actuator_acc0",
    "geom_size",
    "geom_aabb",
    "geom_rbound",
    "eq_data",
    "cam_pos0",
    "cam_poscom0",
    "cam_mat0",
    "light_pos0",
    "light_poscom0",
    "light_dir0",
)
_NO_ROOM = mjw.OverflowType.ALL & ~(mjw.OverflowType.ITERATIONS | mjw.OverflowType.LS_ITERATIONS)
"""Overflows that lose contacts or constraints. That a solver stops at its iteration limit is what the preset asks."""
_HUGE = 1e10  # mjMAXVAL: from here on MuJoCo calls a state bad
_MAX_DUMPS = 10  # broken environments that are written to `dump_dir`; the others are only counted


class WarpSim:
    """`deftly.sim.protocol.Sim` on Warp.

    What differs from the CPU engine: numbers are float32, and on a GPU the order in which contacts are found, and so
    the last bits of a step, differ from run to run (on the CPU device they do not). `eq_active` binds as bool.

    Boxes meet boxes by the separating axis test that MuJoCo uses, not by Warp's own default, whose contacts differ.

    Args:
        model: the nominal model.
        num_envs: simulations side by side.
        device: `cpu`, `cuda` or `cuda:N`.
        dump_dir: the first environments that break are written there for `deftly.sim.guard.replay`; until then every
            step waits for the device. None only counts them.
        contacts: room for contacts of an environment. One whose constraints do not fit into that of so many contacts
            counts as broken; if all environments together have more contacts than fit, all of them do, since it is
            not known whose were lost. Pairs of geoms whose distance a sensor measures take room as well.

    Raises:
        DeftlyError: Warp's MuJoCo lacks something that the model uses, or there is no such device.
    """

    dtype = torch.float32

    def __init__(
        self,
        model: mujoco.MjModel,
        num_envs: int,
        device: str = "cpu",
        dump_dir: Path | None = None,
        contacts: int = 64,
    ):
        self.model = model
        self.num_envs = num_envs
        self.dump_dir = dump_dir
        self._dumped = 0
        self._wp_device = _find_device(device)
        self._graphs: dict[str, Any] = {}
        self._ran: set[str] = set()  # operations whose kernels are loaded
        with wp.ScopedDevice(self._wp_device):
            self._model = _put_model(model)
            rows = _constraint_rows(model, contacts)
            self._data = mjw.make_data(model, num_envs, nconmax=contacts, njmax=rows)
        self._template = mujoco.MjData(model)
        self._bound: dict[str, Tensor] = {}
        self._derived: list[str] = []  # fields bound that are no state
        self._expanded: dict[str, Tensor] = {}
        self._state = [self.bind(field) for field in STATE_FIELDS]
        self._qacc = self.bind("qacc")
        self._sensordata = self.bind("sensordata")
        self._overflow = wp.to_torch(self._data.overflow)
        self.device = self._qacc.device
        self._home = _home(model, self.device)
        self._delayed = _DelayedCommands(model, self.device)
        self._position_sensors = _position_sensors(model, self.device)
        # Environments that broke, and of them those without room for their constraints.
        self._counts = torch.zeros(2, dtype=torch.long, device=self.device)
        self.reset()

    # ------------------------------------------------------------------------------------------- live fields

    def bind(self, field: str) -> Tensor:
        """Live view of an MjData field, `(num_envs, ...)`; writing to a state field writes the simulation.

        Raises DeftlyError if this engine does not keep the field as MuJoCo does.
        """
        if field not in self._bound:
            value: Any = getattr(self._template, field, None)
            shape = (self.num_envs, *np.shape(value))
            array: Any = getattr(self._data, field, None)
            if not isinstance(array, wp.array) or wp.to_torch(array).numel() != np.prod(
                shape, dtype=int
            ):
                raise DeftlyError(
                    f"the warp engine cannot bind '{field}': it keeps no such field of MjData"
                )
            self._bound[field] = wp.to_torch(array).view(shape)
            if field not in STATE_FIELDS and self._bound[field].is_floating_point():
                self._derived.append(field)
        return self._bound[field]

    def expand(self, field: str) -> Tensor:
        """Live values of an MjModel field for each environment, `(num_envs, ...)`.

        Raises DeftlyError if this engine shares the field between environments.
        """
        if field not in self._expanded:
            self._expand(field)
            if field in mujoco.MjModel._setconst_inputs:
                for constant in _CONSTANTS:
                    if constant not in self._expanded and getattr(self.model, constant).size:
                        self._expand(constant)
        return self._expanded[field]

    def _expand(self, field: str) -> None:
        owner, name = (
            (self._model.opt, field[4:]) if field.startswith("opt.") else (self._model, field)
        )
        nominal: Any = getattr(
            self.model.opt if owner is self._model.opt else self.model, name, None
        )
        shared: Any = getattr(owner, name, None)
        if not _may_differ(owner, name) or not isinstance(shared, wp.array):
            raise DeftlyError(
                f"the warp engine cannot expand '{field}': all its environments share it"
            )
        values = np.repeat(shared.numpy(), self.num_envs, axis=0)
        own = wp.array(values, dtype=shared.dtype, device=self._wp_device)
        setattr(owner, name, own)
        self._graphs.clear()  # they refer to the shared array
        self._expanded[field] = wp.to_torch(own).view(self.num_envs, *np.shape(nominal))

    # ------------------------------------------------------------------------------------------- physics

    def step(self, substeps: int, mask: Tensor | None = None) -> Tensor:
        """Advance environments; positions, contacts and their sensors are those of the new state.

        Returns which broke, `(num_envs,)` bool: they met a non-finite or huge number, or had more contacts than fit.
        Those whose numbers are bad are put at the home keyframe, so that nobody computes with them.
        """
        before = self.get_state() if self.dump_dir and self._dumped < _MAX_DUMPS else None
        with self._kept(self._bound.values(), mask):
            bad = ~_usable(self.bind("ctrl"))
            self._overflow.zero_()
            for _ in range(substeps):
                self._run("step", lambda: mjw.step(self._model, self._data))
            for field in ("qpos", "qvel", "qacc"):
                bad |= ~_usable(self.bind(field))
            crowded = (self._overflow & int(_NO_ROOM)) != 0
            if mask is not None:
                bad &= mask
                crowded &= mask
            self.reset(bad)
            self._refresh()
            for field in self._derived:
                self._bound[field].nan_to_num_(0.0, 0.0, 0.0)
        broken = bad | crowded
        if before is not None:
            self._dump(broken, before, substeps)
        self._counts += torch.stack((broken.sum(), crowded.sum()))
        return broken

    def forward(self, mask: Tensor | None = None) -> None:
        """Recompute derived fields after the state was written, forces too, of the commands of now."""
        with self._kept(self._bound.values(), mask):
            self._run("forward", lambda: mjw.forward(self._model, self._data))

    def reset(self, mask: Tensor | None = None) -> None:
        """Put environments at the home keyframe; derived fields are stale until `forward`."""
        for view, home in zip(self._state, self._home):
            _put(view, home, mask)

    def set_const(self, mask: Tensor | None = None) -> None:
        """Recompute the model constants that follow from expanded fields (masses, inertias, ...)."""
        constants = [self._expanded[name] for name in _CONSTANTS if name in self._expanded]
        if not constants:
            return
        nowhere = torch.zeros(self.num_envs, dtype=torch.bool, device=self.device)
        with self._kept(constants, mask), self._kept(self._bound.values(), nowhere):
            self._run("set_const", lambda: mjw.set_const(self._model, self._data, restore=False))

    def hold_commands(self, mask: Tensor | None = None) -> None:
        """Fill what delayed actuators read as if the command of now had always been there."""
        history = self.bind("history")
        held = self.bind("ctrl")[:, self._delayed.actuators]
        if mask is not None:
            held = torch.where(mask[:, None], held, history[:, self._delayed.values])
        history[:, self._delayed.values] = held

    def _refresh(self) -> None:
        """Positions, contacts and the sensors that follow from them after a step; the other sensors stay."""
        others = self._sensordata.clone()
        self._run("refresh", self._compute_positions)
        if self._position_sensors.any_:
            self._sensordata.copy_(
                torch.where(self._position_sensors.columns, self._sensordata, others)
            )

    def _compute_positions(self) -> None:
        mjw.fwd_position(self._model, self._data, factorize=False)
        if self._position_sensors.any_:
            self._data.sensordata.zero_()
            mjw.sensor_pos(self._model, self._data)

    def _run(self, name: str, operation: Callable[[], None]) -> None:
        """Run an operation of the engine: as it is the first time, later as a graph."""
        with wp.ScopedDevice(self._wp_device):
            if name not in self._ran:
                _say_that_kernels_compile()
                operation()
                self._ran.add(name)
                return
            if name not in self._graphs:
                with wp.ScopedCapture() as capture:
                    operation()
                self._graphs[name] = capture.graph
            wp.capture_launch(self._graphs[name])

    @contextlib.contextmanager
    def _kept(self, views: Iterable[Tensor], mask: Tensor | None) -> Iterator[None]:
        """What is in `views` stays as it is where `mask` is False: the kernels compute every environment."""
        if mask is None:
            yield
            return
        kept = [(view, view.clone()) for view in views]
        yield
        for view, old in kept:
            _put(view, old, ~mask)

    # ------------------------------------------------------------------------------------------- saved state

    def get_state(self) -> Tensor:
        """Copy of the integration states, `(num_envs, n)` float32."""
        return torch.cat(
            [view.reshape(self.num_envs, -1).to(self.dtype) for view in self._state], 1
        )

    def set_state(self, state: Tensor) -> None:
        """Restore what `get_state` gave; derived fields are stale until `forward`."""
        start = 0
        for view in self._state:
            size = view[0].numel()
            view.copy_(state[:, start : start + size].view(view.shape))
            start += size

    def state_of(self, index: int) -> np.ndarray:
        """Copy of the integration state of one environment, `(n,)` float64, for `mj_setState`."""
        return _numpy(self.get_state()[index])

    def model_of(self, index: int) -> mujoco.MjModel:
        """A model with the environment's own values of the expanded fields."""
        model = copy.copy(self.model)
        for field, view in self._expanded.items():
            target = (
                getattr(model.opt, field[4:]) if field.startswith("opt.") else getattr(model, field)
            )
            target[...] = _numpy(view[index])
        return model

    @property
    def broken_count(self) -> int:
        """How many environments broke since the start. Waits for the device."""
        return int(self._counts[0])

    @property
    def overflow_count(self) -> int:
        """How many of them broke for want of room for contacts. Waits for the device."""
        return int(self._counts[1])

    def _dump(self, broken: Tensor, before: Tensor, substeps: int) -> None:
        """Write the first few broken environments to disk, with their state before the step."""
        for env in broken.nonzero().squeeze(-1).tolist():
            if self.dump_dir and self._dumped < _MAX_DUMPS:
                path = self.dump_dir / f"broken_{self._dumped:04d}_env{env}.npz"
                dump(path, self.model_of(env), _numpy(before[env]), substeps)
                self._dumped += 1


class _DelayedCommands:
    """Where the past commands of delayed actuators stand in `history`.

    Attributes:
        values: columns of `history` that hold commands.
        actuators: for each of them, whose command it holds.
    """

    def __init__(self, model: mujoco.MjModel, device: torch.device):
        values: list[int] = []
        actuators: list[int] = []
        for i in np.flatnonzero(model.actuator_historyadr >= 0).tolist():
            count = int(model.actuator_history[i, 0])
            start = int(model.actuator_historyadr[i]) + 2 + count  # 2 + count: cursor, times
            values += range(start, start + count)
            actuators += [i] * count
        self.values = torch.tensor(values, dtype=torch.long, device=device)
        self.actuators = torch.tensor(actuators, dtype=torch.long, device=device)


class _PositionSensors:
    """Which columns of `sensordata` follow from positions alone."""

    def __init__(self, columns: np.ndarray, device: torch.device):
        self.any_ = bool(columns.any())
        self.columns = torch.from_numpy(columns).to(device)


def _position_sensors(model: mujoco.MjModel, device: torch.device) -> _PositionSensors:
    stages = np.repeat(model.sensor_needstage, model.sensor_dim)
    return _PositionSensors(stages == mujoco.mjtStage.mjSTAGE_POS.value, device)


def _find_device(name: str) -> Any:
    """The Warp device of a name that torch has for it as well."""
    wp.init()
    try:
        return wp.get_device(name)
    except (RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise DeftlyError(
            f"the warp engine has no device '{name}': {reason}; env.device is cpu or cuda"
        ) from None


def _put_model(model: mujoco.MjModel) -> Any:
    """The model on the device."""
    try:
        put = mjw.put_model(model)
    except NotImplementedError as error:
        raise DeftlyError(
            f"the warp engine lacks what the scene uses: {error} Take sim.engine cpu"
        ) from None
    put.opt.warn_overflow = 0  # they are counted
    put.opt.disableflags = int(put.opt.disableflags) | int(
        mjw.DisableBit.NATIVECCD
    )  # of boxes; see the class
    return put


def _constraint_rows(model: mujoco.MjModel, contacts: int) -> int:
    """Rows of constraints for so many contacts, and for every equality, friction loss and limit at once."""
    of_contact = int(max(model.geom_condim.max(initial=1), model.pair_dim.max(initial=1)))
    if model.opt.cone == mujoco.mjtCone.mjCONE_PYRAMIDAL and of_contact > 1:
        of_contact = 2 * (of_contact - 1)
    return contacts * of_contact + 6 * model.neq + model.nv + model.njnt + 2 * model.ntendon


def _home(model: mujoco.MjModel, device: torch.device) -> list[Tensor]:
    """The state fields at the home keyframe, or at `qpos0` without one."""
    data = mujoco.MjData(model)
    if model.nkey:
        mujoco.mj_resetDataKeyframe(model, data, 0)
    return [
        torch.as_tensor(np.array(getattr(data, field)), device=device) for field in STATE_FIELDS
    ]


def _may_differ(owner: Any, name: str) -> bool:
    """Whether a field of Warp's model, or of its options, can have values of each environment."""
    specs = {field.name: field.type for field in dataclasses.fields(owner)}
    return getattr(specs.get(name), "shape", ())[:1] == ("*",)


def _usable(value: Tensor) -> Tensor:
    """Whether all numbers of an environment are finite and below MuJoCo's limit, `(num_envs,)` bool."""
    return (value.abs() < _HUGE).all(1)


def _put(target: Tensor, value: Tensor, mask: Tensor | None) -> None:
    """Write values that broadcast to `target` where `mask` is True, or everywhere without a mask."""
    value = value.to(target.dtype)
    if mask is None:
        target.copy_(value.expand_as(target))
    else:
        target.copy_(torch.where(mask.view(-1, *[1] * (target.ndim - 1)), value, target))


def _numpy(value: Tensor) -> np.ndarray:
    return value.cpu().numpy().astype(np.float64)


def _say_that_kernels_compile() -> None:
    """One line on standard error before the first compilation, which takes a minute or more."""
    cache = Path(wp.config.kernel_cache_dir)
    if not any(cache.glob("*")):
        print(
            f"warp compiles its kernels, which takes a minute or more; it keeps them in {cache}",
            file=sys.stderr,
        )
