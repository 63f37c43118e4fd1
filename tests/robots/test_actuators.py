"""The file of identified servos: what tasks and their randomization make of it."""

import json

import pytest

from deftly import tasks
from deftly.errors import DeftlyError
from deftly.robots import actuators, leap_hand
from deftly.robots.actuators import Actuators, Identified
from deftly.sim.randomize import Randomize

NAMES = tuple(leap_hand.names())
KP = {"if_mcp": {"kp": Identified(4.0, 3.5, 4.4), "frictionloss": Identified(0.05, 0.049, 0.051)}}


def test_files_are_merged_by_joint(tmp_path):
    path = tmp_path / "servos.json"
    actuators.save(path, "leap-right", NAMES, Actuators(KP, Identified(0.03, 0.029, 0.031)))
    actuators.save(
        path, "leap-right", NAMES, Actuators({"th_ipl": {"kd": Identified(0.3, 0.2, 0.4)}})
    )
    found = actuators.load(path, "leap-right", NAMES)
    assert found.joints == {**KP, "th_ipl": {"kd": Identified(0.3, 0.2, 0.4)}}
    assert found.delay == Identified(0.03, 0.029, 0.031)


def test_a_task_trains_with_identified_servos_under_the_same_contract(tmp_path):
    path = tmp_path / "servos.json"
    parameters = {
        p: Identified(1.2 * v, 1.1 * v, 1.3 * v)
        for p, v in zip(actuators.PARAMETERS, (3, 0.2, 0.03, 0.01, 1e-3, 0.3))
    }
    actuators.save(
        path, "leap-right", NAMES, Actuators({"mf_rot": parameters}, Identified(0.03, 0.0, 0.031))
    )
    cls = tasks.load("leap-right-cube-rotate")
    plain, fitted = cls(cls.Config()), cls(cls.Config(actuators=path))
    assert fitted.contract().hash == plain.contract().hash
    old, new = plain.scene().compile(), fitted.scene().compile()
    servo, dof = new.actuator("mf_rot"), new.joint("mf_rot").dofadr[0]
    assert servo.gainprm[0] == -servo.biasprm[1] == pytest.approx(3.6)
    assert servo.biasprm[2] == pytest.approx(-0.24)
    assert servo.forcerange.tolist() == pytest.approx([-0.36, 0.36])
    assert new.dof_armature[dof] == pytest.approx(1.2e-3)
    assert new.dof_frictionloss[dof] == pytest.approx(0.036)
    assert new.dof_damping.reshape(new.nv, -1)[dof, 0] == pytest.approx(0.012)
    assert (new.actuator("mf_mcp").gainprm == old.actuator("mf_mcp").gainprm).all()
    entries = [e for e in fitted.randomize() if e.quantity == "kp"]
    assert {e.names for e in entries} == {tuple(n for n in NAMES if n != "mf_rot"), ("mf_rot",)}
    latency = next(e for e in fitted.randomize() if e.quantity == "latency")
    assert (latency.low, latency.high) == (0.0, pytest.approx(0.035))


def test_ranges_are_the_intervals_but_no_narrower_than_servos_differ():
    entries = (
        Randomize("kp", 0.9, 1.1, ("if_mcp",)),
        Randomize("frictionloss", 0.5, 1.8, ("if_mcp", "if_rot")),
    )
    kp, rest, friction = actuators.ranges(entries, Actuators(KP))
    assert (kp.low, kp.high) == (0.875, pytest.approx(1.1))
    assert (rest.names, rest.low, rest.high) == (("if_rot",), 0.5, 1.8)
    assert (friction.names, friction.low, friction.high) == (("if_mcp",), 0.95, 1.05)
    assert actuators.ranges(entries, Actuators({})) == entries


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ("{", "is not JSON"),
        ({"schema": "deftly.sysid/1"}, "give the file of --write, not the report"),
        ({"robot": "leap-left"}, "identified on leap-left, not on leap-right"),
        ({"joints": {"if_mpc": {}}}, "no joint 'if_mpc', did you mean 'if_mcp'"),
        ({"joints": {"if_mcp": {"kpp": {}}}}, "has 'kpp', did you mean 'kp'"),
        ({"joints": {"if_mcp": {"kp": 3}}}, "must have the numbers value, low and high"),
        ({"joints": {"if_mcp": {"kp": {"value": 1, "low": 2, "high": 3}}}}, "low <= value <= high"),
        (
            {"joints": {"if_mcp": {"kp": {"value": -1, "low": -2, "high": 3}}}},
            "low <= value <= high",
        ),
        ({"joints": []}, "'joints' must be a mapping"),
    ],
)
def test_a_file_that_does_not_fit_is_refused_in_one_line(tmp_path, data, said):
    path = tmp_path / "servos.json"
    whole = {"schema": actuators.SCHEMA, "robot": "leap-right", "joints": {}}
    path.write_text(data if isinstance(data, str) else json.dumps({**whole, **data}))
    with pytest.raises(DeftlyError) as error:
        actuators.load(path, "leap-right", NAMES)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_a_file_that_is_missing_is_named(tmp_path):
    with pytest.raises(DeftlyError, match="as identified actuators: no such file"):
        actuators.load(tmp_path / "none.json", "leap-right", NAMES)
    assert actuators.load(None, "leap-right", NAMES) == Actuators({})
