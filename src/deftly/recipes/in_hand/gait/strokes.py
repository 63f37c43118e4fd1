"""Fingertips on ellipses around an object: few parameters, each with a meaning, from which a gait can be made.

A tip pushes along the side of the object, and goes back a little further out. Eight parameters describe its ellipse:
where around the object (angle), where along its side and how far (along, stroke), at what distance and how much closer
while it pushes (distance, press), how high and how much higher then (height, rise), and when (phase). Joints follow by
inverse kinematics, least squares where a tip cannot reach, and of their paths two harmonics are kept.
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
from deftly.recipes.in_hand.gait.gaits import SCALE, Gaits
from deftly.tasks import Task

PARAMETERS = ("angle", "along", "stroke", "distance", "press", "height", "rise", "phase")
MEAN = {
    "angle": 0.0,
    "along": 0.0,
    "stroke": 0.42,
    "distance": 1.0,
    "press": 0.27,
    "height": 0.0,
    "rise": 0.0,
    "phase": 0.0,
}
"""Of the first strokes: angles in rad, lengths as fractions of the radius."""
SPREAD = {
    "angle": 0.2,
    "along": 0.15,
    "stroke": 0.12,
    "distance": 0.12,
    "press": 0.1,
    "height": 0.12,
    "rise": 0.08,
    "phase": 0.4,
}
"""Standard deviation of the first candidates, in the same units."""
POINTS = 16
"""Points of a period at which joints are solved for."""
IK_ITERATIONS = 40
IK_MAX_STEP = 0.3
"""Largest change of a joint in an iteration, rad."""
IK_DAMPING = 4e-3
"""Distance by which a tip may miss, rather than that a joint is 1 rad from home, m."""


class TipPaths:
    """Gaits from parameters near zero, `(n, 8 * tips)`; zero is the task's own strokes at `frequency`, Hz.

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
        self.strokes = strokes
        self.frequency = frequency
        self.size = len(PARAMETERS) * len(strokes.sites)
        model = task.scene().compile()
        model.opt.disableflags |= mujoco.mjtDisableBit.mjDSBL_CONTACT.value
        _require_sites(task, strokes, model)
        self._model = model
        self._threads = threads
        self._batches: dict[int, mujoco.batch.Batch] = {}

        joints = [model.joint(name) for name in contract.joint_names]
        self._qpos = np.array([joint.qposadr[0] for joint in joints])
        self._dofs = np.array([joint.dofadr[0] for joint in joints])
        self._home = np.array(contract.home())
        self._lower = np.array([joint.lower for joint in contract.joints])
        self._upper = np.array([joint.upper for joint in contract.joints])

    def gaits(self, parameters: np.ndarray) -> Gaits:
        """A gait for each row of parameters."""
        joint_pos = self._inverse_kinematics(self.targets(parameters))
        shape = np.einsum("wp,npj->nwj", _fourier_weights(), joint_pos)
        frequency = torch.full((len(parameters),), self.frequency)
        return Gaits(frequency, torch.from_numpy(shape).float())

    def targets(self, parameters: np.ndarray) -> np.ndarray:
        """Where each tip shall be at each point of the period, `(n, POINTS, tips, 3)`, m, in the world."""
        s = self.strokes
        columns = parameters.reshape(len(parameters), 1, -1, len(PARAMETERS))
        value = {}  # by parameter, (n, 1, tips)
        for i, name in enumerate(PARAMETERS):
            column = columns[..., i]
            value[name] = MEAN[name] + SPREAD[name] * column

        fraction = np.arange(POINTS)[:, None] / POINTS
        cycle = fraction + np.array(s.phases)  # (POINTS, tips), in periods
        phase = 2 * math.pi * cycle + value["phase"]
        angle = np.array(s.angles) + value["angle"]
        along = value["along"] - value["stroke"] * np.cos(phase)
        distance = value["distance"] - value["press"] * np.sin(phase)

        sin, cos = np.sin(angle), np.cos(angle)
        x = distance * cos - along * sin
        y = s.direction * (distance * sin + along * cos)
        z = value["height"] + value["rise"] * np.sin(phase)
        tips = np.stack((x, y, z), -1)  # in units of the radius
        return np.array(s.centre) + s.radius * tips

    def _inverse_kinematics(self, targets: np.ndarray) -> np.ndarray:
        """Joint positions, `(n, POINTS, num_joints)`, rad, that bring the tips to their targets, or near.

        Damped least squares: Gauss-Newton steps that also pull the joints towards home.
        """
        wanted = targets.reshape(-1, *targets.shape[2:])  # (n * POINTS, tips, 3)
        batch = self._batch(len(wanted))
        qpos = batch.bind("qpos")
        positions = batch.bind("site_xpos")  # filled by the forward passes that follow
        model = self._model
        qpos[:] = model.key_qpos[0] if model.nkey else model.qpos0
        for _ in range(IK_ITERATIONS):
            batch.forward(stage=mujoco.mjtStage.mjSTAGE_POS.value)
            joint_pos = qpos[:, self._qpos]
            hessian, gradient = self._normal_equations(batch, positions, joint_pos, wanted)
            change = np.linalg.solve(hessian, gradient[..., None])
            change = change[..., 0].clip(-IK_MAX_STEP, IK_MAX_STEP)
            joint_pos = (joint_pos + change).clip(self._lower, self._upper)
            qpos[:, self._qpos] = joint_pos
        joint_pos = qpos[:, self._qpos]
        return joint_pos.reshape(*targets.shape[:2], -1)

    def _normal_equations(
        self,
        batch: mujoco.batch.Batch,
        positions: np.ndarray,
        joint_pos: np.ndarray,
        wanted: np.ndarray,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Hessian, `(m, num_joints, num_joints)`, and gradient, `(m, num_joints)`, of the squared errors.

        `positions` are those of the sites, (m, nsite, 3), `wanted` the targets of the tips, (m, tips, 3), m.
        """
        hessian = IK_DAMPING**2 * np.eye(len(self._home))
        gradient = IK_DAMPING**2 * (self._home - joint_pos)
        for k, name in enumerate(self.strokes.sites):
            site = self._model.site(name)
            position = positions[:, site.id].copy()
            jacobian = batch.jac(int(site.bodyid[0]), position)[0]  # type: ignore[attr-defined]
            jacobian = jacobian[:, :, self._dofs]  # (m, 3, num_joints)
            error = wanted[:, k] - position
            hessian = hessian + jacobian.transpose(0, 2, 1) @ jacobian
            gradient = gradient + np.einsum("nxj,nx->nj", jacobian, error)
        return hessian, gradient

    def _batch(self, count: int) -> mujoco.batch.Batch:
        if count not in self._batches:
            self._batches[count] = mujoco.batch.Batch(self._model, count, self._threads)
        return self._batches[count]


def _require_sites(task: Task, strokes: Strokes, model: mujoco.MjModel) -> None:
    known = [model.site(i).name for i in range(model.nsite)]
    unknown = [name for name in strokes.sites if name not in known]
    if unknown:
        raise DeftlyError(
            f"{task.name}: strokes of '{unknown[0]}', but the scene's sites are {known}"
        )
    tips = len(strokes.sites)
    if len(strokes.angles) != tips or len(strokes.phases) != tips:
        raise DeftlyError(
            f"{task.name}: strokes need an angle and a phase for each of {list(strokes.sites)}"
        )


def _fourier_weights() -> np.ndarray:
    """Weights of the points of a period in the mean and the harmonics of a path, `(5, POINTS)`."""
    phase = 2 * math.pi * np.arange(POINTS) / POINTS
    waves = np.stack(
        (
            np.ones(POINTS),
            np.sin(phase),
            np.cos(phase),
            np.sin(2 * phase),
            np.cos(2 * phase),
        )
    )
    norm = np.full(len(SCALE), 2.0)
    norm[0] = 1.0
    return (norm[:, None] / POINTS) * waves
