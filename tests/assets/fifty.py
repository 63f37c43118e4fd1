"""A robot of three joints at 50 Hz for the tests of `deftly run`: its bundle; as a script, a policy server of it."""

import hashlib
import io
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import toy_robot
from onnx import TensorProto, helper, numpy_helper

from deftly.contract import Act, Observe, PolicyContract
from deftly.policy import bundle
from deftly.policy.protocol import ContractPolicy

ROBOT = replace(toy_robot.ROBOT, name="fifty")
CONTRACT = PolicyContract(
    robot=ROBOT,
    rate=50,
    observe_terms=(Observe("joint_pos", history=2), Observe("cube"), Observe("command")),
    act_terms=(Act(("a", "b"), "delta", (0.05,), lowpass=0.25), Act(("c",), "gripper", (0.2,))),
)


def model(contract=CONTRACT, size=1.0, batch="n") -> bytes:
    """A linear network."""
    sizes = contract.obs_size(), contract.action_size
    weights = numpy_helper.from_array(
        (size * np.random.default_rng(7).normal(size=sizes)).astype(np.float32), "w"
    )
    ports = zip(("observation", "action"), sizes)
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [batch, size])
        for name, size in ports
    ]
    node = helper.make_node("MatMul", ["observation", "w"], ["action"])
    graph = helper.make_graph([node], "g", ends[:1], ends[1:], [weights])
    return helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10
    ).SerializeToString()


def write_bundle(folder: Path, contract=CONTRACT, task="fifty", size=1.0) -> Path:
    signals = {s.name: np.full((3, s.size), 0.02, np.float32) for s in contract.signals}
    golden = {f"signal/{name}": value for name, value in signals.items()}
    golden |= bundle.replay(contract, bundle.OnnxNetwork(model(contract, size), contract), signals)
    np.savez(file := io.BytesIO(), **golden)
    files = {
        bundle.NETWORK: model(contract, size),
        bundle.SPEC: contract.to_json().encode(),
        bundle.ROBOT: bundle.robot_config(contract).encode(),
        bundle.GOLDEN: file.getvalue(),
        bundle.REPORT: b'{"success": {"rate": 0.0, "count": 0, "wilson95": [0.0, 0.8]}, "episodes": 1}',
    }
    sha = hashlib.sha256(files[bundle.NETWORK]).hexdigest()
    facts = {
        "task": task,
        "deftly": "0",
        "contract": contract.hash,
        "settings": {"task": {}, "sim": {}},
    }
    bundle.write(
        folder, files, {**facts, "checkpoint": {"label": "none", "sha256": sha, "iteration": 0}}
    )
    return folder


if __name__ == "__main__":
    from deftly.serving.server import Server

    contract = replace(CONTRACT, rate=float(sys.argv[1]))
    server = Server(
        ContractPolicy(contract, bundle.OnnxNetwork(model(contract), contract)), "tcp://127.0.0.1:*"
    )
    print(server.endpoint, flush=True)
    server.run_until_signal()
