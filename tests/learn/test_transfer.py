"""Training that starts from the weights of another task, which shows a part of what this one shows."""

from dataclasses import replace

import pytest
import torch

from deftly.config import RunsConfig
from deftly.contract import ContractError, Input, Observe
from deftly.errors import DeftlyError
from deftly.learn import checkpoint, transfer
from deftly.learn.networks import build
from deftly.tasks import load

RUNS = RunsConfig()


def task(name, **cfg):
    cls = load(name)
    return cls(cls.Config(**cfg))


def shipped(name, of=""):
    return checkpoint.load(checkpoint.find(f"shipped:{name}", of, RUNS))


@pytest.fixture(scope="module")
def box():
    return shipped("dexhand-box")


def test_a_widened_network_computes_what_it_did_whatever_is_new(box):
    found = transfer.adapted(box, task("dexhand-blind"))
    added = found.contract.obs_size() - box.contract.obs_size()
    assert added == 2, "stage and progress"
    rng = torch.Generator().manual_seed(0)
    for name in ("actor", "critic"):
        ((group, size),) = box.networks[name].inputs.items()
        assert dict(found.networks[name].inputs) == {group: size + added}
        seen = torch.randn(32, size, generator=rng)
        new = 3.0 * torch.randn(32, added, generator=rng)
        first = box.contract.obs_size()  # of the critic's, its own come after the policy's
        wide = torch.cat((seen[:, :first], new, seen[:, first:]), -1)
        before, after = box.network(name), build(found.networks[name], found._part(name))
        torch.testing.assert_close(
            after.layers(after.normalizer(wide)), before.layers(before.normalizer(seen))
        )
        after.requires_grad_(True)
        gradient = torch.autograd.grad(
            after.layers(after.normalizer(wide)).sum(), after.layers[0].weight
        )[0]
        assert (gradient[:, first : first + added] != 0).any(), "what is new is learned"


def test_what_is_new_may_stand_between(box):
    contract = box.contract
    seen = contract.observe_terms
    added = Input("wish", 3)
    own = replace(contract, inputs=(added,), observe_terms=(seen[0], Observe("wish"), *seen[1:]))
    columns = transfer.shared_columns(own, contract, "it")
    first = contract.source_size(seen[0].term) * seen[0].frames
    assert columns.tolist() == [*range(first), *range(first + 3, own.obs_size())]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda c: {"observe_terms": c.observe_terms[1:]},
            "it sees 'joint_pos', which is not seen here",
        ),
        (
            lambda c: {"observe_terms": c.observe_terms[::-1]},
            "or in another order, scale or history",
        ),
        (
            lambda c: {
                "observe_terms": (replace(c.observe_terms[0], scale=(2.0,)), *c.observe_terms[1:])
            },
            "it sees 'joint_pos'",
        ),
        (lambda c: {"rate": 25.0}, "it differs in rate"),
        (
            lambda c: {"act_terms": (replace(c.act_terms[0], kind="absolute"), *c.act_terms[1:])},
            "it differs in what its actions drive",
        ),
    ],
)
def test_what_means_something_else_is_refused_in_one_line(box, change, said):
    own = replace(box.contract, **change(box.contract))
    with pytest.raises(ContractError) as caught:
        transfer.shared_columns(own, box.contract, "it")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_action_that_moves_further_is_said(box, capsys):
    transfer.adapted(box, task("dexhand-blind"))
    said = capsys.readouterr().out
    assert (
        "note: actions are scaled or filtered otherwise than those of the policy of dexhand-box"
        in said
    )
    assert "scale" in said


def test_a_critic_that_saw_other_things_stays_behind(capsys):
    found = transfer.adapted(shipped("wildrobot-stand"), task("wildrobot-walk"))
    assert [*found.networks] == ["actor"]
    assert "comes without its critic" in capsys.readouterr().out
    trained = found.network("actor")
    assert trained.layers[0].weight.shape[1] == found.contract.obs_size()


def test_a_policy_whose_critic_sees_actions_is_refused(box):
    with pytest.raises(ContractError, match="was trained by sac: only ppo's are taken over"):
        transfer.adapted(replace(box, algorithm="sac"), task("dexhand-blind"))


def test_only_a_name_of_what_is_shipped_is_taken():
    for name in ("../policies/dexhand-box", "x" * 300, "dexhand-bxo"):
        with pytest.raises(DeftlyError) as caught:
            shipped(name)
        assert "no policy is shipped for" in str(caught.value)
        assert len(str(caught.value)) < 250
    assert "did you mean 'dexhand-box'" in str(caught.value)


def test_another_robots_policy_is_refused(box):
    with pytest.raises(DeftlyError, match="made under another contract"):
        transfer.adapted(box, task("jaka-pick-cube"))


def test_the_same_task_and_a_mirrored_hand_take_it_as_it_is(box):
    assert transfer.adapted(box, task("dexhand-box")) is box
    right = shipped("leap-right-cube-rotate")
    assert transfer.adapted(right, task("leap-left-cube-rotate")) is right


def test_a_task_without_a_shipped_policy_is_named():
    with pytest.raises(DeftlyError, match="no policy is shipped for nothing-of-the-kind"):
        shipped("nothing-of-the-kind")
