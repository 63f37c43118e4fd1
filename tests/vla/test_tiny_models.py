"""Every kind of model goes the whole way, as a random stand-in: no large weights can be had where these tests run.

Statistics, LoRA on pretrained weights (which the tests make too), loss, checkpoint, resume, evaluation, and a real
`deftly serve` process on loopback. What these models do is of no use; that each step fits the next is what is tested.
"""

import contextlib
import json
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import filmed_data
import numpy as np
import pytest
import tiny_pi
import tiny_vlm
import torch

from deftly.commands import finetune
from deftly.config import SimConfig
from deftly.errors import DeftlyError
from deftly.evaluate import source
from deftly.evaluate.evaluate import EvalSettings, measure
from deftly.policy.protocol import PolicyError
from deftly.vla import checkpoint, models
from deftly.vla.features import ACTION, OBS_STATE

pytestmark = pytest.mark.vla
SIZE = filmed_data.SIZE
TINY = ("--batch", "2", "--chunk", "4", "--executed", "2", "--steps", "4")
START_S = 280.0
"""After which a server that has not started is given up, s: it imports LeRobot."""
ASSETS = Path(tiny_pi.__file__).parent


@pytest.fixture(scope="module", autouse=True)
def shrunk():
    tiny_pi.shrink()


@pytest.fixture(scope="module")
def demos(tmp_path_factory):
    return filmed_data.collected(tmp_path_factory.mktemp("data") / "demos", count=2)


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """Folders of what a person fetches from the hub: tokenizers, and the settings of the language model."""
    root = tmp_path_factory.mktemp("parts")
    tiny_vlm.write(root / "vlm")
    tiny_pi.write_words(root / "words")
    tiny_pi.write_fast(root / "fast")
    return root


def settings(kind, parts):
    """What makes a model of a kind tiny, as words of `--set`."""
    pi = ("image_resolution:[32,32]", "dtype:float32")
    found = {
        "act": ("dim_model:32", "dim_feedforward:32", "n_heads:2", "n_encoder_layers:1"),
        "diffusion": (
            "down_dims:[8,16]",
            "num_inference_steps:2",
            "spatial_softmax_num_keypoints:4",
        ),
        "smolvla": (
            f"vlm_model_name:{parts / 'vlm'}",
            *("num_vlm_layers:2", "resize_imgs_with_padding:[32,32]", "num_steps:2"),
        ),
        "pi05": (*pi, "num_inference_steps:2"),
        "pi0_fast": (
            *(f"text_tokenizer_name:{parts / 'words'}", f"action_tokenizer_name:{parts / 'fast'}"),
            *(*pi, "max_action_tokens:32", "max_decoding_steps:16", "tokenizer_max_length:24"),
            "validate_action_token_prefix:false",
        ),
    }
    return ("--set", *found[kind])


def words(demos, out, kind, parts, *more):
    """What is typed after `deftly finetune`."""
    first = [str(demos), "--policy", kind, "--out", str(out), "--log-level", "warning"]
    size = (
        "64" if kind == "diffusion" else "32"
    )  # its ResNet leaves a 32nd, and normalizes over that
    return [*first, *TINY, "--image-size", size, *settings(kind, parts), *more]


@contextlib.contextmanager
def killed(step):
    """A training is killed when it has done so many steps."""
    from deftly.vla.train import Training

    real = Training.advance

    def dies(self):
        if self.step == step:
            raise KeyboardInterrupt
        return real(self)

    with pytest.MonkeyPatch.context() as patch, contextlib.suppress(KeyboardInterrupt):
        patch.setattr(Training, "advance", dies)
        yield


@pytest.fixture
def fetched(parts, tmp_path, monkeypatch):
    """The tokenizer that pi05 takes, where transformers finds what was fetched before."""
    from huggingface_hub import constants

    folder = tmp_path / "hub" / f"models--{tiny_pi.PALIGEMMA.replace('/', '--')}"
    shutil.copytree(parts / "words", folder / "snapshots/1")
    (folder / "snapshots/1/config.json").write_text('{"model_type": "paligemma"}')
    (folder / "refs").mkdir()
    (folder / "refs/main").write_text("1")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


@pytest.mark.parametrize("kind", ["act", "diffusion", "smolvla", "pi0_fast", "pi05"])
def test_every_kind_learns_goes_on_and_answers_whole_chunks(kind, demos, parts, tmp_path, fetched):
    """What was killed after two steps of four, and goes on, is what was not killed."""
    typed = words(demos, tmp_path / "whole", kind, parts, "--weights", "none")
    assert finetune.main(typed) == 0
    typed = words(demos, tmp_path / "half", kind, parts, "--weights", "none", "--save-every", "2")
    with killed(2):
        finetune.main(typed)
    assert checkpoint.load(tmp_path / "half/checkpoint").iteration == 2
    assert finetune.main([*typed, "--resume"]) == 0
    one, other = (
        checkpoint.read_tensors(tmp_path / name / "checkpoint" / checkpoint.WEIGHTS)
        for name in ("whole", "half")
    )
    assert one.keys() == other.keys()
    assert all((one[name] == other[name]).all() for name in one)
    model = checkpoint.load(tmp_path / "whole/checkpoint").model()
    images = {"front": np.zeros((2, SIZE, SIZE, 3), np.uint8)}
    chunk = model.chunk(images, np.zeros((2, 2), np.float32), ["centre the block"] * 2)
    assert (chunk.shape, chunk.dtype) == ((2, 4, 2), np.float32)
    assert np.isfinite(chunk).all()


@pytest.fixture(scope="module")
def base(demos, parts, tmp_path_factory):
    """Folders of pretrained weights, random ones, by kind, as LeRobot writes them."""
    root = tmp_path_factory.mktemp("base")
    sizes = models.Shapes(2, 2, ("front",), SIZE)
    stats = {OBS_STATE: numbers(), ACTION: numbers()}
    for kind in ("smolvla", "pi0_fast"):
        config = models.config_of(kind, sizes, 4, settings(kind, parts)[1:], "cpu")
        models.build(kind, config, stats).network.save_pretrained(root / kind)
    return root


def numbers():
    found = {"mean": 0.0, "std": 1.0, "min": -1.0, "max": 1.0, "q01": -1.0, "q99": 1.0}
    return {name: [value] * 2 for name, value in found.items()}


@pytest.fixture(scope="module", params=["smolvla", "pi0_fast"])
def adapted(request, demos, parts, base, tmp_path_factory):
    """The folder of a model that learned with LoRA on pretrained weights."""
    kind = request.param
    out = tmp_path_factory.mktemp("adapted") / kind
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(base)  # the folder of the weights is typed as it is seen from here
        typed = words(demos, out, kind, parts, "--weights", kind, "--lora", "2")
        assert finetune.main(typed) == 0
    return out


def test_an_adapter_is_kept_without_its_base(adapted, base):
    found = checkpoint.load(adapted / "checkpoint")
    weights = checkpoint.read_tensors(found.path / checkpoint.WEIGHTS)
    assert weights
    assert all("lora_" in name for name in weights)
    assert found.about["base"] == str(base / found.about["model"])
    assert set(found.about["prompts"]) == set(filmed_data.toy().prompts)


def test_an_adapted_model_is_evaluated(adapted):
    found = source.resolve(str(adapted), None, None)
    task = found.seen_by(filmed_data.toy())
    result, _ = measure(task, found, EvalSettings(episodes=2, sim=SimConfig(threads=1)))
    assert result["episodes"] == 2


@contextlib.contextmanager
def serving(folder):
    """A `deftly serve` process of a model; its endpoint."""
    command = [sys.executable, str(ASSETS / "tiny_pi.py"), "serve", "--policy", str(folder)]
    command += ["--bind", "ws://127.0.0.1:0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    alarm = threading.Timer(START_S, process.kill)
    alarm.start()
    try:
        for line in process.stdout:
            if line.startswith("serving "):
                alarm.cancel()
                yield re.search(r"ws://127\.0\.0\.1:\d+", line)[0]
                break
        else:
            pytest.fail("the server ended before it served")
    finally:
        alarm.cancel()
        process.terminate()
        process.wait(60)
    assert process.returncode == 0


def test_an_adapted_model_is_served_and_evaluated_through_the_server(adapted):
    like = source.resolve(str(adapted), None, None)
    with serving(adapted) as endpoint:
        found = source.PolicySource("endpoint", endpoint, None, like=like)
        task = found.seen_by(filmed_data.toy())
        result, _ = measure(task, found, EvalSettings(episodes=2, sim=SimConfig(threads=1)))
    assert result["episodes"] == 2


def test_weights_below_an_adapter_that_changed_are_refused(adapted, base, tmp_path):
    kind = adapted.name
    file = base / kind / models.BASE_WEIGHTS
    whole = file.read_bytes()
    try:
        file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        with pytest.raises(DeftlyError, match=r"is not the file on which .* was trained"):
            checkpoint.load(adapted / "checkpoint").model()
        file.write_bytes(whole[:100])
        with pytest.raises(DeftlyError, match="is not the file on which"):
            checkpoint.load(adapted / "checkpoint").model()
    finally:
        file.write_bytes(whole)


def test_weights_of_another_model_are_refused_and_not_left_random(demos, parts, base, tmp_path):
    """LeRobot's own loading of pi0_fast goes on with random weights."""
    (tmp_path / "empty").mkdir()
    typed = words(demos, tmp_path / "x", "pi0_fast", parts, "--weights")
    with pytest.raises(DeftlyError, match=r"has no model.safetensors: give --weights a folder"):
        finetune.main([*typed, str(tmp_path / "empty")])
    with pytest.raises(DeftlyError, match=r"is of another model: it lacks \d+ of \d+ tensors"):
        finetune.main([*typed, str(base / "smolvla")])
    shutil.copytree(base / "pi0_fast", tmp_path / "cut")
    file = tmp_path / "cut" / models.BASE_WEIGHTS
    file.write_bytes(file.read_bytes()[:-50])
    with pytest.raises(DeftlyError, match="is truncated or no safetensors file"):
        finetune.main([*typed, str(tmp_path / "cut")])
    assert not (tmp_path / "x").exists()


def test_tokenizers_run_no_code_of_their_own(demos, parts, tmp_path):
    """What a folder brings along as code, and LeRobot would run, is left alone."""
    evil = shutil.copytree(parts / "fast", tmp_path / "evil")
    (evil / "code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Evil: pass\n")
    file = evil / "processor_config.json"
    named = {"auto_map": {"AutoProcessor": "code.Evil"}, "processor_class": "Evil"}
    file.write_text(json.dumps({**json.loads(file.read_text()), **named}))
    typed = words(demos, tmp_path / "x", "pi0_fast", parts, "--weights", "none", "--dry-run")
    place = next(i for i, word in enumerate(typed) if word.startswith("action_tokenizer"))
    typed[place] = f"action_tokenizer_name:{evil}"
    assert finetune.main(typed) == 0
    assert not (tmp_path / "ran").exists()
    file.write_text("{}")
    with pytest.raises(DeftlyError, match=r"has no 'scale' above 0 and whole 'min_token'"):
        finetune.main(typed)


def test_pi0_fast_decodes_the_actions_that_were_encoded(demos, parts, base):
    """Chunks of as many actions as it learned: LeRobot decodes `n_action_steps` of them, and gives others if fewer."""
    shapes = models.Shapes(2, 2, ("front",), SIZE)
    config = models.config_of("pi0_fast", shapes, 4, settings("pi0_fast", parts)[1:], "cpu")
    model = models.build("pi0_fast", config, {OBS_STATE: numbers(), ACTION: numbers()})
    actions = np.random.default_rng(0).uniform(-1, 1, (1, 4, 2)).astype(np.float32)
    seen = model.before({**frame(), ACTION: torch.from_numpy(actions)})
    tokens = seen["action.tokens"][:, 1:]  # those after the beginning, as it says them
    model.network.model.sample_actions_fast_kv_cache = lambda *_, **__: tokens
    images = {"front": np.zeros((1, SIZE, SIZE, 3), np.uint8)}
    chunk = model.chunk(images, np.zeros((1, 2), np.float32), ["centre the block"])
    np.testing.assert_allclose(chunk, actions, atol=0.06)  # a coefficient is rounded to 0.1


def frame():
    image = torch.zeros(1, 3, SIZE, SIZE)
    return {"observation.images.front": image, OBS_STATE: torch.zeros(1, 2), "task": ["centre"]}


def test_what_is_no_action_chunk_is_a_policy_error(parts):
    shapes = models.Shapes(2, 2, ("front",), SIZE)
    extra = [*settings("pi0_fast", parts)[1:-1], "validate_action_token_prefix:true"]
    config = models.config_of("pi0_fast", shapes, 4, extra, "cpu")
    model = models.build("pi0_fast", config, {OBS_STATE: numbers(), ACTION: numbers()})
    images = {"front": np.zeros((1, SIZE, SIZE, 3), np.uint8)}
    with pytest.raises(PolicyError, match="the model answers no action chunk: Token sequence"):
        model.chunk(images, np.zeros((1, 2), np.float32), ["centre the block"])


def test_an_instruction_that_it_never_heard_is_named_once(adapted, capsys):
    model = checkpoint.load(adapted / "checkpoint").model()
    images = {"front": np.zeros((1, SIZE, SIZE, 3), np.uint8)}
    capsys.readouterr()
    for said in ("centre the block", "dance", "dance"):
        model.chunk(images, np.zeros((1, 2), np.float32), [said])
    assert capsys.readouterr().out.count("'dance' is not what the model learned from ('push") == 1


def test_settings_that_follow_from_flags_are_not_set_beside_them(demos, parts, tmp_path):
    typed = words(demos, tmp_path / "x", "pi0_fast", parts, "--weights", "none")
    with pytest.raises(DeftlyError, match="--set n_action_steps follows from"):
        finetune.main([*typed, "--set", "n_action_steps:2"])


def test_a_model_of_another_size_is_refused(adapted, tmp_path):
    """As where settings and hashes of two checkpoints were mixed by hand."""
    folder = shutil.copytree(adapted / "checkpoint", tmp_path / "c")
    config = json.loads((folder / "config.json").read_text())
    config["output_features"]["action"]["shape"] = [7]
    (folder / "config.json").write_text(json.dumps(config))
    about = json.loads((folder / "vla.json").read_text())
    about["files"]["config.json"] = checkpoint.sha256(folder / "config.json", "a file")
    (folder / "vla.json").write_text(json.dumps(about))
    with pytest.raises(
        DeftlyError, match=r"whose 'action' has 7 numbers, and the contract's has 2"
    ):
        checkpoint.load(folder).model()
    config["unheard_of"] = 1
    (folder / "config.json").write_text(json.dumps(config))
    about["files"]["config.json"] = checkpoint.sha256(folder / "config.json", "a file")
    (folder / "vla.json").write_text(json.dumps(about))
    with pytest.raises(DeftlyError, match="has settings that LeRobot refuses"):
        checkpoint.load(folder).model()
