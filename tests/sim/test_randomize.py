import mujoco
import numpy as np
import pytest
import torch

from deftly.errors import DeftlyError
from deftly.sim.cpu import CpuSim
from deftly.sim.randomize import Randomize, Randomizer, is_of, widen
from deftly.sim.rows import Rows

N = 200


@pytest.fixture
def drawn(slider):
    """Draws entries in many environments; gives the environment and what changed in each MjModel field."""

    def draw(*entries: Randomize, times: int = 1):
        env = slider(N, goal=0.0, randomize=entries)
        for _ in range(times - 1):
            env.reset()
        return env, {k: v.reshape(N, -1, *v.shape[2:]) for k, v in env._randomizer.fields.items()}

    return draw


def index(env, kind: str, name: str) -> int:
    return getattr(env.model, kind)(name).id


def covers(values: torch.Tensor, low: float, high: float) -> bool:
    """Values fill a range and stay within it."""
    tenth = 0.1 * (high - low)
    inside = values.min() >= low - 1e-9 and values.max() <= high + 1e-9
    return bool(inside and values.min() < low + tenth and values.max() > high - tenth)


def test_mass_takes_the_inertia_along(drawn):
    env, fields = drawn(Randomize("mass", 0.5, 2.0, ("block",)))
    block = index(env, "body", "block")
    mass, inertia = fields["body_mass"][:, block], fields["body_inertia"][:, block]
    assert covers(mass, 0.5, 2.0)
    assert torch.allclose(inertia, torch.tensor(env.model.body_inertia[block]) * mass[:, None])
    assert (fields["body_mass"][:, index(env, "body", "ball")] == 0.5).all()
    subtree = env.sim.batch.get_model(3).body_subtreemass[block]
    assert subtree == pytest.approx(float(mass[3]))


def test_added_mass_scales_the_inertia(drawn):
    env, fields = drawn(Randomize("mass", -0.2, 0.3, ("block",), op="add"))
    block = index(env, "body", "block")
    mass = fields["body_mass"][:, block]
    assert covers(mass, 0.8, 1.3)
    assert torch.allclose(
        fields["body_inertia"][:, block],
        torch.tensor(env.model.body_inertia[block]) * mass[:, None],
    )


def test_restitution_is_the_damping_ratio_of_contacts(drawn):
    env, fields = drawn(Randomize("restitution", 0.3, 0.9, ("ball",)))
    ball = index(env, "geom", "ball")
    assert covers(fields["geom_solref"][:, ball, 1], 0.3, 0.9)
    assert (fields["geom_solref"][:, ball, 0] == env.model.geom_solref[ball, 0]).all()


@pytest.mark.parametrize(("ratio", "restitution"), [(1.0, 0.135), (0.6, 0.25), (0.3, 0.45)])
def test_a_ball_bounces_as_documented(ratio, restitution):
    spec = mujoco.MjSpec()
    spec.option.timestep = 0.001
    spec.worldbody.add_geom(
        type=mujoco.mjtGeom.mjGEOM_PLANE, size=[1, 1, 0.1], solref=[0.02, ratio]
    )
    body = spec.worldbody.add_body(pos=[0, 0, 0.3])
    body.add_freejoint()
    body.add_geom(size=[0.05, 0, 0], mass=0.1, solref=[0.02, ratio])
    model = spec.compile()
    data = mujoco.MjData(model)
    speeds = []
    for _ in range(400):
        mujoco.mj_step(model, data)
        speeds.append(data.qvel[2])
    assert max(speeds) / -min(speeds) == pytest.approx(restitution, abs=0.01)


def test_com_moves_along_each_axis_on_its_own(drawn):
    env, fields = drawn(Randomize("com", -0.02, 0.02, ("block",), op="add"))
    com = fields["body_ipos"][:, index(env, "body", "block")]
    assert all(covers(com[:, axis], -0.02, 0.02) for axis in range(3))
    assert torch.corrcoef(com.T).fill_diagonal_(0).abs().max() < 0.3
    env.step(torch.zeros(N, 2))
    assert env.broken_count == 0


def test_friction_is_the_sliding_one(drawn):
    env, fields = drawn(Randomize("friction", 0.5, 1.5, ("floor",)))
    friction = fields["geom_friction"][:, index(env, "geom", "floor")]
    assert covers(friction[:, 0], 0.5, 1.5)
    assert (friction[:, 1:] == torch.tensor(env.model.geom_friction[0, 1:])).all()


def test_kp_and_kd_together_keep_the_servo_true(drawn):
    env, fields = drawn(Randomize("kp", 0.8, 1.2), Randomize("kd", 0.5, 1.5))
    gain, bias = fields["actuator_gainprm"], fields["actuator_biasprm"]
    assert covers(gain[..., 0], 80, 120)
    assert torch.equal(bias[..., 1], -gain[..., 0])
    assert covers(-bias[..., 2], 10, 30)
    for _ in range(
        19
    ):  # starts up to 0.5 m off: a servo that is not true would drift to another pose
        env.step(torch.zeros(N, 2))
    assert env.state.command.abs().max() > 0.4
    assert (env.state.joint_pos - env.state.command).abs().max() < 1e-6


def test_added_gains_keep_their_signs(drawn):
    _, fields = drawn(
        Randomize("kp", 10, 20, ("x",), op="add"), Randomize("kd", 1, 2, ("y",), op="add")
    )
    assert covers(fields["actuator_gainprm"][:, 0, 0], 110, 120)
    assert covers(-fields["actuator_biasprm"][:, 0, 1], 110, 120)
    assert covers(-fields["actuator_biasprm"][:, 1, 2], 21, 22)


@pytest.mark.parametrize(
    ("quantity", "field", "nominal"),
    [
        ("damping", "dof_damping", 2.0),
        ("armature", "dof_armature", 0.1),
        ("frictionloss", "dof_frictionloss", 0.1),
    ],
)
def test_joint_figures(drawn, quantity, field, nominal):
    _, fields = drawn(Randomize(quantity, 0.5, 2.0, ("x",)))
    assert covers(fields[field][:, 0], 0.5 * nominal, 2 * nominal)
    assert (fields[field][:, 1] == fields[field][0, 1]).all()
    _, fields = drawn(Randomize(quantity, 0.1, 0.2, ("x",), op="add"))
    assert covers(fields[field][:, 0], nominal + 0.1, nominal + 0.2)


def test_a_free_joint_has_six_of_them(drawn):
    _, fields = drawn(Randomize("damping", 0.1, 0.2, ("ball",), op="add"))
    assert covers(fields["dof_damping"][:, 2:], 0.1, 0.2)
    assert (fields["dof_damping"][:, :2] == 2).all()


def test_size_takes_the_bounds_along(drawn):
    for low, high, op in ((0.8, 1.2, "scale"), (-0.01, 0.01, "add")):
        env, fields = drawn(Randomize("size", low, high, ("block",), op=op))
        block = index(env, "geom", "block")
        half = fields["geom_size"][:, block, 0]
        assert covers(half, 0.04, 0.06)
        assert torch.allclose(fields["geom_size"][:, block], half[:, None].expand(N, 3))
        assert torch.allclose(fields["geom_rbound"].view(N, -1)[:, block], half * 3**0.5)
        assert torch.allclose(
            fields["geom_aabb"].view(N, -1, 6)[:, block, 3:], half[:, None].expand(N, 3)
        )


def test_gravity_keeps_its_direction(drawn):
    for low, high, op in ((0.9, 1.1, "scale"), (-0.981, 0.981, "add")):
        _, fields = drawn(Randomize("gravity", low, high, op=op))
        gravity = fields["opt.gravity"].view(N, 3)
        assert covers(-gravity[:, 2], 0.9 * 9.81, 1.1 * 9.81)
        assert not gravity[:, :2].any()


def test_gravity_acts(drawn):
    env, fields = drawn(Randomize("gravity", 0.5, 1.5))
    env.state.pose("ball")[:, 2] = 2.0
    env.step(torch.zeros(N, 2))
    assert torch.allclose(
        env.state.velocity("ball")[:, 2], fields["opt.gravity"].view(N, 3)[:, 2] * 0.05
    )


def test_names_share_a_draw_if_told(drawn):
    _, fields = drawn(Randomize("kp", 0.5, 1.5, shared=True))
    assert torch.equal(fields["actuator_gainprm"][:, 0, 0], fields["actuator_gainprm"][:, 1, 0])
    _, fields = drawn(Randomize("kp", 0.5, 1.5))
    assert not torch.equal(fields["actuator_gainprm"][:, 0, 0], fields["actuator_gainprm"][:, 1, 0])


def test_draws_start_from_the_model_every_time(drawn):
    entries = (
        Randomize("mass", 0.9, 1.1),
        Randomize("kp", 1.0, 1.2),
        Randomize("com", 0, 0.01, op="add"),
    )
    env, fields = drawn(*entries, times=50)
    assert covers(fields["body_mass"][:, index(env, "body", "block")], 0.9, 1.1)
    assert covers(fields["actuator_gainprm"][..., 0], 100, 120)
    assert covers(fields["body_ipos"][:, index(env, "body", "block")], 0.0, 0.01)


def test_only_the_environments_that_reset_draw(slider):
    env = slider(4, randomize=(Randomize("mass", 0.5, 2.0),))
    before = env._randomizer.fields["body_mass"].clone()
    env._randomizer.draw(Rows(torch.arange(env.num_envs) % 2 == 1), env.state.generator)
    changed = (env._randomizer.fields["body_mass"] != before).any(1)
    assert changed.tolist() == [False, True, False, True]


def test_unknown_name_is_refused(slider):
    with pytest.raises(DeftlyError, match=r"randomize mass: no body 'blok' in the scene.*'block'"):
        slider(1, randomize=(Randomize("mass", 0.5, 2.0, ("blok",)),))


def test_randomization_can_be_switched_off(slider):
    env = slider(4, randomize=(Randomize("mass", 0.5, 2.0),), env={"randomize": False})
    assert env._randomizer.fields == {}


# ------------------------------------------------------------------ latency


def response(env, steps: int = 12) -> torch.Tensor:
    """Position of the first environment's block, substep by substep, after a full command at once."""
    env.state.joint_pos[:] = 0
    move, out = torch.zeros(env.num_envs, 2), []
    move[:, 0] = 1
    for _ in range(steps):
        env.step(move)
        out.append(env.state.joint_pos[:, 0].clone())
    return torch.stack(out)


@pytest.mark.parametrize("delay", [1, 2, 3])
def test_latency_delays_the_response_by_just_that(slider, delay):
    quiet = {"goal": 0.0, "start": 0.0}
    prompt = response(slider(2, **quiet))
    late = response(slider(2, env={"latency_ms": (50.0 * delay, 50.0 * delay)}, **quiet))
    assert not late[:delay].any()
    assert torch.allclose(late[delay:], prompt[: 12 - delay], atol=1e-9)


def test_part_of_a_period_and_a_draw_for_each_episode(slider):
    env = slider(N, goal=0.0, start=0.0, env={"latency_ms": (0.0, 100.0)})
    delay = env._randomizer.fields["actuator_delay"]
    assert torch.equal(delay[:, 0], delay[:, 1])
    assert covers(delay[:, 0], 0.0, 0.1)
    moved = response(env, 2)[1]
    order = delay[:, 0].argsort()
    assert (moved[order].diff() <= 1e-12).all()
    assert moved.unique().numel() >= 5


def test_latency_of_single_actuators_is_a_tasks_own_randomization(slider):
    env = slider(
        2, goal=0.0, start=0.0, randomize=(Randomize("latency", 0.1, 0.1, ("y",), op="add"),)
    )
    for _ in range(2):
        env.step(torch.ones(2, 2))
    assert (env.state.joint_pos[:, 0] > 0.01).all()
    assert not env.state.joint_pos[:, 1].any()


def test_delayed_actuator_holds_the_starting_pose(slider):
    env = slider(16, goal=0.0, env={"latency_ms": (100.0, 100.0)})
    for _ in range(2):  # before and after an automatic reset
        start = env.state.joint_pos.clone()
        assert start.abs().max() > 0.1
        for _ in range(19):
            env.step(torch.zeros(16, 2))
            assert (env.state.joint_pos - start).abs().max() < 1e-6
        env.step(torch.zeros(16, 2))


def test_no_latency_costs_no_buffer(slider):
    assert slider(1).model.nhistory == 0


def test_draws_come_from_the_given_generator(slider):
    env = slider(3)
    randomizer = Randomizer(env.sim, (Randomize("damping", 0.5, 2.0),))
    seen = []
    for _ in range(2):
        randomizer.draw(Rows(torch.ones(3, dtype=torch.bool)), torch.Generator().manual_seed(4))
        seen.append(randomizer.fields["dof_damping"].clone())
    assert torch.equal(*seen)
    assert isinstance(env.model, mujoco.MjModel)


@pytest.mark.parametrize(
    ("entry", "factor", "low", "high"),
    [
        (Randomize("mass", 0.8, 1.2), 1.5, 0.7, 1.3),
        (
            Randomize("damping", 0.6, 1.6),
            3.0,
            0.2,
            2.6,
        ),  # three times as wide about 1.1, but no less than 0.6 / 3
        (Randomize("frictionloss", 0.0, 2.0), 2.0, 0.0, 3.0),
        (Randomize("com", -0.002, 0.002, op="add"), 1.5, -0.003, 0.003),
        (Randomize("latency", 0.0, 0.04, op="add"), 1.5, 0.0, 0.05),
        (Randomize("kp", 1.1, 1.1), 2.0, 1.1, 1.1),
    ],
)
def test_widen(entry, factor, low, high):
    wide = widen(entry, factor)
    assert (wide.low, wide.high) == pytest.approx((low, high))
    assert wide.without is None
    assert widen(entry, factor, only_outside=True).without == (entry.low, entry.high)


def test_a_hole_without_a_range_draws_the_one_figure(drawn):
    env, fields = drawn(widen(Randomize("mass", 1.5, 1.5, ("block",)), 2.0, only_outside=True))
    assert (fields["body_mass"][:, index(env, "body", "block")] == 1.5).all()


def test_each_environment_has_its_own_nominal_values(slider):
    """Models may differ between environments: what is drawn scales what each has."""
    env = slider(3)
    mass = env.sim.expand("body_mass")
    block = index(env, "body", "block")
    mass[:, block] = torch.tensor([1.0, 2.0, 4.0]).double()
    randomizer = Randomizer(env.sim, (Randomize("mass", 1.5, 1.5, ("block",)),))
    for _ in range(2):  # a second draw does not start from the first
        randomizer.draw(Rows(torch.tensor([True, True, False])), torch.Generator())
        assert mass[:, block].tolist() == [1.5, 3.0, 4.0]


def test_joint_offset_turns_the_link_and_not_the_reading(drawn):
    """A servo mounted askew: sensor and command agree, the link is elsewhere."""
    env, fields = drawn(Randomize("joint_offset", -0.1, 0.1, ("x",), op="add"))
    column = int(env.model.joint("x").qposadr[0])
    qpos0 = fields["qpos0"].view(N, -1)
    assert covers(qpos0[:, column], -0.1, 0.1)
    others = [i for i in range(env.model.nq) if i != column]
    assert (qpos0[:, others] == torch.tensor(env.model.qpos0)[others]).all()
    block = env.state.body("block")[:, 0]
    assert torch.allclose(block, env.state.joint("x") - qpos0[:, column], atol=1e-9)


LOOKS = """
<mujoco>
  <asset>
    <texture name="t" type="2d" builtin="checker" width="8" height="8"/>
    <material name="paint" rgba=".5 .6 .9 .7" texture="t" texrepeat="2 4"/>
  </asset>
  <worldbody>
    <light dir="0 0 -1" diffuse=".5 .5 .5"/>
    <light dir="0 1 -1" diffuse=".2 .2 .2"/>
    <camera name="eye" pos="0 0 1" fovy="50"/>
    <geom name="ball" size=".1" rgba=".2 .4 .95 1" material="paint"/>
  </worldbody>
</mujoco>
"""


@pytest.fixture
def looked():
    """Draws visual entries in many environments; gives the nominal model and the fields."""

    def draw(*entries: Randomize):
        sim = CpuSim(mujoco.MjModel.from_xml_string(LOOKS), N, threads=1)
        randomizer = Randomizer(sim, entries)
        generator = torch.Generator().manual_seed(0)
        randomizer.draw(Rows(torch.ones(N, dtype=torch.bool)), generator)
        return sim.model, randomizer.fields

    return draw


def test_light_is_drawn_for_each_lamp_and_colour(looked):
    _, fields = looked(Randomize("light", 0.5, 1.5))
    light = fields["light_diffuse"].double()
    assert covers(light[:, 0, 0], 0.25, 0.75)
    assert covers(light[:, 1, 2], 0.1, 0.3)
    assert (light[:, 0, 0] - light[:, 0, 1]).abs().max() > 0.1


def test_light_comes_from_another_direction(looked):
    model, fields = looked(Randomize("light_direction", -0.3, 0.3, op="add"))
    direction = fields["light_dir"]
    assert torch.allclose(direction.norm(dim=-1), torch.ones(N, 2, dtype=torch.float64))
    cosine = (direction * torch.tensor(model.light_dir)).sum(-1)
    assert 0.8 < cosine.min() < 0.95


@pytest.mark.parametrize(
    ("quantity", "field", "nominal"),
    [("color", "geom_rgba", (0.2, 0.4, 0.95)), ("material", "mat_rgba", (0.5, 0.6, 0.9))],
)
def test_colours_stay_colours_and_keep_their_opacity(looked, quantity, field, nominal):
    model, fields = looked(Randomize(quantity, -0.3, 0.3, op="add"))
    drawn = fields[field][:, 0].double()
    assert (drawn[:, 3] == getattr(model, field)[0, 3]).all()
    for i, value in enumerate(nominal):
        assert drawn[:, i].min() == pytest.approx(max(0.0, value - 0.3), abs=0.02)
        assert drawn[:, i].max() == pytest.approx(min(1.0, value + 0.3), abs=0.02)


def test_a_pattern_repeats_more_or_less_often_in_both_directions(looked):
    _, fields = looked(Randomize("pattern", 0.5, 2.0))
    repeat = fields["mat_texrepeat"][:, 0].double()
    assert covers(repeat[:, 0], 1.0, 4.0)
    assert torch.allclose(repeat[:, 1], 2 * repeat[:, 0])


def test_a_camera_moves_turns_and_zooms(looked):
    model, fields = looked(
        Randomize("camera_position", -0.1, 0.1, op="add"),
        Randomize("camera_rotation", -0.2, 0.2, op="add"),
        Randomize("fovy", 0.9, 1.1),
    )
    assert covers(fields["cam_pos"][:, 0, 2], 0.9, 1.1)
    assert covers(fields["cam_fovy"][:, 0], 45.0, 55.0)
    quaternions = fields["cam_quat"][:, 0].numpy()
    velocity = np.zeros((N, 3))
    for i, quaternion in enumerate(quaternions):
        mujoco.mju_subQuat(velocity[i], quaternion, model.cam_quat[0])
    assert np.linalg.norm(quaternions, axis=-1) == pytest.approx(1.0)
    assert all(covers(torch.tensor(axis), -0.2, 0.2) for axis in velocity.T)


def test_a_rotation_has_no_scale(looked):
    with pytest.raises(DeftlyError, match='give op="add"'):
        looked(Randomize("camera_rotation", 0.9, 1.1))


def test_what_images_show_is_told_from_the_physics():
    light, mass = Randomize("light", 0.5, 1.5), Randomize("mass", 0.5, 1.5)
    for kind, meant in (("all", [True, True]), ("visual", [True, False])):
        assert [is_of(entry, kind) for entry in (light, mass)] == meant  # type: ignore[arg-type]
    assert [is_of(entry, "physics") for entry in (light, mass)] == [False, True]
