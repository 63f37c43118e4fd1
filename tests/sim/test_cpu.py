"""The CPU engine: masks, and environments that break."""

import mujoco
import mujoco.batch
import pytest
import torch

from deftly.errors import DeftlyError
from deftly.sim import make_sim
from deftly.sim.cpu import CpuSim
from deftly.sim.scene import let_sleep

XML = """
<mujoco>
  <worldbody>
    <body><joint name="x" type="slide" axis="1 0 0" damping="1"/><geom size=".1" mass="1"/></body>
  </worldbody>
  <actuator><motor name="x" joint="x"/></actuator>
  <keyframe><key name="home" qpos="0.5"/></keyframe>
</mujoco>
"""


def make(num_envs: int = 4, **how):
    return make_sim("cpu", mujoco.MjModel.from_xml_string(XML), num_envs, threads=1, **how)


def only(*ids: int) -> torch.Tensor:
    mask = torch.zeros(4, dtype=torch.bool)
    mask[list(ids)] = True
    return mask


@pytest.mark.parametrize("error", [MemoryError(), ValueError("std::bad_alloc")])
def test_more_than_the_memory_holds_is_refused_in_one_line(monkeypatch, error):
    model = mujoco.MjModel.from_xml_string("<mujoco/>")
    with pytest.raises(DeftlyError, match=r"GB at least, it has .*lower env\.num-envs"):
        CpuSim(model, 10**9)

    def fail(*_, **__):
        raise error

    monkeypatch.setattr(mujoco.batch, "Batch", fail)
    with pytest.raises(DeftlyError, match="4 environments do not fit into the memory"):
        CpuSim(model, 4)


def test_the_mask_says_who_steps():
    sim = make()
    sim.reset()
    sim.bind("ctrl")[:] = 1.0
    sim.step(3, only(1, 2))
    assert (sim.bind("qpos")[:, 0] > 0.5).tolist() == [False, True, True, False]


def test_the_mask_says_who_is_reset():
    sim = make()
    sim.bind("qpos")[:] = 2.0
    sim.reset(only(3))
    assert sim.bind("qpos")[:, 0].tolist() == [2, 2, 2, 0.5]


def test_only_who_steps_can_break():
    sim = make()
    sim.bind("qvel")[:2] = torch.nan
    assert sim.step(1, only(1, 3)).tolist() == [False, True, False, False]
    assert sim.broken_count == 1


def test_a_state_is_restored_to_the_bit():
    sim = make()
    sim.bind("ctrl")[:] = torch.arange(4.0)[:, None].double()
    sim.step(3)
    saved = sim.get_state()
    sim.step(5)
    later = sim.get_state()
    sim.set_state(saved)
    sim.step(5)
    assert torch.equal(sim.get_state(), later)
    assert not torch.equal(saved, later)


@pytest.mark.parametrize("field", ["qpos", "qvel", "ctrl", "xfrc_applied", "geom_friction"])
def test_a_scene_with_sleepers_goes_on_to_the_bit_from_what_was_written(field):
    """Its batch keeps the positions that it computed after a step for the next one: not those of another state."""

    def play(sleeper: bool) -> torch.Tensor:
        spec = mujoco.MjSpec.from_string(XML)
        spec.worldbody.add_geom(type=mujoco.mjtGeom.mjGEOM_PLANE, size=[1, 1, 1], pos=[0, 0, -0.1])
        spec.option.disableflags |= mujoco.mjtDisableBit.mjDSBL_ISLAND.value * (not sleeper)
        body = spec.worldbody.add_body(pos=[0, 5, 5])
        body.add_freejoint()
        body.add_geom(size=[0.1, 0, 0])
        if sleeper:
            body.sleep = mujoco.mjtSleepPolicy.mjSLEEP_INIT
        else:
            body.gravcomp = 1.0
        let_sleep(spec)
        sim = make_sim("cpu", spec.compile(), 3, threads=1)
        sim.reset()
        live = sim.expand(field) if field.startswith("geom") else sim.bind(field)
        for i in range(6):
            if i % 2:
                live[1].view(-1)[0] += 0.1
            sim.step(2)
        return sim.bind("qpos")[:, :1].clone()

    assert torch.equal(play(True), play(False))


def test_who_breaks_is_dumped_where_told_later(tmp_path):
    sim = make()
    sim.dump_dir = tmp_path
    sim.bind("qvel")[2] = torch.nan
    sim.step(1)
    assert [path.name for path in tmp_path.iterdir()] == ["broken_0000_env2.npz"]


def test_an_unknown_engine_is_named():
    with pytest.raises(DeftlyError, match="there is no engine 'gpu'"):
        make_sim("gpu", mujoco.MjModel.from_xml_string(XML), 1)
