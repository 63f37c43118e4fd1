"""What a control period costs, and whether a real loop keeps its time: `python -m deftly_bench.control`.

A tick is what `deftly run` does in a period: read the fake robot, observe, infer, act, pass the safety kernel, write,
log. What counts beside the targets is the ratio to the bare `onnxruntime` call: the same network on the same
observation, in turns with the ticks, in the same process on the same core.
"""

from __future__ import annotations

import gc
import json
import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from deftly.config import parse, split_task
from deftly.contract import PolicyContract
from deftly.control.drivers import FakeDriver
from deftly.control.log import LogBuffer
from deftly.control.loop import Runner
from deftly.control.safety import Kernel, State
from deftly.control.session import Session
from deftly.errors import DeftlyError
from deftly.policy import bundle
from deftly.policy.protocol import ContractPolicy, OnnxNetwork
from deftly_bench.entry import start

TASK = "jaka-pick-cube"
HIDDEN = (128, 128)
"""Widths of the shipped policies' networks, of which one with random weights stands in where no bundle is found."""
TICK_MS = 1.0
"""Target: 99 % of the ticks."""
BLOCK, WARM = 500, 500
HERTZ = 20.0


@dataclass(frozen=True)
class ControlArgs:
    """Measure the control loop: `python -m deftly_bench.control [TASK]`."""

    bundle: Path | None = None
    """Bundle to measure; unset: the task's shipped one, else its contract and a network of random weights."""
    ticks: int = 10_000
    """Ticks that are timed, as fast as they go."""
    seconds: float = 0.0
    """How long a real 20 Hz loop runs afterwards; the target is for 600."""
    out: Path | None = None
    """Write the results to this JSON file."""


def main(argv: list[str]) -> int:
    """Run the benchmark. The exit status is 1 if a target is missed."""
    task, rest = split_task(argv)
    args = parse(ControlArgs, rest, prog="deftly_bench.control")
    contract, network, what = find(task or TASK, args.bundle)
    gc.collect()
    gc.freeze()  # as the command does
    core = max(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {core})  # threads that are started from now on stay there too
    result: dict[str, Any] = {
        "schema": "deftly.bench.control/1",
        "policy": what,
        "robot": contract.robot.name,
    }
    tick, bare = measure(contract, network, args.ticks)
    result |= {
        "tick": tick,
        "bare onnxruntime": bare,
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
    }
    result["ratio"] = {name: tick[name] / bare[name] for name in ("p50_ms", "p99_ms")}
    targets = {f"tick: p99 < {TICK_MS:g} ms": tick["p99_ms"] < TICK_MS}
    if args.seconds:
        result["loop"] = loop = keep_time(contract, network, args.seconds)
        targets[f"{HERTZ:g} Hz for {args.seconds:g} s without a miss"] = (
            not loop["missed"] and not loop["fault"]
        )
    result["targets"] = targets
    for name in ("tick", "bare onnxruntime", "ratio", "loop", "targets"):
        if name in result:
            print(f"{name}: " + ", ".join(f"{k} {_short(v)}" for k, v in result[name].items()))
    if args.out:
        args.out.write_text(json.dumps(result, indent=2) + "\n")
    return 0 if all(targets.values()) else 1


def find(task: str, path: Path | None) -> tuple[PolicyContract, OnnxNetwork, str]:
    """PolicyContract and network, and where they are from."""
    if own := path or bundle.shipped(task):
        found = bundle.load(own)
        return found.contract, found.network, str(path or f"the shipped bundle of {task}")
    from deftly.tasks import load

    cls = load(task)
    contract = cls(cls.Config()).contract()
    return contract, OnnxNetwork(mlp(contract), contract), f"{task}'s contract, random weights"


def mlp(contract: PolicyContract) -> bytes:
    """An ONNX network of the shipped policies' shape, with random weights."""
    from onnx import TensorProto, helper, numpy_helper

    rng, nodes, weights, name = np.random.default_rng(0), [], [], "observation"
    sizes = (contract.obs_size(), *HIDDEN, contract.action_size)
    for i, (inputs, outputs) in enumerate(pairwise(sizes)):
        arrays = {"w": rng.normal(0, inputs**-0.5, (inputs, outputs)), "b": np.zeros(outputs)}
        weights += [
            numpy_helper.from_array(v.astype(np.float32), f"{k}{i}") for k, v in arrays.items()
        ]
        last = i == len(HIDDEN)
        nodes.append(
            helper.make_node("Gemm", [name, f"w{i}", f"b{i}"], ["action" if last else f"y{i}"])
        )
        if not last:
            nodes.append(helper.make_node("Elu", [f"y{i}"], [name := f"x{i}"]))
    ports = {"observation": contract.obs_size(), "action": contract.action_size}
    ends = [
        helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n", size])
        for n, size in ports.items()
    ]
    graph = helper.make_graph(nodes, "policy", ends[:1], ends[1:], weights)
    return helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10
    ).SerializeToString()


def measure(
    contract: PolicyContract, network: OnnxNetwork, ticks: int
) -> tuple[dict[str, float], dict[str, float]]:
    """Times of ticks that follow the policy, and of bare calls of its network, taken in turns."""
    clock = [100.0]
    runner = _runner(contract, network, LogBuffer(contract, 12_000), lambda: clock[0])
    obs, times = np.zeros((1, contract.obs_size()), np.float32), {"tick": [], "bare": []}

    def tick() -> None:
        clock[0] += 1.0 / contract.rate
        runner.step(clock[0])

    def bare() -> None:
        network(obs)

    while runner.kernel.state is State.INIT:  # two measurements that agree lead out of it
        tick()
    runner.start()
    while len(times["tick"]) < ticks + WARM:
        for name, step in (("tick", tick), ("bare", bare)):
            for _ in range(BLOCK):
                start = time.perf_counter()
                step()
                times[name].append(time.perf_counter() - start)
        if runner.kernel.state is not State.ACTIVE:
            raise DeftlyError(f"the policy does not drive any more: {runner.kernel.reason}")
    return _figures(times["tick"][WARM:]), _figures(times["bare"][WARM:])


def keep_time(contract: PolicyContract, network: OnnxNetwork, seconds: float) -> dict[str, Any]:
    """How well the loop of `deftly run` kept 20 Hz: a tick that starts more than half a period late is missed."""
    contract = replace(contract, rate=HERTZ)
    buffer = LogBuffer(contract, math.ceil(1.1 * seconds * HERTZ) + 10)
    session = Session(
        _runner(contract, network, buffer, time.monotonic), buffer, {}, start=True, seconds=seconds
    )
    session.run()
    return time_kept(session, HERTZ)


def time_kept(session: Session, rate: float) -> dict[str, Any]:
    """How well the loop of a session that is over kept its rate, Hz."""
    rows = session.buffer.rows()
    late = lateness(rows["now"], 1.0 / rate)
    return {
        "ticks": len(late),
        "missed": int((late > 0.5 / rate).sum()),
        "overruns": session.ticker.overruns,
        "late_p99_ms": 1e3 * float(np.percentile(late, 99)),
        "late_max_ms": 1e3 * float(late.max()),
        "tick_p99_ms": float(np.percentile(rows["tick_ms"], 99)),
        "tick_max_ms": float(rows["tick_ms"].max()),
        "fault": str(session.runner.kernel.reason) if rows["fault"][-1] != "none" else "",
    }


def lateness(now: np.ndarray, period: float) -> np.ndarray:
    """How late each tick began, s; one that is a whole period late begins the schedule anew."""
    late, due = np.zeros(len(now)), now[0]
    for i in range(1, len(now)):
        due += period
        late[i] = now[i] - due
        due = now[i] if late[i] >= period else due
    return late


def _runner(
    contract: PolicyContract, network: OnnxNetwork, buffer: LogBuffer, clock: Callable[[], float]
) -> Runner:
    driver = FakeDriver(contract.robot, contract.rate, clock=clock)
    return Runner(
        ContractPolicy(contract, network), Kernel(contract.robot, contract.rate), driver, buffer
    )


def _figures(seconds: list[float]) -> dict[str, float]:
    ms = 1e3 * np.array(seconds)
    p50, p99 = np.percentile(ms, (50, 99))
    return {"p50_ms": float(p50), "p99_ms": float(p99), "max_ms": float(ms.max()), "calls": len(ms)}


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value) or "none"


if __name__ == "__main__":
    start(main)
