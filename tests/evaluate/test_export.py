"""Export: the bundle holds this very policy, its own evaluation, and vectors of a real episode."""

import hashlib
import json
import logging
import warnings

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from deftly.commands import main as cli
from deftly.commands.export import main as export_main
from deftly.config import EnvConfig
from deftly.env import Env
from deftly.errors import DeftlyError
from deftly.evaluate import export
from deftly.evaluate.evaluate import EvalSettings, measure
from deftly.evaluate.handover import drive, rebuild
from deftly.learn import checkpoint
from deftly.learn.networks import ACTIVATIONS, Network, NetworkSpec, Policy
from deftly.policy import bundle
from deftly.policy.onnx_bounds import require_bounded
from deftly.policy.protocol import OnnxNetwork


@pytest.fixture(scope="module")
def found(exported):
    return bundle.load(exported.bundle)


@pytest.fixture(scope="module")
def source(exported):
    return checkpoint.load(exported.checkpoint)


def test_the_manifest_says_where_it_is_from(exported, found, source):
    facts = found.manifest
    sha = hashlib.sha256((exported.checkpoint / "weights.safetensors").read_bytes()).hexdigest()
    assert facts["checkpoint"] == {
        "label": str(source.path),
        "sha256": sha,
        "iteration": source.iteration,
    }
    assert facts["contract"] == source.contract.hash == found.contract.hash
    assert facts["settings"]["task"] == source.config["task"]
    assert facts["settings"]["sim"] == source.config["sim"]


def test_the_settings_build_the_simulation_again(exported, found, source, capsys):
    task, sim = rebuild(exported.task, found.manifest["settings"])
    source.require(task)
    assert sim.threads == 1
    capsys.readouterr()
    changed = {"task": {**found.manifest["settings"]["task"], "gaol": 1}}
    with pytest.raises(DeftlyError, match="settings of the bundle do not fit"):
        rebuild(exported.task, changed)
    assert capsys.readouterr() == ("", "")


def test_the_network_is_one_file_and_says_nothing_of_this_machine(exported):
    data = (exported.bundle / "policy.onnx").read_bytes()
    for word in (
        b"location",
        b"stack_trace",
        b"site-packages",
        b".py",
        str(exported.root).encode(),
    ):
        assert word not in data
    model = onnx.load_from_string(data)
    onnx.checker.check_model(model)
    assert [(o.domain, o.version) for o in model.opset_import] == [("", export.OPSET)]
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"


def test_the_network_is_the_policys_mean_with_its_normalizer(found, source):
    actor = source.policy()
    actor.actor.normalizer.mean += 3.0  # type: ignore[union-attr]
    obs = torch.randn(5, source.contract.obs_size())
    assert np.abs(found.network(obs.numpy()) - source.policy()(obs).numpy()).max() <= 1e-6
    assert np.abs(found.network(obs.numpy()) - actor(obs).numpy()).max() > 1e-3
    assert export.compare(source.policy(), found.network, source.contract.obs_size()) <= 1e-5
    assert export.compare(actor, found.network, source.contract.obs_size()) > 1e-3


def test_a_network_of_nans_does_not_compare(source):
    def broken(obs):
        return np.full((len(obs), 2), np.nan, np.float32)

    assert export.compare(source.policy(), broken, source.contract.obs_size()) == np.inf  # type: ignore[arg-type]


def test_a_network_that_differs_is_not_exported(exported, monkeypatch, tmp_path):
    monkeypatch.setattr(export, "compare", lambda *args: float("nan"))
    monkeypatch.setattr(
        export, "to_onnx", lambda policy: (exported.bundle / "policy.onnx").read_bytes()
    )
    with pytest.raises(DeftlyError, match="torch and ONNX differ by nan"):
        export_main(
            [exported.task, "--runs.root", str(exported.root), "--out", str(tmp_path / "b")]
        )
    assert not (tmp_path / "b").exists()


def test_a_network_that_no_bundle_holds_is_refused_before_it_is_evaluated(
    source, exported, monkeypatch, tmp_path
):
    monkeypatch.setattr(export, "measure", lambda *_: pytest.fail("evaluated"))
    monkeypatch.setitem(bundle.LIMITS, bundle.NETWORK, 100)
    task, sim = rebuild(exported.task, bundle_settings(exported))
    with pytest.raises(
        bundle.BundleError, match=r"policy\.onnx has \d+ bytes, at most 100 are read"
    ):
        export.export(task, source, tmp_path / "b", EvalSettings(episodes=1, sim=sim), "deftly")
    assert not (tmp_path / "b").exists()


def bundle_settings(exported):
    return json.loads((exported.bundle / bundle.MANIFEST).read_text())["settings"]


def test_networks_of_several_operators_to_an_activation_are_run():
    """One network with each of them after one another: an export takes seconds."""
    network = Network(NetworkSpec({"policy": 8}, 4, (16, 16, 16, 16)))
    places = [i for i, layer in enumerate(network.layers) if isinstance(layer, torch.nn.ELU)]
    for place, name in zip(places, ("gelu", "mish", "silu", "softplus"), strict=True):
        network.layers[place] = ACTIVATIONS[name]()
    require_bounded(export.to_onnx(Policy(network)), "x.onnx")


def test_a_network_that_sees_is_bounded_and_computes_the_same():
    spec = NetworkSpec(
        {"policy": 5}, 3, (8,), "relu", images={"front": (16, 24), "wrist": (16, 16)}
    )
    policy = Policy(Network(spec))
    model = export.to_onnx(policy)
    require_bounded(model, "x.onnx")
    obs = {"policy": torch.randn(4, 5)}
    for name, size in spec.images.items():
        obs[name] = torch.randint(0, 256, (4, *size, 3), dtype=torch.uint8)
    session = onnxruntime.InferenceSession(model)
    given = {"state": obs["policy"], "front": obs["front"], "wrist": obs["wrist"]}
    (action,) = session.run(None, {name: value.numpy() for name, value in given.items()})
    np.testing.assert_allclose(action, policy(obs).numpy(), atol=1e-5)


def test_the_report_is_a_fresh_one_of_this_policy(exported, found, source):
    report = found.report
    task, sim = rebuild(exported.task, found.manifest["settings"])
    again, _ = measure(task, source, EvalSettings(episodes=8, sim=sim))
    assert {k: v for k, v in report.items() if k not in ("wall_seconds", "command")} == {
        k: v for k, v in json.loads(json.dumps(again)).items() if k != "wall_seconds"
    }
    assert report["gates"] == []
    assert report["command"].endswith(f"--policy {exported.checkpoint}")


@pytest.fixture
def env(exported, found):
    task, sim = rebuild(exported.task, found.manifest["settings"])
    return Env(task, EnvConfig(num_envs=1), sim, 0, "evaluate")


def test_golden_signals_are_those_of_an_episode_as_its_sensors_gave_them(found, source, env):
    network, rows, env.auto_reset = source.policy(), found.golden, False
    steps = len(rows["action"])
    assert 1 < steps <= export.GOLDEN_STEPS
    for i in range(steps):
        seen = env.obs["policy"][0].numpy()
        np.testing.assert_allclose(
            rows["signal/joint_pos"][i], seen[2:4], atol=1e-6
        )  # the newest of two
        assert (
            abs(rows["signal/joint_pos"][i] - env.state.joint_pos[0].numpy()) > 1e-5
        ).all()  # noise and all
        np.testing.assert_allclose(rows["observation"][i], seen, atol=1e-6)
        env.step(network(env.obs["policy"]))
        np.testing.assert_allclose(rows["targets"][i], env.state.command[0], atol=1e-5)
        assert not env.ended or i == steps - 1


def test_golden_vectors_verify_exactly(found):
    assert max(found.golden_errors().values()) == 0


def test_driving_leaves_the_environment_as_it_was(found, env):
    sensors = env._sensors
    first = [decision.action for _, _, decision in drive(env, found.policy(), 3)]
    next(drive(env, found.policy(), 3))  # left half way
    again = [decision.action for _, _, decision in drive(env, found.policy(), 3)]
    np.testing.assert_array_equal(first, again)
    assert env._sensors is sensors
    assert int(env.ended["steps"]) == len(first)


def test_an_exporter_that_talks_is_not_heard(capfd):
    before = logging.root.manager.disable
    with export._quiet():
        logging.getLogger("torch.onnx").warning("torchvision is not installed")
        warnings.warn("isinstance is deprecated", FutureWarning, stacklevel=1)
    assert capfd.readouterr() == ("", "")
    assert logging.root.manager.disable == before


def test_a_place_that_is_taken_is_refused_before_the_work(exported, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "to_onnx", None)
    (tmp_path / "mine.txt").touch()
    with pytest.raises(DeftlyError, match="is no bundle of this Deftly: choose another folder"):
        export_main([exported.task, "--runs.root", str(exported.root), "--out", str(tmp_path)])


def test_what_a_user_mistypes(capsys, tmp_path):
    assert cli.main(["export"]) == 2
    assert "export needs a task" in capsys.readouterr().err
    assert cli.main(["export", "jaka-pick-cube", "--episodes", "0"]) == 2
    assert "episodes is 0" in capsys.readouterr().err


def test_the_network_runs_in_batches(found):
    network = OnnxNetwork((found.path / "policy.onnx").read_bytes(), found.contract)
    for count in (1, 2, 17):
        assert network(np.zeros((count, found.contract.obs_size()), np.float32)).shape == (count, 2)
