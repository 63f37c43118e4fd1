"""`deftly config TASK [SECTION]`: a training's configuration as documented YAML."""

import textwrap
from dataclasses import dataclass

from deftly import api, tasks
from deftly.commands.train import TrainArgs
from deftly.config import parse, split_task, split_word, suggest, to_yaml, with_task
from deftly.errors import DeftlyError

SECTIONS = ("sim", "env", "task", "train", "runs")


@dataclass(frozen=True)
class ConfigArgs(TrainArgs):
    """Print the configuration of a training as YAML; a SECTION of it: sim, env, task, train or runs."""


def main(argv: list[str]) -> int:
    """Run `deftly config TASK [SECTION] [settings]`: what `deftly train TASK` takes, or a section of it."""
    name, rest = split_task(argv)
    if {"-h", "--help"} & {*rest}:
        own = ConfigArgs if name is None else with_task(ConfigArgs, tasks.load(name).Config)
        parse(own, rest, prog=f"deftly config {name or 'TASK'} [SECTION]")  # answers
    if name is None:
        raise DeftlyError(
            f"config needs a task: deftly config {next(iter(tasks.shipped()), 'TASK')}"
        )
    section, rest = split_word(rest) if rest else (None, rest)
    if section is not None and section not in SECTIONS:
        near = suggest(section, SECTIONS)
        raise DeftlyError(f"no section '{section}': it is one of {', '.join(SECTIONS)}{near}")
    args, _ = api.training_settings(name, rest)
    text = to_yaml(args)
    if section:
        text = f"{section}:\n{textwrap.indent(to_yaml(getattr(args, section)), '  ')}"
    print(f"# deftly train {name} --config FILE\n{text}", end="")
    return 0
