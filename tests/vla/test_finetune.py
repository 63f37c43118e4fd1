"""The whole path on a toy task, with LeRobot: demonstrations, fine-tuning, resume, the policy, and what is refused."""

import json
import shutil

import filmed
import filmed_data
import numpy as np
import pytest

from deftly.commands import demos as demos_command
from deftly.commands import finetune
from deftly.config import SimConfig
from deftly.data import dataset
from deftly.data.demonstrations import Source, replay
from deftly.errors import DeftlyError
from deftly.evaluate import source
from deftly.evaluate.evaluate import EvalSettings, measure
from deftly.vla import checkpoint
from deftly.vla.features import ACTION, EXECUTED, IMAGES, OBS_STATE

pytestmark = pytest.mark.vla
SIZE = filmed_data.SIZE
TINY = ("--batch", "4", "--chunk", "4", "--executed", "2", "--image-size", "32")
SMALL = ("--set", "dim_model:32", "dim_feedforward:32", "n_heads:2", "n_encoder_layers:1")
toy, collected = filmed_data.toy, filmed_data.collected


@pytest.fixture(scope="module")
def demos(tmp_path_factory):
    return collected(tmp_path_factory.mktemp("data") / "demos")


@pytest.fixture(scope="module")
def trained(demos, tmp_path_factory):
    out = tmp_path_factory.mktemp("model") / "act"
    words = [str(demos), "--policy", "act", "--out", str(out), "--steps", "4", *TINY, *SMALL]
    words += ["--eval-every", "4", "--eval-episodes", "2", "--task-file", filmed.FILE]
    assert finetune.main(words) == 0
    return out, words


@pytest.fixture
def damaged(demos, tmp_path):
    return shutil.copytree(demos, tmp_path / "damaged")


def test_lerobot_reads_what_was_stored(demos):
    from lerobot.datasets import LeRobotDataset

    rate = toy().contract().rate
    data = LeRobotDataset("local/demos", demos, delta_timestamps={ACTION: [0.0, 1 / rate]})
    found = dataset.open_dataset(demos)
    steps = [fact["steps"] for fact in found.facts["episodes"]]
    assert (data.num_episodes, len(data), data.fps) == (4, sum(steps), rate)
    rows = dataset.read_rows(found, (OBS_STATE, ACTION))
    for i in (0, steps[0] - 2, steps[0]):
        item = data[i]
        np.testing.assert_array_equal(item[OBS_STATE].numpy(), rows[OBS_STATE][i])
        np.testing.assert_array_equal(item[ACTION].numpy(), rows[ACTION][i : i + 2])
        assert item[IMAGES + "front"].shape == (3, SIZE, SIZE)
    assert data[steps[0]]["task"] == filmed.Filmed.prompts[1]
    last = data[steps[0] - 1]
    assert last["action_is_pad"].tolist() == [False, True]


def test_images_are_of_before_the_action(demos, tmp_path):
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


def test_stored_actions_replay(demos):
    found = dataset.require_whole(demos)
    results = replay(Source(toy(), SimConfig(threads=1), 3, 4, 0.2), dataset.stored_actions(found))
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
        dataset.require_whole(damaged)
    parquet.write_table(table.slice(0, len(table) - 3), file)
    with pytest.raises(DeftlyError, match="half written: its rows are not those"):
        dataset.require_whole(damaged)
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(DeftlyError, match="half written: its tables do not read"):
        dataset.require_whole(damaged)
    file.unlink()
    with pytest.raises(DeftlyError, match="half written: it has no tables"):
        dataset.require_whole(damaged)
    parquet.write_table(table, file)
    (video,) = (damaged / "videos").glob("*/*/*.mp4")
    video.unlink()
    with pytest.raises(DeftlyError, match="has 0 frames of front, expected"):
        dataset.require_whole(damaged)


@pytest.mark.parametrize("name", [OBS_STATE, ACTION, EXECUTED])
def test_numbers_that_are_no_numbers_are_refused(damaged, name):
    """They are what a model learns from."""
    import pyarrow as pa
    import pyarrow.parquet as parquet

    (file,) = dataset.data_files(damaged)
    table = parquet.read_table(file)
    place = table.column_names.index(name)
    rows = table[name].to_pylist()

    def write(values, kind="float64"):
        column = pa.array(values, pa.list_(pa.type_for_alias(kind)))
        parquet.write_table(table.set_column(place, name, column), file)

    write(rows)
    assert dataset.require_whole(damaged)
    huge, missing, long = ([*rows] for _ in range(3))
    huge[3] = [1e39] * len(rows[3])  # a float64, but no float32
    missing[3] = None
    long[3] = [*rows[3], 0.0]
    for wrong in (huge, missing, [[None] * len(row) for row in rows]):
        write(wrong)
        with pytest.raises(DeftlyError, match=f"'{name}' has rows without finite numbers"):
            dataset.require_whole(damaged)
    wide = [[*row, 0.0] for row in rows]
    for wrong in (long, wide):
        write(wrong)
        with pytest.raises(DeftlyError, match=f"'{name}' has more than"):
            dataset.require_whole(damaged)
    write([list(map(str, row)) for row in rows], "string")
    with pytest.raises(DeftlyError, match=f"'{name}' has rows without finite numbers"):
        dataset.require_whole(damaged)
    parquet.write_table(table.drop_columns([name]), file)
    with pytest.raises(DeftlyError, match="its tables do not read"):
        dataset.require_whole(damaged)


@pytest.mark.parametrize("name", dataset.LEROBOTS)
def test_what_lerobot_reads_is_there(damaged, name):
    (damaged / name).unlink()
    with pytest.raises(DeftlyError, match=f"has no {name}, which LeRobot reads"):
        dataset.require_whole(damaged)


@pytest.mark.parametrize(
    ("name", "value"),
    [("total_episodes", 10**18), ("total_frames", -1), ("data_path", "../../etc/passwd")],
)
def test_what_lerobot_is_told_is_so(damaged, name, value):
    info = json.loads((damaged / dataset.INFO).read_text())
    (damaged / dataset.INFO).write_text(json.dumps({**info, name: value}))
    with pytest.raises(DeftlyError, match=f"`{name}` is {value}, expected"):
        dataset.require_whole(damaged)


def test_a_small_file_of_millions_of_rows_is_not_read(damaged, monkeypatch):
    import pyarrow as pa
    import pyarrow.parquet as parquet

    (file,) = dataset.data_files(damaged)
    table = parquet.read_table(file)
    many = {name: pa.repeat(table[name][0], 2_000_000) for name in table.column_names}
    parquet.write_table(pa.table(many), file, compression="zstd")
    monkeypatch.setattr(dataset, "_column", lambda *_: pytest.fail("a column is read"))
    with pytest.raises(DeftlyError, match="its rows are not those of its"):
        dataset.require_whole(damaged)


def recoded(folder, size=SIZE, late=0, keep=1.0):
    """Write a data set's video anew: other pixels, frames `late` ticks off, or only the first part of its bytes."""
    import av

    (file,) = dataset.video_files(folder, "front")
    with av.open(str(file)) as video:
        frames = [frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)]
        base, step = video.streams.video[0].time_base, 1 / video.streams.video[0].average_rate
    with av.open(str(file), "w", options={"movflags": "faststart"}) as video:
        stream = video.add_stream("libx264", rate=1 / step, options={"g": "2"})
        stream.height, stream.width, stream.pix_fmt = size, size, "yuv420p"
        stream.time_base = stream.codec_context.time_base = base
        for i, frame in enumerate(frames):
            shown = av.VideoFrame.from_ndarray(frame[:size, :size].copy(), format="rgb24")
            shown.pts, shown.time_base = round(i * step / base) + late, base
            video.mux(stream.encode(shown))
        video.mux(stream.encode(None))
    data = file.read_bytes()
    file.write_bytes(data[: round(keep * len(data))])


def test_videos_are_those_of_the_rows(damaged, tmp_path):
    recoded(damaged)
    assert dataset.require_whole(damaged)
    words = [str(damaged), "--policy", "act", "--out", str(tmp_path / "x"), *TINY, *SMALL]
    recoded(damaged, late=300)
    with pytest.raises(DeftlyError, match=r"the time stamps of front are shifted: a frame is"):
        finetune.main(words)
    recoded(damaged, size=16)
    with pytest.raises(DeftlyError, match=r"image 0 of front has shape \(16, 16, 3\), and the con"):
        finetune.main(words)
    recoded(damaged, size=16, keep=0.6)
    with pytest.raises(DeftlyError, match=r"frames of front, expected|does not decode|is no video"):
        finetune.main(words)
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("name", "changed", "says"),
    [
        ("action", lambda rows: rows * np.nan, "'action' has rows without finite numbers"),
        (
            "observation.state",
            lambda rows: rows[:, :1],
            r"'observation.state' has shape \(\d+, 1\)",
        ),
        ("episode_index", lambda rows: rows - 1, "its rows are not those of its 4 episodes"),
        ("episode_index", lambda rows: rows * 10**9, "its rows are not those of its 4 episodes"),
        ("timestamp", lambda rows: rows * np.nan, "'timestamp' has rows without finite numbers"),
    ],
)
def test_rows_that_are_none_are_refused(damaged, tmp_path, name, changed, says):
    words = [str(damaged), "--policy", "act", "--out", str(tmp_path / "x"), *TINY, *SMALL]
    rewritten(damaged, name, changed)
    with pytest.raises(DeftlyError, match=says):
        finetune.main(words)


def test_check_replays_in_the_task_and_the_physics_of_then(demos, damaged, capsys):
    """The toy task's own settings are others, and no policy of it is at hand."""
    demos_command.main([filmed.FILE, "--check", str(demos)])
    out = capsys.readouterr().out
    assert "open loop, 4 of 4 episodes end as they did (100.0 %)" in out
    rewritten(damaged, "executed_action", lambda rows: rows * 0.0)
    assert demos_command.main([filmed.FILE, "--check", str(damaged)]) == 1
    assert "open loop, 0 of 4 episodes end as they did (0.0 %)" in capsys.readouterr().out
    with pytest.raises(DeftlyError, match="was made for the task 'filmed', none of Deftly's: give"):
        demos_command.main(["--check", str(demos)])
    with pytest.raises(DeftlyError, match="made for the task 'filmed', not for jaka-pick-cube"):
        demos_command.main(["jaka-pick-cube", "--check", str(demos)])
    with pytest.raises(DeftlyError, match="--check looks at a data set, and --out makes one"):
        demos_command.main([filmed.FILE, "--check", str(demos), "--out", "x"])
    change(damaged, "settings", "task", value={"speed_of_light": 3})
    with pytest.raises(DeftlyError, match=r"settings of the data set .* do not fit filmed"):
        demos_command.main([filmed.FILE, "--check", str(damaged)])
    change(damaged, "settings", "task", value={"rate": 10.0})
    with pytest.raises(DeftlyError, match="made under another contract"):
        demos_command.main([filmed.FILE, "--check", str(damaged)])


def test_evaluation_is_prepared_before_the_training(demos, damaged, tmp_path):
    words = [str(damaged), "--policy", "act", "--out", str(tmp_path / "x"), *TINY, *SMALL]
    words += ["--eval-every", "2"]
    with pytest.raises(DeftlyError, match="was made for the task 'filmed', none of Deftly's: give"):
        finetune.main(words)
    change(damaged, "settings", "task", value={"rate": 10.0})
    with pytest.raises(DeftlyError, match="made under another contract"):
        finetune.main([*words, "--task-file", filmed.FILE])
    with pytest.raises(DeftlyError, match="--task-file says where --eval-every evaluates"):
        finetune.main([*words[:-2], "--task-file", filmed.FILE])
    assert not (tmp_path / "x").exists()


def test_success_is_measured_while_it_learns(trained):
    rows = (trained[0] / "metrics.csv").read_text().splitlines()
    table = [dict(zip(rows[0].split(","), row.split(","))) for row in rows[1:]]
    measured = {row["iteration"]: row["eval_success"] for row in table}
    assert float(measured["4"]) in (0.0, 0.5, 1.0)


def test_a_data_set_of_another_contract_is_refused(damaged):
    text = (damaged / "meta/contract.json").read_text().replace('"rate":20.0', '"rate":10.0')
    (damaged / "meta/contract.json").write_text(text)
    with pytest.raises(DeftlyError, match="is not the contract with which the data set was made"):
        dataset.open_dataset(damaged)


def test_what_is_not_the_same_training_does_not_go_on(trained, damaged, tmp_path):
    """Said before a model is built: what is read alone decides."""
    out, words = trained
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("deftly.vla.models.build", None)
        with pytest.raises(DeftlyError, match="holds a training: go on with it, --resume"):
            finetune.main(words)
        with pytest.raises(DeftlyError, match="was trained with training"):
            finetune.main([*words, "--resume", "--learning-rate", "0.5"])
        other = [str(tmp_path / "new") if word == str(out) else word for word in words]
        with pytest.raises(DeftlyError, match="holds no training to go on with"):
            finetune.main([*other, "--resume"])
        with pytest.raises(DeftlyError, match=r"normalization statistics of .* are others"):
            rewritten(damaged, "action", lambda rows: rows * 0.5)
            finetune.main([str(damaged), *words[1:], "--resume"])


def test_the_state_of_another_training_is_refused(trained, tmp_path):
    folder = shutil.copytree(trained[0], tmp_path / "act")
    words = [str(folder) if word == str(trained[0]) else word for word in trained[1]]
    state = folder / "checkpoint" / checkpoint.STATE
    state.write_bytes(state.read_bytes()[:-1] + b"x")
    with pytest.raises(DeftlyError, match=r"state.safetensors is not the file that vla.json names"):
        finetune.main([*words, "--resume"])
    state.unlink()
    with pytest.raises(
        DeftlyError, match=r"has no state.safetensors, so its training cannot go on"
    ):
        finetune.main([*words, "--resume"])


def change(folder, *path, value):
    """Change what a data set says of itself."""
    file = folder / dataset.FACTS
    tree = json.loads(file.read_text())
    inner = tree
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    file.write_text(json.dumps(tree))


def rewritten(folder, name, changed):
    """Change a column of a data set's table; its file."""
    import pyarrow as pa
    import pyarrow.parquet as parquet

    (file,) = dataset.data_files(folder)
    table = parquet.read_table(file)
    values = changed(np.array(table[name].to_pylist()))
    place = table.column_names.index(name)
    parquet.write_table(table.set_column(place, name, pa.array(values.tolist())), file)
    return file


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


def test_what_does_not_fit_is_refused_before_it_learns(demos, tmp_path):
    words = [str(demos), "--policy", "act", "--out", str(tmp_path / "x"), *TINY, *SMALL]
    with pytest.raises(
        DeftlyError, match=r"needs about [\d.]+ GB to learn, and --memory-gb is 1e-06"
    ):
        finetune.main([*words, "--memory-gb", "0.000001"])
    with pytest.raises(DeftlyError, match="more than --cache-gb"):
        finetune.main([*words, "--cache-gb", "0.0000001"])
    with pytest.raises(DeftlyError, match=r"act has no 'dim_modle', did you mean 'dim_model'"):
        finetune.main([*words, "--set", "dim_modle:3"])
    with pytest.raises(DeftlyError, match="torch sees no GPU here"):
        finetune.main([*words, "--device", "cuda:3"])
    with pytest.raises(DeftlyError, match="--device gpu is none of cpu, cuda, cuda:N"):
        finetune.main([*words, "--device", "gpu"])
    with pytest.raises(DeftlyError, match=r"needs about [\d.]+ GB to learn, and cpu has"):
        finetune.main([*words, "--batch", "100000"])
    assert not (tmp_path / "x").exists()


def test_without_weights_a_line_says_what_to_fetch(demos, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    words = [str(demos), "--policy", "smolvla", "--out", str(tmp_path / "x"), "--batch", "2"]
    with pytest.raises(DeftlyError, match=r"hf download lerobot/smolvla_base"):
        finetune.main(words)
