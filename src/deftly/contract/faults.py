"""Why a safety kernel lets no policy drive: the faults that a robot interface can name."""

from __future__ import annotations

from enum import StrEnum


class Fault(StrEnum):
    """Why the safety kernel holds, damps or stopped."""

    NONE = "none"
    SIGNALS_STALE = "signals-stale"
    SIGNALS_BAD = "signals-bad"
    POLICY_STALE = "policy-stale"
    POLICY_BAD = "policy-bad"
    INPUT_STALE = "input-stale"
    DEADLINES = "deadlines"
    STALLED = "stalled"
    CLOCK = "clock"
    ENVELOPE = "envelope"
    FOLLOWING = "following"
    ENCODER = "encoder"
    LIMIT = "limit"
    WRITER = "writer"
    DRIVER = "driver"
    CONTRACT = "contract"
    OPERATOR = "operator"


FAULTS = tuple(fault for fault in Fault if fault is not Fault.NONE)
"""All that can happen: what the `damps` of a legged robot are."""
