"""What users of other systems type, and the setting that it means here."""

from collections.abc import Container

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
    # Dotted keys of the five systems that Deftly replaces.
    "env.recordVideo": ("video",),
    "env.render": ("render",),
    "task.episodeLength": ("env.episode-steps",),
    "checkpoint": ("resume", "policy"),
    "bundle": ("policy",),
    "server_endpoint": ("policy",),
    "logLevel": ("log-level",),
    "training.seed": ("train.seed",),
    "training.maxIterations": ("train.max-iterations",),
    "training.checkpoint": ("policy", "resume"),
    "training.test": ("test",),
    "testing.reloadInterval": ("reload",),
    "logging.experiment_name": ("name",),
    "logging.logLevel": ("log-level",),
    "experiment.maxRecentRuns": ("runs.max-train-runs",),
    "experiment.maxTrainRuns": ("runs.max-train-runs",),
    "experiment.maxTestRuns": ("runs.max-test-runs",),
    "experiment.useCleanWorkspace": ("runs.workspace",),
}
"""Older name to the settings that it may mean; the first that a command has counts."""

_BY_FLAG = {kebab(old): settings for old, settings in ALIASES.items()}

HEADLESS = "headless"
SHOWN: dict[str, str] = {"viewer": "none", "render": "False"}
"""What the flag `--headless` sets where a command has the setting; elsewhere it changes nothing."""


def resolve(key: str, known: Container[str]) -> str:
    """The flag that a typed key means: its own, if the command has it, else that of an older name."""
    flag = kebab(key)
    if flag in known:
        return flag
    meant = _BY_FLAG.get(flag, ())
    return next((setting for setting in meant if setting in known), meant[0] if meant else flag)
