"""`--reward my_reward.py:function`: a term like any other, kept with the run; what is wrong with it is one line."""

import csv
import hashlib

import pytest
import torch

from deftly import workspace
from deftly.commands.train import main
from deftly.config import RunsConfig
from deftly.errors import DeftlyError

GOOD = """
import torch

def eager(s):
    return s.joint_vel[:, 0].abs()
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "my_reward.py"
    path.write_text(GOOD)
    return path


def rows(run):
    return list(csv.DictReader((run / "metrics.csv").open()))


def test_it_is_a_term_like_another(tiny, file):
    assert tiny.train(3, "--reward", f"{file}:eager") == 0
    values = [float(row["reward/eager"]) for row in rows(tiny.run) if row["reward/eager"]]
    assert values
    assert min(values) > 0
    assert "reward/near" in rows(tiny.run)[0]


def test_alone_it_is_the_whole_reward(tiny, file):
    assert tiny.train(3, "--reward", f"{file}:eager", "--reward-only", "True") == 0
    last = rows(tiny.run)[-1]
    assert float(last["reward/near"]) == 0
    assert float(last["return"]) == pytest.approx(float(last["reward/eager"]), rel=1e-4)


def test_the_run_keeps_it_and_resumes_with_the_copy(tiny_at, tmp_path, file):
    whole, parts = (tiny_at(tmp_path / name) for name in ("whole", "parts"))
    spec = f"{file}:eager"
    assert whole.train(4, "--reward", spec) == 0
    assert parts.train(2, "--reward", spec) == 0
    record = parts.run / "reward/reward.json"
    assert hashlib.sha256(GOOD.encode()).hexdigest() in record.read_text()
    assert (parts.run / "reward/my_reward.py").read_text() == GOOD
    file.unlink()
    assert parts.train(4, "--resume", "latest") == 0
    mine, other = whole.weights(), parts.weights()
    assert all(torch.equal(mine[name], other[name]) for name in mine)


def test_a_resume_with_another_reward_is_refused(tiny, file):
    tiny.train(1, "--reward", f"{file}:eager")
    with pytest.raises(DeftlyError, match=r"began with --reward .*eager, and goes on with that"):
        tiny.train(2, "--resume", "latest", "--reward", "other.py:f")
    kept = tiny.run / "reward/my_reward.py"
    kept.write_text(GOOD + "\n# changed\n")
    with pytest.raises(DeftlyError, match="is not what the run began with"):
        tiny.train(2, "--resume", "latest")
    (tiny.run / "reward/reward.json").write_text("[]")
    with pytest.raises(DeftlyError, match="is corrupt"):
        tiny.train(2, "--resume", "latest")


WRONG = {
    "no_file": (None, "missing.py:f", "missing.py"),
    "no_function": (GOOD, "{}:lazy", "has no function 'lazy': it has eager"),
    "no_name": (GOOD, "{}", "must be FILE.py:FUNCTION"),
    "not_python": ("def f(:", "{}:f", "does not import: SyntaxError"),
    "exits": ("raise SystemExit(3)", "{}:f", "does not import: SystemExit"),
    "no_tensor": ("def f(s): return 'much'", "{}:f", "failed at"),
    "one_number": ("def f(s): return 1.0", "{}:f", r"has shape \(\), but"),
    "a_column": ("def f(s): return s.joint_pos[:, :1]", "{}:f", r"has shape \(8, 1\), but"),
    "nan": ("def f(s): return s.joint_pos[:, 0] * float('nan')", "{}:f", "is not finite in 8 of 8"),
    "leaves": (
        "import sys\ndef f(s):\n    sys.exit(0)",
        "{}:f",
        "failed at my_reward.py:3: SystemExit",
    ),
    "raises": ("def f(s):\n    return s.nothing", "{}:f", "failed at my_reward.py:2: Attribute"),
    "taken": ("def near(s): return s.joint_pos[:, 0]", "{}:near", "has a reward term 'near'"),
    "no_callable": ("f = 3", "{}:f", "has no function 'f'"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_one_line_and_leaves_no_run(name, tiny, file):
    source, spec, said = WRONG[name]
    if source is not None:
        file.write_text(source)
    with pytest.raises(DeftlyError, match=said) as caught:
        tiny.train(1, "--reward", spec.format(file))
    assert "\n" not in str(caught.value)
    with pytest.raises(DeftlyError):
        workspace.find_checkpoint("latest", "slider", RunsConfig(root=tiny.root))


def test_alone_needs_a_reward(tiny):
    with pytest.raises(DeftlyError, match="--reward-only needs a reward of your own"):
        tiny.train(1, "--reward-only", "True")


def test_goals_in_hindsight_do_not_know_it(tiny, file):
    flags = ("--train.algorithm", "sac", "--train.hindsight", "0.5", "--env.num-envs", "8")
    with pytest.raises(DeftlyError, match="not known for goals"):
        main([str(tiny.task), *flags, "--runs.root", str(tiny.root), "--reward", f"{file}:eager"])
