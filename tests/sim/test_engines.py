"""What `deftly.sim.protocol.Sim` promises, of every engine; and that the engines agree on both families of tasks."""

import engine_scenes
import mujoco
import numpy as np
import pytest
import torch

from deftly.errors import DeftlyError
from deftly.sim import make_sim
from deftly.sim.guard import replay

N = 4
JAKA, HAND = "jaka-pick-cube", "leap-right-cube-rotate"
ENGINES = ["cpu", pytest.param("warp", marks=pytest.mark.warp)]
FAMILIES = [JAKA, HAND]
EPS = 2.0**-23  # of float32


@pytest.fixture(scope="module")
def scenes():
    return {name: engine_scenes.compiled(name) for name in FAMILIES}


@pytest.fixture(params=ENGINES)
def engine(request):
    return request.param


def make(engine: str, model: mujoco.MjModel, num_envs: int = N, **options):
    sim = make_sim(engine, model, num_envs, **options)
    for field in ("xpos", "site_xpos", "geom_xpos", "sensordata", "actuator_force", "nefc"):
        sim.bind(field)  # what is bound is kept up to date
    sim.reset()
    sim.forward()
    return sim


def only(*envs: int, of: int = N) -> torch.Tensor:
    mask = torch.zeros(of, dtype=torch.bool)
    mask[list(envs)] = True
    return mask


def moved(sim, scene, seed: int = 0, steps: int = 1):
    """Step a simulation under random commands."""
    generator = torch.Generator().manual_seed(seed)
    for command in engine_scenes.motion(scene, sim.num_envs, steps, generator):
        sim.bind("ctrl")[:] = command
        sim.step(scene.substeps)
    return sim


# ------------------------------------------------------------------------------------------------- the protocol


def test_reset_stands_at_the_home_keyframe(engine, scenes):
    sim = moved(make(engine, scenes[JAKA].model), scenes[JAKA])
    sim.reset()
    sim.forward()
    data = mujoco.MjData(sim.model)
    mujoco.mj_resetDataKeyframe(sim.model, data, 0)
    mujoco.mj_kinematics(sim.model, data)
    for field in ("qpos", "qvel", "ctrl", "time", "site_xpos", "geom_xpos"):
        expected = torch.as_tensor(np.array(getattr(data, field))).expand_as(sim.bind(field))
        torch.testing.assert_close(sim.bind(field).double(), expected, atol=8 * EPS, rtol=0)


def test_a_field_is_always_the_same_tensor(engine, scenes):
    sim = make(engine, scenes[JAKA].model)
    for ask, field in (
        (sim.bind, "qpos"),
        (sim.bind, "xpos"),
        (sim.expand, "body_mass"),
        (sim.expand, "opt.gravity"),
    ):
        first = ask(field)
        moved(sim, scenes[JAKA])
        assert ask(field) is first
        assert first.device == sim.device
        assert first.dtype == sim.dtype
        assert len(first) == N


def test_fields_have_the_shape_of_mujocos(engine, scenes):
    sim = make(engine, scenes[HAND].model)
    data = mujoco.MjData(sim.model)
    for field in (
        "qpos",
        "qvel",
        "ctrl",
        "history",
        "time",
        "xpos",
        "xquat",
        "xmat",
        "geom_xpos",
        "xfrc_applied",
        "cvel",
    ):
        assert sim.bind(field).shape == (N, *np.shape(getattr(data, field))), field
    for field in (
        "body_mass",
        "body_inertia",
        "geom_size",
        "geom_aabb",
        "actuator_gainprm",
        "actuator_forcerange",
    ):
        assert sim.expand(field).shape == (N, *getattr(sim.model, field).shape), field


def test_positions_and_their_sensors_are_fresh_after_a_step_and_forces_those_of_the_last_substep(
    engine, scenes
):
    scene = scenes[HAND]
    sim = moved(make(engine, scene.model), scene, steps=8)
    data = mujoco.MjData(sim.model)
    for env in range(N):
        mujoco.mj_setState(sim.model, data, sim.state_of(env), mujoco.mjtState.mjSTATE_INTEGRATION)
        mujoco.mj_forward(sim.model, data)
        np.testing.assert_allclose(sim.bind("xpos")[env], data.xpos, atol=8 * EPS)
        seen = slice(*(sim.model.sensor("cube_contacts").adr[0] + np.array([0, 5])))
        np.testing.assert_allclose(
            sim.bind("sensordata")[env, seen], data.sensordata[seen], atol=64 * EPS
        )
        assert np.abs(sim.bind("actuator_force")[env].numpy() - data.actuator_force).max() > 1e-3


def test_a_masked_step_leaves_the_others_as_they_are(engine, scenes):
    scene = scenes[HAND]
    sim, every = (moved(make(engine, scene.model), scene) for _ in range(2))
    fields = ("qpos", "qvel", "time", "history", "xpos", "sensordata", "actuator_force")
    before = {field: sim.bind(field).clone() for field in fields}
    mask = only(0, 2)
    for one, kind in ((sim, mask), (every, None)):
        one.bind("ctrl")[:] += 0.1
        broken = one.step(scene.substeps, kind)
        assert broken.dtype == torch.bool
        assert not broken.any()
    for field in fields:
        assert torch.equal(sim.bind(field)[~mask], before[field][~mask]), field
        assert torch.equal(sim.bind(field)[mask], every.bind(field)[mask]), field
    assert not torch.equal(sim.bind("qpos")[mask], before["qpos"][mask])


def test_a_subset_resets(engine, scenes):
    scene = scenes[HAND]
    sim = moved(make(engine, scene.model), scene, steps=3)
    before = sim.get_state()
    fresh = make(engine, scene.model).get_state()
    sim.reset(only(1, 3))
    assert torch.equal(sim.get_state()[[0, 2]], before[[0, 2]])
    assert torch.equal(sim.get_state()[[1, 3]], fresh[[1, 3]])
    forces = [sim.bind("actuator_force"), sim.bind("sensordata")]
    of_others = [force[[0, 2]].clone() for force in forces]
    sim.forward(only(1, 3))
    data = mujoco.MjData(sim.model)
    mujoco.mj_resetDataKeyframe(sim.model, data, 0)
    mujoco.mj_forward(sim.model, data)
    for force, kept, expected in zip(forces, of_others, (data.actuator_force, data.sensordata)):
        assert torch.equal(force[[0, 2]], kept)
        assert kept.any()
        np.testing.assert_allclose(force[1], expected, atol=64 * EPS)
        assert torch.equal(
            force[1], force[3]
        )  # not that of whichever environment was computed before


def test_forward_follows_what_was_written_where_it_is_asked_to(engine, scenes):
    sim = make(engine, scenes[JAKA].model)
    pinch = sim.model.site("pinch").id
    state = sim.get_state()
    sim.forward()
    assert torch.equal(sim.get_state(), state)
    before = sim.bind("site_xpos")[:, pinch].clone()
    sim.bind("qpos")[:, 0] += 0.3
    sim.forward(only(2))
    moved_by = (sim.bind("site_xpos")[:, pinch] - before).norm(dim=-1)
    assert moved_by[2] > 0.1
    assert not moved_by[[0, 1, 3]].any()


CHANGES = [  # a field, what of it, by how much: what differs after some control steps of the hand with its cube
    ("body_mass", ("body", "cube"), 3.0),
    ("body_inertia", ("body", "cube"), 5.0),
    ("geom_friction", None, 0.1),
    ("geom_size", ("geom", "cube"), 0.9),
    ("dof_damping", None, 20.0),
    ("dof_armature", None, 5.0),
    ("dof_frictionloss", None, 4.0),
    ("actuator_gainprm", None, 0.7),
    ("actuator_biasprm", None, 0.7),
    ("actuator_forcerange", None, 0.05),
    ("opt.gravity", None, 0.5),
]


def value_of(model: mujoco.MjModel, field: str) -> np.ndarray:
    return getattr(model.opt, field[4:]) if field.startswith("opt.") else getattr(model, field)


@pytest.mark.parametrize(
    ("field", "thing", "factor"), CHANGES, ids=[change[0] for change in CHANGES]
)
def test_a_model_field_changes_its_own_environment_alone(engine, scenes, field, thing, factor):
    scene = scenes[HAND]
    plain, changed = make(engine, scene.model), make(engine, scene.model)
    live = changed.expand(field)
    where = (1,) if thing is None else (1, getattr(scene.model, thing[0])(thing[1]).id)
    live[where] *= factor
    for sim in (plain, changed):
        moved(sim, scene, steps=6)
    difference = (plain.bind("qpos") - changed.bind("qpos")).abs().amax(1)
    assert difference[1] > 1e-5
    assert not difference[[0, 2, 3]].any()
    np.testing.assert_array_equal(value_of(changed.model_of(1), field), live[1].cpu())
    np.testing.assert_allclose(
        value_of(changed.model_of(0), field), value_of(scene.model, field), rtol=EPS
    )


def test_constants_follow_masses_and_armatures_where_they_are_asked_to(engine, scenes):
    scene = scenes[HAND]
    sim = make(engine, scene.model)
    before = {field: sim.bind(field).clone() for field in ("qpos", "xpos")}
    cube = scene.model.body("cube").id
    for field, where in (("body_mass", cube), ("body_inertia", cube), ("dof_armature", 2)):
        sim.expand(field)[:, where] *= 2.0
    sim.set_const(only(1, 2))
    for env, factor in ((0, 1.0), (1, 2.0), (2, 2.0), (3, 1.0)):
        expected = sim.model_of(env)
        for field, where in (("body_mass", cube), ("body_inertia", cube), ("dof_armature", 2)):
            getattr(expected, field)[where] = getattr(scene.model, field)[where] * factor
        mujoco.mj_setConst(expected, mujoco.MjData(expected))
        own = sim.model_of(env)
        for constant in ("body_subtreemass", "body_invweight0", "dof_invweight0", "actuator_acc0"):
            # float32: an inverse inertia is a solution with a matrix of condition 1e2 to 1e3 here
            np.testing.assert_allclose(
                getattr(own, constant), getattr(expected, constant), rtol=1e3 * EPS
            )
    for field, value in before.items():
        assert torch.equal(sim.bind(field), value), field


def test_delayed_commands_arrive_when_they_should(engine, scenes):
    scene = scenes[HAND]
    dt = scene.model.opt.timestep
    sim = make(engine, scene.model)
    delays = torch.tensor([0.0, 1.5, 3.5, 3.5], dtype=sim.dtype) * dt
    sim.expand("actuator_delay")[:] = delays[:, None]
    sim.hold_commands()
    sim.bind("ctrl")[:] += 0.2
    sim.hold_commands(only(3))  # as if it had been there before
    torque = []
    for _ in range(6):
        sim.step(1)
        torque.append(sim.bind("actuator_force")[:, 0].clone())
    jump = torch.stack(torque).abs() > 0.2  # kp 3 N m/rad times 0.2 rad, against a fraction of it
    first = jump.int().argmax(0)
    assert first.tolist() == [0, 2, 4, 0]


def test_state_is_restored_bit_for_bit(engine, scenes):
    scene = scenes[HAND]
    sim = make(engine, scene.model)
    sim.expand("actuator_delay")[:] = torch.linspace(0, 0.07, N)[:, None]
    sim.expand("body_mass")[:, scene.model.body("cube").id] *= torch.linspace(0.5, 2, N)
    sim.set_const()
    moved(sim, scene, steps=5)
    state = sim.get_state()
    assert state.shape == (N, mujoco.mj_stateSize(scene.model, mujoco.mjtState.mjSTATE_INTEGRATION))
    ends = []
    for _ in range(2):
        sim.set_state(state)
        assert torch.equal(sim.get_state(), state)
        sim.forward()
        moved(sim, scene, seed=1, steps=4)
        ends.append((sim.get_state(), sim.bind("sensordata").clone(), sim.bind("xpos").clone()))
    for first, second in zip(*ends):
        assert torch.equal(first, second)
    other = make(engine, scene.model)
    for field in ("actuator_delay", "body_mass"):
        other.expand(field)[:] = sim.expand(field)
    other.set_const()
    other.set_state(state)
    other.forward()
    moved(other, scene, seed=1, steps=4)
    assert torch.equal(other.get_state(), ends[0][0])


def test_state_of_one_environment_is_mujocos(engine, scenes):
    scene = scenes[HAND]
    sim = moved(make(engine, scene.model), scene, steps=2)
    sim.bind("xfrc_applied")[2, scene.model.body("cube").id] = torch.arange(6)
    data = mujoco.MjData(sim.model)
    mujoco.mj_setState(sim.model, data, sim.state_of(2), mujoco.mjtState.mjSTATE_INTEGRATION)
    for field in (
        "time",
        "qpos",
        "qvel",
        "history",
        "qacc_warmstart",
        "ctrl",
        "xfrc_applied",
        "eq_active",
    ):
        np.testing.assert_array_equal(
            getattr(data, field), sim.bind(field)[2].cpu().numpy(), err_msg=field
        )


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1e11])
def test_what_breaks_is_said_and_counted_and_harms_nobody_else(engine, scenes, bad):
    scene = scenes[JAKA]
    sim, plain = (moved(make(engine, scene.model), scene) for _ in range(2))
    sim.bind("qvel")[2, 1] = bad
    broken = sim.step(scene.substeps)
    plain.step(scene.substeps)
    assert broken.tolist() == [False, False, True, False]
    assert sim.broken_count == 1
    assert sim.overflow_count == 0
    assert torch.equal(sim.bind("qpos")[[0, 1, 3]], plain.bind("qpos")[[0, 1, 3]])
    for field in ("qpos", "qvel", "xpos", "sensordata", "actuator_force"):
        assert torch.isfinite(sim.bind(field)).all(), field
    sim.reset(broken)
    sim.forward(broken)
    assert not moved(sim, scene, steps=2).step(scene.substeps).any()
    assert sim.broken_count == 1


def test_what_is_masked_out_does_not_break(engine, scenes):
    sim = make(engine, scenes[JAKA].model)
    sim.bind("qvel")[1, 0] = float("nan")
    assert not sim.step(2, only(0, 2, 3)).any()
    assert sim.broken_count == 0
    assert sim.bind("qvel")[1, 0].isnan()
    assert sim.step(2, only(1)).tolist() == [False, True, False, False]


def test_a_broken_environment_is_written_and_replayed(engine, scenes, tmp_path):
    scene = scenes[JAKA]
    sim = make(engine, scene.model, dump_dir=tmp_path)
    sim.expand("body_mass")[3, scene.model.body("cube").id] = 0.5
    sim.bind("qvel")[3, 0] = float("inf")
    sim.step(scene.substeps)
    (path,) = tmp_path.iterdir()
    assert path.name == "broken_0000_env3.npz"
    assert replay(path).model.body("cube").mass == 0.5


def test_the_cpu_engine_is_on_the_cpu(scenes):
    with pytest.raises(DeftlyError, match=r"cuda, but sim.engine cpu runs on CPU cores"):
        make_sim("cpu", scenes[JAKA].model, 1, device="cuda")


# ------------------------------------------------------------------------------------------------- of Warp alone


@pytest.mark.warp
def test_a_recorded_step_is_the_step(scenes):
    """An operation is run as it is the first time, recorded the second, replayed from the third."""
    scene = scenes[HAND]
    sim = moved(make("warp", scene.model), scene, steps=2)
    state = sim.get_state()
    ends = []
    for _ in range(3):
        sim._graphs.clear()
        sim._ran.clear()
        for _ in range(3):
            sim.set_state(state)
            sim.forward()
            sim.bind("ctrl")[:] += 0.05
            sim.step(1)
            ends.append(
                torch.cat((sim.get_state(), sim.bind("sensordata"), sim.bind("xpos").flatten(1)), 1)
            )
    assert all(torch.equal(end, ends[0]) for end in ends[1:])
    assert sim._graphs


@pytest.mark.warp
def test_want_of_room_breaks_the_environment_that_lacks_it(scenes):
    """A hand that holds its cube has more contacts than two; one whose cube is in the air has none.

    Its sensors of distances between fingertips tell the time here: mujoco_warp keeps their pairs among the contacts, of
    all hands, where they take room.
    """
    model = engine_scenes.compiled(HAND).model
    is_distance = model.sensor_type == mujoco.mjtSensor.mjSENS_GEOMDIST
    assert is_distance.any()
    model.sensor_type[is_distance] = mujoco.mjtSensor.mjSENS_CLOCK
    sim = make("warp", model, num_envs=8, contacts=2)
    sim.bind("qpos")[:, -5] += 0.2
    sim.bind("qpos")[3, -5] -= 0.2
    sim.forward()
    lacks = torch.zeros(8, dtype=torch.bool)
    for _ in range(8):  # the others have not landed yet
        lacks |= sim.step(1)
    assert lacks.tolist() == only(3, of=8).tolist()
    assert sim.broken_count == sim.overflow_count > 0
    sim.reset(lacks)
    sim.bind("qpos")[3, -5] += 0.2
    sim.forward()
    counted = sim.overflow_count
    assert not sim.step(1).any()
    assert sim.overflow_count == counted


@pytest.mark.warp
def test_want_of_room_for_all_together_breaks_all(scenes):
    """All hands hold their cubes, and contacts of any may be lost."""
    scene = scenes[HAND]
    sim = make("warp", scene.model, contacts=1)
    for _ in range(20):
        broken = sim.step(1)
    assert broken.all()
    assert sim.overflow_count >= N


@pytest.mark.warp
def test_a_solver_at_its_limit_of_iterations_is_no_want_of_room(scenes):
    scene = scenes[HAND]
    model = engine_scenes.compiled(HAND).model
    model.opt.iterations, model.opt.ls_iterations = 1, 1
    sim = moved(make("warp", model), scene, steps=5)
    assert sim.overflow_count == sim.broken_count == 0
    assert int(sim._overflow.max()) > 0


@pytest.mark.warp
def test_what_warp_lacks_is_said(scenes):
    model = scenes[JAKA].model
    sim = make("warp", model)
    for ask, field in (
        (sim.bind, "qposs"),
        (sim.bind, "contact"),
        (sim.expand, "jnt_type"),
        (sim.expand, "opt.nothing"),
    ):
        with pytest.raises(DeftlyError, match=f"warp engine cannot .*'{field}'"):
            ask(field)
    with pytest.raises(DeftlyError, match="no device 'cuda:7'"):
        make_sim("warp", model, 1, device="cuda:7")
    gauss_seidel = engine_scenes.compiled(JAKA).model
    gauss_seidel.opt.solver = mujoco.mjtSolver.mjSOL_PGS
    with pytest.raises(DeftlyError, match=r"lacks what the scene uses: mjSOL_PGS.*sim.engine cpu"):
        make_sim("warp", gauss_seidel, 1)


# ------------------------------------------------------------------------------------------------- agreement
#
# How far may a float32 engine be from a float64 one? Contacts amplify differences, so no constant is right for long.
# The baseline is the CPU engine itself, made as coarse as float32 is, in the two ways in which float32 is coarse:
#   - its solver stops at a tolerance of 1e-6 in place of 1e-8, as Warp's does (an improvement below 1e-6 of the cost's
#     scale is about the last digits of float32, so mujoco_warp asks for no more);
#   - positions, velocities and accelerations are rounded to float32 after every substep.
# Its errors against the exact CPU engine say what float32 does to this motion. Warp's are to be no greater, in the
# median and in the 90 % quantile over environments and time: contact or none at one instant is a matter of the last
# digit, so single extremes say nothing. What the baseline lacks is the rounding inside of a substep: poses are
# products of up to ten rotations and offsets, each rounded, hence 16 units in the last place of the largest value.

COMPARED = ("qpos", "qvel", "xpos", "site_xpos", "sensordata", "actuator_force")
QUANTILES = torch.tensor([0.5, 0.9], dtype=torch.float64)
ENVS = 32


class Trio:
    """The exact engine, the baseline and Warp, with the same randomized models and from the same states."""

    def __init__(self, family: str):
        scene, rough = (
            engine_scenes.compiled(family),
            engine_scenes.compiled(family, tolerance=1e-6),
        )
        self.scene = scene
        self.exact = make("cpu", scene.model, ENVS)
        self.coarse = make("cpu", rough.model, ENVS)
        self.warp = make("warp", scene.model, ENVS)
        self.all = (self.exact, self.coarse, self.warp)
        self.generator = torch.Generator().manual_seed(0)
        self._randomize()
        qpos = engine_scenes.start(scene, ENVS, self.generator)
        for sim in self.all:
            sim.bind("qpos")[:] = qpos
            sim.forward()

    def _randomize(self) -> None:
        """As the tasks do: masses, friction, size, gains, limits, delays; in numbers that float32 holds."""
        body, geom = self.scene.model.body("cube").id, self.scene.model.geom("cube").id
        fields = {"body_mass": body, "body_inertia": body, "geom_size": geom, "geom_rbound": geom}
        for field in ("geom_friction", "dof_damping", "dof_frictionloss", "actuator_forcerange"):
            fields[field] = slice(None)
        for field, where in fields.items():
            factor = 0.9 + 0.2 * torch.rand(ENVS, generator=self.generator)
            for sim in self.all:
                live = sim.expand(field)[:, where]
                live.copy_(live.float() * factor.view(-1, *[1] * (live.ndim - 1)))
        for sim in self.all:
            sim.expand("geom_aabb")[:, geom, 3:] = sim.expand("geom_size")[:, geom]
            sim.set_const()
        if self.scene.model.nhistory:
            delay = 0.07 * torch.rand(ENVS, 1, generator=self.generator)
            for sim in self.all:
                sim.expand("actuator_delay")[:] = delay
                sim.hold_commands()

    def step(self, command: torch.Tensor) -> None:
        """A control period of all three."""
        for sim in self.all:
            sim.bind("ctrl")[:] = command
        self.exact.step(self.scene.substeps)
        assert not self.warp.step(self.scene.substeps).any()
        for _ in range(self.scene.substeps):
            self.coarse.step(1)
            for field in ("qpos", "qvel", "qacc_warmstart"):
                live = self.coarse.bind(field)
                live.copy_(live.float())

    def synchronize(self) -> None:
        """All three at the exact engine's state, rounded to float32."""
        state = self.exact.get_state().float()
        for sim in self.all:
            sim.set_state(state.to(sim.dtype))

    def error(self, sim, field: str) -> torch.Tensor:
        """Largest difference of each environment from the exact engine."""
        return (sim.bind(field).double() - self.exact.bind(field)).abs().flatten(1).amax(1)


class Errors:
    """Errors of Warp and of the baseline over many steps."""

    def __init__(self, trio: Trio):
        self._trio = trio
        self._found = {field: ([], []) for field in COMPARED}
        self._largest = dict.fromkeys(COMPARED, 0.0)

    def add(self) -> None:
        """Note the errors of now."""
        trio = self._trio
        for field, (ours, theirs) in self._found.items():
            ours.append(trio.error(trio.warp, field))
            theirs.append(trio.error(trio.coarse, field))
            self._largest[field] = max(
                self._largest[field], float(trio.exact.bind(field).abs().max())
            )

    def of(self, field: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Warp's and the baseline's, `(steps, num_envs)`."""
        ours, theirs = self._found[field]
        return torch.stack(ours), torch.stack(theirs)

    def check(self) -> None:
        """Warp's median and 90 % quantile are no greater than the baseline's and rounding."""
        for field in COMPARED:
            ours, theirs = (errors.flatten().quantile(QUANTILES) for errors in self.of(field))
            rounding = 16 * EPS * self._largest[field]
            said = f"{field}: {ours.tolist()} > {theirs.tolist()} + {rounding:.1e}"
            assert (ours <= theirs + rounding).all(), said


@pytest.fixture(params=FAMILIES)
def family(request):
    return request.param


@pytest.mark.warp
def test_a_control_period_agrees_as_far_as_float32_lets_it(family):
    """From states of a motion full of contacts, and always from the same: nothing grows for longer than a period."""
    trio = Trio(family)
    errors, same = Errors(trio), []
    for command in engine_scenes.motion(trio.scene, ENVS, 40, trio.generator):
        trio.step(command)
        errors.add()
        rows = trio.exact.bind("nefc")
        same.append(
            [float((rows == sim.bind("nefc")).double().mean()) for sim in (trio.coarse, trio.warp)]
        )
        trio.synchronize()
    errors.check()
    coarse, warp = np.mean(same, axis=0)
    assert warp >= coarse, (
        "contacts that the exact engine has, the warp engine has less often than the baseline"
    )


@pytest.mark.warp
def test_an_episode_agrees_as_far_as_float32_lets_it(family):
    """The first second by quantiles, as above; the whole episode by statistics.

    After a second or two the motions with contacts are as far apart as they can be, on the baseline as well. Then
    what can be asked is whether Warp's errors are drawn from larger ones than the baseline's (Mann-Whitney over the
    environments, one-sided), and whether what happens to the cube is drawn from something else than on the exact
    engine (Kolmogorov-Smirnov). Either fails by chance once in a thousand if there is no difference.
    """
    from scipy.stats import ks_2samp, mannwhitneyu

    trio = Trio(family)
    errors, steps = Errors(trio), {JAKA: 200, HAND: 400}[family]
    commands = engine_scenes.motion(trio.scene, ENVS, steps, trio.generator)
    rate = round(1 / (trio.scene.substeps * trio.scene.model.opt.timestep))
    for count, command in enumerate(commands, 1):
        trio.step(command)
        errors.add()
        if count == rate:
            errors.check()
    for field in COMPARED:
        ours, theirs = (found.clamp(min=1e-12).log().mean(0) for found in errors.of(field))
        assert mannwhitneyu(ours, theirs, alternative="greater").pvalue > 1e-3, field
    for outcome in (lambda sim: sim.bind("qpos")[:, -5].double(), grip):
        assert ks_2samp(outcome(trio.warp), outcome(trio.exact)).pvalue > 1e-3


def grip(sim) -> torch.Tensor:
    """Sum of the sizes of the forces on the cube, N, `(num_envs,)`."""
    model = sim.model
    of_cube = (model.sensor_type == mujoco.mjtSensor.mjSENS_CONTACT) & (
        model.sensor_refid == model.body("cube").id
    )
    starts = model.sensor_adr[of_cube & (model.sensor_dim == 3)].tolist()
    return (
        torch.stack([sim.bind("sensordata")[:, start : start + 3].norm(dim=-1) for start in starts])
        .sum(0)
        .double()
    )
