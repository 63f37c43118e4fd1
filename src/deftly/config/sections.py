"""The sections of the configuration (simulation, environments, task, learner, runs), and all settings of a training."""

import re
import secrets
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Le, Lt
from typing_extensions import Doc

from deftly.config.constraints import OUTPUT_FOLDER, RISING, Must, Settings
from deftly.config.presets import MAX_SUBSTEPS, Preset, divide
from deftly.console import LogLevel
from deftly.errors import DeftlyError

Activation = Literal[
    "elu", "gelu", "leaky_relu", "mish", "relu", "selu", "sigmoid", "silu", "softplus", "tanh"
]
SEEDS = 2**31
"""Seeds are below this: what every random generator takes."""
MAX_STEPS = 10**9
"""Most control steps of an episode: a typing error is likelier than a wish."""

RUN_NAME = Must(
    "up to 60 letters, digits, '_', '-' and '.', the first a letter or digit",
    lambda name: re.fullmatch(r"\w[\w.-]{0,59}", name),
)


def draw_seed(settings: Any) -> None:
    """Replace a seed of -1 by a random one, in the `__post_init__` of frozen settings."""
    if settings.seed < 0:
        object.__setattr__(settings, "seed", secrets.randbelow(SEEDS))


def _is_device(name: str) -> bool:
    kind, colon, index = name.partition(":")
    return kind in ("cpu", "cuda") and (not colon or (kind == "cuda" and index.isdecimal()))


@dataclass(frozen=True)
class SimConfig(Settings, section="sim"):
    """The physics engine."""

    preset: Annotated[Preset, Doc("How finely it steps, and how hard it solves.")] = "default"
    threads: Annotated[
        int,
        Ge(0),
        Le(4096),
        Doc("CPU threads that step environments; 0: all cores. Results do not depend on it."),
    ] = 0
    dt: Annotated[
        float | None,
        Gt(0),
        Le(1),
        Doc("Timestep, s, of which the control period is a multiple; unset: the preset's."),
    ] = None
    substeps: Annotated[
        int | None,
        Ge(1),
        Le(MAX_SUBSTEPS),
        Doc("Timesteps in a control period, or with dt in each dt; unset: the preset's."),
    ] = None
    engine: Annotated[
        Literal["cpu", "warp"],
        Doc("cpu: MuJoCo, float64; warp: MuJoCo Warp, float32, which also runs on a GPU."),
    ] = "cpu"
    contacts: Annotated[
        int,
        Ge(1),
        Le(4096),
        Doc("Of the engine warp: room for contacts of an environment; one with more is reset."),
    ] = 64

    def substeps_at(self, rate: float) -> int:
        """Substeps of a control period at a control rate, Hz. Raises DeftlyError if `dt` does not divide it."""
        return divide(rate, self.preset, self.dt, self.substeps)


@dataclass(frozen=True)
class EnvConfig(Settings, section="env"):
    """The batch of environments and what disturbs it."""

    num_envs: Annotated[int, Ge(1), Le(10**7), Doc("Environments stepped side by side.")] = 1024
    episode_steps: Annotated[
        int,
        Ge(0),
        Le(MAX_STEPS),
        Doc("Control steps after which an episode is cut off; 0: the task's own length."),
    ] = 0
    randomize: Annotated[
        bool, Doc("Domain randomization: draw masses, friction, gains, ... anew each episode.")
    ] = True
    noise: Annotated[bool, Doc("Apply the task's signal noise, delay and dropout.")] = True
    latency_ms: Annotated[
        tuple[float, Annotated[float, Le(10_000)]],
        RISING,
        Doc("Shortest and longest action latency, ms, drawn once per episode."),
    ] = (0.0, 0.0)
    pushes: Annotated[bool, Doc("Apply the task's random pushes.")] = True
    device: Annotated[
        str,
        Must("cpu, cuda or cuda:N", _is_device),
        Doc("Where environments and policy run: cpu, cuda or cuda:N."),
    ] = "cpu"


@dataclass(frozen=True)
class TaskConfig(Settings, section="task"):
    """What every task can be asked to change; tasks subclass it and set their own values."""

    rate: Annotated[float, Gt(0), Doc("Control rate, Hz.")] = 20.0
    episode_steps: Annotated[int, Ge(1), Le(MAX_STEPS), Doc("Control steps in a full episode.")] = (
        200
    )
    stop_on_success: Annotated[bool, Doc("A success ends the episode.")] = True
    ready_s: Annotated[
        tuple[float, Annotated[float, Le(600)]],
        RISING,
        Doc(
            "Shortest and longest settle time: servos hold the robot where it starts before the policy drives, s."
        ),
    ] = (0.0, 0.0)


@dataclass(frozen=True)
class LearnerConfig(Settings, section="train"):
    """What every learning algorithm is told; an algorithm subclasses it with its name and its own settings."""

    algorithm: Annotated[str, Doc("Learning algorithm.")] = ""
    seed: Annotated[
        int,
        Ge(-1),
        Lt(SEEDS),
        Doc("Seed of every random draw; -1 picks a random one, which is saved with the run."),
    ] = 1
    torch_deterministic: Annotated[
        bool,
        Doc("Only deterministic algorithms of torch; on the CPU they are deterministic anyway."),
    ] = False
    max_iterations: Annotated[
        int, Ge(1), Le(10**9), Doc("Iterations (rollout and update) to train.")
    ] = 1000

    def require_for(self, num_envs: int) -> None:
        """Raise DeftlyError if the settings make no sense for so many environments."""


@dataclass(frozen=True)
class PPOConfig(LearnerConfig):
    """Proximal policy optimization."""

    algorithm: Annotated[
        Literal["ppo"], Doc("Learning algorithm: ppo (proximal policy optimization).")
    ] = "ppo"
    steps: Annotated[
        int, Ge(1), Le(10**6), Doc("Control steps per environment in one rollout.")
    ] = 16
    epochs: Annotated[int, Ge(1), Le(10**6), Doc("Passes over each rollout.")] = 5
    minibatches: Annotated[
        int, Ge(1), Doc("Parts a rollout is split into for one gradient step each.")
    ] = 4
    hidden: Annotated[
        tuple[Annotated[int, Ge(1), Le(65536)], ...],
        Doc("Widths of the hidden layers of actor and critic."),
    ] = (128, 128)
    activation: Annotated[Activation, Doc("Activation between the layers.")] = "elu"
    learning_rate: Annotated[
        float, Gt(0), Doc("Initial step size; it adapts towards desired_kl.")
    ] = 1e-3
    desired_kl: Annotated[
        float, Gt(0), Doc("KL divergence per update that the step size aims for.")
    ] = 0.01
    gamma: Annotated[float, Gt(0), Le(1), Doc("Discount per control step.")] = 0.98
    lam: Annotated[float, Ge(0), Le(1), Doc("Lambda of the generalized advantage estimate.")] = 0.95
    clip: Annotated[
        float, Gt(0), Doc("Clip range of the policy ratio and of the value update.")
    ] = 0.2
    entropy: Annotated[float, Ge(0), Doc("Weight of the entropy bonus.")] = 0.005
    value_coef: Annotated[float, Ge(0), Doc("Weight of the value loss.")] = 1.0
    keep_normalizer: Annotated[
        bool,
        Doc("Do not adapt the actor's normalizer; set by --init, since it would shift the policy."),
    ] = False
    critic_warmup: Annotated[
        int,
        Ge(0),
        Doc(
            "First iterations in which the critic alone learns, so that it does not spoil what --init brings."
        ),
    ] = 0
    symmetry: Annotated[
        bool,
        Doc(
            "Learn from the mirror image of each step too; for tasks whose left and right are alike."
        ),
    ] = False
    init_std: Annotated[float, Gt(0), Doc("Initial standard deviation of the action noise.")] = 1.0
    restart_std: Annotated[
        float | None,
        Gt(0),
        Doc(
            "Standard deviation of the action noise with which --init goes on; unset: the one it brings."
        ),
    ] = None
    max_grad_norm: Annotated[
        float, Gt(0), Doc("Largest gradient norm; longer gradients are scaled down.")
    ] = 1.0

    def require_for(self, num_envs: int) -> None:
        """Raise DeftlyError if a rollout has fewer samples than minibatches."""
        _require_samples(self.minibatches, num_envs, self.steps)


def _require_samples(minibatches: int, num_envs: int, steps: int) -> None:
    samples = num_envs * steps
    if minibatches > samples:
        rollout = f"{samples} samples: env.num-envs {num_envs} times train.steps {steps}"
        raise DeftlyError(f"train.minibatches is {minibatches}, but a rollout has only {rollout}")


Average = Annotated[
    float,
    Ge(0),
    Lt(1),
    Doc(
        "Decay, per gradient step, of the moving average of the weights that is the policy, as 0.9995; "
        "0: the newest weights."
    ),
]
"""Setting of learners whose policy may be an average (Izmailov et al. 2018, arXiv:1803.05407)."""


@dataclass(frozen=True)
class OffPolicyConfig(LearnerConfig):
    """What algorithms share that learn from a replay buffer. Its base settings are those of SAC."""

    steps: Annotated[
        int, Ge(1), Le(10**6), Doc("Control steps of every environment in an iteration.")
    ] = 16
    updates: Annotated[
        int, Ge(1), Le(10**4), Doc("Gradient steps after each control step of all environments.")
    ] = 4
    batch: Annotated[int, Ge(1), Le(10**6), Doc("Transitions of a gradient step.")] = 256
    buffer: Annotated[
        int,
        Ge(1),
        Le(10**9),
        Doc("Transitions that the replay buffer holds; it is saved with the newest checkpoint."),
    ] = 400_000
    learning_starts: Annotated[
        int,
        Ge(0),
        Doc("Transitions of random actions before the first gradient step."),
    ] = 10_000
    n_step: Annotated[
        int, Ge(1), Le(1000), Doc("Rewards that are summed before the value of what follows.")
    ] = 3
    hidden: Annotated[
        tuple[Annotated[int, Ge(1), Le(65536)], ...],
        Doc("Widths of the hidden layers of actor and critics."),
    ] = (128, 128)
    activation: Annotated[Activation, Doc("Activation between the layers.")] = "relu"
    layer_norm: Annotated[
        bool, Doc("Layer normalization in the critics, for many gradient steps (Ball et al. 2023).")
    ] = False
    learning_rate: Annotated[float, Gt(0), Doc("Step size of actor and critics.")] = 3e-4
    gamma: Annotated[float, Gt(0), Le(1), Doc("Discount per control step.")] = 0.98
    average: Average = 0.0
    tau: Annotated[
        float, Gt(0), Le(1), Doc("How far target networks follow in a gradient step.")
    ] = 0.01
    max_grad_norm: Annotated[
        float, Gt(0), Doc("Largest gradient norm; longer gradients are scaled down.")
    ] = 10.0
    hindsight: Annotated[
        float,
        Ge(0),
        Le(1),
        Doc("Share of transitions whose goal is replaced by what was reached later (HER)."),
    ] = 0.0
    keep_normalizer: Annotated[
        bool,
        Doc("Do not adapt the actor's normalizer; set by --init, since it would shift the policy."),
    ] = False

    def require_for(self, num_envs: int) -> None:
        """Raise DeftlyError if the buffer is shorter than what it is to give, or than what learning waits for."""
        least = num_envs * (self.n_step + 1)
        if self.buffer < least:
            needed = f"{least}: env.num-envs {num_envs} times train.n-step {self.n_step} and one"
            raise DeftlyError(f"train.buffer is {self.buffer}, but must hold at least {needed}")
        held = self.buffer - self.buffer % num_envs
        if self.learning_starts > held:
            raise DeftlyError(
                f"train.learning-starts is {self.learning_starts}, but train.buffer never holds more than {held} "
                "transitions (whole rows of all environments): nothing would be learned"
            )


@dataclass(frozen=True)
class SACConfig(OffPolicyConfig):
    """Soft actor-critic."""

    algorithm: Annotated[Literal["sac"], Doc("Learning algorithm: sac (soft actor-critic).")] = (
        "sac"
    )
    temperature: Annotated[
        float, Gt(0), Doc("Initial weight of the entropy; it adapts towards target_entropy.")
    ] = 0.1
    target_entropy: Annotated[
        float, Doc("Entropy of the policy that the temperature aims for, nats per action.")
    ] = -1.0


@dataclass(frozen=True)
class DeterministicConfig(OffPolicyConfig):
    """What algorithms with a deterministic policy share."""

    noise: Annotated[
        tuple[float, Annotated[float, Le(2)]],
        RISING,
        Doc(
            "Standard deviation of the exploration noise, in units of the action: of the first "
            "environment and of the last, those between evenly spaced."
        ),
    ] = (0.05, 0.4)
    action_l2: Annotated[
        float,
        Ge(0),
        Doc(
            "Price of an action's mean square in the actor's loss: keeps actions off their limits."
        ),
    ] = 0.0


@dataclass(frozen=True)
class DDPGConfig(DeterministicConfig):
    """Deep deterministic policy gradient."""

    algorithm: Annotated[
        Literal["ddpg"],
        Doc("Learning algorithm: ddpg (deep deterministic policy gradient)."),
    ] = "ddpg"


@dataclass(frozen=True)
class TD3Config(DeterministicConfig):
    """Twin delayed deep deterministic policy gradient."""

    algorithm: Annotated[
        Literal["td3"],
        Doc("Learning algorithm: td3 (twin delayed deep deterministic policy gradient)."),
    ] = "td3"
    policy_delay: Annotated[
        int, Ge(1), Le(1000), Doc("Gradient steps of the critics for one of the actor.")
    ] = 2
    target_noise: Annotated[
        float, Ge(0), Doc("Standard deviation of the noise that smooths the target policy.")
    ] = 0.2
    target_noise_clip: Annotated[float, Ge(0), Doc("Largest noise of the target policy.")] = 0.5


@dataclass(frozen=True)
class DistillConfig(LearnerConfig):
    """Behavioural cloning of a teacher on the states that the student comes to (DAgger)."""

    algorithm: Annotated[
        Literal["distill"], Doc("Learning algorithm: distill (a student imitates a teacher).")
    ] = "distill"
    teacher: Annotated[
        str,
        Doc("Who is imitated: a run or checkpoint of the task, which may see more and say less."),
    ] = ""
    mix_iterations: Annotated[
        int,
        Ge(0),
        Le(10**9),
        Doc("Iterations over which fewer and fewer environments are driven by the teacher."),
    ] = 20
    steps: Annotated[
        int, Ge(1), Le(10**6), Doc("Control steps per environment in one rollout.")
    ] = 16
    epochs: Annotated[int, Ge(1), Le(10**6), Doc("Passes over each rollout.")] = 2
    minibatches: Annotated[
        int, Ge(1), Doc("Parts a rollout is split into for one gradient step each.")
    ] = 8
    buffer: Annotated[
        int,
        Ge(0),
        Le(10**9),
        Doc(
            "Newest steps of all rollouts that are kept, saved, and drawn from for as many "
            "gradient steps; 0: each rollout is learned from and forgotten."
        ),
    ] = 0
    augment_shift: Annotated[
        int,
        Ge(0),
        Le(64),
        Doc("Random shift of the images that are learned from, at most so many pixels."),
    ] = 0
    augment_gain: Annotated[
        float,
        Ge(0),
        Lt(1),
        Doc("Random brightness of each of their colours, up or down by at most this fraction."),
    ] = 0.0
    hidden: Annotated[
        tuple[Annotated[int, Ge(1), Le(65536)], ...],
        Doc("Widths of the hidden layers of the student."),
    ] = (128, 128)
    activation: Annotated[Activation, Doc("Activation between the layers.")] = "elu"
    learning_rate: Annotated[float, Gt(0), Doc("Step size.")] = 1e-3
    average: Average = 0.0
    init_std: Annotated[
        float, Gt(0), Doc("Standard deviation of the student's noise, for a training from it.")
    ] = 0.3
    max_grad_norm: Annotated[
        float, Gt(0), Doc("Largest gradient norm; longer gradients are scaled down.")
    ] = 1.0
    keep_normalizer: Annotated[
        bool,
        Doc(
            "Do not adapt the student's normalizer; set by --init, since it would shift the policy."
        ),
    ] = False

    def require_for(self, num_envs: int) -> None:
        """Raise DeftlyError if a rollout has fewer samples than minibatches, or more than the buffer holds."""
        _require_samples(self.minibatches, num_envs, self.steps)
        if 0 < self.buffer < num_envs * self.steps:
            rollout = (
                f"{num_envs * self.steps}: env.num-envs {num_envs} times train.steps {self.steps}"
            )
            raise DeftlyError(f"train.buffer is {self.buffer}, but must hold a rollout, {rollout}")


ALGORITHMS: dict[str, type[LearnerConfig]] = {
    "ppo": PPOConfig,
    "sac": SACConfig,
    "ddpg": DDPGConfig,
    "td3": TD3Config,
    "distill": DistillConfig,
}
"""The settings of each algorithm by its name, `--train.algorithm`."""


@dataclass(frozen=True)
class RunsConfig(Settings, section="runs"):
    """Where runs are kept, and how many of them stay in view."""

    root: Annotated[Path, OUTPUT_FOLDER, Doc("Folder that holds `runs/` and `runs_all/`.")] = Path(
        "."
    )
    max_train_runs: Annotated[
        int, Ge(1), Doc("Training runs linked in `runs/`; older ones stay in `runs_all/`.")
    ] = 10
    max_test_runs: Annotated[
        int, Ge(1), Doc("Test runs linked in `runs/`; older ones stay in `runs_all/`.")
    ] = 10
    workspace: Annotated[
        bool,
        Doc(
            "Keep runs in `runs_all/` and link the newest; False writes plain folders into `runs/`."
        ),
    ] = True


@dataclass(frozen=True)
class TrainArgs(Settings):
    """Train a policy on a task."""

    sim: Annotated[SimConfig, Doc("The physics engine.")] = field(default_factory=SimConfig)
    env: Annotated[EnvConfig, Doc("The batch of environments and what disturbs it.")] = field(
        default_factory=lambda: EnvConfig(num_envs=512)
    )
    task: Annotated[TaskConfig, Doc("The task's own settings.")] = field(default_factory=TaskConfig)
    train: Annotated[PPOConfig, Doc("The learning algorithm and its settings.")] = field(
        default_factory=PPOConfig
    )
    runs: Annotated[RunsConfig, Doc("Where runs are kept.")] = field(default_factory=RunsConfig)
    name: Annotated[str | None, RUN_NAME, Doc("A word for the name of the run's folder.")] = None
    resume: Annotated[
        str | None,
        Doc("Continue exactly where a run stopped: latest, a run, or a checkpoint folder."),
    ] = None
    init: Annotated[
        str | None,
        Doc(
            "Start from the weights of this checkpoint, also of a mirrored robot's, or (shipped:TASK) of a task "
            "that sees less; all else starts anew."
        ),
    ] = None
    reward: Annotated[
        str | None,
        Doc("A reward of your own, FILE.py:FUNCTION, as one more term; it is kept with the run."),
    ] = None
    reward_only: Annotated[bool, Doc("With reward: the task's own terms count nothing.")] = False
    until_success: Annotated[
        float | None,
        Gt(0),
        Le(1),
        Doc(
            "Stop once evaluation shows with 95 % confidence that this fraction of episodes succeeds (or all did)."
        ),
    ] = None
    eval_every: Annotated[int, Ge(0), Doc("Iterations between evaluations; 0 never evaluates.")] = (
        25
    )
    eval_episodes: Annotated[
        int,
        Ge(1),
        Doc("Episodes of an evaluation, deterministic, on seeds that training never sees."),
    ] = 200
    save_every: Annotated[int, Ge(1), Doc("Iterations between checkpoints.")] = 50
    keep_checkpoints: Annotated[int, Ge(1), Doc("Periodic checkpoints kept, besides the best.")] = 3
    tensorboard: Annotated[bool, Doc("Write TensorBoard files into the run's folder.")] = True
    wandb: Annotated[bool, Doc("Log to Weights & Biases, if it is installed.")] = False
    render: Annotated[
        bool | None,
        Doc("Show the first environment in a window or the browser, which takes time; unset: no."),
    ] = None
    log_level: Annotated[
        LogLevel,
        Doc("Print every iteration, a live table (lines without a terminal), or only problems."),
    ] = "info"
    log_every: Annotated[
        int, Ge(1), Doc("Iterations between two lines, where there is no terminal.")
    ] = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.resume and self.init:
            raise DeftlyError(
                "--resume continues a run and --init starts a new one: give one of them"
            )
        if self.reward_only and not self.reward:
            raise DeftlyError(
                "--reward-only needs a reward of your own: add --reward FILE.py:FUNCTION"
            )
        if self.env.device != "cpu" and self.sim.engine == "cpu":
            raise DeftlyError(
                f"env.device is {self.env.device}, but the engine cpu runs on the CPU: --sim.engine warp"
            )
        self.sim.substeps_at(self.task.rate)
        if not self.resume:
            # else what is saved with the run is not known yet; the learner asks again
            self.train.require_for(self.env.num_envs)
