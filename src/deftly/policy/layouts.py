"""How openpi's observations and actions stand for signals, inputs and actions of a contract.

`Own` has the contract's own names, units and actions. `Droid` is the layout of the DROID platform, in which pi0-FAST
and pi0.5 for DROID were trained: two images, seven joints, a gripper and a prompt; actions of eight numbers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Protocol

import numpy as np
from typing_extensions import Doc

from deftly.config import Settings
from deftly.console import printable
from deftly.contract import JOINT_POS, Act, Inputs, PolicyContract, Signal
from deftly.contract.terms import MAX_PROMPT
from deftly.errors import DeftlyError

LayoutName = Literal["deftly", "droid"]
PREFIX = "observation/"
PROMPT = "prompt"
EXTERIOR = (f"{PREFIX}exterior_image_1_left", f"{PREFIX}exterior_image_2_left")
WRIST = f"{PREFIX}wrist_image_left"
JOINTS, GRIPPER = f"{PREFIX}joint_position", f"{PREFIX}gripper_position"
DROID_JOINTS = 7
"""Joints of DROID's arm, a Franka Panda; those of a shorter arm come first, the others are 0."""


@dataclass(frozen=True)
class OpenpiConfig(Settings, section="openpi"):
    """How a policy behind openpi's protocol, `ws://HOST:PORT`, is spoken with."""

    layout: Annotated[
        LayoutName | None,
        Doc(
            "Names and units: deftly, the contract's own, or droid. Unset: as the server says, else droid."
        ),
    ] = None
    gripper_open: Annotated[
        Literal[0, 1], Doc("Of droid: what an open gripper is; a closed one is the other.")
    ] = 1
    prompt: Annotated[str, Doc("What is said to a policy whose contract has no text.")] = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.prompt) > MAX_PROMPT:
            raise DeftlyError(
                f"openpi.prompt has {len(self.prompt)} characters, at most {MAX_PROMPT}"
            )


class LayoutError(DeftlyError):
    """An observation or an action that is not of a layout, or a contract that has no place in it."""


class Layout(Protocol):
    """Names and units of another program for what a contract means; of one robot."""

    name: LayoutName
    action_size: int

    def observation(self, signals: Mapping[str, np.ndarray], inputs: Inputs) -> dict[str, Any]:
        """What the other program is told of what a robot measured, and its operator says."""
        ...

    def read(self, observation: Mapping[str, Any]) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Signals and inputs of an observation, its inverse. Raises LayoutError naming what is missing or wrong."""
        ...

    def from_contract(self, actions: np.ndarray) -> np.ndarray:
        """Actions of the contract, `(..., n)`, as the other program has them, `(..., action_size)`."""
        ...

    def to_contract(self, actions: np.ndarray) -> np.ndarray:
        """Its inverse. Raises LayoutError for another size, or numbers that are not finite."""
        ...


class Own:
    """`observation/SIGNAL` for each signal, inputs by their names, the first text as `prompt`; actions as they are."""

    name: LayoutName = "deftly"

    def __init__(self, contract: PolicyContract):
        self.contract = contract
        self.action_size = contract.action_size
        self._prompt = next((given.name for given in contract.inputs if given.is_text), None)

    def observation(self, signals: Mapping[str, np.ndarray], inputs: Inputs) -> dict[str, Any]:
        """See `Layout`."""
        told: dict[str, Any] = {PREFIX + name: value for name, value in signals.items()}
        for name, value in inputs.items():
            key = PROMPT if name == self._prompt else name
            told[key] = value
        return told

    def read(self, observation: Mapping[str, Any]) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """See `Layout`."""
        signals = {s.name: _signal(observation, s) for s in self.contract.signals}
        inputs = _inputs(self.contract, observation, self._prompt)
        return signals, inputs

    def from_contract(self, actions: np.ndarray) -> np.ndarray:
        """See `Layout`."""
        _require_actions(actions, self.action_size)
        return actions

    def to_contract(self, actions: np.ndarray) -> np.ndarray:
        """See `Layout`."""
        _require_actions(actions, self.action_size)
        return actions


class Droid:
    """DROID's layout: `observation/exterior_image_1_left`, `.../wrist_image_left`, `.../joint_position` (7),
    `.../gripper_position` (1), `prompt`; actions are seven joint velocities, rad/s, and an absolute gripper position.

    A joint that no action of the contract moves has the velocity 0. A gripper's position is a fraction of its range;
    its action opens or closes it, from one half on. What else the contract wants is `observation/SIGNAL`.

    Args:
        contract: One arm of at most seven joints, moved by velocities or deltas, and one gripper.
        gripper_open: What an open gripper is, 1 or 0; a closed one is the other.

    Raises LayoutError for another contract.
    """

    name: LayoutName = "droid"
    action_size = DROID_JOINTS + 1

    def __init__(self, contract: PolicyContract, gripper_open: float = 1.0):
        self.contract = contract
        self._is_open = gripper_open
        self._own = Own(contract)
        gripping = set(contract.robot.gripping)
        self._arm: list[int] = []
        self._fingers: list[int] = []
        for i, name in enumerate(contract.joint_names):
            part = self._fingers if name in gripping else self._arm
            part.append(i)
        self._gains, self._places, self._gripper = _columns(contract, self._arm)
        if len(self._arm) > DROID_JOINTS or not self._fingers:
            _refuse(contract, f"{len(self._arm)} arm joints and {len(self._fingers)} of a gripper")
        self._images = _images(contract)

    def observation(self, signals: Mapping[str, np.ndarray], inputs: Inputs) -> dict[str, Any]:
        """See `Layout`."""
        told = self._own.observation(signals, inputs)
        joint_pos = told.pop(PREFIX + JOINT_POS)
        for name, key in self._images.items():
            told[key] = told.pop(PREFIX + name)
        arm = np.zeros(DROID_JOINTS, np.float32)
        arm[: len(self._arm)] = joint_pos[self._arm]
        finger = self._fingers[0]
        joint = self.contract.joints[finger]
        opening = joint_pos[finger] - joint.lower
        open_part = opening / (joint.upper - joint.lower)
        told[JOINTS] = arm
        told[GRIPPER] = np.array([self._turned(open_part)], np.float32)
        return told

    def read(self, observation: Mapping[str, Any]) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """See `Layout`."""
        renamed = {**observation, PREFIX + JOINT_POS: self._joint_pos(observation)}
        for name, key in self._images.items():
            if key not in observation:
                raise LayoutError(f"the observation has no '{key}'")
            renamed[PREFIX + name] = observation[key]
        return self._own.read(renamed)

    def _joint_pos(self, observation: Mapping[str, Any]) -> np.ndarray:
        """Positions of all joints, (num_joints,), rad or m."""
        arm = read_numbers(observation, JOINTS, DROID_JOINTS)
        gripper = read_numbers(observation, GRIPPER, 1)
        open_part = self._turned(gripper[0])
        joint_pos = np.zeros(len(self.contract.joints), np.float32)
        joint_pos[self._arm] = arm[: len(self._arm)]
        for i in self._fingers:
            joint = self.contract.joints[i]
            joint_pos[i] = joint.lower + open_part * (joint.upper - joint.lower)
        return joint_pos

    def from_contract(self, actions: np.ndarray) -> np.ndarray:
        """See `Layout`."""
        _require_actions(actions, self.contract.action_size)
        *batch, _ = actions.shape
        found = np.zeros((*batch, self.action_size), np.float32)
        for column, (place, gain) in enumerate(zip(self._places, self._gains)):
            if column != self._gripper:
                found[..., place] = actions[..., column] * gain
        opens = actions[..., self._gripper] <= 0
        found[..., -1] = self._turned(opens.astype(np.float32))
        return found

    def to_contract(self, actions: np.ndarray) -> np.ndarray:
        """See `Layout`."""
        _require_actions(actions, self.action_size)
        *batch, _ = actions.shape
        found = np.zeros((*batch, self.contract.action_size), np.float32)
        for column, (place, gain) in enumerate(zip(self._places, self._gains)):
            if column != self._gripper:
                found[..., column] = actions[..., place] / gain
        open_part = self._turned(actions[..., -1])
        found[..., self._gripper] = np.where(open_part > 0.5, -1.0, 1.0)
        return found

    def _turned(self, fraction: Any) -> Any:
        """An open fraction as the layout counts it, or back."""
        return fraction if self._is_open else 1.0 - fraction


def layout(name: LayoutName, contract: PolicyContract, gripper_open: float = 1.0) -> Layout:
    """The layout of this name for a contract. Raises LayoutError for a contract that has no place in it."""
    if name == "deftly":
        return Own(contract)
    return Droid(contract, gripper_open)


def _columns(contract: PolicyContract, arm: list[int]) -> tuple[list[float], list[int], int]:
    """Of each element of the action the velocity of an action of 1, rad/s, and its place in DROID's; the gripper's.

    Raises LayoutError if the actions are no velocities and one gripper.
    """
    gains: list[float] = []
    places: list[int] = []
    grippers = []
    for act in contract.act_terms:
        moves = act.kind in ("velocity", "delta")
        for i, joint in enumerate(act.joints):
            index = contract.joint_names.index(joint)
            if act.kind == "gripper":
                grippers.append(len(gains))
            elif not moves or index not in arm:
                _refuse(contract, f"an action of kind '{act.kind}' for {joint}")
            gains.append(_velocity(contract, act, i))
            place = arm.index(index) if index in arm else DROID_JOINTS
            places.append(place)
    if len(grippers) != 1:
        _refuse(contract, f"{len(grippers)} gripper actions")
    return gains, places, grippers[0]


def _velocity(contract: PolicyContract, act: Act, i: int) -> float:
    """The velocity that an action of 1 is, rad/s (m/s)."""
    if act.scale:
        scale = act.scale[i % len(act.scale)]
    else:
        index = contract.joint_names.index(act.joints[i])
        scale = contract.joints[index].velocity
    return scale * contract.rate if act.kind == "delta" else scale


def _images(contract: PolicyContract) -> dict[str, str]:
    """DROID's name of each image: one with `wrist` in its name, up to two others."""
    names = [signal.name for signal in contract.signals if signal.is_image]
    wrist = [name for name in names if "wrist" in name]
    others = [name for name in names if "wrist" not in name]
    if len(wrist) > 1 or len(others) > len(EXTERIOR):
        _refuse(contract, f"the images {names}")
    droid_names = dict(zip(wrist, [WRIST]))
    droid_names.update(zip(others, EXTERIOR))
    return droid_names


def _refuse(contract: PolicyContract, what: str) -> None:
    raise LayoutError(
        f"the layout 'droid' is for one arm of at most {DROID_JOINTS} joints moved by velocities, a gripper and "
        f"at most three images; {contract.robot.name} has {what}: use the layout 'deftly'"
    )


def _require_actions(actions: np.ndarray, size: int) -> None:
    """Raise LayoutError for actions of another size, or not finite: a gripper would take NaN for a word to close."""
    if actions.ndim < 1 or actions.shape[-1] != size:
        raise LayoutError(f"the actions have shape {actions.shape}, expected (..., {size})")
    if not np.isfinite(actions).all():
        raise LayoutError("the actions hold numbers that are not finite")


def _signal(observation: Mapping[str, Any], signal: Signal) -> np.ndarray:
    """A signal of an observation. Raises LayoutError if it is missing, or no such signal."""
    key = PREFIX + signal.name
    if not signal.is_image:
        return read_numbers(observation, key, signal.size)
    value = _found(observation, key)
    is_bytes = isinstance(value, np.ndarray) and value.dtype == np.uint8
    if not is_bytes or value.shape != signal.shape:
        shape = " x ".join(map(str, signal.shape))
        raise LayoutError(f"'{key}' is {_what(value)}, expected an image of {shape} bytes")
    return value


def read_numbers(observation: Mapping[str, Any], key: str, size: int) -> np.ndarray:
    """Numbers `(size,)` float32 of an observation; a single one may come without its axis."""
    value = _found(observation, key)
    try:
        array = np.asarray(value)
        is_number = array.dtype.kind in "fiu"
        if not is_number or array.size != size or array.ndim > 1:
            raise ValueError
        with np.errstate(over="ignore"):
            array = array.astype(np.float32).reshape(size)
    except (TypeError, ValueError):
        raise LayoutError(f"'{key}' is {_what(value)}, expected {size} numbers") from None
    if not np.isfinite(array).all():
        raise LayoutError(f"'{key}' holds a number that is not finite")
    return array


def _found(observation: Mapping[str, Any], key: str) -> Any:
    if key not in observation:
        names = sorted(str(name) for name in observation)
        there = printable(", ".join(names), 200)
        raise LayoutError(f"the observation has no '{key}', but {there or 'nothing'}")
    return observation[key]


def _inputs(
    contract: PolicyContract, observation: Mapping[str, Any], prompt: str | None
) -> dict[str, Any]:
    """The inputs of an observation; one that is not there keeps its default."""
    found: dict[str, Any] = {}
    for given in contract.inputs:
        key = PROMPT if given.name == prompt else given.name
        if key not in observation:
            continue
        value = observation[key]
        if not given.is_text:
            found[given.name] = read_numbers(observation, key, given.size)
        elif isinstance(value, str) and len(value) <= MAX_PROMPT:
            found[given.name] = value
        else:
            raise LayoutError(
                f"'{key}' is {_what(value)}, expected at most {MAX_PROMPT} characters"
            )
    return found


def _what(value: Any) -> str:
    """A value in a few words."""
    if isinstance(value, np.ndarray):
        return f"an array {value.shape} of {value.dtype}"
    return f"a {type(value).__name__}"
