"""The four phases by the commands alone, on `jaka-pick-cube`, in DROID's layout, with a tiny stand-in of pi0_fast.

Four episodes at 32 pixels and a model of a few thousand parameters: what it does is of no use.
"""

import json

import numpy as np
import pytest
import tiny_pi

from deftly.commands import demos, eval, finetune, sim2sim
from deftly.data import dataset
from deftly.render import NoGLError

pytestmark = pytest.mark.vla
QUIET = ("--log-level", "warning")
SHORT = ("--task.episode-steps", "24")


@pytest.fixture(scope="module")
def collected(tmp_path_factory):
    out = tmp_path_factory.mktemp("phases") / "demos"
    words = ["jaka-pick-cube", "--policy", "shipped", "--episodes", "3", "--batch", "4", "--out"]
    words += [str(out), "--size", "32", "--layout", "droid", "--perturb", "0.2", *QUIET]
    try:
        demos.main(words)
    except NoGLError as error:
        pytest.skip(str(error))
    return out


@pytest.fixture(scope="module")
def model(collected, tmp_path_factory):
    tiny_pi.shrink()
    root = tmp_path_factory.mktemp("model")
    tiny = [
        f"text_tokenizer_name:{tiny_pi.write_words(root / 'words')}",
        f"action_tokenizer_name:{tiny_pi.write_fast(root / 'fast')}",
        *("image_resolution:[32,32]", "dtype:float32", "validate_action_token_prefix:false"),
        *("max_action_tokens:96", "max_decoding_steps:8", "tokenizer_max_length:40"),
    ]
    out = root / "pi0"
    words = [str(collected), "--policy", "pi0_fast", "--weights", "none", "--out", str(out)]
    assert finetune.main([*words, "--steps", "3", *QUIET, "--set", *tiny]) == 0
    return out


def test_demonstrations_in_droids_layout_are_whole_and_replay(collected, capsys):
    found = dataset.require_whole(collected)
    state, action = dataset.read_numbers(found, ("observation.state", "action"))
    assert state.shape[1] == action.shape[1] == 8
    assert set(np.unique(action[:, -1])) == {0.0, 1.0}  # closes, opens
    assert (action[[0, *np.cumsum(found.steps)[:-1]], -1] == 1.0).all()  # at the start it is open
    assert demos.main(["--check", str(collected)]) == 0
    assert "open loop, 3 of 3 episodes end as they did" in capsys.readouterr().out


def test_the_model_is_evaluated_with_a_video_of_what_failed(model, tmp_path):
    words = ["jaka-pick-cube", "--policy", str(model), "--episodes", "2", "--failures", *SHORT]
    words += ["--video-episodes", "1", "--gate", "success>=0.5", "--out", str(tmp_path), *QUIET]
    assert eval.main(words) == 1
    result = json.loads((tmp_path / "eval.json").read_text())
    assert result["success"]["count"] == 0
    assert (tmp_path / "video.mp4").stat().st_size > 1000


def test_the_model_drives_the_simulated_robot_under_the_safety_kernel(model, tmp_path):
    words = ["jaka-pick-cube", "--policy", str(model), "--episodes", "1", *SHORT, *QUIET]
    sim2sim.main([*words, "--out", str(tmp_path)])
    result = json.loads((tmp_path / "sim2sim.json").read_text())
    assert result["episodes"] == 1
    assert not result["twin"]["violation"]
