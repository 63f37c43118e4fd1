"""The one table of commands, which feeds the help, shell completion and the test of the documentation.

It imports nothing of Deftly, so that `deftly --help` answers at once.
"""

from typing import Literal, NamedTuple

Words = Literal["", "tasks", "robots", "shells"]
"""What shell completion offers for the first word after a command's name; empty: files."""


class Command(NamedTuple):
    """One command of `deftly`: its module is `deftly.commands.NAME`, with a `main(argv) -> int`."""

    name: str
    group: str
    """The heading under which the help lists it."""
    positional: str
    """How the usage writes its first word, such as `TASK` or `[TASK]`; empty if it takes none."""
    words: Words
    """What shell completion offers as that word."""
    args: str
    """The dataclass of its settings, in its module; empty if it has none."""
    summary: str
    """What it is for, in one line of the help."""
    task_settings: bool = False
    """Whether the settings of the task that is named are a section `task` of its own settings."""

    @property
    def module(self) -> str:
        """The module of its `main`; imported only when the command runs."""
        return f"deftly.commands.{self.name}"

    @property
    def takes_task(self) -> bool:
        """Whether its first word names a task."""
        return "TASK" in self.positional


_ALL = (
    Command(
        "quickstart",
        "Start",
        "",
        "",
        "QuickstartArgs",
        "train, evaluate and watch a small task in minutes",
    ),
    Command(
        "doctor",
        "Start",
        "[TASK]",
        "tasks",
        "DoctorArgs",
        "check this machine and its installation",
    ),
    Command("train", "Learn", "TASK", "tasks", "TrainArgs", "train a policy on a task", True),
    Command(
        "distill",
        "Learn",
        "TASK",
        "tasks",
        "DistillArgs",
        "train a policy to do what another does that sees more",
        True,
    ),
    Command(
        "eval",
        "Learn",
        "TASK",
        "tasks",
        "EvalArgs",
        "measure a policy's success rate on fixed seeds",
        True,
    ),
    Command(
        "scan",
        "Learn",
        "FILE...",
        "",
        "ScanArgs",
        "make an object for simulation from a scan of it",
    ),
    Command(
        "grasps",
        "Learn",
        "TASK",
        "tasks",
        "GraspArgs",
        "search for grasps from which an in-hand task starts",
        True,
    ),
    Command(
        "gait",
        "Learn",
        "TASK",
        "tasks",
        "GaitArgs",
        "search for a periodic movement to train from",
        True,
    ),
    Command(
        "play",
        "Learn",
        "TASK",
        "tasks",
        "PlayArgs",
        "watch a policy, or record a video of it",
        True,
    ),
    Command(
        "demos",
        "Learn",
        "TASK",
        "tasks",
        "DemosArgs",
        "collect demonstrations of a policy, with images, for a model to learn from",
        True,
    ),
    Command(
        "finetune",
        "Learn",
        "DATASET",
        "",
        "FinetuneArgs",
        "fine-tune a model on demonstrations, from images and words",
    ),
    Command(
        "export", "Hand over", "TASK", "tasks", "ExportArgs", "turn a policy into a bundle", True
    ),
    Command("check", "Hand over", "[BUNDLE]", "tasks", "CheckArgs", "check a bundle"),
    Command(
        "serve",
        "Hand over",
        "[TASK]",
        "tasks",
        "ServeArgs",
        "answer robots over a socket with a policy",
    ),
    Command(
        "sim2sim",
        "Hand over",
        "[TASK]",
        "tasks",
        "Sim2SimArgs",
        "evaluate a policy on a simulated robot",
        True,
    ),
    Command(
        "record",
        "Hand over",
        "[TASK]",
        "tasks",
        "RecordArgs",
        "record episodes of a simulated robot",
        True,
    ),
    Command(
        "replay",
        "Hand over",
        "FILE.npz",
        "",
        "ReplayArgs",
        "replay a recording in simulation or on a robot",
    ),
    Command(
        "run",
        "Hand over",
        "[TASK]",
        "tasks",
        "RunArgs",
        "drive a robot with a policy, under the safety kernel",
    ),
    Command(
        "calibrate",
        "Hand over",
        "[ROBOT]",
        "robots",
        "CalibrateArgs",
        "find how a robot's motors are mounted, by hand",
    ),
    Command(
        "inspect",
        "Hand over",
        "LOG.npz",
        "",
        "InspectArgs",
        "plot the log of a robot, replay it bit for bit",
    ),
    Command(
        "sysid",
        "Hand over",
        "TASK",
        "tasks",
        "SysidArgs",
        "fit the servos of a robot to a log, for training",
    ),
    Command("runs", "Look", "", "", "RunsArgs", "list, compare and pin runs"),
    Command("tasks", "Look", "[TASK]", "tasks", "TasksArgs", "list the tasks"),
    Command("robots", "Look", "[ROBOT]", "robots", "RobotsArgs", "list the robots"),
    Command(
        "config", "Look", "TASK", "tasks", "TrainArgs", "print a task's configuration as YAML", True
    ),
    Command(
        "bench", "Machine", "[TASK]", "tasks", "", "measure the speed of simulation and learning"
    ),
    Command(
        "completion",
        "Machine",
        "SHELL",
        "shells",
        "",
        "print shell completion for bash, zsh or fish",
    ),
)
COMMANDS = {command.name: command for command in _ALL}
