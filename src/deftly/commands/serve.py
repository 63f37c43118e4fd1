"""`deftly serve`: answer robots over a socket with a policy, from a bundle or a checkpoint."""

from __future__ import annotations

import gc
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from annotated_types import Ge, Gt, Le
from typing_extensions import Doc

from deftly.config import RunsConfig, Settings, parse, split_task
from deftly.console import printable, show
from deftly.contract import PolicyContract
from deftly.errors import DeftlyError
from deftly.policy import bundle
from deftly.policy.protocol import Network
from deftly.serving.brain import PolicyBrain
from deftly.serving.keys import new_keys
from deftly.serving.link import Connection
from deftly.serving.server import IDLE_S, MAX_SESSIONS, Server


@dataclass(frozen=True)
class ServeArgs(Settings):
    """Answer robots with a policy: `deftly serve TASK`, or `deftly serve --bundle DIR`."""

    bundle: Annotated[
        Path | None,
        Doc("Folder that `deftly export` wrote; it needs neither torch nor MuJoCo. Unset: the one shipped for TASK."),
    ] = None
    checkpoint: Annotated[
        str | None, Doc("Policy instead of a bundle, with torch: latest, a run, a checkpoint folder or shipped.")
    ] = None
    bind: Annotated[
        str, Doc("Where to answer; an address that other machines reach needs keys. Port * takes a free one.")
    ] = "tcp://127.0.0.1:5555"
    keys: Annotated[
        Path | None,
        Doc("The server's folder of keys: encrypt, and answer only robots in its clients/; for --status the robot's."),
    ] = None
    new_keys: Annotated[
        Path | None, Doc("Write keys for a server and a robot into this new folder, and do nothing else.")
    ] = None
    status: Annotated[str | None, Doc("Ask the server at this endpoint what it has counted, and do nothing else.")] = (
        None
    )
    idle_s: Annotated[float, Gt(0), Doc("Seconds after which a robot that asks nothing is forgotten.")] = IDLE_S
    max_clients: Annotated[int, Ge(1), Le(10_000), Doc("Robots that are served at one time.")] = MAX_SESSIONS
    runs: Annotated[RunsConfig, Doc("Where runs are kept.")] = field(default_factory=RunsConfig)


def main(argv: list[str]) -> int:
    """Run `deftly serve` until SIGTERM or SIGINT."""
    task, flags = split_task(argv)
    args = parse(ServeArgs, flags, prog="deftly serve [TASK]")
    if args.new_keys:
        new_keys(args.new_keys)
        print(f"wrote {args.new_keys}: serve with --keys {args.new_keys / 'server'}; {args.new_keys / 'robot'} goes")
        print(
            "to the robot: Client(..., keys=Path('robot')). Whoever has its client.key_secret can command the policy."
        )
        return 0
    if args.status:
        print_status(Connection(args.status, args.keys).ask("status", 3.0))
        return 0
    contract, network, what = find(task, args)
    brain = PolicyBrain(contract, network)
    server = Server(brain, args.bind, keys=args.keys, idle_s=args.idle_s, max_sessions=args.max_clients)
    gc.freeze()  # what is loaded now stays: going through it again and again would hold answers up
    locked = " with keys" if args.keys else ""
    print(
        f"serving {contract.robot.name} at {server.endpoint}{locked}, contract {contract.hash[:12]}, {what}", flush=True
    )
    server.run_until_signal()
    print(f"answered {server.counts.answered} requests", flush=True)
    return 0


def find(task: str | None, args: ServeArgs) -> tuple[PolicyContract, Network, str]:
    """PolicyContract, network and name of the policy that the arguments mean. Raises DeftlyError if there is none."""
    if args.bundle and args.checkpoint:
        raise DeftlyError("serve takes --bundle or --checkpoint, not both")
    folder = args.bundle or (bundle.shipped(task) if task and not args.checkpoint else None)
    if folder:
        found = bundle.load(folder)
        if task not in (None, found.task):
            raise DeftlyError(f"{folder} was made for {found.task}, not for {task}")
        return found.contract, found.network, f"{found.task} {args.bundle or 'shipped bundle'}"
    if task is None and args.checkpoint is None:
        raise DeftlyError("serve needs a policy: deftly serve TASK, or --bundle DIR; 'deftly tasks' lists the tasks")
    return _from_checkpoint(task, args)


def _from_checkpoint(task: str | None, args: ServeArgs) -> tuple[PolicyContract, Network, str]:
    import torch

    from deftly import workspace
    from deftly.evaluate.rollout import find_policy
    from deftly.learn import checkpoint
    from deftly.tasks import load

    name = load(task).name if task else None
    if name:
        path = find_policy(args.checkpoint, name, args.runs)
    elif args.checkpoint == "shipped":
        raise DeftlyError("--checkpoint shipped needs a task: deftly serve TASK --checkpoint shipped")
    else:
        path = workspace.find_checkpoint(str(args.checkpoint), None, args.runs)
    found = checkpoint.load(path)
    if name not in (None, found.task):
        raise DeftlyError(f"checkpoint {found.label} was made for {found.task}, not for {name}")
    policy = found.policy()
    torch.set_num_threads(1)  # a network this small is slower on more

    def network(obs: np.ndarray) -> np.ndarray:
        return policy(torch.from_numpy(obs)).numpy()

    return found.contract, network, f"{found.task} {found.label}"


def print_status(status: dict[str, Any]) -> None:
    """Show a server's `status` message. Raises DeftlyError if it is none: whoever listens there may answer anything."""
    from rich.table import Table

    try:
        rows = _status_rows(status)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        what = printable(f"{type(error).__name__}: {error}", 100)
        raise DeftlyError(f"what answers there is no policy server of this Deftly: in its status, {what}") from None
    table = Table(box=None, show_header=False)
    for name, text in rows.items():
        table.add_row(name, printable(text))
    show(table)


def _status_rows(status: dict[str, Any]) -> dict[str, str]:
    def counts(name: str) -> str:
        return ", ".join(f"{key} {count}" for key, count in sorted(status[name].items())) or "none"

    latency = status["latency_ms"]
    batches = ", ".join(f"{size}: {count}" for size, count in status["batches"])
    return {
        "robot": f"{status['robot']}, contract {status['contract'][:12]}",
        "up": f"{status['uptime_s']:.0f} s",
        "robots": f"{status['sessions']} of at most {status['max_sessions']}",
        "answered": f"{status['answered']} ({counts('types')})",
        "errors": counts("errors"),
        "batches": batches or "none",
        "infer": ", ".join(f"{name} {latency[name]:.2f} ms" for name in ("p50", "p99", "max")),
    }
