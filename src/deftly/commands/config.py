"""`deftly config TASK`: a training's configuration as documented YAML."""

from deftly import tasks
from deftly.commands.train import TrainArgs
from deftly.config import parse, split_task, to_yaml, with_task
from deftly.errors import DeftlyError


def main(argv: list[str]) -> int:
    """Run `deftly config TASK [settings]`: the training's configuration as documented YAML."""
    name, rest = split_task(argv)
    if name is None:
        parse(TrainArgs, rest, prog="deftly config TASK")  # answers --help
        raise DeftlyError(
            f"config needs a task: deftly config {next(iter(tasks.shipped()), 'TASK')}"
        )
    cls = tasks.load(name)
    args = parse(with_task(TrainArgs, cls.Config), rest, prog=f"deftly config {name}")
    print(f"# deftly train {name} --config FILE\n{to_yaml(args)}", end="")
    return 0
