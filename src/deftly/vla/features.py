"""What a data set and a model call things, and what the numbers mean: one table for who writes and who reads.

A row of a data set is what the robot measured *before* it was told the action of that row. The names are LeRobot's:
`observation.state`, `observation.images.CAMERA`, `action`. Two layouts of the numbers:

    contract   state: the robot's joints, rad (m); action: as the task's contract has it
    droid      state and action of 8 numbers, as openpi's DROID models have them; see `Droid`
"""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from typing import Any, Literal

import numpy as np

from deftly.contract import (
    JOINT_POS,
    STATE,
    Act,
    Input,
    Observe,
    PolicyContract,
    Signal,
)
from deftly.errors import DeftlyError

OBS_STATE, IMAGES, ACTION = "observation.state", "observation.images.", "action"
EXECUTED = "executed_action"
"""Feature of what the robot was told: `action`, or that with noise, so that the states that follow teach recovery."""
PROMPT = "prompt"
"""Name of the contract's input that holds the words."""
DROID_JOINTS = 7
Layout = Literal["contract", "droid"]


def seen_contract(
    contract: PolicyContract, cameras: tuple[str, ...], size: int, prompt: str
) -> PolicyContract:
    """The contract of a policy that sees images, joints and words where another sees what no camera gives.

    Args:
        contract: The task's own; its actions stay.
        cameras: Names of cameras of the scene, each a signal `(size, size, 3)` and a group of the observation.
        size: Width and height of an image, pixels.
        prompt: What the policy is told if nobody says anything.
    """
    joints = next(signal for signal in contract.signals if signal.name == JOINT_POS)
    images = tuple(Signal(name, (size, size, 3), dtype="uint8") for name in cameras)
    looks = tuple(Observe(name, group=name) for name in cameras)
    return replace(
        contract,
        robot=replace(contract.robot, signals=(joints, *images)),
        observe_terms=(Observe(JOINT_POS, group=STATE), *looks),
        inputs=(Input(PROMPT, dtype="text", text=prompt),),
        derive=(),
    )


def image_sizes(contract: PolicyContract) -> dict[str, int]:
    """Width and height of the image of each camera that a policy sees, pixels, by the camera's name."""
    images = [signal for signal in contract.signals if signal.is_image]
    return {image.name: image.shape[0] for image in images}


def exact(contract: PolicyContract, action: np.ndarray) -> np.ndarray:
    """Actions (..., action_size) float32 as the robot takes them: within [-1, 1], and of a gripper its sign alone."""
    grips = []
    for act in contract.act_terms:
        grips += [act.kind == "gripper"] * len(act.joints)
    clipped = np.clip(action, -1.0, 1.0)
    signs = np.where(clipped > 0, 1.0, -1.0)
    return np.where(grips, signs, clipped).astype(np.float32)


class Plain:
    """The layout `contract`: nothing is changed."""

    def __init__(self, contract: PolicyContract):
        self.contract = contract
        self.state_names = list(contract.joint_names)
        self.action_names = _action_names(contract)

    @property
    def sizes(self) -> dict[str, int]:
        """How many numbers state and action have, by feature."""
        return {OBS_STATE: len(self.state_names), ACTION: len(self.action_names)}

    @property
    def meaning(self) -> dict[str, str]:
        """What each number of state and action is, in words."""
        state = {joint.name: f"position, {joint.units}" for joint in self.contract.joints}
        action = dict(zip(self.action_names, _action_words(self.contract)))
        return {**state, **action}

    @property
    def ranges(self) -> dict[str, np.ndarray]:
        """Whole range of each number, by feature."""
        state = [joint.upper - joint.lower for joint in self.contract.joints]
        action = np.full(len(self.action_names), 2.0)
        return {OBS_STATE: np.array(state), ACTION: action}

    def state(self, joint_pos: np.ndarray) -> np.ndarray:
        """State (..., num_joints) of measured joints (..., num_joints)."""
        return np.asarray(joint_pos, np.float32)

    def joint_pos(self, state: np.ndarray) -> np.ndarray:
        """The inverse of `state`."""
        return np.asarray(state, np.float32)

    def to_dataset(self, action: np.ndarray) -> np.ndarray:
        """The action (..., action_size) of a data set, of one of the contract."""
        return exact(self.contract, action)

    def to_contract(self, action: np.ndarray) -> np.ndarray:
        """The inverse of `to_dataset`."""
        return np.asarray(action, np.float32)


class Droid:
    """The layout of DROID (Khazatsky et al. 2024) as openpi has it: 7 arm joints and a gripper of which 1 is open.

    State: positions of the arm's joints, rad, 0 for those that an arm of fewer joints lacks; the gripper's opening
    divided by its largest. Action: velocities of the same joints, rad/s, coupled joints included; 1 to open the
    gripper, 0 to close it. A contract's gripper closes above 0: the convention is inverted here and nowhere else.

    Raises DeftlyError for a robot that it cannot describe: more joints, or actions that are no velocities.
    """

    def __init__(self, contract: PolicyContract):
        self.contract = contract
        grips = [act for act in contract.act_terms if act.kind == "gripper"]
        fingers = [name for act in grips for name in act.joints]
        self._arm = [i for i, name in enumerate(contract.joint_names) if name not in fingers]
        kinds = {act.kind for act in contract.act_terms} - {"gripper", "velocity", "delta"}
        if len(grips) != 1 or len(self._arm) > DROID_JOINTS or kinds:
            raise DeftlyError(
                f"{contract.robot.name} does not fit DROID's layout, an arm of at most {DROID_JOINTS} joints that "
                "takes velocities, and one gripper: use --layout contract"
            )
        self._fingers = [contract.joint_names.index(name) for name in fingers]
        self.state_names = [f"joint_{i + 1}" for i in range(DROID_JOINTS)] + ["gripper"]
        self.action_names = [f"joint_{i + 1}.velocity" for i in range(DROID_JOINTS)] + [
            "gripper.open"
        ]

    @property
    def sizes(self) -> dict[str, int]:
        """How many numbers state and action have, by feature."""
        return {OBS_STATE: len(self.state_names), ACTION: len(self.action_names)}

    @property
    def meaning(self) -> dict[str, str]:
        """What each number of state and action is, in words."""
        words = [
            *["position, rad; 0 where the arm has no such joint"] * DROID_JOINTS,
            "opening divided by the largest, 1 = open",
            *["velocity, rad/s"] * DROID_JOINTS,
            "1 opens, 0 closes",
        ]
        return dict(zip([*self.state_names, *self.action_names], words))

    @property
    def ranges(self) -> dict[str, np.ndarray]:
        """Whole range of each number, by feature; of what an arm lacks, 1."""
        arm = [self.contract.joints[i] for i in self._arm]
        state = np.ones(DROID_JOINTS + 1)
        action = np.ones(DROID_JOINTS + 1)
        state[: len(arm)] = [joint.upper - joint.lower for joint in arm]
        action[: len(arm)] = [2.0 * joint.velocity for joint in arm]
        return {OBS_STATE: state, ACTION: action}

    def state(self, joint_pos: np.ndarray) -> np.ndarray:
        """State (..., 8) of measured joints (..., num_joints)."""
        joint_pos = np.asarray(joint_pos, np.float32)
        finger = self._fingers[0]
        joint = self.contract.joints[finger]
        opening = joint_pos[..., finger] - joint.lower
        largest = joint.upper - joint.lower
        *batch, _ = joint_pos.shape
        state = np.zeros((*batch, DROID_JOINTS + 1), np.float32)
        state[..., : len(self._arm)] = joint_pos[..., self._arm]
        state[..., -1] = opening / largest
        return state

    def joint_pos(self, state: np.ndarray) -> np.ndarray:
        """The inverse of `state`; fingers of one gripper are open alike."""
        state = np.asarray(state, np.float32)
        opening = state[..., -1]
        *batch, _ = state.shape
        joint_pos = np.zeros((*batch, len(self.contract.joints)), np.float32)
        joint_pos[..., self._arm] = state[..., : len(self._arm)]
        for i in self._fingers:
            joint = self.contract.joints[i]
            largest = joint.upper - joint.lower
            joint_pos[..., i] = joint.lower + opening * largest
        return joint_pos

    def to_dataset(self, action: np.ndarray) -> np.ndarray:
        """The action (..., 8) of a data set, of one of the contract (..., action_size)."""
        action = exact(self.contract, action)
        velocity = self._velocity(action)
        *batch, _ = action.shape
        found = np.zeros((*batch, DROID_JOINTS + 1), np.float32)
        found[..., : len(self._arm)] = velocity[..., self._arm]
        closes = next(i for i, (_, scale) in enumerate(self._scales) if scale is None)
        found[..., -1] = action[..., closes] <= 0
        return found

    def _velocity(self, action: np.ndarray) -> np.ndarray:
        """Velocities (..., num_joints), rad/s, of an action (..., action_size), coupled joints included."""
        names = self.contract.joint_names
        *batch, _ = action.shape
        velocity = np.zeros((*batch, len(names)), np.float32)
        for i, (joint, scale) in enumerate(self._scales):
            if scale is not None:
                velocity[..., joint] = action[..., i] * scale
        for coupling in self.contract.robot.couplings:
            parts = []
            for leader, ratio in coupling.of:
                leader_velocity = velocity[..., names.index(leader)]
                parts.append(ratio * leader_velocity)
            follower = names.index(coupling.joint)
            velocity[..., follower] = sum(parts)
        return velocity

    def to_contract(self, action: np.ndarray) -> np.ndarray:
        """The inverse of `to_dataset`; what coupled joints are told is left out, since they follow."""
        action = np.asarray(action, np.float32)
        opens = action[..., -1] > 0.5
        *batch, _ = action.shape
        found = np.empty((*batch, len(self._scales)), np.float32)
        for i, (joint, scale) in enumerate(self._scales):
            if scale is None:
                found[..., i] = np.where(opens, -1.0, 1.0)
            else:
                column = self._arm.index(joint)
                found[..., i] = action[..., column] / scale
        return found

    @cached_property
    def _scales(self) -> list[tuple[int, float | None]]:
        """Of each element of the contract's action, the joint and its speed at 1, rad/s; None of the gripper."""
        names = self.contract.joint_names
        scales = []
        for act in self.contract.act_terms:
            for i, name in enumerate(act.joints):
                speed = _speed(self.contract, act, i)
                scales.append((names.index(name), speed))
        return scales


def layout_of(name: Layout, contract: PolicyContract) -> Plain | Droid:
    """The mapping of a layout for a contract."""
    return Droid(contract) if name == "droid" else Plain(contract)


def features(layout: Plain | Droid, contract: PolicyContract, video: bool) -> dict[str, Any]:
    """The features of a data set, as LeRobot describes them.

    Args:
        layout: How the numbers are laid out.
        contract: What the cameras are, `seen_contract`.
        video: Store the images as videos; else each by itself.
    """
    kind = "video" if video else "image"
    images = {
        IMAGES + signal.name: {
            "dtype": kind,
            "shape": signal.shape,
            "names": ["height", "width", "channels"],
        }
        for signal in contract.signals
        if signal.is_image
    }
    return {
        OBS_STATE: _numbers(layout.state_names),
        **images,
        ACTION: _numbers(layout.action_names),
        EXECUTED: _numbers(layout.action_names),
    }


def _numbers(names: list[str]) -> dict[str, Any]:
    return {"dtype": "float32", "shape": (len(names),), "names": names}


def _speed(contract: PolicyContract, act: Act, i: int) -> float | None:
    """Speed at an action of 1, rad/s; None of a gripper."""
    if act.kind == "gripper":
        return None
    if not act.scale:
        index = contract.joint_names.index(act.joints[i])
        return contract.joints[index].velocity
    one_for_all = len(act.scale) == 1
    scale = act.scale[0 if one_for_all else i]
    return scale * contract.rate if act.kind == "delta" else scale


def _action_names(contract: PolicyContract) -> list[str]:
    return [f"{joint}.{act.kind}" for act in contract.act_terms for joint in act.joints]


def _action_words(contract: PolicyContract) -> list[str]:
    """What each element of the action does, for a reader who has no contract at hand."""
    words = {
        "absolute": "position; 0 is the middle of the range",
        "relative": "position, from home or from the start",
        "delta": "change of the commanded position in a step",
        "velocity": "velocity, integrated on the command",
        "gripper": "gripper: 1 closes, -1 opens",
    }
    units = {joint.name: joint.units for joint in contract.joints}
    found = []
    for act in contract.act_terms:
        scales = act.scale if len(act.scale) > 1 else act.scale * len(act.joints)
        for i, joint in enumerate(act.joints):
            whole = ""
            if scales and act.kind != "gripper":
                whole = f"; 1 is {scales[i]:g} {units[joint]}{PER.get(act.kind, '')}"
            found.append(f"{words[act.kind]}{whole}; within [-1, 1]")
    return found


PER = {"velocity": "/s"}
"""What the unit of a joint is divided by, for a kind of action."""
