import importlib
import inspect
import shutil
import sys
from pathlib import Path

import pytest
import torch

from deftly import tasks
from deftly.config import EnvConfig, SimConfig
from deftly.env import Env
from deftly.errors import DeftlyError
from deftly.tasks import SHIPPED, Task, description, load, shipped

SLIDER = Path(__file__).parents[1] / "assets" / "slider.py"


def write(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)


def refusal(name: str) -> str:
    with pytest.raises(DeftlyError) as error:
        load(name)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_shipped_tasks_are_found_without_importing_them():
    assert shipped()["jaka-pick-cube"] == "deftly.tasks.jaka_pick_cube"


def test_the_table_of_shipped_tasks_is_what_their_files_say():
    files = [f.stem for f in Path(tasks.__path__[0]).glob("*.py") if f.stem != "__init__"]
    modules = [importlib.import_module(f"deftly.tasks.{name}") for name in files]
    classes = {cls for module in modules for cls in vars(module).values() if inspect.isclass(cls)}
    named = {cls for cls in classes if issubclass(cls, Task) and "name" in vars(cls)}
    assert {cls.name: (cls.__module__, description(cls)) for cls in named} == SHIPPED


@pytest.mark.parametrize("name", shipped())
def test_shipped_task_is_whole(name):
    cls = load(name)
    assert cls.name == name
    task = cls(cls.Config())
    weights = vars(task.cfg.weights)
    env = Env(task, EnvConfig(num_envs=2), SimConfig(threads=1))
    env.step(torch.zeros(2, env.contract.action_size))
    assert set(task.rewards(env.state)) == set(weights)
    # images that a task leaves out are what the scene's cameras see
    measured = {s.name for s in env.contract.signals if not s.is_image}
    assert set(task.signals(env.state)) == measured
    assert task.success(env.state).dtype == torch.bool
    assert all(v.shape == (2,) for v in task.metrics(env.state).values())
    assert all(v.shape == (2,) and v.dtype == torch.bool for v in task.failed(env.state).values())
    assert env.model.nkey == 1
    for word in ("Observation", "Action", "Success", "Failure", "Randomization"):
        assert word in (cls.__doc__ or "")


def test_file_outside_the_package_loads_and_runs(tmp_path):
    path = shutil.copy(SLIDER, tmp_path / "my_slider.py")
    cls = load(str(path))
    assert issubclass(cls, Task)
    assert load(f"{path}:slider") is cls
    env = Env(cls(cls.Config()), EnvConfig(num_envs=2), SimConfig(threads=1))
    assert env.step(torch.zeros(2, 2)).obs["policy"].shape == (2, 8)


def test_unknown_task_suggests_the_nearest():
    message = refusal("jaka-pick-cub")
    assert "no task 'jaka-pick-cub', did you mean 'jaka-pick-cube'?" in message
    assert "deftly tasks" in message
    assert "did you mean" not in refusal("xyzzy")


def test_missing_file_is_named(tmp_path):
    assert f"no task file {tmp_path}/gone.py" in refusal(f"{tmp_path}/gone.py")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("import not_installed_anywhere", "does not import: ModuleNotFoundError: No module named"),
        ("def (:", "does not import: SyntaxError"),
        ("1 / 0", "does not import: ZeroDivisionError: division by zero"),
        ("import sys; sys.exit()", "does not import: SystemExit"),
        ("raise ValueError('two\\nlines')", "does not import: ValueError: two lines"),
        ("x = 1", "defines no task: decorate a class with @task"),
    ],
)
def test_broken_file_is_one_line(tmp_path, text, message):
    path = write(tmp_path / "broken.py", text)
    before = set(sys.modules)
    assert message in refusal(path)
    assert not any("broken" in name for name in set(sys.modules) - before) or text == "x = 1"


def test_a_file_that_was_mended_loads(tmp_path):
    path = write(tmp_path / "mended.py", "1 / 0")
    refusal(path)
    write(tmp_path / "mended.py", SLIDER.read_text())
    assert load(path).name == "slider"


def test_file_with_several_tasks_needs_a_name(tmp_path):
    two = "from deftly.tasks import Task, task\n@task('one')\nclass A(Task): ...\n@task('two')\nclass B(Task): ...\n"
    path = write(tmp_path / "two.py", two)
    assert "defines ['one', 'two']: name one as file.py:one" in refusal(path)
    assert "defines ['one', 'two']" in refusal(f"{path}:three")
    assert load(f"{path}:two").name == "two"
