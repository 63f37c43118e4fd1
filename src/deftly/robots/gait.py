"""A walking gait for legs of hip pitch, hip roll, knee and ankle pitch: a clock, and feedback of tilt and heading.

Feet are lifted in turn and kept level, swing forward while in the air and backward on the ground, and the hips sway
over the foot that stands. Rough as it is, it walks; a policy learns from it where to begin.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Gait:
    """Parameters of the gait; angles in rad. Joint angles are mirrored: equal values are mirrored poses."""

    home: tuple[float, float, float, float]  # hip pitch, hip roll, knee, ankle pitch
    lift: float  # of the knee in the middle of the swing
    hip_lift: float  # of the hip, a fraction of the knee's
    stride: float  # half the way of the hip's pitch in a step, at speed 0
    stride_gain: float  # rad for each m/s
    sway: float  # of both hips' roll
    sway_phase: float  # at which they pass the middle, turns
    lean: float  # of the trunk forward, at speed 0
    lean_gain: float  # rad for each m/s
    width: float  # by which the legs stand apart
    swing: float  # fraction of the period for which a foot is in the air
    pitch_gain: float  # of the ankles for the tilt forward beyond the lean
    pitch_damping: float  # rad for each rad/s
    roll_gain: float  # of the hips for the tilt to the right
    roll_damping: float  # rad for each rad/s
    heading_gain: (
        float  # of the strides, against each other, for the angle to the commanded heading
    )

    def targets(
        self, phase: Tensor, speed: Tensor, gravity: Tensor, rates: Tensor, heading_error: Tensor
    ) -> Tensor:
        """Joint targets `(n, 8)`, left leg first.

        Args:
            phase: of the clock, `(n,)` in turns; the left foot swings in its first half.
            speed: commanded, `(n,)`, m/s.
            gravity: its unit vector in the frame of the trunk, `(n, 3)`.
            rates: angular velocity of the trunk in its own frame, `(n, 3)`, rad/s.
            heading_error: from the heading to the commanded one, `(n,)`, rad.
        """
        pitch = gravity[:, 0].clip(-1.0, 1.0).asin()
        roll = -gravity[:, 1].clip(-1.0, 1.0).asin()
        lean = self.lean + self.lean_gain * speed
        balance = self.pitch_gain * (pitch - lean) + self.pitch_damping * rates[:, 1]
        sway = self.sway * (2 * math.pi * (phase - self.sway_phase)).sin()
        sway = sway + self.roll_gain * roll + self.roll_damping * rates[:, 0]
        stride = self.stride + self.stride_gain * speed
        turn = self.heading_gain * heading_error
        left = self._leg(phase, stride - turn, sway, lean, balance)
        right = self._leg((phase + 0.5) % 1.0, stride + turn, -sway, lean, balance)
        return torch.cat((left, right), -1)

    def _leg(
        self, phase: Tensor, stride: Tensor, sway: Tensor, lean: Tensor, balance: Tensor
    ) -> Tensor:
        """Targets of one leg, `(n, 4)`; its foot is in the air in the middle of the first half of its phase."""
        hip_home, _, knee_home, _ = self.home
        lifts_at = (0.5 - self.swing) / 2
        air = ((phase - lifts_at) / self.swing).clip(0.0, 1.0)
        ground = ((phase - lifts_at - self.swing) % 1.0) / (1.0 - self.swing)
        in_air = (phase >= lifts_at) & (phase < lifts_at + self.swing)
        bump = (math.pi * air).sin().square()
        forward = torch.where(in_air, -(math.pi * air).cos(), 1.0 - 2.0 * ground)
        hip = hip_home + self.hip_lift * self.lift * bump + stride * forward
        knee = knee_home + self.lift * bump
        level = hip - knee
        return torch.stack((hip + lean, sway - self.width, knee, level + balance), -1)
