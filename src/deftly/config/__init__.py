"""What can be configured, and how it is written: flags, `key=value`, YAML and the older names.

The dataclasses in `sections` and of the commands are the only source: `constraints` and documentation stand beside each
field, `fields` lists them as flags, `parsing` reads words and files, `named` finds files by name, `yaml` writes files,
`help` prints. Names of older systems are in `older_names`, physics presets in `presets`, the conditions of a robustness
evaluation in `ladder`.
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
from deftly.config.ladder import LADDER, Rung, with_changes
from deftly.config.named import suggest
from deftly.config.older_names import ALIASES
from deftly.config.parsing import (
    chosen_algorithm,
    defaults_under,
    parse,
    split_task,
    split_word,
    switches,
    with_algorithm,
    with_setting,
    with_task,
    without_setting,
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
    draw_seed,
)
from deftly.config.yaml import to_yaml

__all__ = [
    "ALGORITHMS",
    "ALIASES",
    "INPUT",
    "INPUT_FILE",
    "INPUT_FOLDER",
    "KEYS",
    "LADDER",
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
    "Rung",
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
    "draw_seed",
    "field_docs",
    "parse",
    "split_task",
    "split_word",
    "suggest",
    "switches",
    "to_yaml",
    "with_algorithm",
    "with_changes",
    "with_setting",
    "with_task",
    "without_setting",
]
