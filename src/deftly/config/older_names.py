"""What users of other systems type, and the setting that it means here."""

from collections.abc import Container, Mapping, Sequence

from deftly.config.constraints import kebab

ALIASES: dict[str, tuple[str, ...]] = {
    # Flags of Isaac Lab and its kin, written --num_envs, --max_iterations, ...; the same words in the older systems.
    "numEnvs": ("env.num-envs",),
    "device": ("env.device",),
    "seed": ("train.seed",),
    "maxIter": ("train.max-iterations",),
    "maxIterations": ("train.max-iterations",),
    "teacher": ("train.teacher",),
    "load_run": ("resume", "policy"),
    "run_name": ("name",),
    "experiment_name": ("name",),
    "env.scene.num_envs": ("env.num-envs",),
    "agent.load_run": ("resume", "policy"),
    "agent.run_name": ("name",),
    # Dotted keys of the five systems that Deftly replaces, and the short names that stand for them there.
    "physics": ("sim.preset",),
    "env.recordVideo": ("video",),
    "recordVideo": ("video",),
    "env.render": ("render",),
    "env.viewer": ("viewer", "render"),
    "viewer": ("render",),
    "env.episodeLength": ("env.episode-steps",),
    "task.episodeLength": ("env.episode-steps",),
    "checkpoint": ("resume", "policy"),
    "checkpoint_file": ("resume", "policy"),
    "bundle": ("policy",),
    "server_endpoint": ("policy",),
    "logLevel": ("log-level",),
    "testGamesNum": ("episodes",),
    "training.seed": ("train.seed", "seed"),
    "training.checkpoint": ("policy", "resume"),
    "training.test": ("test",),
    "testing.reloadInterval": ("reload",),
    "testing.testGamesNum": ("episodes",),
    "testing.games": ("episodes",),
    "train.logging.logInterval": ("log-every",),
    "train.logging.experimentName": ("name",),
    "logging.experiment_name": ("name",),
    "logging.logInterval": ("log-every",),
    "logging.logLevel": ("log-level",),
    "experiment.maxRecentRuns": ("runs.max-train-runs",),
    "experiment.maxTrainRuns": ("runs.max-train-runs",),
    "experiment.maxTestRuns": ("runs.max-test-runs",),
    "experiment.useCleanWorkspace": ("runs.workspace",),
}
"""Older name to the settings that it may mean; the first that a command has counts."""
SECTIONS = {
    "training": "train",
    "task.rewardWeights": "task.weights",
    "task.reward": "task.weights",
}
"""Older name of a section: `training.learning_rate` is `train.learning-rate`."""

_BY_FLAG = {kebab(old): meant for old, meant in ALIASES.items()}
_BY_SECTION = {kebab(old): meant for old, meant in SECTIONS.items()}

SWITCHES: dict[str, Mapping[str, Mapping[str, str]]] = {
    "headless": {"true": {"viewer": "none", "render": "False"}, "false": {}},
    "render": {"true": {"viewer": "auto"}, "false": {"viewer": "none"}, "null": {}},
    "viewer": {"true": {"viewer": "auto"}, "false": {"viewer": "none"}},
    "video": {"true": {"video": "video.mp4"}, "false": {"video": "None"}},
    "test": {"true": {}, "false": {}},
}
"""Switches of other systems that no command has as its own: value to the settings that it makes where there are any."""

OFF = {"none", "False", "None"}
"""Values that turn something off."""

INSTEAD: dict[str, str] = {
    "task": "the task stands behind the command, as in 'deftly train TASK', or is typed task=NAME",
    "env.graphics-device-id": "the variable MUJOCO_EGL_DEVICE_ID chooses the GPU that draws",
    "graphics-device-id": "the variable MUJOCO_EGL_DEVICE_ID chooses the GPU that draws",
    "stream-bind-all": "viewers serve this machine alone; from elsewhere: ssh -L 8080:127.0.0.1:8080 HOST",
    "render": "deftly play TASK shows a policy",
    "video": "deftly play TASK --video FILE.mp4, or deftly eval TASK --video",
    "reload": "to follow a training while it runs: deftly play TASK --reload 30",
    "train.params.": "that is rl_games' form; 'deftly config TASK train' prints Deftly's",
    "train.max-iterations": "training alone has it: deftly train TASK",
    "agent.resume": "--resume latest, or a run",
    "agent.load-checkpoint": "write it behind the run, as --resume RUN:iter_000100",
    "agent.logger": "--wandb, and --tensorboard, which is on",
    "gpu-ids": "a process for each GPU: torchrun --nproc-per-node 2 -m deftly train TASK",
    "distributed": "a process for each GPU: torchrun --nproc-per-node 2 -m deftly train TASK",
    "sim.physx.": "MuJoCo has no PhysX; --sim.preset, --sim.dt and --sim.substeps say how finely it steps",
    "hydra.": "--runs.root and --name say where a run is written",
    "multirun": "one command for each value",
    "m": "one command for each value",
    "cfg": "'deftly config TASK' prints the configuration",
    "config-path": "--config takes the path of a file",
    "cp": "--config takes the path of a file",
    "config-dir": "--config takes the path of a file",
    "cd": "--config takes the path of a file",
}
"""Flag of what Deftly does in another way, or a section of them, which ends in a dot, to what to type instead."""


def resolve(key: str, known: Container[str]) -> str:
    """The flag that a typed key means: its own, if the command has it, else that of an older name."""
    flag = kebab(key)
    if flag in known:
        return flag
    if flag in _BY_FLAG:
        meant = _BY_FLAG[flag]
        return next((setting for setting in meant if setting in known), meant[0])
    section, _, name = flag.rpartition(".")
    return f"{_BY_SECTION[section]}.{name}" if section in _BY_SECTION else flag


def switched(key: str, words: Sequence[str], known: Container[str]) -> dict[str, str] | None:
    """The settings that a switch of another system makes with this value.

    None for what is no switch, and for one that turns on what the command does not have. What it does not have is off
    anyway.
    """
    alone = not words and kebab(key) not in known  # `--headless`; `--viewer` lacks its value
    value = "true" if alone else " ".join(words).lower()
    sets = SWITCHES.get(resolve(key, SWITCHES), {}).get(value)
    if sets is None:
        return None
    found = {flag: word for flag, word in sets.items() if flag in known}
    return found if found or set(sets.values()) <= OFF else None


def instead(flag: str) -> str:
    """What to type instead of a flag that Deftly does not have; empty if that is not known."""
    within = (text for old, text in INSTEAD.items() if old[-1] == "." and flag.startswith(old))
    return INSTEAD.get(flag) or next(within, "")
