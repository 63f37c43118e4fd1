"""The contract between a policy and a robot.

A `RobotInterface` says what a robot is and measures; a `PolicyContract` what one policy sees of it and what its actions
mean. Both are frozen data with a hash, computed with numpy or torch and importing neither. See docs/contract.md.
"""

from deftly.contract.arrays import Array, Memory
from deftly.contract.calibration import Calibration
from deftly.contract.derive import Derive, DeriveKind
from deftly.contract.faults import FAULTS, Fault
from deftly.contract.policy import PolicyContract
from deftly.contract.robot import (
    ACTION,
    COMMAND,
    JOINT_POS,
    Coupling,
    Joint,
    Limit,
    Link,
    Motor,
    RobotInterface,
    Signal,
    Site,
)
from deftly.contract.schema import ContractError
from deftly.contract.terms import STATE, Act, ActKind, Input, Inputs, Observe

__all__ = [
    "ACTION",
    "COMMAND",
    "FAULTS",
    "JOINT_POS",
    "STATE",
    "Act",
    "ActKind",
    "Array",
    "Calibration",
    "ContractError",
    "Coupling",
    "Derive",
    "DeriveKind",
    "Fault",
    "Input",
    "Inputs",
    "Joint",
    "Limit",
    "Link",
    "Memory",
    "Motor",
    "Observe",
    "PolicyContract",
    "RobotInterface",
    "Signal",
    "Site",
]
