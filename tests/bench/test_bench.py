import io
import json
import subprocess
from dataclasses import replace
from pathlib import Path

import mujoco
import numpy as np
import pytest

import deftly_bench as bench
from deftly.commands import bench as launcher
from deftly.commands import main as cli
from deftly.errors import DeftlyError
from deftly.tasks import load
from deftly_bench import cases, peer, presets, table
from deftly_bench.cases import Job

TASK = "jaka-pick-cube"


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    """A tiny job whose motions are recorded."""
    tape = tmp_path_factory.mktemp("bench") / "tape.npz"
    job = Job(
        "", TASK, str(tape), num_envs=8, seconds=0.01, tape_envs=4, tape_steps=12, train_envs=8
    )
    cases.record(job)
    return job


@pytest.fixture(scope="module")
def late(tmp_path_factory):
    """The same of a task whose commands are delayed at random."""
    tape = tmp_path_factory.mktemp("bench") / "tape.npz"
    job = Job(
        "",
        "leap-right-cube-rotate",
        str(tape),
        num_envs=12,
        seconds=0.01,
        tape_envs=2,
        tape_steps=6,
    )
    cases.record(job)
    return job


def result(**changes):
    """What a measurement would write."""
    rates = {
        "raw": [10.0, 12.0],
        "env": [9.0, 12.0],
        "raw_limit": [20.0, 24.0],
        "sb3": [1.0, 2.0],
        "train": [4.0, 4.0],
    }
    found = {
        name: bench._case([{"rate": r, "memory_mb": 100.0, "num_envs": 8} for r in of])
        for name, of in rates.items()
    }
    return {
        "schema": table.SCHEMA,
        "task": TASK,
        **bench.machine(),
        "skipped": {"raw_policy": "no policy"},
        "settings": {
            "num_envs": 8,
            "seconds": 1.0,
            "preset": "default",
            "repeats": 2,
            "quick": True,
        },
        "cases": found,
        "ratios": bench.ratios(found),
        "startup_s": {"help": {"unit": "s", "repetitions": [0.1], "median": 0.1}},
        "presets": {
            "fast": {
                "steps_per_second": 5.0,
                "penetration_m": 1e-3,
                "slip_m": 2e-4,
                "success": 0.9,
                "episodes": 10,
            }
        },
        **changes,
    }


@pytest.mark.parametrize("case", [cases.raw, cases.raw_cores])
def test_raw_replays_bit_for_bit(job, case):
    found = case(job)
    assert found["exact"]
    assert found["rate"] > 0


def test_replay_follows_resets(tmp_path, monkeypatch):
    """Episodes that end on the tape start anew in the replay."""
    cls = load(TASK)
    monkeypatch.setattr(cls, "success", lambda self, s: s.steps % 5 == 4)
    job = Job(
        "", TASK, str(tmp_path / "tape.npz"), num_envs=4, seconds=0.01, tape_envs=2, tape_steps=12
    )
    assert cases.record(job)["resets"] == 6
    assert cases.raw(job)["exact"]


def test_replay_of_a_scene_in_which_objects_sleep(tmp_path, monkeypatch):
    """What is parked is another one in each episode."""
    cls = load("panda-pick-place")
    monkeypatch.setattr(cls, "success", lambda self, s: s.steps % 5 == 4)
    tape = str(tmp_path / "tape.npz")
    job = Job("", "panda-pick-place", tape, num_envs=4, seconds=0.01, tape_envs=4, tape_steps=12)
    assert cases.record(job)["resets"] == 12
    assert cases.raw(job)["exact"]


def test_the_warp_engine_is_measured_beside_the_cpu_engine(monkeypatch):
    """The flag adds a case and its ratio; what is measured of it is told by the job alone."""
    asked = []
    monkeypatch.setattr(
        bench,
        "call",
        lambda job: asked.append(job) or {"rate": 2.0 if job.engine == "warp" else 8.0},
    )
    monkeypatch.setattr(bench, "startup", lambda job, repeats: {})
    args = bench.parse(
        bench.BenchArgs, ["--sim.engine", "warp", "--sim.preset", "fast", "--quick"], prog="bench"
    )
    found = bench.measure(bench._job(TASK, args), args, lambda line: None)
    assert [job.case for job in asked if job.engine == "warp"] == ["env"]
    assert {job.preset for job in asked} == {"fast"}
    assert found["ratios"]["env_warp/env"] == 0.25
    assert "`Env.step`, engine warp / engine cpu | 0.25" in table.markdown(found)


@pytest.mark.warp
def test_the_warp_engine_steps_as_a_case(job):
    found = cases.env(replace(job, engine="warp", num_envs=4))
    assert found["rate"] > 0


def test_environments_are_spread_over_an_episode(job):
    env = job.env(8)
    cases.spread(env, job.tape)
    assert len(set(env.state.steps.tolist())) > 3
    env.step(cases.random_action(env))
    assert env.broken_count == 0


def test_raw_replays_a_task_with_random_delays_without_them(late):
    assert late.env(1).model.nhistory > 0
    assert cases.Replay(late).model.nhistory == 0
    assert cases.raw(late)["exact"]


def test_environments_with_random_delays_are_spread_and_hear_what_they_were_sent(late):
    """The tape knows no delays, but what is still on its way to an actuator is what was sent, not the start's pose."""
    env = late.env(12)
    sent, agos = cases._tap(env), set()
    cases.spread(env, late.tape)
    steps = env.state.steps.tolist()
    assert len(set(steps)) > 6
    assert max(steps) > env.episode_steps / 2
    for i in (i for i, count in enumerate(steps) if count >= 2):  # not those that have just begun
        model = env.sim.batch.get_model(i)
        data = mujoco.MjData(model)
        mujoco.mj_setState(model, data, env.sim.state_of(i), cases.FULL)
        heard = [
            mujoco.mj_readCtrl(model, data, k, data.time, np.empty(1), 0).item()
            for k in range(model.nu)
        ]
        ago = int(model.actuator_delay[0] * env.contract.rate)
        np.testing.assert_array_equal(heard, sent[-1 - ago][i])
        agos.add(ago)
    assert agos == {0, 1}  # some hear the newest command, others still that before it
    env.step(cases.random_action(env))
    assert env.broken_count == 0


def test_env_and_its_memory(job):
    found = cases.env(job)
    assert found["rate"] > 0
    assert found["memory_mb"] > 50


def test_training_takes_the_defaults_of_deftly_train(job, monkeypatch):
    num_envs, cfg = cases.train_defaults(TASK)
    assert (num_envs, cfg.init_std) == (256, 0.5)  # the task's own
    small = type(cfg)(steps=4)
    monkeypatch.setattr(cases, "train_defaults", lambda _: (num_envs, small))
    assert cases.train(job)["num_envs"] == 8


def test_peer_acts_as_the_contract_says():
    env, rng = peer.PickCube(), np.random.default_rng(0)
    obs, _ = env.reset()
    q = obs[:7].astype(float)
    memory = env.contract.reset(
        {"joint_pos": env.data.qpos[:7].copy(), "cube_pos": q[:3], "cube_dist": q[:1]}
    )
    for _ in range(20):
        action = rng.uniform(-1.5, 1.5, 4)
        targets, memory = env.contract.act(action, memory)
        np.testing.assert_allclose(env.targets(action), targets, atol=1e-12)


def test_peer_is_a_gymnasium_environment():
    env = peer.PickCube()
    obs, _ = env.reset()
    assert env.observation_space.contains(obs)
    assert env.cfg.cube_x[0] <= obs[7] <= env.cfg.cube_x[1]
    steps = [env.step(env.action_space.sample()) for _ in range(env.cfg.episode_steps)]
    assert steps[-1][3]
    assert not steps[-2][3]


def test_grip_holds_the_cube():
    found = presets.grip("default")
    assert 0 < found["penetration_m"] < 0.005
    assert found["slip_m"] < 0.005


def test_job_in_a_process_of_its_own(job):
    done = subprocess.run(
        cases.command(Job("grip", TASK)), capture_output=True, text=True, timeout=60
    )
    assert json.loads(done.stdout.splitlines()[-1]).keys() == {"penetration_m", "slip_m", "held"}


def test_measure_has_the_schema(monkeypatch):
    def call(job):
        return {
            "rate": 100.0,
            "exact": True,
            "num_envs": job.num_envs,
            "memory_mb": 1.0,
            "slip_m": 0.0,
        }

    monkeypatch.setattr(bench, "call", call)
    monkeypatch.setattr(
        bench, "_timed", lambda words, repeats: {"unit": "s", "repetitions": [1.0], "median": 1.0}
    )
    args, said = bench.BenchArgs(quick=True, presets=True), []
    found = json.loads(json.dumps(bench.measure(bench._job(TASK, args), args, said.append)))
    assert found["schema"] == "deftly.bench/1"
    assert {
        "machine",
        "versions",
        "date",
        "settings",
        "cases",
        "ratios",
        "startup_s",
        "presets",
    } <= found.keys()
    assert {"raw", "raw_limit", "raw_cores", "env", "train", "sb3"} <= found["cases"].keys()
    assert found["ratios"].keys() == bench.RATIOS.keys() - {"env_warp/env"}
    assert found["presets"].keys() == set(bench.PRESETS)
    assert all("repetitions" in case and "median" in case for case in found["cases"].values())
    assert table.markdown(found)
    assert said


def test_the_presets_alone(monkeypatch):
    monkeypatch.setattr(
        bench,
        "call",
        lambda job: {"rate": 1.0, "success": 0.5, "wilson95": [0.4, 0.6], "episodes": 100},
    )
    args = bench.BenchArgs(presets=True, speed=False)
    found = bench.measure(bench._job(TASK, args), args, lambda line: None)
    assert list(found["presets"]) == ["coarse", "fast", "default", "accurate"]
    assert found["cases"] == {}
    page = table.markdown(found)
    assert "| fast | 1 |  |  | 50.0% of 100 (40.0% to 60.0%) |" in page
    assert "Control steps per second" not in page
    with pytest.raises(DeftlyError, match="leaves nothing to measure: add --presets True"):
        bench.BenchArgs(speed=False)


def test_ratios_are_taken_within_rounds():
    found = result()["ratios"]
    assert found["env/raw"] == pytest.approx((9 / 20 + 12 / 24) / 2)
    assert "env/raw_cores" not in found


def test_table_goes_between_the_marks(tmp_path, capsys):
    page, file = tmp_path / "performance.md", tmp_path / "a.json"
    page.write_text(f"before\n{table.BEGIN}\nold\n{table.END}\nafter\n")
    file.write_text(json.dumps(result()))
    for _ in range(2):
        assert cli.main(["bench", "--table", "--out", str(file), "--docs", str(page)]) == 0
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "old" not in text
    assert text.count("| training / Stable-Baselines3 | 3.00 |") == 1
    assert "| fast | 5 | 1.00 mm | 0.20 mm | 90.0% of 10 |" in text
    assert "wrote the tables of 1 results" in capsys.readouterr().out


def test_results_beside_which_the_tables_are_made_are_all_of_their_kind():
    """What other benchmarks measured lies in folders below: `deftly bench --table` would refuse it."""
    files = sorted((Path(bench.__file__).parents[1] / "results").glob("*.json"))
    assert files
    for file in files:
        assert table.markdown(table.read(file))


def test_summary_prints():
    from rich.console import Console

    console = Console(width=120, record=True, file=io.StringIO())
    for line in table.summary(result()):
        console.print(line)
    assert "Ratios within the run" in console.export_text()


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["bench", "nothing"], "no task 'nothing'"),
        (["bench", "--num-envs", "0"], "num-envs is 0, but it must be 1 or more"),
        (["bench", "--seconds", "-1"], "seconds is -1"),
        (
            ["bench", "--out", "/proc/x/y.json"],
            "out is /proc/x/y.json, but nothing can be written in '/proc'",
        ),
        (["bench", "--checkpoint", "no-such-run"], "no run or checkpoint 'no-such-run'"),
        (["bench", "--table", "--out", "no.json"], "cannot read the result 'no.json'"),
    ],
)
def test_wrong_input_is_refused_before_measuring(capsys, argv, says):
    assert cli.main(argv) == 2
    assert says in capsys.readouterr().err


def test_damaged_results_and_pages(tmp_path, capsys):
    page, file = tmp_path / "p.md", tmp_path / "r.json"
    argv = ["bench", "--table", "--out", str(file), "--docs", str(page)]
    for text, says in (
        ("[]", "no result of"),
        ('{"schema": "other/1"}', "has schema 'other/1'"),
        ('{"schema": "deftly.bench/1"}', "no whole result"),
        (json.dumps(result()), "cannot read"),
    ):
        file.write_text(text)
        assert cli.main(argv) == 2
        assert says in capsys.readouterr().err
    page.write_text("no marks")
    assert cli.main(argv) == 2
    assert "needs the marks" in capsys.readouterr().err


def test_without_a_checkout(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(launcher, "FOLDER", tmp_path)
    assert cli.main(["bench"]) == 2
    assert capsys.readouterr().err.startswith(
        "error: deftly bench runs from a checkout of the repository: "
    )


def test_failed_job_says_why():
    with pytest.raises(
        DeftlyError,
        match=r"the measurement 'env' of jaka-pick-cube failed: .*No such file .*'/no/tape.npz'",
    ):
        bench.call(Job("env", TASK, tape="/no/tape.npz", num_envs=1))
