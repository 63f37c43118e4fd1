"""Reading a data set, as far as that needs no LeRobot: its description is checked before anything of it is believed."""

import json

import filmed_data
import pytest

from deftly.data import card, dataset, hub, lerobot
from deftly.errors import DeftlyError
from deftly.vla.features import Plain, features

PLAN = filmed_data.plan()
RATE = PLAN.seen.rate


def episode(i):
    return {
        "batch": i // 4,
        "env": i % 4,
        "success": True,
        "steps": 20,
        "object": "",
        "checks": {"front moves": {"fine": True, "value": 0.0}},
        "prompt": "push the block to the middle",
    }


def described(folder, count=2):
    """A data set without its rows."""
    (folder / "meta").mkdir(parents=True)
    columns = features(Plain(PLAN.source.task.contract()), PLAN.seen, True)
    episodes = [episode(i) for i in range(count)]
    write(folder, dataset.INFO, {"fps": round(RATE), "features": columns})
    write(folder, dataset.FACTS, {**PLAN.facts, "meaning": {}, "episodes": episodes})
    (folder / dataset.CONTRACT).write_text(PLAN.seen.to_json())
    return folder


def write(folder, name, tree):
    (folder / name).write_text(json.dumps(tree, indent=2))


def change(folder, name, *path, value=None):
    """Change one value in a JSON file of a data set; None takes it out."""
    tree = json.loads((folder / name).read_text())
    inner = tree
    for key in path[:-1]:
        inner = inner[key]
    if value is None:
        del inner[path[-1]]
    else:
        inner[path[-1]] = value
    write(folder, name, tree)


def test_a_description_that_is_whole_is_read(tmp_path):
    found = dataset.open_dataset(described(tmp_path / "d"))
    assert (found.contract, found.steps, found.videos) == (PLAN.seen, [20, 20], {"front": True})


def test_a_data_set_of_thousands_of_episodes_is_read(tmp_path):
    found = dataset.open_dataset(described(tmp_path / "d", 4000))
    assert (tmp_path / "d" / dataset.FACTS).stat().st_size > 1 << 20
    assert len(found.steps) == 4000


@pytest.mark.parametrize(
    ("name", "path", "value", "says"),
    [
        (dataset.FACTS, ("episodes",), None, r"deftly.json' is damaged \(.*`episodes`"),
        (dataset.FACTS, ("episodes",), [], "has no episodes"),
        (dataset.FACTS, ("episodes", 0), 3, r"is damaged \(Expected `object`, got `int`"),
        (dataset.FACTS, ("episodes", 0, "steps"), "many", r"is damaged \(Expected `int`"),
        (dataset.FACTS, ("episodes", 0, "steps"), 0, "`steps` of episode 0 is 0, expected 1 to"),
        (dataset.FACTS, ("episodes", 1, "env"), 99, "`env` of episode 1 is 99, expected 0 to 3"),
        (dataset.FACTS, ("episodes", 0, "env"), -1, "`env` of episode 0 is -1, expected 0"),
        (dataset.FACTS, ("episodes", 1, "env"), 0, "episode 1 is another one's environment"),
        (dataset.FACTS, ("episodes", 0, "batch"), 10**18, "`batch` of episode 0 is 1000"),
        (dataset.FACTS, ("episodes", 1, "checks"), {}, "`checks` of episode 1 are missing"),
        (dataset.FACTS, ("episodes", 0, "checks"), {}, "`checks` of episode 0 are missing"),
        (dataset.FACTS, ("batch",), 200_000, "`batch` is 200000, expected 1 to 512"),
        (dataset.FACTS, ("seed",), -1, "`seed` is -1, expected 0 to"),
        (dataset.FACTS, ("perturb",), -5.0, r"`perturb` is -5\.0, expected 0 to 1"),
        (dataset.FACTS, ("layout",), "other", r"is damaged \(Invalid enum value 'other'"),
        (dataset.FACTS, ("schema",), "deftly.dataset/9", "is not of the schema deftly.dataset/1"),
        (dataset.INFO, ("fps",), 10, "has 10 frames in a second, and the contract 20"),
        (dataset.INFO, ("fps",), "fast", r"info.json' is damaged \(Expected `float`"),
        (dataset.INFO, ("features", "action"), None, "'action' has no such column"),
        (dataset.INFO, ("features", "action", "shape"), [7], r"'action' has shape \[7\]"),
        (
            dataset.INFO,
            ("features", "observation.images.front", "shape"),
            [64, 64, 3],
            r"'observation.images.front' has shape \[64, 64, 3\], .* wants \[32, 32, 3\]",
        ),
        (
            dataset.INFO,
            ("features", "action", "dtype"),
            "string",
            "'action' has dtype string, .* wants float32",
        ),
        (
            dataset.INFO,
            ("features", "observation.images.front", "dtype"),
            "float32",
            "'observation.images.front' has dtype float32, .* wants video or image",
        ),
        (dataset.INFO, ("features",), [], r"is damaged \(Expected `object`, got `array`"),
    ],
)
def test_a_description_that_is_not_is_refused_in_a_line(tmp_path, name, path, value, says):
    folder = described(tmp_path / "d")
    change(folder, name, *path, value=value)
    with pytest.raises(DeftlyError, match=says) as caught:
        dataset.open_dataset(folder)
    assert "\n" not in str(caught.value)


def test_a_contract_that_does_not_read_is_named_by_its_file(tmp_path):
    folder = described(tmp_path / "d")
    (folder / dataset.CONTRACT).write_text('{"robot": ')
    with pytest.raises(DeftlyError, match=r"contract\.json' is damaged: .*"):
        dataset.open_dataset(folder)


def test_the_card_says_what_a_reader_needs(tmp_path):
    facts = [episode(0), {**episode(1), "prompt": "take the pawn"}]
    text = card.card(PLAN, facts, Plain(PLAN.source.task.contract()).meaning)
    assert "# filmed: 2 demonstrations" in text
    assert "20 Hz:\n40 frames, 2 successes" in text
    assert "noise of 0.2 on what was executed" in text
    assert "- push the block to the middle\n- take the pawn\n" in text
    assert text.startswith("---\nlicense: mit\n")
    assert "{" not in text


def test_the_name_of_what_was_drawn_stands_in_the_instruction():
    assert lerobot.told("move the {object}", "pawn") == "move the pawn"
    assert lerobot.told("move the {object}") == "move the object"
    assert lerobot.told("lift it", "pawn") == "lift it"


class Hub:
    """A stand-in for what huggingface_hub offers, which keeps what it is asked for."""

    def __init__(self, failing=None):
        self.calls = []
        self.failing = failing

    def __call__(self):
        return self

    def __getattr__(self, name):
        def call(*args, **named):
            if self.failing is not None:
                raise self.failing
            self.calls.append((name, args, named))

        return call


@pytest.fixture
def online(monkeypatch):
    """A machine with a token and the network, of which nothing is asked."""
    huggingface_hub = pytest.importorskip("huggingface_hub")
    monkeypatch.setattr(lerobot, "require_lerobot", lambda: None)
    monkeypatch.setattr(hub, "require_lerobot", lambda: None)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "hf_token")
    api = Hub()
    monkeypatch.setattr(huggingface_hub, "HfApi", api)
    return api


@pytest.mark.vla
def test_a_data_set_is_uploaded_under_its_version(online, tmp_path):
    assert hub.push(tmp_path, "me/demos") == "https://huggingface.co/datasets/me/demos"
    assert [name for name, _, _ in online.calls] == ["create_repo", "upload_folder", "create_tag"]
    assert online.calls[1][2] == {
        "repo_id": "me/demos",
        "folder_path": str(tmp_path),
        "repo_type": "dataset",
    }
    assert online.calls[2][2]["tag"] == "v3.0"


@pytest.mark.vla
def test_what_cannot_be_uploaded_is_said_before_anything_is_collected(
    online, tmp_path, monkeypatch
):
    import httpx
    import huggingface_hub

    for repo, says in (("me", "names no user"), ("me/a b", "USER/NAME: Repo id")):
        with pytest.raises(DeftlyError, match=says):
            hub.require_upload(repo)
    online.failing = httpx.ConnectError("no route to host")
    with pytest.raises(DeftlyError, match=r"no route to host; the data set is whole in .* upload"):
        hub.push(tmp_path, "me/demos")
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    with pytest.raises(DeftlyError, match="--push-to-hub needs a token"):
        hub.require_upload("me/demos")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(DeftlyError, match="needs the network, and HF_HUB_OFFLINE is set"):
        hub.require_upload("me/demos")
