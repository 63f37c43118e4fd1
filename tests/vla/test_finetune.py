"""The whole path on a toy task, with LeRobot: demonstrations, fine-tuning, resume, the policy, and what is refused."""

import json
import shutil

import filmed
import numpy as np
import pytest
import tiny_vlm

from deftly.commands import finetune
from deftly.config import SimConfig
from deftly.data import lerobot
from deftly.data.demonstrations import Source, replay
from deftly.errors import DeftlyError
from deftly.evaluate import source
from deftly.evaluate.evaluate import EvalSettings, measure
from deftly.tasks import load
from deftly.vla import checkpoint
from deftly.vla.features import ACTION, IMAGES, OBS_STATE, seen_contract

pytestmark = pytest.mark.vla
SIZE = 32
TINY = ("--batch", "4", "--chunk", "4", "--executed", "2", "--image-size", "32")
SMALL = ("--set", "dim_model:32", "dim_feedforward:32", "n_heads:2", "n_encoder_layers:1")


def toy():
    cls = load(filmed.FILE)
    return cls(cls.Config(episode_steps=40, goal=0.08))


def collected(folder, video=True, count=4):
    task = toy()
    plan = lerobot.Plan(
        source=Source(task, SimConfig(threads=1), 3, 4, 0.2),
        seen=seen_contract(task.contract(), ("front",), SIZE, task.prompts[0]),
        layout="contract",
        prompts=task.prompts,
        only_success=True,
        policy="expert",
        policy_sha256="",
        settings={"task": {"episode_steps": 40, "goal": 0.08}, "sim": {}},
    )
    return lerobot.collect(plan, filmed.expert(task), count, folder, video)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return collected(tmp_path_factory.mktemp("data") / "demos")


@pytest.fixture(scope="module")
def trained(dataset, tmp_path_factory):
    out = tmp_path_factory.mktemp("model") / "act"
    words = [str(dataset), "--policy", "act", "--out", str(out), "--steps", "4", *TINY, *SMALL]
    assert finetune.main([*words, "--save-every", "2"]) == 0
    return out, words


@pytest.fixture
def damaged(dataset, tmp_path):
    return shutil.copytree(dataset, tmp_path / "damaged")


def test_lerobot_reads_what_was_stored(dataset):
    from lerobot.datasets import LeRobotDataset

    rate = toy().contract().rate
    data = LeRobotDataset("local/demos", dataset, delta_timestamps={ACTION: [0.0, 1 / rate]})
    found = lerobot.open_dataset(dataset)
    steps = [fact["steps"] for fact in found.facts["episodes"]]
    assert (data.num_episodes, len(data), data.fps) == (4, sum(steps), rate)
    rows = lerobot.read_rows(dataset, (OBS_STATE, ACTION))
    for i in (0, steps[0] - 2, steps[0]):
        item = data[i]
        np.testing.assert_array_equal(item[OBS_STATE].numpy(), rows[OBS_STATE][i])
        np.testing.assert_array_equal(item[ACTION].numpy(), rows[ACTION][i : i + 2])
        assert item[IMAGES + "front"].shape == (3, SIZE, SIZE)
    assert data[steps[0]]["task"] == filmed.Filmed.prompts[1]
    last = data[steps[0] - 1]
    assert last["action_is_pad"].tolist() == [False, True]


def test_images_are_of_before_the_action(dataset, tmp_path):
    """Stored as images, nothing is lost: each equals what the camera shows in the state of its row."""
    from PIL import Image

    folder = collected(tmp_path / "images", video=False, count=1)
    task = toy()
    import pyarrow.parquet as parquet

    from deftly.data.demonstrations import Film, simulate

    env, episodes = simulate(Source(task, SimConfig(threads=1), 3, 4, 0.2), filmed.expert(task), 0)
    film = Film(("front",), SIZE)
    frames = [each["front"] for each in film.frames(env, episodes[0])]
    film.close()
    (file,) = (folder / "data").glob("*/*.parquet")
    stored = parquet.read_table(file)[IMAGES + "front"].to_pylist()
    import io

    for frame, each in zip(frames, stored, strict=True):
        np.testing.assert_array_equal(frame, np.asarray(Image.open(io.BytesIO(each["bytes"]))))
    assert not np.array_equal(frames[0], frames[-1])


def test_stored_actions_replay(dataset):
    found = lerobot.require_whole(dataset)
    results = replay(Source(toy(), SimConfig(threads=1), 3, 4, 0.2), lerobot.stored_actions(found))
    assert all(results.values())
    assert len(results) == 4


def test_what_is_missing_or_shifted_is_refused(damaged):
    import pyarrow as pa
    import pyarrow.parquet as parquet

    (file,) = (damaged / "data").glob("*/*.parquet")
    table = parquet.read_table(file)
    late = pa.array(np.asarray(table["timestamp"]) + 0.01, pa.float32())
    place = table.column_names.index("timestamp")
    parquet.write_table(table.set_column(place, "timestamp", late), file)
    with pytest.raises(DeftlyError, match=r"the time stamps are shifted: frame 0 of episode 0"):
        lerobot.require_whole(damaged)
    parquet.write_table(table.slice(0, len(table) - 3), file)
    with pytest.raises(DeftlyError, match="half written: its rows are not those"):
        lerobot.require_whole(damaged)
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(DeftlyError, match="half written: its tables do not read"):
        lerobot.require_whole(damaged)
    parquet.write_table(table, file)
    (video,) = (damaged / "videos").glob("*/*/*.mp4")
    video.unlink()
    with pytest.raises(DeftlyError, match="has 0 frames of front, expected"):
        lerobot.require_whole(damaged)


def test_a_data_set_of_another_contract_is_refused(damaged):
    text = (damaged / "meta/contract.json").read_text().replace('"rate":20.0', '"rate":10.0')
    (damaged / "meta/contract.json").write_text(text)
    with pytest.raises(DeftlyError, match="is not the contract with which the data set was made"):
        lerobot.open_dataset(damaged)


def test_resume_is_the_training_uninterrupted(trained, tmp_path):
    from safetensors.torch import load_file

    out, words = trained
    half = tmp_path / "half"
    from deftly.vla.train import Training

    steps, real = [], Training.advance

    def dies(self):
        if self.step == 2 and not steps:
            steps.append(2)
            raise KeyboardInterrupt
        return real(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Training, "advance", dies)
        mine = [str(half) if word == str(out) else word for word in words]
        with pytest.raises(KeyboardInterrupt):
            finetune.main([*mine, "--save-every", "2"])
        assert checkpoint.load(half / "checkpoint").iteration == 2
        assert finetune.main([*mine, "--save-every", "2", "--resume"]) == 0
    one, other = (load_file(each / "checkpoint" / checkpoint.WEIGHTS) for each in (out, half))
    assert one.keys() == other.keys()
    assert all((one[name] == other[name]).all() for name in one)
    with pytest.raises(DeftlyError, match="holds a training: go on with it, --resume"):
        finetune.main(mine)
    with pytest.raises(DeftlyError, match="was trained with training"):
        finetune.main([*mine, "--resume", "--learning-rate", "0.5"])


def test_the_model_is_a_policy_of_every_command(trained):
    out, _ = trained
    found = source.resolve(str(out), None, None)
    assert (found.kind, found.task, found.iteration) == ("model", "filmed", 4)
    task = found.seen_by(toy())
    result, _ = measure(task, found, EvalSettings(episodes=2, sim=SimConfig(threads=1)))
    assert result["episodes"] == 2


def test_a_robot_executes_its_chunk_and_then_looks_again(trained):
    out, _ = trained
    policy = checkpoint.load(out / "checkpoint").open()
    asked, real = [], policy.model._model.chunk

    class Counted:
        def chunk(self, images, state, prompts):
            asked.append((len(state), list(prompts)))
            return real(images, state, prompts)

    policy.model._model = Counted()
    signals = {
        "joint_pos": np.zeros((2, 2), np.float32),
        "front": np.zeros((2, SIZE, SIZE, 3), np.uint8),
    }
    for _ in range(3):
        policy.infer(signals)
    assert [count for count, _ in asked] == [2, 2]  # two of each chunk are executed
    policy.reset([1])
    policy.infer(signals, {"prompt": ["stay", "centre the block"]})
    assert asked[2:] == [(1, ["centre the block"])]  # robot 0 has one action left


def test_damaged_checkpoints_are_refused(trained, tmp_path):
    folder = shutil.copytree(trained[0] / "checkpoint", tmp_path / "c")
    (folder / "statistics.json").unlink()
    with pytest.raises(DeftlyError, match=r"has no normalization statistics"):
        checkpoint.load(folder)
    shutil.copy(trained[0] / "checkpoint/statistics.json", folder)
    tree = json.loads((folder / "statistics.json").read_text())
    tree[ACTION]["mean"][0] += 1.0
    (folder / "statistics.json").write_text(json.dumps(tree))
    with pytest.raises(DeftlyError, match="it was changed"):
        checkpoint.load(folder)
    (folder / "vla.json").write_text("[]")
    with pytest.raises(DeftlyError, match=r"is not of the schema deftly.vla/1"):
        checkpoint.load(folder)


def test_what_does_not_fit_is_refused_before_it_learns(dataset, tmp_path):
    words = [str(dataset), "--policy", "act", "--out", str(tmp_path / "x"), *TINY, *SMALL]
    with pytest.raises(DeftlyError, match=r"needs about \d+ GB to learn"):
        finetune.main([*words, "--memory-gb", "0.000001"])
    with pytest.raises(DeftlyError, match="more than --cache-gb"):
        finetune.main([*words, "--cache-gb", "0.0000001"])
    with pytest.raises(DeftlyError, match=r"act has no 'dim_modle', did you mean 'dim_model'"):
        finetune.main([*words, "--set", "dim_modle:3"])
    with pytest.raises(DeftlyError, match="torch sees no GPU here"):
        finetune.main([*words, "--device", "cuda"])
    assert not (tmp_path / "x").exists()


def test_a_tiny_smolvla_goes_the_whole_way(dataset, tmp_path):
    """From random weights: statistics, loss, checkpoint, and the policy in the environment."""
    base = tiny_vlm.write(tmp_path / "vlm")
    sizes = ("num_vlm_layers:2", "resize_imgs_with_padding:[32,32]", "num_steps:2")
    words = [str(dataset), "--policy", "smolvla", "--weights", "none", "--out", str(tmp_path / "s")]
    words += ["--steps", "2", *TINY, "--set", f"vlm_model_name:{base}", *sizes]
    assert finetune.main(words) == 0
    found = source.resolve(str(tmp_path / "s"), None, None)
    task = found.seen_by(toy())
    result, _ = measure(task, found, EvalSettings(episodes=2, sim=SimConfig(threads=1)))
    assert result["episodes"] == 2


def test_without_weights_a_line_says_what_to_fetch(dataset, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    words = [str(dataset), "--policy", "smolvla", "--out", str(tmp_path / "x"), "--batch", "2"]
    with pytest.raises(DeftlyError, match=r"hf download lerobot/smolvla_base"):
        finetune.main(words)
