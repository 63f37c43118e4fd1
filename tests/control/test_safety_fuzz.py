"""Very many ticks of anything through the kernel, as fast as it goes: none may give an unsafe target."""

import time

import numpy as np
import pytest
from four_joints import HOME, LOWER, PERIOD, TOP, TOY, UPPER

from deftly.control.drivers import Reading
from deftly.control.safety import Kernel, SafetyConfig, State

CFG = SafetyConfig(speed=0.8, ramp_s=0.1, lead=1.0, misses=5, start_envelope=10.0)


def hostile(rng, count):
    """Numbers with any bits, (count, 4) float64, half of them of single precision; and offsets of ordinary size."""
    double = rng.bytes(count * 32)
    wild = np.frombuffer(double, "<f8").reshape(count, 4).copy()
    with np.errstate(invalid="ignore"):
        wild[::2] = np.frombuffer(double, "<f4").reshape(-1, 4)[:count][::2]
    return wild, rng.normal(size=(count, 4)) * [0.3, 0.3, 0.003, 0.3]


def fuzz(count, seed):
    """Run `count` ticks; returns how many were unsafe, and in how many the policy drove."""
    rng, kernel, now, last = (
        np.random.default_rng(seed),
        Kernel(TOY.robot, TOY.rate, CFG),
        0.0,
        -np.inf,
    )
    most, unsafe, drove, done, zeros = CFG.speed * TOP, 0, 0, 0, np.zeros(3)
    while done < count:
        size = min(10_000, count - done)
        (wild, mild), kinds = hostile(rng, size), rng.random((size, 4))
        for row, offset, (kind, timing, human, goal) in zip(wild, mild, kinds.tolist()):
            before, held = kernel.state, kernel.command
            if before is State.READY and human < 0.9:
                kernel.start()
            elif before is State.HOLD and human < 0.9:
                kernel.resume()
                last = -np.inf
            elif human > 0.995:
                kernel.hold()
            before = kernel.state
            step = (
                PERIOD
                if timing > 0.1
                else (abs(row[0]), 0.0, -1.0, 2 * PERIOD, 1e-9)[int(timing * 50)]
            )
            then = now + step if step < 1e3 or step != step else now + 10.0
            pose = (
                row
                if kind < 0.02
                else (HOME if held is None else held) + 0.1 * offset * (kind < 0.5)
            )
            targets = row if goal < 0.05 else None if goal < 0.07 else HOME + 3 * offset
            reading = (
                None if kind > 0.995 else Reading({"joint_pos": pose, "cube": zeros}, now + PERIOD)
            )
            out = kernel.tick(then, reading, targets)
            elapsed = then - last if then > last else 0.0
            if then > last and then < np.inf:
                now = last = then
            if out is None:
                safe = kernel.state is State.INIT
            else:
                safe = bool((out >= LOWER).all() and (out <= UPPER).all())  # a NaN is neither
                if before is State.ACTIVE:
                    step = min(elapsed, PERIOD)
                    safe = safe and bool(
                        (np.abs(out - held) <= most * step * (1 + 1e-12) + 1e-15).all()
                    )
                elif before is not State.INIT:
                    safe = safe and bool((out == held).all())
            drove += kernel.state is State.ACTIVE
            unsafe += not safe
        done += size
    return unsafe, drove


@pytest.mark.parametrize("count", [20_000, pytest.param(1_000_000, marks=pytest.mark.slow)])
def test_no_tick_of_very_many_gives_an_unsafe_target(count):
    began = time.perf_counter()
    with np.errstate(invalid="ignore", over="ignore"):
        unsafe, drove = fuzz(count, seed=count)
    print(
        f"{count} ticks, {unsafe} unsafe, {drove} driven, {count / (time.perf_counter() - began):.0f} ticks/s"
    )
    assert unsafe == 0
    assert drove > 0.2 * count
