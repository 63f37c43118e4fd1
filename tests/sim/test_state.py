"""What tasks read and write by name, on a robot whose floating base comes first in `qpos`."""

from pathlib import Path

import pytest
import torch

from deftly.config import EnvConfig, SimConfig
from deftly.contract import Act, Joint, Observe, PolicyContract, RobotInterface, Signal
from deftly.env import Env
from deftly.errors import DeftlyError
from deftly.sim.rows import Rows
from deftly.tasks import load

N = 6
FILE = str(Path(__file__).parents[1] / "assets/floating.py")


@pytest.fixture
def env() -> Env:
    cls = load(FILE)
    return Env(cls(cls.Config()), EnvConfig(num_envs=N), SimConfig(threads=1), 1)


def half() -> torch.Tensor:
    return torch.arange(N) % 2 == 0


def address(env: Env, joint: str) -> int:
    return int(env.model.joint(joint).qposadr[0])


def test_joints_are_the_contracts_in_its_order_wherever_they_stand(env):
    for k, name in enumerate(("right_hip", "left_hip")):
        assert torch.equal(env.state.joint_pos[:, k], env.sim.bind("qpos")[:, address(env, name)])
    env.sim.bind("qvel")[:, int(env.model.joint("left_hip").dofadr[0])] = 3.0
    assert env.state.joint_vel[:, 1].tolist() == [3.0] * N
    assert not env.state.joint_vel[:, 0].any()


def test_a_reset_commands_the_joints_where_they_are_and_not_the_base(env):
    ctrl = env.sim.bind("ctrl")
    assert torch.allclose(
        ctrl[:, env.model.actuator("right_hip").id], env.state.joint_pos[:, 0], atol=1e-6
    )
    assert torch.allclose(
        ctrl[:, env.model.actuator("left_hip").id], env.state.joint_pos[:, 1], atol=1e-6
    )
    assert env.state.command == pytest.approx(env.state.joint_pos.float())
    base = env.state.pose("base")
    assert torch.allclose(base[:, :3], torch.tensor([0.3, 0.0, 0.5], dtype=torch.float64))
    home = torch.tensor([0.4, -0.2], dtype=torch.float64)
    assert ((env.state.joint_pos - home).abs() <= 0.3).all()
    assert len(set(env.state.joint_pos[:, 0].tolist())) == N


def test_commands_go_to_the_joints_of_their_names(env):
    env.step(torch.tensor([[1.0, -1.0]]).repeat(N, 1))
    before = env.state.command.clone()
    env.step(torch.tensor([[1.0, 0.0]]).repeat(N, 1))
    ctrl = env.sim.bind("ctrl").float()
    assert torch.equal(ctrl[:, env.model.actuator("right_hip").id], env.state.command[:, 0])
    assert torch.allclose(env.state.command[:, 1], before[:, 1])


def test_joint_positions_are_written_where_the_mask_is(env):
    before, mask = env.sim.bind("qpos").clone(), half()
    env.state.set_joint_pos(mask, torch.full((N, 2), 0.7))
    changed = env.sim.bind("qpos") != before
    assert changed.any(1).tolist() == mask.tolist()
    columns = sorted(address(env, name) for name in ("right_hip", "left_hip"))
    assert changed[0].nonzero().flatten().tolist() == columns


def test_free_bodies_and_mocap_bodies_are_placed(env):
    s, mask = env.state, half()
    there = torch.tensor([0.5, 1.0, 0.2]).repeat(N, 1)
    turned = torch.tensor([0.0, 1.0, 0.0, 0.0]).repeat(N, 1)
    s.place("ball", mask, there, turned)
    s.place("marker", mask, there)
    env.sim.forward()
    for body in ("ball", "marker"):
        assert torch.isclose(s.body(body), there.double()).all(1).tolist() == mask.tolist(), body
    assert torch.equal(s.orientation("ball")[0], turned[0].double())
    assert torch.equal(s.pose("ball")[mask][:, 3:], turned[mask].double())
    assert s.orientation("marker")[0].tolist() == [1, 0, 0, 0]


def test_a_free_body_is_named_not_its_joint(env):
    env.sim.bind("qvel")[:, -6:] = torch.arange(6.0).double()
    assert env.state.velocity("ball")[0].tolist() == [0, 1, 2, 3, 4, 5]
    with pytest.raises(DeftlyError, match="body 'left' is not free"):
        env.state.pose("left")
    with pytest.raises(DeftlyError, match="joint 'ball_joint' is no hinge or slide"):
        env.state.joint("ball_joint")
    with pytest.raises(DeftlyError, match="Invalid name 'bal'"):
        env.state.body("bal")


def test_several_bodies_are_read_at_once_wherever_they_stand(env):
    """In one piece they are live views, else copies; both have the order that was asked for."""
    s = env.state
    for names in (("base", "left", "right"), ("ball", "left"), ("right", "left"), ("ball",)):
        assert torch.equal(s.bodies(names), torch.stack([s.body(name) for name in names], 1))
    for names in (("base", "ball"), ("ball", "base"), ("ball",)):
        assert torch.equal(s.poses(names), torch.stack([s.pose(name) for name in names], 1))
        each = torch.stack([s.velocity(name) for name in names], 1)
        assert torch.equal(s.velocities(names), each)
    live = s.poses(("ball",))
    s.pose("ball")[:, 0] = 7.0
    assert live[:, 0, 0].tolist() == [7.0] * N


@pytest.mark.parametrize("names", [("base", "ball"), ("ball", "base"), ("ball",)])
def test_one_of_several_bodies_is_placed_wherever_they_stand(env, names):
    s = env.state
    which = torch.arange(N) % len(names)
    before = s.poses(names).clone()
    pose = torch.arange(7.0 * N, dtype=torch.float64).view(N, 7)
    s.place_one(names, which, half(), pose)
    for i in range(N):
        for k, name in enumerate(names):
            placed = bool(half()[i]) and k == int(which[i])
            assert torch.equal(s.pose(name)[i], pose[i] if placed else before[i, k])


def test_parameters_are_each_environments_own(env):
    env.state.parameter("geom_size", "ball")[2, 0] = 0.2
    assert env.state.parameter("geom_size", "ball")[:, 0].tolist() == [0.1, 0.1, 0.2, 0.1, 0.1, 0.1]
    assert env.sim.model_of(2).geom("ball").size[0] == 0.2
    assert env.model.geom("ball").size[0] == 0.1
    with pytest.raises(DeftlyError, match="knows fields of"):
        env.state.parameter("qpos0", "ball")


def test_what_is_remembered_is_written_where_the_mask_is(env):
    s = env.state
    s.remember("place", half(), s.body("base") + 1)
    assert s.store["place"].any(1).tolist() == half().tolist()
    s.remember("when", ~half(), torch.nan)
    assert s.store["when"].isnan().tolist() == (~half()).tolist()


def test_draws_are_for_the_environments_of_the_mask_alone(env):
    """An episode's draws do not depend on how many others there are: nobody draws but who starts."""
    s = env.state
    s.generator.manual_seed(3)
    few = s.uniform(half(), 2.0, 3.0, 4)[half()]
    after = torch.rand(1, generator=s.generator)
    s.generator.manual_seed(3)
    assert torch.equal(few, 2.0 + torch.rand(3, 4, generator=s.generator, dtype=torch.float64))
    assert torch.equal(after, torch.rand(1, generator=s.generator))


def test_a_part_has_some_environments_alone_and_is_written_back(env):
    s = env.state
    s.remember("when", half(), 1.0)
    env.step(torch.full((N, 2), 0.5))
    before = {"qpos": env.sim.bind("qpos").clone(), "action": s.action.clone()}
    part, mask = s.part(Rows(half()))
    assert part.num_envs == 3
    assert mask.tolist() == [True] * 3
    assert torch.equal(part.joint_pos, s.joint_pos[half()])
    assert torch.equal(part.body("base"), s.body("base")[half()])
    assert torch.equal(part.action, s.action[half()])
    part.set_joint_pos(mask, torch.zeros_like(part.joint_pos))
    part.remember("when", mask, 7.0)
    part.remember("new", torch.tensor([True, False, False]), part.body("base"))
    part.sim.bind("xfrc_applied")[:, 1, 0] = 3.0
    part.parameter("geom_size", "ball")[1, 0] = 0.2
    assert torch.equal(env.sim.bind("qpos"), before["qpos"])  # nothing yet
    part.write_back()
    assert (s.joint_pos == 0).all(1).tolist() == half().tolist()
    others = env.sim.bind("qpos")[~half()]
    assert torch.equal(others, before["qpos"][~half()])
    assert s.store["when"].tolist() == [7.0, 0.0] * 3
    assert s.store["new"].any(1).tolist() == [True] + [False] * 5
    assert env.sim.bind("xfrc_applied")[:, 1, 0].tolist() == [3.0, 0.0] * 3
    assert s.parameter("geom_size", "ball")[:, 0].tolist() == [0.1, 0.1, 0.2, 0.1, 0.1, 0.1]
    assert torch.equal(s.action, before["action"])


def test_the_part_of_all_is_the_state_itself(env):
    everyone = torch.ones(N, dtype=torch.bool)
    part, mask = env.state.part(Rows(everyone))
    assert part is env.state
    assert mask is everyone


def test_a_missing_joint_or_actuator_is_named():
    cls = load(FILE)

    class NoJoint(cls):
        def contract(self):
            joints = (Joint("hip", -1, 1, 0.4, 5), Joint("left_hip", -1, 1, -0.2, 5))
            robot = RobotInterface("floating", joints, (Signal("joint_pos", 2, "rad"),))
            return PolicyContract(
                robot, 20.0, (Observe("joint_pos"),), (Act(("hip",), "delta", (0.1,)),)
            )

    with pytest.raises(DeftlyError, match="the scene has no joint 'hip'"):
        Env(NoJoint(cls.Config()), EnvConfig(num_envs=1))


def test_what_is_asked_for_the_first_time_is_there(env):
    """`mujoco.batch` gives zeros of a field that was bound since its last call."""
    assert (
        env.sim.bind("geom_xpos")[:, env.model.geom("ball").id] == env.state.pose("ball")[:, :3]
    ).all()


def test_forces_of_one_environment_do_not_reach_another(env):
    """A call for some environments once left them the forces of the one that was computed before."""
    env.state.set_targets(env.state.joint_pos + torch.arange(N)[:, None])
    env.sim.step(4)
    own = env.state.joint_torque.clone()
    assert len(set(own[:, 0].tolist())) > 2
    first = torch.arange(N) == 0
    env.state.set_targets(env.state.joint_pos, first)
    env.sim.forward(first)
    assert (env.state.joint_torque[0].abs() < own[-1].abs()).all()
    assert torch.equal(env.state.joint_torque[1:], own[1:])
