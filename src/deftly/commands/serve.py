"""`deftly serve`: answer robots over a socket with a policy, from a bundle or a checkpoint."""

from __future__ import annotations

import gc
import sys
from dataclasses import MISSING, Field, dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Ge, Gt, Le
from typing_extensions import Doc

from deftly.config import KEYS, OUTPUT_FOLDER, RunsConfig, Settings, parse, split_task
from deftly.config.constraints import kebab
from deftly.console import printable, show
from deftly.errors import DeftlyError
from deftly.evaluate.source import PolicySource, of_task, policy_words, task_name
from deftly.policy.bundle import Bundle
from deftly.policy.layouts import OpenpiConfig
from deftly.policy.protocol import ContractPolicy, Policy
from deftly.serving.endpoint import is_websocket
from deftly.serving.keys import new_keys
from deftly.serving.link import Connection
from deftly.serving.openpi_server import OpenpiServer
from deftly.serving.server import IDLE_S, MAX_SESSIONS, Server


@dataclass(frozen=True)
class ServeArgs(Settings):
    """Answer robots with a policy: `deftly serve TASK`, or `deftly serve --policy BUNDLE`."""

    policy: Annotated[
        str | None,
        Doc(
            "latest, a run, a checkpoint or bundle folder, or shipped; unset: latest, else shipped."
        ),
    ] = None
    bind: Annotated[
        str,
        Doc(
            "Where to answer; ws:// speaks openpi's protocol. Not on loopback it needs keys. Port * takes a free one."
        ),
    ] = "tcp://127.0.0.1:5555"
    openpi: Annotated[OpenpiConfig, Doc("With ws://: names and units that clients use.")] = field(
        default_factory=OpenpiConfig
    )
    keys: Annotated[
        Path | None,
        KEYS,
        Doc(
            "The server's folder of keys: encrypt, and answer only robots in its clients/; for --status the robot's."
        ),
    ] = None
    new_keys: Annotated[
        Path | None,
        OUTPUT_FOLDER,
        Doc("Write keys for a server and a robot into this new folder, and do nothing else."),
    ] = None
    status: Annotated[
        str | None, Doc("Ask the server at this endpoint what it has counted, and do nothing else.")
    ] = None
    idle_s: Annotated[
        float, Gt(0), Doc("Seconds after which a robot that asks nothing is forgotten.")
    ] = IDLE_S
    max_clients: Annotated[int, Ge(1), Le(10_000), Doc("Robots that are served at one time.")] = (
        MAX_SESSIONS
    )
    runs: Annotated[RunsConfig, Doc("Where runs are kept.")] = field(default_factory=RunsConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.new_keys:
            self.require_alone("new_keys")
        if self.status:
            self.require_alone("status", "keys")

    def require_alone(self, name: str, *beside: str) -> None:
        """Raise DeftlyError if more is set than a setting that does nothing else, and those it may have beside it."""
        others = [each for each in fields(self) if each.name not in (name, *beside)]
        defaults = {each.name: _default(each) for each in others}
        given = [other for other, default in defaults.items() if getattr(self, other) != default]
        if given:
            raise DeftlyError(
                f"--{kebab(name)} does nothing else: leave out --{kebab(given[0])}, or give it in another command"
            )


def _default(item: Field[Any]) -> Any:
    """The value of a field that nobody set."""
    if item.default_factory is not MISSING:
        return item.default_factory()
    return item.default


def main(argv: list[str]) -> int:
    """Run `deftly serve` until SIGTERM or SIGINT."""
    task, flags = split_task(argv)
    args = parse(ServeArgs, policy_words(flags), prog="deftly serve [TASK]")
    alone = args.new_keys or args.status
    if task and alone:
        flag = "--new-keys" if args.new_keys else "--status"
        raise DeftlyError(
            f"{flag} does nothing else: leave out {task}, or serve it in another command"
        )
    if args.new_keys:
        new_keys(args.new_keys)
        print(
            f"wrote {args.new_keys}: serve with --keys {args.new_keys / 'server'}; {args.new_keys / 'robot'} goes"
        )
        print(
            "to the robot: Client(..., keys=Path('robot')). Whoever has its client.key_secret can command the policy."
        )
        return 0
    if args.status:
        print_status(Connection(args.status, args.keys).ask("status", 3.0))
        return 0
    source = find(task, args)
    policy = source.open(ahead=not is_websocket(args.bind))
    if isinstance(policy, ContractPolicy):
        policy.require_network()
    server = _server(policy, args)
    gc.freeze()  # what is loaded now stays: going through it again and again would hold answers up
    locked = ""
    if args.keys:
        locked = " with a token, not encrypted" if is_websocket(args.bind) else " with keys"
    contract = policy.contract
    print(
        f"serving {contract.robot.name} at {server.endpoint}{locked}, contract {contract.hash[:12]}, {source.line}"
    )
    sys.stdout.flush()
    server.run_until_signal()
    print(f"answered {server.counts.answered} requests", flush=True)
    return 0


def _server(policy: Policy, args: ServeArgs) -> Server | OpenpiServer:
    """What answers at the address that was asked for."""
    if is_websocket(args.bind):
        return OpenpiServer(
            policy,
            args.bind,
            keys=args.keys,
            cfg=args.openpi,
            max_clients=args.max_clients,
            idle_s=args.idle_s,
        )
    return Server(
        policy, args.bind, keys=args.keys, idle_s=args.idle_s, max_sessions=args.max_clients
    )


def find(task: str | None, args: ServeArgs) -> PolicySource:
    """The policy that the arguments mean. Raises DeftlyError if there is none, or it is of another task."""
    if task is None and args.policy is None:
        raise DeftlyError(
            "serve needs a policy: deftly serve TASK, or --policy BUNDLE; 'deftly tasks' lists the tasks"
        )
    name = task_name(task)
    source = of_task(args.policy, task, args.runs, "bundle")
    if source.loaded is None:
        raise DeftlyError(
            f"{source.label} is served already: ask it with 'deftly run --policy {source.label}'"
        )
    if name not in (None, source.task):
        raise DeftlyError(f"{source.label} is a policy of {source.task}, not of {name}")
    if source.kind != "model" and not isinstance(source.loaded, Bundle):
        import torch

        torch.set_num_threads(1)  # a network this small is slower on more
    return source


def print_status(status: dict[str, Any]) -> None:
    """Show a server's `status` message. Raises DeftlyError if it is none: whoever listens there may answer anything."""
    from rich.table import Table

    try:
        rows = _status_rows(status)
    except Exception as error:  # deep lists, huge numbers: there is no end of ways
        what = printable(f"{type(error).__name__}: {error}", 100)
        raise DeftlyError(
            f"what answers there is no policy server of this Deftly: in its status, {what}"
        ) from None
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
