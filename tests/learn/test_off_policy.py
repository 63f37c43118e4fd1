"""SAC, DDPG and TD3: what they learn from, what they explore with, and that they learn and resume."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.distributions import Normal, TanhTransform, TransformedDistribution

from deftly import workspace
from deftly.commands.train import main
from deftly.config import ALGORITHMS, OffPolicyConfig, RunsConfig, TrainArgs, defaults_under
from deftly.errors import DeftlyError
from deftly.learn.learner import make_learner
from deftly.learn.networks import Network, NetworkSpec

RAIL = Path(__file__).parents[1] / "assets/rail.py"
OFF_POLICY = ("sac", "ddpg", "td3")
SMALL = {"steps": 4, "hidden": (16,), "batch": 16, "buffer": 400, "learning_starts": 20}


def settings(algorithm, **changes):
    return ALGORITHMS[algorithm](**{**SMALL, **changes})


@pytest.fixture(params=OFF_POLICY)
def algorithm(request):
    return request.param


def learner_of(slider, algorithm, num_envs=4, **changes):
    return make_learner(slider(num_envs), settings(algorithm, **changes))


# ------------------------------------------------------------------ the squashed Gaussian


def test_the_squashed_gaussian_is_torchs():
    torch.manual_seed(0)
    network = Network(NetworkSpec({"policy": 3}, 2, (8,), head="squashed_gaussian"))
    x = torch.randn(50, 3)
    with torch.no_grad():
        actions, log_probs = network.squashed(x, torch.Generator().manual_seed(1))
        mean, log_std = network.layers(network.normalizer(x)).chunk(2, -1)
        base = Normal(mean, log_std.clamp(-5, 2).exp())
        expected = TransformedDistribution(base, TanhTransform()).log_prob(actions).sum(-1)
        assert torch.allclose(log_probs, expected, atol=1e-3)
        assert torch.equal(network(x), mean.tanh())
    assert float(actions.abs().max()) < 1.0


def test_a_density_stays_finite_where_the_tanh_is_flat():
    network = Network(NetworkSpec({"policy": 1}, 1, (), head="squashed_gaussian"))
    with torch.no_grad():
        network.layers[0].weight.zero_()
        network.layers[0].bias.copy_(torch.tensor([40.0, -5.0]))
    actions, log_probs = network.squashed(torch.zeros(4, 1))
    assert torch.equal(actions, torch.ones(4, 1))
    assert log_probs.isfinite().all()


@pytest.mark.parametrize("head", ["plain", "tanh"])
def test_a_head_without_a_distribution_draws_its_output(head):
    network = Network(NetworkSpec({"policy": 3}, 2, (8,), head=head))
    x = torch.randn(5, 3)
    assert torch.equal(network.draw(x), network(x))


# ------------------------------------------------------------------ collecting


def test_actions_are_random_until_learning_starts(slider, algorithm):
    learner = learner_of(slider, algorithm, learning_starts=16 * 4, steps=16)
    seen = watch_actions(learner)
    before = [p.clone() for p in learner.actor.parameters()]
    learner.iterate()
    actions = torch.stack(seen)
    assert float(actions.abs().max()) <= 1.0
    assert 0.5 < float(actions.std()) < 0.66  # uniform: 0.577
    assert all(torch.equal(a, b) for a, b in zip(before, learner.actor.parameters())) is (
        learner.updates == 0
    )
    assert learner.updates == learner.settings.updates  # after the last control step


def test_a_policy_that_was_brought_explores_by_itself(slider, algorithm):
    learner = learner_of(slider, algorithm, keep_normalizer=True, learning_starts=400)
    torch.nn.init.zeros_(learner.actor.layers[-1].weight)
    with torch.no_grad():
        learner.actor.layers[-1].bias.copy_(
            torch.tensor([0.5, 0.5, -4.0, -4.0]) if algorithm == "sac" else torch.tensor([0.5, 0.5])
        )
    seen = watch_actions(learner)
    mean = learner.actor.normalizer.mean.clone()
    learner.iterate()
    quiet = torch.stack(seen)[:, 0]  # the environment with the least noise
    assert torch.allclose(quiet, torch.tensor(0.5).tanh().expand_as(quiet), atol=0.25)
    assert torch.equal(learner.actor.normalizer.mean, mean)


def test_environments_explore_with_noise_of_different_size(slider):
    learner = learner_of(slider, "ddpg", noise=(0.0, 0.3))
    obs = learner.env.obs
    draws = torch.stack([learner.explore(obs) for _ in range(300)])
    with torch.no_grad():
        mean = learner.actor(learner.actor.gather(obs))
    assert torch.equal(draws[:, 0], mean[0].expand_as(draws[:, 0]))
    assert draws.std(0).mean(-1).tolist() == pytest.approx([0.0, 0.1, 0.2, 0.3], abs=0.04)


def test_the_true_end_of_an_episode_is_kept(slider, algorithm):
    learner = make_learner(
        slider(2, env={"episode_steps": 3}, goal=-1.0), settings(algorithm, learning_starts=400)
    )
    steps = []
    step = learner.env.step
    learner.env.step = lambda action: steps.append(step(action)) or steps[-1]
    learner.iterate()
    assert steps[2].truncated.all()
    columns = learner.buffer.state_dict()
    assert torch.equal(columns["next_obs/critic"][2], steps[2].final_obs["critic"])
    assert not torch.equal(columns["next_obs/critic"][2], steps[2].obs["critic"])
    assert torch.equal(columns["obs/critic"][3], steps[2].obs["critic"])
    assert columns["ended"][2].all()
    assert not columns["terminated"][2].any()


def watch_actions(learner):
    seen = []
    step = learner.env.step
    learner.env.step = lambda action: seen.append(action.clone()) or step(action)
    return seen


# ------------------------------------------------------------------ gradient steps


def prepared(slider, algorithm, **changes):
    """A learner with some transitions and target networks that differ from its networks, and a batch."""
    learner = learner_of(slider, algorithm, learning_starts=0, **changes)
    learner.iterate()
    cfg = learner.settings
    return learner, learner.buffer.sample(32, cfg.n_step, cfg.gamma, learner.generator)


def critic_loss(learner, batch, next_value):
    target = batch.returns + batch.discounts * next_value
    inputs = torch.cat((batch.obs["critic"], batch.actions), -1)
    with torch.no_grad():
        errors = [critic(inputs).squeeze(-1) - target for critic in learner.critics]
    return float(sum(error.square().mean() for error in errors))


def target_values(learner, obs, actions):
    inputs = torch.cat((obs["critic"], actions), -1)
    return [
        learner.targets[name](inputs).squeeze(-1) for name in learner.targets if name != "actor"
    ]


def test_the_critics_of_sac_learn_the_soft_value(slider):
    learner, batch = prepared(slider, "sac")
    learner.generator.manual_seed(5)
    with torch.no_grad():
        actions, log_probs = learner.actor.squashed(
            batch.next_obs["policy"], torch.Generator().manual_seed(5)
        )
        one, two = target_values(learner, batch.next_obs, actions)
        soft = torch.minimum(one, two) - learner.log_temperature.exp() * log_probs
    expected = critic_loss(learner, batch, soft)
    found = learner.learn(batch)
    assert float(found["loss/critic"]) == pytest.approx(expected, rel=1e-4)
    assert {"temperature", "entropy", "q", "loss/actor"} <= found.keys()


def test_the_critic_of_ddpg_learns_the_value_of_the_target_policy(slider):
    learner, batch = prepared(slider, "ddpg")
    with torch.no_grad():
        actions = learner.targets["actor"](batch.next_obs["policy"])
        (value,) = target_values(learner, batch.next_obs, actions)
    expected = critic_loss(learner, batch, value)
    assert float(learner.learn(batch)["loss/critic"]) == pytest.approx(expected, rel=1e-4)


def test_the_critics_of_td3_learn_the_lesser_value_of_noisy_actions(slider):
    learner, batch = prepared(slider, "td3", target_noise=0.3, target_noise_clip=0.2)
    learner.generator.manual_seed(5)
    with torch.no_grad():
        mean = learner.targets["actor"](batch.next_obs["policy"])
        noise = 0.3 * torch.randn(mean.shape, generator=torch.Generator().manual_seed(5))
        actions = (mean + noise.clamp(-0.2, 0.2)).clamp(-1, 1)
        value = torch.minimum(*target_values(learner, batch.next_obs, actions))
    expected = critic_loss(learner, batch, value)
    assert float(learner.learn(batch)["loss/critic"]) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("algorithm", ["ddpg", "td3"])
def test_large_actions_have_a_price(slider, algorithm):
    learner, batch = prepared(slider, algorithm, action_l2=0.5)
    learner.updates = 0
    learner.learn_critics = lambda *_: {}
    with torch.no_grad():
        actions = learner.actor(batch.obs["policy"])
        value = learner.values(learner.critics[:1], batch.obs, actions).mean()
    expected = 0.5 * actions.square().mean() - value
    assert float(learner.learn(batch)["loss/actor"]) == pytest.approx(float(expected), rel=1e-4)


def test_the_actor_of_td3_learns_less_often(slider):
    learner = learner_of(slider, "td3", learning_starts=0, policy_delay=3, updates=1, steps=1)
    learner.iterate()
    changes = []
    for _ in range(6):
        before = [p.clone() for p in learner.actor.parameters()]
        learner.iterate()
        changes.append(
            not all(torch.equal(a, b) for a, b in zip(before, learner.actor.parameters()))
        )
    assert sum(changes) == 2


def test_an_actors_step_leaves_the_critics_alone(slider, algorithm):
    learner, batch = prepared(slider, algorithm)
    learner.updates = 0
    learner.learn_critics = lambda *_: {}
    before = [p.clone() for critic in learner.critics for p in critic.parameters()]
    actor = [p.clone() for p in learner.actor.parameters()]
    learner.learn(batch)
    after = [p for critic in learner.critics for p in critic.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(before, after))
    assert not all(torch.equal(a, b) for a, b in zip(actor, learner.actor.parameters()))


def test_target_networks_follow_by_tau(slider, algorithm):
    learner, batch = prepared(slider, algorithm, tau=0.25)
    name = "critic_1"
    slow = [p.clone() for p in learner.targets[name].parameters()]
    learner.learn(batch)
    learner._follow()
    for before, after, fast in zip(
        slow, learner.targets[name].parameters(), learner.networks[name].parameters()
    ):
        assert torch.allclose(after, before + 0.25 * (fast - before), atol=1e-6)
        assert not after.requires_grad


def test_the_temperature_rises_when_the_entropy_is_below_its_target(slider):
    for target, sign in ((5.0, 1), (-50.0, -1)):
        learner, batch = prepared(slider, "sac", target_entropy=target, learning_rate=1e-2)
        before = learner.log_temperature.item()
        learner.learn(batch)
        assert sign * (learner.log_temperature.item() - before) > 0


def test_actions_are_not_normalized_by_the_critics(slider, algorithm):
    learner, _ = prepared(slider, algorithm)
    for network in (*learner.critics, *learner._target_critics):
        size = learner.env.contract.action_size
        assert torch.equal(network.normalizer.mean[-size:], torch.zeros(size))
        assert torch.equal(network.normalizer.var[-size:], torch.ones(size))
        assert not torch.equal(network.normalizer.mean[:-size], torch.zeros(1))


def test_layer_normalization_is_the_critics_alone(slider, algorithm):
    learner, _ = prepared(slider, algorithm, layer_norm=True)
    assert not learner.actor.spec.layer_norm
    for network in (*learner.critics, *learner._target_critics):
        assert network.spec.layer_norm
        assert any(isinstance(layer, torch.nn.LayerNorm) for layer in network.layers)


# ------------------------------------------------------------------ a training


def test_it_learns_to_push_the_block_home(slider, algorithm):
    """The mean reward of random actions is exceeded clearly, on one seed that is fixed."""
    env = slider(16, env={"episode_steps": 10}, stop_on_success=False)
    env.stagger()
    learner = make_learner(
        env,
        settings(
            algorithm,
            hidden=(32, 32),
            batch=64,
            buffer=5000,
            learning_starts=200,
            steps=10,
            learning_rate=3e-3,
        ),
    )
    rewards = []
    for _ in range(10):
        learner.iterate()
        if found := env.progress():
            rewards.append(found["reward_per_step"])
    first, last = sum(rewards[:2]) / 2, sum(rewards[-3:]) / 3
    assert last > first + 0.05


def test_metrics_are_those_it_names(slider, algorithm):
    learner = learner_of(slider, algorithm, learning_starts=0)
    assert learner.iterate().keys() == set(learner.metric_names)


def words(algorithm, *more):
    return (
        *("--train.algorithm", algorithm, "--train.steps", "4", "--train.hidden", "8"),
        *("--train.batch", "16", "--train.buffer", "96", "--train.learning-starts", "40"),
        *("--env.num-envs", "8", "--env.episode-steps", "6", "--sim.threads", "1"),
        *("--eval-every", "0", "--tensorboard", "False", "--log-level", "warning", *more),
    )


def trained(tiny, algorithm, iterations, *more):
    given = words(algorithm, "--train.max-iterations", str(iterations), *more)
    return main([str(tiny.task), *given, "--runs.root", str(tiny.root)])


def test_resume_is_bit_identical(tiny_at, tmp_path, algorithm):
    """With a buffer that is overwritten meanwhile."""
    whole, parts = tiny_at(tmp_path / "whole"), tiny_at(tmp_path / "parts")
    assert trained(whole, algorithm, 6) == 0
    assert trained(parts, algorithm, 3) == 0
    again = [str(parts.task), "--resume", "latest", "--train.max-iterations", "6"]
    assert main([*again, "--runs.root", str(parts.root)]) == 0
    one, two = whole.weights(), parts.weights()
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)
    state, other = (load_file(t.path() / "state.safetensors") for t in (whole, parts))
    assert state.keys() == other.keys()
    assert all(torch.equal(state[name], other[name]) for name in state)


def test_the_policy_is_the_moving_average_of_the_actor(slider, algorithm):
    """It is what a checkpoint keeps and an evaluation measures; the actor learns and explores."""
    learner = learner_of(slider, algorithm, average=0.5)
    follow, averages = learner._follow, [learner.networks["actor"].layers[0].weight.clone()]

    def watched():
        decay = min(0.5, (1 + learner.updates) / (10 + learner.updates))
        newest = learner.actor.layers[0].weight.detach()
        averages.append(decay * averages[-1] + (1 - decay) * newest)
        follow()

    learner._follow = watched
    for _ in range(3):
        learner.iterate()
    assert learner.updates > 2
    policy = learner.policy().actor
    assert policy is learner.networks["actor"]
    assert torch.allclose(policy.layers[0].weight, averages[-1], atol=1e-6)
    assert not torch.equal(policy.layers[0].weight, learner.actor.layers[0].weight)
    assert torch.equal(policy.normalizer.mean, learner.actor.normalizer.mean)


def test_a_training_goes_on_without_its_average(tiny):
    """From the newest weights, not from those that were evaluated."""
    assert trained(tiny, "td3", 2, "--train.average", "0.9") == 0
    state = load_file(tiny.path() / "state.safetensors")
    (newest,) = (state[name] for name in state if name.endswith("learning/actor/layers.0.weight"))
    stop = ("--train.max-iterations", "3", "--train.learning-rate", "1e-12", "--train.average", "0")
    where = ("--runs.root", str(tiny.root), "--train.algorithm", "td3")
    assert main([str(tiny.task), "--resume", "latest", *stop, *where]) == 0
    assert torch.allclose(tiny.weights()["actor/layers.0.weight"], newest, atol=1e-6)


def test_a_training_with_an_average_resumes_bit_for_bit_and_from_one_without(tiny_at, tmp_path):
    whole, parts = tiny_at(tmp_path / "whole"), tiny_at(tmp_path / "parts")
    average = ("--train.average", "0.9")
    assert trained(whole, "td3", 4, *average) == 0
    assert trained(parts, "td3", 2, *average) == 0
    again = ["--resume", "latest", "--train.max-iterations", "4", "--runs.root", str(parts.root)]
    assert main([str(parts.task), *again]) == 0
    one, two = (load_file(t.path() / "state.safetensors") for t in (whole, parts))
    assert any("learning/actor/" in name for name in one)
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert all(
        torch.equal(whole.weights()[name], parts.weights()[name]) for name in parts.weights()
    )

    plain = tiny_at(tmp_path / "plain")
    assert trained(plain, "td3", 2) == 0
    on = ["--train.algorithm", "td3", *average, "--runs.root", str(plain.root)]
    assert main([str(plain.task), "--resume", "latest", "--train.max-iterations", "3", *on]) == 0
    state = load_file(plain.path() / "state.safetensors")
    (newest,) = (state[name] for name in state if name.endswith("learning/actor/layers.0.weight"))
    assert not torch.equal(newest, plain.weights()["actor/layers.0.weight"])


@pytest.mark.parametrize(
    "algorithm", ["sac", *(pytest.param(name, marks=pytest.mark.slow) for name in ("ddpg", "td3"))]
)
def test_its_checkpoint_says_the_algorithm_and_is_exported(tiny, algorithm, capsys):
    from deftly.commands.check import main as check
    from deftly.commands.export import main as export

    tiny.task = RAIL
    assert trained(tiny, algorithm, 3) == 0
    path = workspace.find_checkpoint("latest:last", "rail", RunsConfig(root=tiny.root))
    about = json.loads((path / "checkpoint.json").read_text())
    assert about["algorithm"] == algorithm
    out = tiny.root / "bundle"
    given = ["--out", str(out), "--episodes", "4", "--runs.root", str(tiny.root)]
    assert export([str(tiny.task), *given]) == 0
    assert check([str(out)]) == 0


@pytest.mark.parametrize("flag", ["--init", "--resume"])
def test_a_checkpoint_of_another_algorithm_is_refused(tiny, flag):
    assert tiny.train(1) == 0
    with pytest.raises(DeftlyError) as caught:
        trained(tiny, "sac", 2, flag, str(tiny.path()))
    assert "--train.algorithm ppo" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_it_starts_from_weights(tiny, algorithm):
    assert trained(tiny, algorithm, 3) == 0
    start = tiny.path()
    before = load_file(start / "weights.safetensors")
    late = ("--train.learning-starts", "9999", "--train.buffer", "20000")
    assert trained(tiny, algorithm, 1, "--init", str(start), *late) == 0
    after = tiny.weights()
    assert tiny.path() != start
    learned = [name for name in before if "actor" in name]
    assert all(torch.equal(before[name], after[name]) for name in learned)


def test_a_buffer_that_never_holds_what_learning_waits_for_is_refused():
    wait = OffPolicyConfig(buffer=1000, learning_starts=960)
    wait.require_for(64)
    with pytest.raises(DeftlyError, match=r"learning-starts is 961, but .* more than 960 transit"):
        replace(wait, learning_starts=961).require_for(64)


def test_a_buffer_that_is_too_short_is_refused():
    with pytest.raises(DeftlyError, match=r"train\.buffer is 100, but must hold at least 2048"):
        TrainArgs(train=replace(settings("sac"), buffer=100))


def test_hindsight_needs_goals(slider, algorithm):
    with pytest.raises(DeftlyError, match=r"train\.hindsight is 0\.5, but slider has no goals"):
        learner_of(slider, algorithm, hindsight=0.5)


def test_a_tasks_settings_are_those_of_the_algorithm():
    defaults = {"env": {"num_envs": 7}, "train": {"steps": 3}, "sac": {"batch": 5}}
    assert defaults_under("ppo", defaults) == {"env": {"num_envs": 7}, "train": {"steps": 3}}
    assert defaults_under("sac", defaults) == {"env": {"num_envs": 7}, "train": {"batch": 5}}
    assert defaults_under("td3", defaults) == {"env": {"num_envs": 7}, "train": {}}
    own = {"train": {"algorithm": "sac", "batch": 4}}
    assert defaults_under("sac", own) == own
    assert defaults_under("ppo", own) == {"train": {}}
