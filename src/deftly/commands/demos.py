"""`deftly demos`: demonstrations of a policy, with what the cameras see, as a LeRobot data set."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from annotated_types import Ge, Le, Lt
from typing_extensions import Doc

from deftly import render
from deftly.config import (
    INPUT_FILE,
    INPUT_FOLDER,
    OUTPUT_FOLDER,
    SEEDS,
    Repeatable,
    RunsConfig,
    SimConfig,
    parse,
    split_task,
)
from deftly.console import say, show
from deftly.data.dataset import MAX_BATCH
from deftly.errors import DeftlyError
from deftly.evaluate.source import PolicyArgs, PolicySource, prepare, typed
from deftly.files import KB, read_text
from deftly.vla.features import Layout

if TYPE_CHECKING:
    from deftly.data.lerobot import Plan
    from deftly.tasks import Task

MAX_PROMPTS = 64 * KB


@dataclass(frozen=True)
class DemosArgs(PolicyArgs):
    """Collect demonstrations of a policy into a LeRobot data set, or look at one."""

    out: Annotated[
        Path | None,
        OUTPUT_FOLDER,
        Doc("Folder of the data set. What is unfinished is in DIR.partial, and is gone on with."),
    ] = None
    episodes: Annotated[int, Ge(1), Le(100_000), Doc("Episodes to collect.")] = 200
    only_success: Annotated[bool, Doc("Keep only episodes that succeed.")] = True
    perturb: Annotated[
        float,
        Ge(0),
        Le(1),
        Doc("Noise on the executed actions, standard deviation, so that recovery is seen (DART)."),
    ] = 0.0
    cameras: Annotated[
        tuple[str, ...], Repeatable(), Doc("Cameras of the scene; unset: all of them.")
    ] = ()
    size: Annotated[int, Ge(16), Le(1024), Doc("Width and height of an image, pixels.")] = 224
    layout: Annotated[
        Layout,
        Doc(
            "Numbers of state and action: the contract's, or DROID's 8 with a gripper of 1 = open."
        ),
    ] = "contract"
    prompt: Annotated[
        tuple[str, ...],
        Repeatable(),
        Doc("Instructions, in turn; {object} is what was drawn; unset: the task's own."),
    ] = ()
    prompts: Annotated[
        Path | None, INPUT_FILE, Doc("File of instructions, one in a line, instead.")
    ] = None
    video: Annotated[bool, Doc("Store images as videos (h264), a fortieth of the size.")] = True
    batch: Annotated[int, Ge(1), Le(MAX_BATCH), Doc("Environments simulated side by side.")] = 32
    seed: Annotated[int, Ge(0), Lt(SEEDS), Doc("Decides which episodes.")] = 0
    check: Annotated[
        Path | None,
        INPUT_FOLDER,
        Doc("Look at a data set instead: is it whole, and do its actions, open loop, succeed?"),
    ] = None
    push_to_hub: Annotated[
        str | None, Doc("Then upload it to this repository of the Hugging Face hub, USER/NAME.")
    ] = None
    sim: Annotated[SimConfig, Doc("The physics engine; as in the training unless set.")] = field(
        default_factory=SimConfig
    )
    runs: Annotated[RunsConfig, Doc("Where runs are kept.")] = field(default_factory=RunsConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.prompt and self.prompts:
            raise DeftlyError("--prompt and --prompts both say the instructions: give one of them")


def main(argv: list[str]) -> int:
    """Run `deftly demos`. The exit status is 1 if a check fails."""
    render.choose_gl()  # before anything imports MuJoCo
    if typed(argv, "check") is not None:
        return _check(argv)
    task, args, source = prepare(DemosArgs, "demos", argv)
    assert source is not None
    if args.out is None:
        raise DeftlyError("demos needs a folder: --out DIR to collect, or --check DIR to look at")
    from deftly.data import hub, lerobot

    lerobot.require_lerobot()
    if args.push_to_hub:
        hub.require_upload(args.push_to_hub)
    plan = _plan(task, args, source)
    policy = source.open(task.contract(), keys=args.keys)
    try:
        folder = lerobot.collect(plan, policy, args.episodes, args.out, args.video)
    finally:
        policy.close()
    show(f"data set: {folder}; checks: {folder / 'report.html'}")
    if args.push_to_hub:
        show(f"uploaded: {hub.push(folder, args.push_to_hub)}")
    return _said(folder)


def _plan(task: Task, args: DemosArgs, source: PolicySource) -> Plan:
    """What is collected."""
    from deftly.data.demonstrations import Source
    from deftly.data.lerobot import Plan, told
    from deftly.vla.cameras import cameras_of
    from deftly.vla.features import layout_of, seen_contract

    contract = task.contract()
    layout_of(args.layout, contract)
    prompts = _prompts(task, args)
    cameras = cameras_of(task, args.cameras)
    heard = [given.name for given in contract.inputs if not given.is_text]
    if heard:
        say(
            f"a model that learns from this is told words alone, not {', '.join(heard)} as the policy is: let words or "
            "images say them, or keep them the same in all episodes"
        )
    return Plan(
        source=Source(task, args.sim, args.seed, args.batch, args.perturb),
        seen=seen_contract(contract, cameras, args.size, told(prompts[0])),
        layout=args.layout,
        prompts=prompts,
        only_success=args.only_success,
        policy=source.label,
        policy_sha256=source.sha256,
        settings=_settings(task, args),
    )


def _settings(task: Task, args: DemosArgs) -> Mapping[str, Any]:
    """Of task and physics, as data."""
    import yaml

    from deftly.config import to_yaml

    return {
        name: yaml.safe_load(to_yaml(part))
        for name, part in (("task", task.cfg), ("sim", args.sim))
    }


def _prompts(task: Task, args: DemosArgs) -> tuple[str, ...]:
    """The instructions: typed, of a file, or the task's own."""
    from deftly.data.lerobot import OBJECT

    prompts = args.prompt or task.prompts
    if args.prompts:
        lines = read_text(args.prompts, "a file of instructions", MAX_PROMPTS).splitlines()
        prompts = tuple(filter(None, map(str.strip, lines)))
    if not prompts:
        raise DeftlyError(
            f"there is no instruction for {task.name}: say one, --prompt 'lift the cube'"
        )
    if not task.report.kinds and any(OBJECT in prompt for prompt in prompts):
        raise DeftlyError(
            f"{task.name} does not say what it draws: leave {OBJECT} out of the prompt"
        )
    return prompts


def _said(folder: Path) -> int:
    """What the checks found, as the exit status."""
    from deftly.data import dataset, lerobot_checks

    facts = dataset.open_dataset(folder).facts["episodes"]
    lines = lerobot_checks.failures(facts)
    steps = sum(fact["steps"] for fact in facts)
    successes = sum(fact["success"] for fact in facts)
    show(f"{len(facts)} episodes, {steps} frames, {successes} successes", *lines)
    return 1 if lines else 0


def _check(argv: list[str]) -> int:
    """Whether a data set is whole, and replays in the task and the physics with which it was collected."""
    from deftly.data import dataset, lerobot
    from deftly.data.demonstrations import Source, replay
    from deftly.evaluate.handover import rebuild
    from deftly.tasks import load
    from deftly.vla.cameras import seen_through

    name, flags = split_task(argv)
    args = parse(DemosArgs, flags, prog="deftly demos [TASK]")
    if args.out is not None:
        raise DeftlyError("--check looks at a data set, and --out makes one: leave out one of them")
    assert args.check is not None
    if name is not None:
        load(name)  # says that there is none, before anything has to be installed
    lerobot.require_lerobot()
    found = dataset.require_whole(args.check)
    facts = found.facts
    what = f"the data set '{args.check}'"
    task, sim = rebuild(name, facts["settings"], facts["task"], what)
    seen_through(task, found.contract, what)
    source = Source(task, sim, facts["seed"], facts["batch"], facts["perturb"])
    results = replay(source, dataset.stored_actions(found))
    same = sum(results[fact["batch"], fact["env"]] == fact["success"] for fact in facts["episodes"])
    count = len(facts["episodes"])
    show(f"open loop, {same} of {count} episodes end as they did ({100 * same / count:.1f} %)")
    return max(_said(args.check), int(same < REPLAYED * count))


REPLAYED = 0.95
"""Part of the episodes that must end the same when their actions are replayed."""
