"""Weights of one task's policy for another task that shows more of the same robot.

What the policy did not see before starts with weights of zero: the network computes what it did, and learns what is new
from there (as a function-preserving transformation: Chen, Goodfellow and Shlens 2016, "Net2Net").
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from deftly.console import say
from deftly.contract import STATE, ContractError, PolicyContract
from deftly.contract.schema import first_difference
from deftly.learn.checkpoint import Checkpoint
from deftly.tasks import Task, load
from deftly.tasks import shipped as shipped_tasks

FIRST_LAYER = "layers.0.weight"
MEAN = "normalizer.mean"
VARIANCE = "normalizer.var"


def adapted(start: Checkpoint, task: Task) -> Checkpoint:
    """The checkpoint as weights for a task to start from.

    That of another robot with the same joints, observation and action is taken as it is. Of that of another task of
    this robot, whose observation is a part of this one's, the networks are widened: the actor, and the critic if both
    tasks show it the same besides. Raises DeftlyError that names the first difference otherwise.
    """
    own, other = task.contract(), start.contract
    if own.joint_names != other.joint_names or own.observe_terms == other.observe_terms:
        start.require(task, any_robot=True)
        return start
    what = f"the policy of {start.task}"
    if start.algorithm != "ppo":
        raise ContractError(
            f"{what} was trained by {start.algorithm}: only ppo's are taken over by a task that shows more"
        )
    columns = shared_columns(own, other, what)
    names = ["actor"]
    if _shows_the_same(task, start.task):
        names = [*start.networks]
    if "critic" not in names:
        say(
            f"note: {what} comes without its critic, which saw other things; --train.critic-warmup lets one learn first"
        )
    if own.act_terms != other.act_terms:
        changed = first_difference(_acts(own), _acts(other))
        say(f"note: actions are scaled or filtered otherwise than those of {what}: {changed}")
    return _widened(start, own, columns, names)


def _shows_the_same(task: Task, other: str) -> bool:
    """Whether another task's critic sees the same besides the policy's observation."""
    if other not in shipped_tasks():
        return False
    return load(other).privileged is type(task).privileged


def _acts(contract: PolicyContract) -> list[dict[str, Any]]:
    """The terms of the action, as JSON has them."""
    return json.loads(contract.to_json())["act_terms"]


def shared_columns(own: PolicyContract, other: PolicyContract, what: str) -> Tensor:
    """Where the numbers of another contract's observation stand in this one's, (size of the other's,) int64.

    Raises ContractError unless its terms, in their order, are all among this one's, mean the same and lead to as many
    actions.
    """
    _require_same_meaning(own, other, what)
    places: list[int] = []
    first = 0
    terms = iter(other.observe_terms)
    wanted = next(terms, None)
    for term in own.observe_terms:
        size = own.source_size(term.term) * term.frames
        if term == wanted:
            places += range(first, first + size)
            wanted = next(terms, None)
        first += size
    if wanted is not None:
        raise ContractError(
            f"{what} sees '{wanted.term}', which is not seen here, or in another order, scale or history: "
            "it cannot start from its weights"
        )
    return torch.tensor(places)


def _require_same_meaning(own: PolicyContract, other: PolicyContract, what: str) -> None:
    """Raise ContractError unless both drive the same robot at one rate, and derive and act alike."""
    if own.groups != (STATE,) or other.groups != (STATE,):
        raise ContractError(f"{what} sees groups {other.groups}, this task {own.groups}")
    like = own.robot.as_trained(other.robot)
    named = {signal.name for signal in other.robot.signals}
    signals = tuple(signal for signal in like.signals if signal.name in named)
    replace(like, signals=signals).require(other.robot, what)
    derived = tuple(d for d in own.derive if d in other.derive)
    drives = [_alike(contract) for contract in (own, other)]
    for here, there, field in (
        (*drives, "what its actions drive"),
        (own.rate, other.rate, "rate"),
        (own.action_size, other.action_size, "the number of actions"),
        (derived, other.derive, "what is derived"),
    ):
        if here != there:
            raise ContractError(f"{what} differs in {field}: {first_difference(here, there)}")


def _alike(contract: PolicyContract) -> list[tuple[object, ...]]:
    """Of each term of the action, what must be the same: its scale and filter may differ."""
    return [(term.kind, term.joints, term.origin) for term in contract.act_terms]


def _widened(
    start: Checkpoint, own: PolicyContract, columns: Tensor, names: Sequence[str]
) -> Checkpoint:
    """The checkpoint with some of its networks, of a wider input: they compute what they did."""
    added = own.obs_size() - start.contract.obs_size()
    weights = dict(start.weights)
    networks = {name: start.networks[name] for name in names}
    for name, spec in list(networks.items()):
        ((group, size),) = spec.inputs.items()
        beyond = torch.arange(start.contract.obs_size(), size) + added  # what the critic sees more
        places = torch.cat((columns, beyond))
        networks[name] = replace(spec, inputs={group: size + added})
        for part, fill in ((FIRST_LAYER, 0.0), (MEAN, 0.0), (VARIANCE, 1.0)):
            key = f"{name}/{part}"
            if key in weights:
                weights[key] = _spread(weights[key], places, size + added, fill)
    return replace(start, contract=own, weights=weights, networks=networks)


def _spread(values: Tensor, places: Tensor, size: int, fill: float) -> Tensor:
    """The last axis of `values` at some places of an axis of this size."""
    wide = torch.full((*values.shape[:-1], size), fill, dtype=values.dtype)
    wide[..., places] = values
    return wide
