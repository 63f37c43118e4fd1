import mujoco
import numpy as np
import pytest
import torch

from deftly.control.drivers.buses import BUSES
from deftly.robots import leap_hand, load
from deftly.tasks import load as load_task

HANDS = ("leap-right", "leap-left", "leap-left-custom")
JOINTS = leap_hand.names()
LOWER, UPPER = (
    np.array([getattr(j, end) for j in leap_hand.joints()]) for end in ("lower", "upper")
)
# World anchor (m) and axis of each joint at q = 0, from the public right hand's table, palm root at the origin.
PUBLIC = {
    "if_mcp": ((-0.007, -0.023, 0.0187), (0, -1, 0)),
    "if_rot": ((0.0311, -0.0085, 0.0065), (0, 0, 1)),
    "if_pip": ((0.0461, -0.0228, 0.0195), (0, -1, 0)),
    "if_dip": ((0.0822, -0.0226, 0.0195), (0, -1, 0)),
    "mf_mcp": ((-0.0071, 0.0224, 0.0187), (0, -1, 0)),
    "rf_rot": ((0.03101, 0.0823, 0.0065), (0, 0, 1)),
    "rf_dip": ((0.0821, 0.0682, 0.0195), (0, -1, 0)),
    "th_cmc": ((-0.0693, 0.0012, 0.0216), (-1, 0, 0)),
    "th_axl": ((-0.0823, -0.0131, 0.0216), (0, -1, 0)),
    "th_mcp": ((-0.0823, -0.0301, 0.0071), (0, 0, 1)),
    "th_ipl": ((-0.0823, -0.0767, 0.0069), (0, 0, 1)),
}


def placed(name: str, q: np.ndarray) -> tuple[mujoco.MjModel, mujoco.MjData]:
    model = load(name).spec().compile()
    data = mujoco.MjData(model)
    data.qpos[:] = q
    mujoco.mj_forward(model, data)
    return model, data


def poses(count: int) -> np.ndarray:
    return np.random.default_rng(0).uniform(LOWER, UPPER, (count, 16))


@pytest.mark.parametrize("joint", PUBLIC)
def test_right_hand_is_the_published_one(joint):
    _model, data = placed("leap-right", np.zeros(16))
    anchor, axis = PUBLIC[joint]
    assert data.joint(joint).xanchor == pytest.approx(
        anchor, abs=5e-4
    )  # the table's middle finger, shifted
    assert data.joint(joint).xaxis == pytest.approx(axis, abs=1e-9)


def test_left_hand_is_the_mirror_image_in_every_pose():
    for q in poses(50):
        (model, right), (_, left) = placed("leap-right", q), placed("leap-left", q)
        assert left.geom_xpos * [1, -1, 1] == pytest.approx(right.geom_xpos, abs=1e-9)
        assert left.xipos * [1, -1, 1] == pytest.approx(right.xipos, abs=1e-9)
    assert model.ngeom > 20


def test_mirrored_hands_fall_alike():
    """The same commands under gravity: dynamics mirror too, so a policy of one hand is one of the other."""
    _, right = placed("leap-right", np.zeros(16))
    model, left = placed("leap-left", np.zeros(16))
    for data, m in ((right, load("leap-right").spec().compile()), (left, model)):
        for _ in range(200):
            mujoco.mj_step(m, data)
    assert left.qpos == pytest.approx(right.qpos, abs=1e-6)
    assert np.abs(right.qpos).max() > 1e-3


def test_only_the_thumb_of_left_custom_is_elsewhere():
    (model, left), (_, custom) = (
        placed("leap-left", np.zeros(16)),
        placed("leap-left-custom", np.zeros(16)),
    )
    for i in range(1, model.nbody):
        name = model.body(i).name
        moved = custom.body(name).xpos - left.body(name).xpos
        assert moved == pytest.approx([0, 0.0285 if name.startswith("th_") else 0, 0], abs=1e-9), (
            name
        )
    assert left.joint("th_cmc").xanchor[1] == pytest.approx(-0.0012, abs=1e-9)


@pytest.mark.parametrize("name", HANDS)
def test_published_mass_and_servos(name):
    model = load(name).spec().compile()
    assert model.body_mass.sum() == pytest.approx(0.746, abs=1e-3)
    assert (model.actuator_forcerange == [-leap_hand.TORQUE, leap_hand.TORQUE]).all()
    assert model.dof_armature == pytest.approx(288.35**2 * 1.7e-8, rel=1e-3)
    assert model.actuator_gainprm[:, 0] == pytest.approx(leap_hand.KP)


@pytest.mark.parametrize("name", HANDS)
def test_a_servo_presses_no_harder_than_its_limit(name):
    model, data = placed(name, np.zeros(16))
    data.ctrl[:] = UPPER
    for _ in range(50):
        mujoco.mj_step(model, data)
        assert np.abs(data.actuator_force).max() <= leap_hand.TORQUE + 1e-12


def contract(hand: str):
    cls = load_task(f"{hand}-cube-rotate")
    return cls(cls.Config()).contract().robot


def test_hardware_order_of_a_left_hand():
    c = contract("leap-left")
    q = np.arange(16, dtype=np.float64) + 1
    sent = c.to_motors(q)
    # Public deployment: [rot, mcp, pip, dip] of each finger, then the thumb, `th_cmc` negated.
    assert sent[[1, 2, 3]] == pytest.approx(q[[0, 2, 3]])
    assert sent[[0, 4, 8]] == pytest.approx(-q[[1, 5, 9]])
    assert sent[12:] == pytest.approx([-q[12], -q[13], q[14], q[15]])
    assert BUSES["leap-left"].ids == tuple(range(16))
    assert contract("leap-right").to_motors(q)[[0, 13]] == pytest.approx([q[1], q[13]])


@pytest.mark.parametrize("hand", HANDS)
@pytest.mark.parametrize("library", [np.asarray, torch.as_tensor])
def test_motors_and_joints_are_inverse(hand, library):
    c = contract(hand)
    for q in (poses(20), poses(1)[0]):
        there = c.to_motors(library(q))
        assert np.asarray(c.from_motors(there)) == pytest.approx(q, abs=1e-12)
        assert np.asarray(c.to_motors(c.from_motors(library(q)))) == pytest.approx(q, abs=1e-12)
