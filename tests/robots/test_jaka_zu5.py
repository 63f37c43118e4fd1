import mujoco
import numpy as np
import pytest

from deftly.robots import jaka_zu5
from deftly.tasks import load

# The maker's modified (Craig) Denavit-Hartenberg chain: alpha and a of the link before, d of the joint.
DH = [
    (0, 0, 0.12015),
    (np.pi / 2, 0, 0),
    (0, 0.43, 0),
    (0, 0.3685, -0.114),
    (np.pi / 2, 0, 0.1135),
    (-np.pi / 2, 0, 0.107),
]
LOWER, UPPER = (
    np.array([getattr(j, end) for j in jaka_zu5.joints()[:6]]) for end in ("lower", "upper")
)


@pytest.fixture(scope="module")
def model() -> mujoco.MjModel:
    return jaka_zu5.spec().compile()


@pytest.fixture
def data(model) -> mujoco.MjData:
    return mujoco.MjData(model)


def flange(q: np.ndarray) -> np.ndarray:
    """Pose of the flange by the DH chain, `(4, 4)`."""
    pose = np.eye(4)
    for angle, (alpha, a, d) in zip(q, DH):
        ca, sa, ct, st = np.cos(alpha), np.sin(alpha), np.cos(angle), np.sin(angle)
        link = [
            [ct, -st, 0, a],
            [st * ca, ct * ca, -sa, -sa * d],
            [st * sa, ct * sa, ca, ca * d],
            [0, 0, 0, 1],
        ]
        pose = pose @ np.array(link)
    return pose


def put(model, data, q) -> None:
    data.qpos[:6] = q
    mujoco.mj_kinematics(model, data)
    mujoco.mj_comPos(model, data)


def poses(count: int) -> np.ndarray:
    return np.random.default_rng(0).uniform(LOWER, UPPER, (count, 6))


def test_flange_is_where_the_makers_chain_puts_it(model, data):
    for q in [np.zeros(6), *poses(200)]:
        put(model, data, q)
        assert data.body("link_6").xpos == pytest.approx(flange(q)[:3, 3], abs=1e-6)


def test_tool_points_along_the_chains_last_axis(model, data):
    for q in poses(50):
        put(model, data, q)
        tool = data.site("pinch").xpos - data.body("link_6").xpos
        assert tool == pytest.approx(jaka_zu5.PINCH * flange(q)[:3, 2], abs=1e-6)
        assert data.site("pinch").xmat.reshape(3, 3)[:, 2] == pytest.approx(
            flange(q)[:3, 2], abs=1e-6
        )


def test_limits_and_gains(model):
    for joint, link in zip(jaka_zu5.joints(), jaka_zu5.LINKS):
        assert (joint.lower, joint.upper) == tuple(model.joint(joint.name).range) == link[3]
        assert model.actuator(joint.name).ctrlrange.tolist() == [joint.lower, joint.upper]
        assert model.actuator(joint.name).forcerange.tolist() == [-link[9], link[9]]
        kp, kv = model.actuator(joint.name).gainprm[0], -model.actuator(joint.name).biasprm[2]
        assert kv == pytest.approx(jaka_zu5.TIME_CONSTANT * kp)
    assert jaka_zu5.joints()[6].upper == model.joint("gripper").range[1] == jaka_zu5.FINGER_TRAVEL
    assert {j.velocity for j in jaka_zu5.joints()[:6]} == {3.14}


def test_weighs_what_the_arm_weighs(model):
    arm = sum(model.body(name).mass[0] for name in ("base", *(f"link_{i}" for i in range(1, 7))))
    assert arm == pytest.approx(24.6, abs=0.1)
    assert model.body("gripper").mass[0] + 2 * model.body("finger_left").mass[0] == pytest.approx(
        0.877
    )


def test_inertias_are_possible(model):
    for i in range(1, model.nbody):
        x, y, z = sorted(model.body_inertia[i])
        assert x > 0
        assert z <= x + y + 1e-12


def test_pinch_point_of_home_is_over_the_table_with_the_tool_down(model, data):
    put(model, data, jaka_zu5.HOME)
    site = data.site("pinch")
    assert site.xpos == pytest.approx([0.5, 0.0, 0.25], abs=1e-3)
    rotation = site.xmat.reshape(3, 3)
    assert rotation[:, 2] == pytest.approx([0, 0, -1], abs=1e-3)
    assert abs(rotation[1, 1]) == pytest.approx(1, abs=1e-3)  # the fingers move along y


def test_home_holds_still_for_five_seconds():
    cls = load("jaka-pick-cube")
    spec = cls(cls.Config()).scene()
    spec.option.timestep = 0.0067
    model = spec.compile()
    data = mujoco.MjData(model)
    mujoco.mj_resetDataKeyframe(model, data, 0)
    for _ in range(round(5 / model.opt.timestep)):
        mujoco.mj_step(model, data)
        assert np.abs(data.qpos[:6] - jaka_zu5.HOME).max() < 1e-3
    assert data.qpos[6] == pytest.approx(jaka_zu5.FINGER_TRAVEL, abs=1e-3)
    assert np.abs(data.qvel[:7]).max() < 1e-3


def test_fingers_move_as_one(model, data):
    put(model, data, jaka_zu5.HOME)
    data.ctrl[:6] = jaka_zu5.HOME
    for target in (0.03, 0.01):
        data.ctrl[6] = target
        for _ in range(1000):
            mujoco.mj_step(model, data)
        assert data.joint("gripper").qpos[0] == pytest.approx(target, abs=1e-3)
        assert data.joint("gripper_mimic").qpos[0] == pytest.approx(target, abs=1e-3)
        gap = np.linalg.norm(data.body("finger_left").xpos - data.body("finger_right").xpos)
        assert gap == pytest.approx(2 * (jaka_zu5.FINGER_CLOSED + target), abs=2e-3)


def reach(model, data, goal: np.ndarray) -> np.ndarray:
    """Joint angles with the pinch point at `goal` and the tool straight down, by damped least squares from home."""
    q = np.array(jaka_zu5.HOME)
    jacobian, turn = np.zeros((3, model.nv)), np.zeros((3, model.nv))
    site = model.site("pinch").id
    put(model, data, q)
    down = data.site_xmat[site].reshape(3, 3).copy()
    for _ in range(100):
        put(model, data, q)
        now = data.site_xmat[site].reshape(3, 3)
        tilt = sum(np.cross(now[:, k], down[:, k]) for k in range(3)) / 2
        error = np.concatenate((goal - data.site_xpos[site], tilt))
        if np.abs(error).max() < 1e-6:
            return q
        mujoco.mj_jacSite(model, data, jacobian, turn, site)
        j = np.vstack((jacobian, turn))[:, :6]
        q = q + j.T @ np.linalg.solve(j @ j.T + 1e-6 * np.eye(6), error)
    raise AssertionError(f"no way to {goal}")


def test_workspace_of_the_task_is_within_reach(model, data):
    cfg = load("jaka-pick-cube").Config()
    corners = [
        (x, y, z)
        for x in np.linspace(*cfg.cube_x, 3)
        for y in np.linspace(*cfg.cube_y, 3)
        for z in (cfg.cube_half, cfg.success_height)
    ]
    for goal in corners:
        q = reach(model, data, np.array(goal))
        assert (q > LOWER).all(), goal
        assert (q < UPPER).all(), goal
        wrist = (
            np.pi / 2 - q[1] - q[2],
            np.pi / 2,
            np.pi / 2 + q[0],
        )  # the task's coupling, in closed form
        assert np.allclose(np.mod(q[3:] - wrist + np.pi, 2 * np.pi), np.pi, atol=2e-3), goal


def test_nothing_collides_at_home_or_over_the_workspace(data, model):
    cfg = load("jaka-pick-cube").Config()
    for x in cfg.cube_x:
        for y in cfg.cube_y:
            put(model, data, reach(model, data, np.array([x, y, cfg.cube_half])))
            data.qpos[6:8] = 0.03
            mujoco.mj_forward(model, data)
            assert data.ncon == 0
