"""What can be configured, and how it is written: flags, `key=value`, YAML and the older names.

The dataclasses in `sections` and of the commands are the only source: `constraints` and documentation stand beside each
field, `fields` lists them as flags, `parsing` reads words and files, `yaml` writes files, `help` prints. Names of older
systems are in `older_names`, physics presets in `presets`.
"""

from deftly.config.constraints import (
    INPUT,
    INPUT_FILE,
    INPUT_FOLDER,
    KEYS,
    OUTPUT_FILE,
    OUTPUT_FOLDER,
    POSITIVE_RANGE,
    RANGE,
    RISING,
    Must,
    Settings,
    Suffix,
    check,
)
from deftly.config.fields import Repeatable, field_docs
from deftly.config.older_names import ALIASES
from deftly.config.parsing import (
    chosen_algorithm,
    defaults_under,
    parse,
    split_task,
    split_word,
    suggest,
    with_algorithm,
    with_setting,
    with_task,
)
from deftly.config.sections import (
    ALGORITHMS,
    RUN_NAME,
    SEEDS,
    DDPGConfig,
    DistillConfig,
    EnvConfig,
    LearnerConfig,
    OffPolicyConfig,
    PPOConfig,
    RunsConfig,
    SACConfig,
    SimConfig,
    TaskConfig,
    TD3Config,
    TrainArgs,
)
from deftly.config.yaml import to_yaml

__all__ = [
    "ALGORITHMS",
    "ALIASES",
    "INPUT",
    "INPUT_FILE",
    "INPUT_FOLDER",
    "KEYS",
    "OUTPUT_FILE",
    "OUTPUT_FOLDER",
    "POSITIVE_RANGE",
    "RANGE",
    "RISING",
    "RUN_NAME",
    "SEEDS",
    "DDPGConfig",
    "DistillConfig",
    "EnvConfig",
    "LearnerConfig",
    "Must",
    "OffPolicyConfig",
    "PPOConfig",
    "Repeatable",
    "RunsConfig",
    "SACConfig",
    "Settings",
    "SimConfig",
    "Suffix",
    "TD3Config",
    "TaskConfig",
    "TrainArgs",
    "check",
    "chosen_algorithm",
    "defaults_under",
    "field_docs",
    "parse",
    "split_task",
    "split_word",
    "suggest",
    "to_yaml",
    "with_algorithm",
    "with_setting",
    "with_task",
]
