"""Networks: built from their description, statistics of the normalizer, the Gaussian head."""

from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributions import Normal, kl_divergence

from deftly.config.sections import Activation
from deftly.errors import DeftlyError
from deftly.learn.networks import (
    ACTIVATIONS,
    Network,
    NetworkSpec,
    Normalizer,
    Policy,
    build,
    gaussian_entropy,
    gaussian_kl,
    gaussian_log_prob,
)
from deftly.learn.ranks import Ranks

SPEC = NetworkSpec({"state": 3, "touch": 2}, 4, (8, 6), "tanh", head="gaussian")


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_a_network_is_rebuilt_from_its_description(activation):
    spec = NetworkSpec({"state": 3}, 2, (5,), activation)
    network = Network(spec)
    network.normalizer.update(torch.randn(50, 3) * 3 + 1, Ranks())  # type: ignore[operator]
    again = build(NetworkSpec.from_json(spec.to_json()), network.state_dict())
    x = torch.randn(7, 3)
    assert torch.equal(network(x), again(x))
    assert again.spec == spec


def test_layer_normalization_is_described_where_there_is_some():
    spec = NetworkSpec({"state": 3}, 2, (5, 4), "relu", layer_norm=True)
    network = Network(spec)
    again = build(NetworkSpec.from_json(spec.to_json()), network.state_dict())
    x = torch.randn(7, 3)
    assert torch.equal(network(x), again(x))
    first, norm, _ = network.layers[:3]
    rows = norm(first(network.normalizer(x)))
    assert torch.allclose(rows.mean(-1), torch.zeros(7), atol=1e-6)
    assert torch.allclose(rows.std(-1, unbiased=False), torch.ones(7), atol=1e-3)
    without = NetworkSpec({"state": 3}, 2, (5, 4), "relu").to_json()
    assert "layer_norm" not in without  # as in checkpoints of before
    assert not NetworkSpec.from_json(without).layer_norm


def test_the_settings_know_the_same_activations():
    assert set(get_args(Activation)) == set(ACTIVATIONS)


def test_building_draws_nothing():
    network = Network(SPEC)
    torch.manual_seed(3)
    before = torch.get_rng_state()
    build(SPEC, network.state_dict())
    assert torch.equal(before, torch.get_rng_state())


def test_groups_are_concatenated_in_their_order():
    network = Network(SPEC)
    obs = {"touch": torch.ones(1, 2), "other": torch.ones(1, 9), "state": torch.zeros(1, 3)}
    assert network.gather(obs).tolist() == [[0, 0, 0, 1, 1]]
    policy = Policy(network)
    assert torch.equal(policy(obs), policy(network.gather(obs)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "rnn"}, "kind 'rnn'"),
        ({"activation": "foo"}, "must be one of elu"),
        ({"hidden": [10**9]}, "cannot be built"),
        ({"hidden": [0]}, "cannot be built"),
        ({"hidden": [8] * 1000}, "cannot be built"),
        ({"hidden": "ab"}, "cannot be built"),
        ({"hidden": 3}, "incomplete"),
        ({"outputs": True}, "cannot be built"),
        ({"inputs": {}}, "cannot be built"),
        ({"inputs": [1]}, "incomplete"),
        ({"head": "beta"}, "does not know"),
        ({"normalizer": None}, "does not know"),
        ({"layer_norm": "yes"}, "not true or false"),
    ],
)
def test_a_description_that_is_none_is_refused_in_one_line(change, message):
    with pytest.raises(DeftlyError, match=message) as error:
        NetworkSpec.from_json({**SPEC.to_json(), **change})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("data", [None, [], "mlp", {}, {"kind": "mlp"}])
def test_what_is_no_description_is_refused(data):
    with pytest.raises(DeftlyError, match="incomplete"):
        NetworkSpec.from_json(data)


def test_weights_of_another_network_are_refused_before_anything_is_allocated():
    weights = Network(SPEC).state_dict()
    wide = NetworkSpec({"state": 5}, 4, (60_000, 60_000, 60_000), head="gaussian")
    with pytest.raises(
        DeftlyError, match=r"layers\.0\.bias is \[8\] float32, the network has \[60000\]"
    ):
        build(wide, weights)
    with pytest.raises(DeftlyError, match=r"std is missing, the network has \[4\]"):
        build(SPEC, {name: value for name, value in weights.items() if name != "std"})
    with pytest.raises(DeftlyError, match="float64"):
        build(SPEC, {name: value.double() for name, value in weights.items()})


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(2, 20), min_size=1, max_size=4), st.floats(-5, 5), st.floats(0.1, 10))
def test_the_normalizer_knows_mean_and_variance_of_all_rows(sizes, offset, scale):
    torch.manual_seed(0)
    normalizer = Normalizer(3)
    parts = [offset + scale * torch.randn(size, 3) for size in sizes]
    for part in parts:
        normalizer.update(part, Ranks())
    rows = torch.cat(parts)
    assert int(normalizer.count) == len(rows)
    assert torch.allclose(normalizer.mean, rows.mean(0), atol=1e-4)
    assert torch.allclose(normalizer.var, rows.var(0, unbiased=False), rtol=1e-3, atol=1e-4)


def test_what_never_varies_stays_finite():
    normalizer = Normalizer(1)
    normalizer.update(torch.full((100, 1), 7.0), Ranks())
    assert normalizer(torch.tensor([[7.0]])).abs().max() < 1e-3


def test_the_gaussian_is_torchs():
    means, old_means, actions = torch.randn(3, 5, 4)
    std, old_std = 0.1 + torch.rand(2, 4)
    assert torch.allclose(
        gaussian_log_prob(actions, means, std), Normal(means, std).log_prob(actions).sum(-1)
    )
    assert torch.allclose(gaussian_entropy(std), Normal(means, std).entropy().sum(-1)[0])
    expected = kl_divergence(Normal(old_means, old_std), Normal(means, std)).sum(-1)
    assert torch.allclose(gaussian_kl(old_means, old_std, means, std), expected, atol=1e-5)


def test_a_stochastic_action_has_the_bounded_standard_deviation():
    network = Network(SPEC, init_std=9.0)
    policy, x = Policy(network), torch.zeros(20_000, 5)
    torch.manual_seed(0)
    assert torch.allclose(
        (policy(x, stochastic=True) - policy(x)).std(0), torch.full((4,), 2.0), rtol=0.03
    )
    assert torch.equal(policy(x), network(x))


SEES = NetworkSpec(
    {"policy": 3},
    2,
    (8,),
    head="gaussian",
    images={"front": (16, 12), "wrist": (8, 8)},
    filters=((4, 5, 2), (6, 3, 1)),
)


def seen(count: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    images = {
        name: torch.randint(0, 256, (count, *size, 3), generator=generator, dtype=torch.uint8)
        for name, size in SEES.images.items()
    }
    return {"policy": torch.randn(count, 3, generator=generator), **images}


def test_a_network_that_sees_is_rebuilt_from_its_description():
    network = Network(SEES)
    again = build(NetworkSpec.from_json(SEES.to_json()), network.state_dict())
    assert again.spec == SEES
    assert torch.equal(Policy(network)(seen(5)), Policy(again)(seen(5)))
    assert Policy(network)(seen(5)).shape == (5, 2)
    assert SEES.to_json()["kind"] == "cnn"
    assert SPEC.to_json().keys().isdisjoint({"images", "filters"})  # as older versions read it


def test_each_image_has_an_encoder_of_its_own():
    policy, obs = Policy(Network(SEES)), seen(3)
    for group in SEES.images:
        assert not torch.equal(policy(obs), policy({**obs, group: 255 - obs[group]}))
    swapped = {**obs, "policy": obs["policy"] + 1.0}
    assert not torch.equal(policy(obs), policy(swapped))


def test_a_spatial_softmax_says_where_a_filter_answers():
    spec = NetworkSpec({"policy": 1}, 1, (4,), images={"eye": (9, 17)}, filters=((1, 1, 1),))
    encoder = Network(spec).encoders[0]
    with torch.no_grad():
        encoder.convolutions[0].weight.fill_(10.0)  # type: ignore[union-attr, index]
        encoder.convolutions[0].bias.zero_()  # type: ignore[union-attr, index]
    images = torch.zeros(3, 9, 17, 3, dtype=torch.uint8)
    for image, (row, column) in zip(images, ((0, 0), (4, 8), (8, 12))):
        image[row, column] = 255
    expected = torch.tensor([[-1.0, -1.0], [0.0, 0.0], [0.5, 1.0]])  # x, y
    assert torch.allclose(encoder(images), expected, atol=1e-4)


def test_a_draw_of_a_network_that_sees_is_around_its_mean():
    policy = Policy(Network(SEES, init_std=0.1))
    draws = torch.stack([policy(seen(3), stochastic=True) for _ in range(200)])
    assert torch.allclose(draws.mean(0), policy(seen(3)), atol=0.05)
    assert draws.std(0).mean() == pytest.approx(0.1, abs=0.02)


@pytest.mark.parametrize(
    "change",
    [
        {"images": {"front": [10**9, 8]}},
        {"images": {"front": [8]}},
        {"images": {"front": [8, 0]}},
        {"images": {"front": [8.0, 8]}},
        {"images": {"front": 8}},
        {"images": [8, 8]},
        {"images": {str(i): [8, 8] for i in range(1000)}},
        {"filters": []},
        {"filters": [[16, 5]]},
        {"filters": [[10**6, 3, 1]]},
        {"filters": [[16, 10**6, 1]]},
        {"filters": [[16, 3, 4]]},
        {"filters": [[16, 3, 0]]},
        {"filters": [[16, 3, True]]},
        {"filters": [[4, 3, 1]] * 1000},
        {"filters": None},
    ],
)
def test_a_description_of_images_that_is_none_is_refused_in_one_line(change):
    with pytest.raises(DeftlyError, match=r"cannot be built|incomplete") as error:
        NetworkSpec.from_json({**SEES.to_json(), **change})
    assert "\n" not in str(error.value)
