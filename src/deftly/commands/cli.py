"""The `deftly` command: find the stage, import it, run it, and turn what goes wrong into one line.

Nothing heavy is imported here, so that `deftly --help` answers at once.
"""

import importlib
import os
import sys
from collections.abc import Sequence
from itertools import groupby

from deftly import __version__
from deftly.errors import DeftlyError

COMMANDS = {
    "quickstart": ("Start", "deftly.commands.quickstart:main", "train, evaluate and watch a small task in minutes"),
    "doctor": ("Start", "deftly.commands.doctor:main", "check this machine and its installation"),
    "train": ("Learn", "deftly.learn.train:main", "train a policy on a task"),
    "eval": ("Learn", "deftly.evaluate.evaluate:main", "measure a policy's success rate on fixed seeds"),
    "grasps": ("Learn", "deftly.recipes.in_hand.grasps:main", "look for the grasps from which an in-hand task starts"),
    "gait": (
        "Learn",
        "deftly.recipes.in_hand.gait.stage:main",
        "search for a periodic movement to start a training from",
    ),
    "play": ("Learn", "deftly.commands.play:main", "watch a policy, or record a video of it"),
    "export": ("Hand over", "deftly.evaluate.export:main", "turn a policy into a bundle, which runs without torch"),
    "check": ("Hand over", "deftly.evaluate.check:main", "check a bundle"),
    "serve": ("Hand over", "deftly.commands.serve:main", "answer robots over a socket with a policy"),
    "sim2sim": (
        "Hand over",
        "deftly.twin.sim2sim:main",
        "drive a simulated robot as a real one, and hold it against eval",
    ),
    "record": ("Hand over", "deftly.data.record:main", "record episodes of a simulated robot"),
    "replay": ("Hand over", "deftly.data.replay:main", "replay a recording in simulation, or serve it to a robot"),
    "run": ("Hand over", "deftly.commands.run:main", "drive a robot with a policy, under the safety kernel"),
    "inspect": ("Hand over", "deftly.control.inspection:main", "plot the log of a robot, and replay it bit for bit"),
    "sysid": ("Hand over", "deftly.sysid.stage:main", "fit the servos of a robot to a log, for training"),
    "runs": ("Look", "deftly.workspace:main", "list, compare and pin runs"),
    "tasks": ("Look", "deftly.commands.catalog:tasks_main", "list the tasks"),
    "robots": ("Look", "deftly.commands.catalog:robots_main", "list the robots"),
    "config": ("Look", "deftly.commands.catalog:config_main", "print a task's configuration as YAML"),
    "bench": ("Machine", "deftly.commands.bench:main", "measure the speed of simulation and learning"),
    "completion": ("Machine", "deftly.commands.cli:completion_main", "print shell completion for bash, zsh or fish"),
}
"""Each command's group in the help, its `main(argv) -> int`, imported only when it runs, and what it is for."""

LEARNING = "mujoco torch rsl_rl gymnasium safetensors tensorboard matplotlib PIL av tensordict"
EXTRAS = {"mjviser": "viewer", "viser": "viewer"} | dict.fromkeys(LEARNING.split(), "train")
"""Module to the extra that installs it."""

BASH = """\
_deftly() {
    local words=""
    case "$COMP_CWORD ${COMP_WORDS[1]}" in
        "1 "*) words="COMMANDS --help --version" ;;
        "2 train"|"2 eval"|"2 play"|"2 export"|"2 serve"|"2 sim2sim"|"2 run"|"2 record"|"2 config"|\\
        "2 grasps"|"2 gait"|"2 sysid")
            words="$(deftly tasks --names 2>/dev/null)" ;;
        "2 completion") words="bash zsh fish" ;;
    esac
    COMPREPLY=($(compgen -W "$words" -- "${COMP_WORDS[COMP_CWORD]}"))
}
complete -o default -F _deftly deftly
"""
SHELLS = {
    "bash": '# Put this line into ~/.bashrc:  eval "$(deftly completion bash)"\n' + BASH,
    "zsh": '# Put this line into ~/.zshrc, after compinit:  eval "$(deftly completion zsh)"\n'
    "autoload -Uz bashcompinit && bashcompinit\n" + BASH,
    "fish": """\
# Put this line into ~/.config/fish/config.fish:  deftly completion fish | source
set -l first '__fish_is_nth_token 1'
set -l second '__fish_is_nth_token 2; and __fish_seen_subcommand_from'
complete -c deftly -n $first -f -a 'COMMANDS --help --version'
complete -c deftly -n "$second train eval play export serve sim2sim run record config grasps gait sysid" -f \
    -a '(deftly tasks --names 2>/dev/null)'
complete -c deftly -n "$second completion" -f -a 'bash zsh fish'
""",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status: 2 for what the user can mend, 130 for Ctrl-C."""
    name, *rest = (sys.argv[1:] if argv is None else argv) or ["--help"]
    try:
        status = _dispatch(name, rest)
        sys.stdout.flush()  # here, so that a closed pipe is met here and not at exit
        return status
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except (DeftlyError, OSError, ImportError) as error:
        if os.environ.get("DEFTLY_TRACEBACK"):
            raise
        print(f"error: {_explain(error, name)}", file=sys.stderr)
        return 2 if isinstance(error, DeftlyError) else 1


def _dispatch(name: str, rest: list[str]) -> int:
    if name in COMMANDS:
        module, _, function = COMMANDS[name][1].partition(":")
        return getattr(importlib.import_module(module), function)(rest)
    if name in ("-V", "--version"):
        print(f"deftly {__version__}")
    elif name in ("-h", "--help", "help"):
        print(help_text(), end="")
    else:
        from deftly.config import suggest

        near = suggest(name, COMMANDS) or "; 'deftly --help' lists them"
        raise DeftlyError(f"deftly has no command '{name}'{near}")
    return 0


def help_text() -> str:
    """The grouped list of commands, made from `COMMANDS` alone."""
    lines = [f"deftly {__version__}: robot skills from simulation to hardware", "", "usage: deftly COMMAND ..."]
    for group, commands in groupby(COMMANDS.items(), key=lambda command: command[1][0]):
        lines += ["", f"{group}:", *(f"  {name:<12} {summary}" for name, (_, _, summary) in commands)]
    lines += ["", "'deftly COMMAND --help' shows a command's settings.", "", "examples:", "  deftly quickstart"]
    lines += ["  deftly train jaka-pick-cube env.num_envs=256", "  deftly eval jaka-pick-cube checkpoint=latest", ""]
    return "\n".join(lines)


def _explain(error: Exception, command: str) -> str:
    if isinstance(error, ImportError):
        missing = (error.name or "").partition(".")[0]
        if isinstance(error, ModuleNotFoundError) and missing in EXTRAS:
            return f"'{command}' needs {missing}: pip install \"deftly[{EXTRAS[missing]}]\""
        return f"'{command}' cannot import what it needs: {error}; 'deftly doctor' checks the installation"
    if isinstance(error, OSError):
        where = f" '{error.filename}'" if error.filename else ""
        return f"'{command}' failed: {error.strerror or error}{where}"
    return str(error)


def completion_main(argv: list[str]) -> int:
    """Print the completion script of a shell."""
    if argv[:1] in (["-h"], ["--help"]):
        print("usage: deftly completion bash|zsh|fish")
    elif len(argv) == 1 and argv[0] in SHELLS:
        print(SHELLS[argv[0]].replace("COMMANDS", " ".join(COMMANDS)), end="")
    else:
        raise DeftlyError(f"completion needs one shell of {', '.join(SHELLS)}: deftly completion bash")
    return 0
