"""Tips of fingers on ellipses around what they turn: few numbers, each with a meaning, from which a gait can be made.

A tip pushes along the side of what it turns, and goes back a little further out. Eight numbers say how: where around
it (angle), where along the side and how far, at what distance and how much closer while it pushes, how high and how
much higher then, and when. Joints follow by inverse kinematics, least squares where a tip cannot reach, and of their
paths two harmonics are kept.
"""

from __future__ import annotations

import math

import mujoco
import mujoco.batch
import numpy as np
import torch

from deftly.contract import PolicyContract
from deftly.errors import DeftlyError
from deftly.objects.strokes import Strokes
from deftly.recipes.in_hand.gait.gaits import SPREAD, Gaits
from deftly.tasks import Task

NUMBERS = ("angle", "along", "stroke", "distance", "press", "height", "rise", "phase")
FIRST = {
    "stroke": 0.42,
    "distance": 1.0,
    "press": 0.27,
}  # of the first strokes, as shares of the radius
CANDIDATES = {
    "angle": 0.2,
    "along": 0.15,
    "stroke": 0.12,
    "distance": 0.12,
    "press": 0.1,
    "height": 0.12,
    "rise": 0.08,
}
"""Spread of the first candidates: angles in rad, lengths as shares of the radius."""
PHASE = 0.4  # likewise, rad
POINTS = 16  # of a path, at which joints are sought
ITERATIONS, LARGEST = 40, 0.3  # of the inverse kinematics; rad by which a joint changes in one
NEAR_HOME = 4e-3  # m that a tip may miss, rather than that a joint is 1 rad from home


class TipPaths:
    """Gaits from numbers near zero, `(n, 8 * tips)`; zero is the task's own strokes at `frequency`, Hz.

    Raises DeftlyError if the strokes name no site of the scene, or not as many angles and phases as sites.
    """

    def __init__(
        self,
        task: Task,
        strokes: Strokes,
        contract: PolicyContract,
        frequency: float,
        threads: int = 0,
    ):
        self.strokes, self.frequency, self._threads = strokes, frequency, threads
        self.size = len(NUMBERS) * len(strokes.sites)
        self._model = task.scene().compile()
        known = [self._model.site(i).name for i in range(self._model.nsite)]
        if unknown := [name for name in strokes.sites if name not in known]:
            raise DeftlyError(
                f"{task.name}: strokes of '{unknown[0]}', but the scene's sites are {known}"
            )
        if not len(strokes.sites) == len(strokes.angles) == len(strokes.phases):
            raise DeftlyError(
                f"{task.name}: strokes need an angle and a phase for each of {list(strokes.sites)}"
            )
        self._model.opt.disableflags |= mujoco.mjtDisableBit.mjDSBL_CONTACT.value
        joints = [self._model.joint(name) for name in contract.joint_names]
        self._qpos, self._dofs = (
            np.array([getattr(j, at)[0] for j in joints]) for at in ("qposadr", "dofadr")
        )
        self._bounds = np.array([(j.lower, j.upper) for j in contract.joints]).T
        self._home, self._sims = np.array(contract.home()), {}

    def gaits(self, numbers: np.ndarray) -> Gaits:
        """A gait for each row."""
        joints = self._joints(self.targets(numbers))  # (n, POINTS, num_joints)
        phase = 2 * math.pi * np.arange(POINTS) / POINTS
        waves = np.stack(
            (np.ones(POINTS), *(f(k * phase) for k in (1, 2) for f in (np.sin, np.cos)))
        )
        share = np.array([1.0] + [2.0] * (len(SPREAD) - 1))[:, None] / POINTS
        shape = torch.from_numpy(np.einsum("wp,npj->nwj", share * waves, joints)).float()
        return Gaits(torch.full((len(numbers),), self.frequency), shape)

    def targets(self, numbers: np.ndarray) -> np.ndarray:
        """Where each tip shall be at each point of the period, `(n, POINTS, tips, 3)`, m, in the world."""
        s, each = self.strokes, numbers.reshape(len(numbers), 1, -1, len(NUMBERS))
        found = {
            n: FIRST.get(n, 0.0) + CANDIDATES.get(n, 0.0) * each[..., i]
            for i, n in enumerate(NUMBERS)
        }
        phase = (
            2 * math.pi * (np.arange(POINTS)[:, None] / POINTS + np.array(s.phases))
            + PHASE * each[..., -1]
        )
        angle = np.array(s.angles) + found["angle"]
        along = found["along"] - found["stroke"] * np.cos(phase)
        out = found["distance"] - found["press"] * np.sin(phase)
        x = out * np.cos(angle) - along * np.sin(angle)
        y = s.direction * (out * np.sin(angle) + along * np.cos(angle))
        z = found["height"] + found["rise"] * np.sin(phase)
        return np.array(s.centre) + s.radius * np.stack((x, y, z), -1)

    def _joints(self, targets: np.ndarray) -> np.ndarray:
        """Joint positions, `(n, POINTS, num_joints)`, that bring the tips to their targets, or near."""
        wanted = targets.reshape(-1, *targets.shape[2:])
        sim, tips = self._sim(len(wanted)), [self._model.site(name) for name in self.strokes.sites]
        qpos, places = sim.bind("qpos"), sim.bind("site_xpos")
        qpos[:] = self._model.key_qpos[0] if self._model.nkey else self._model.qpos0
        stay = NEAR_HOME**2 * np.eye(len(self._home))
        for _ in range(ITERATIONS):
            sim.forward(stage=mujoco.mjtStage.mjSTAGE_POS.value)
            q, normal, slope = (
                qpos[:, self._qpos],
                stay.copy(),
                NEAR_HOME**2 * (self._home - qpos[:, self._qpos]),
            )
            for k, tip in enumerate(tips):
                here = places[:, tip.id].copy()
                jacobian = sim.jac(int(tip.bodyid[0]), here)[0][:, :, self._dofs]  # type: ignore[attr-defined]
                normal = normal + jacobian.transpose(0, 2, 1) @ jacobian
                slope = slope + np.einsum("nxj,nx->nj", jacobian, wanted[:, k] - here)
            change = np.linalg.solve(normal, slope[..., None])[..., 0].clip(-LARGEST, LARGEST)
            qpos[:, self._qpos] = (q + change).clip(*self._bounds)
        return qpos[:, self._qpos].reshape(*targets.shape[:2], -1)

    def _sim(self, count: int) -> mujoco.batch.Batch:
        if count not in self._sims:
            self._sims[count] = mujoco.batch.Batch(self._model, count, self._threads)
        return self._sims[count]
