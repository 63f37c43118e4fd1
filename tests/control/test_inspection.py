"""`deftly inspect`: a log is summed up, replayed bit for bit, and plotted; what was tampered with is found."""

import csv
import json
import re
import sys
from dataclasses import asdict, replace

import fifty
import numpy as np
import pytest

from deftly.commands import main as cli
from deftly.contract import Act, Joint, Observe, PolicyContract, RobotInterface, Signal
from deftly.control import inspection, log
from deftly.control.drivers import FakeDriver
from deftly.control.log import LogBuffer
from deftly.control.loop import Runner
from deftly.control.safety import Kernel, SafetyConfig, State
from deftly.errors import DeftlyError
from deftly.policy.protocol import ContractPolicy, OnnxNetwork, PolicyError

CONTRACT = fifty.CONTRACT


class Recorded:
    """A loop in simulated time, whose operator does what `events` says before a tick."""

    def __init__(
        self, path, events, ticks, *, contract=CONTRACT, network=None, size=1000, cfg=None, **fault
    ):
        self.clock, cfg = 100.0, cfg or SafetyConfig(start_envelope=3.0)
        buffer, kernel = LogBuffer(contract, size), Kernel(contract.robot, contract.rate, cfg)
        policy = ContractPolicy(contract, network or OnnxNetwork(fifty.model(), contract))
        self.runner = Runner(
            policy,
            kernel,
            FakeDriver(contract.robot, contract.rate, clock=lambda: self.clock, **fault),
            buffer,
        )
        faults, last = [], "none"
        for tick in range(ticks):
            self.clock += 1 / contract.rate
            for event in events.get(tick, ()):
                getattr(self.runner, event)()
            self.runner.step(self.clock)
            if kernel.fault not in (last, "none"):
                faults.append((self.clock, kernel.fault, kernel.reason))
            last = kernel.fault
        facts = {"safety": json.dumps(asdict(cfg)), "faults": json.dumps(faults), "driver": "fake"}
        buffer.save(path, facts)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return fifty.write_bundle(tmp_path_factory.mktemp("bundle") / "fifty")


@pytest.fixture(scope="module")
def held(tmp_path_factory):
    """A log with a hold by the operator, and a fault in its second episode."""
    path = tmp_path_factory.mktemp("log") / "held.npz"
    events = {5: ["start"], 40: ["hold"], 50: ["resume"], 52: ["start"]}
    Recorded(path, events, 120, fault="nan", at=100)
    return path


def tampered(path, tmp_path, change):
    """A copy of a log after `change(rows)`."""
    found = log.read(path)
    rows = {name: column.copy() for name, column in found.rows.items()}
    change(rows)
    log.write(tmp_path / "tampered.npz", found.contract, rows, found.facts, found.snapshots)
    return tmp_path / "tampered.npz"


def test_summary_and_replay(held, bundle, capsys):
    assert cli.main(["inspect", str(held), "--bundle", str(bundle)]) == 0
    said = capsys.readouterr().out
    assert "fifty, contract " in said
    assert "120 ticks in 2.38 s, 50.00 Hz of 50; 0 ticks came half a period late" in said
    assert "states: init 0.04 s, ready 0.10 s, active 1.66 s, hold 0.60 s" in said
    assert "fault at 0.80 s, tick 40: operator: the operator asked for it" in said
    assert re.search(r"fault at 2.00 s, tick 100: signals-bad: signal 'joint_pos' is missing", said)
    assert re.search(r"^ a +-?0\.\d+ +0\.5000 +rad +0\.\d+ +\d+\.\d%", said, re.MULTILINE)
    assert said.endswith("safety kernel: replays bit for bit\npolicy: replays bit for bit\n")


def test_a_log_that_dropped_its_beginning_replays(tmp_path, bundle, capsys):
    path = tmp_path / "log.npz"
    Recorded(path, {5: ["start"], 600: ["hold"], 610: ["resume"], 612: ["start"]}, 930, size=400)
    assert len(log.read(path)) < 400
    assert cli.main(["inspect", str(path), "--bundle", str(bundle)]) == 0
    assert capsys.readouterr().out.count("replays bit for bit") == 2
    Recorded(path, {5: ["start"]}, 900, size=400)
    assert cli.main(["inspect", str(path)]) == 0
    assert cli.main(["inspect", str(path), "--bundle", str(bundle)]) == 2
    assert "holds no start of an episode" in capsys.readouterr().err


def test_an_approach_replays(tmp_path, bundle, capsys):
    Recorded(tmp_path / "log.npz", {5: ["start"]}, 120, cfg=SafetyConfig(approach_s=0.5, speed=0.5))
    assert cli.main(["inspect", str(tmp_path / "log.npz"), "--bundle", str(bundle)]) == 0


def test_a_recording_of_several_episodes_replays(tmp_path, bundle, capsys):
    parts = []
    for episode, events in enumerate(({2: ["start"]}, {2: ["start"], 30: ["hold"]})):
        made = Recorded(tmp_path / f"{episode}.npz", events, 40)
        parts.append({**made.runner.log.rows(), "episode": np.full(40, episode, "i4")})
    parts[1]["now"] -= 90.0  # every episode has a clock of its own
    parts[1]["at"] -= 90.0
    found = log.read(tmp_path / "0.npz")
    rows = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    log.write(tmp_path / "both.npz", found.contract, rows, found.facts)
    assert cli.main(["inspect", str(tmp_path / "both.npz"), "--bundle", str(bundle)]) == 0
    said = capsys.readouterr().out
    assert "80 ticks in 1.58 s, 50.00 Hz of 50; 0 ticks came half a period late" in said
    assert "states: init 0.04 s, ready 0.04 s, active 1.32 s, hold 0.20 s" in said
    assert "fault at 1.40 s, tick 70: operator" in said
    both = log.read(tmp_path / "both.npz")
    np.testing.assert_allclose(np.diff(inspection.timeline(both)), 0.02, atol=1e-9)


def test_a_start_in_the_first_row_is_told_the_kernels_command(tmp_path, bundle):
    ticks, begin = 16, {8: ["start"]}
    Recorded(tmp_path / "log.npz", begin, ticks, size=8)
    found = log.read(tmp_path / "log.npz")
    assert found.rows["event"][0] == "start"
    where, asked = inspection.replay(found)
    assert where == ""
    assert inspection.replay_policy(found, asked, bundle) == ""


def test_a_network_of_one_batch_size_is_refused_and_one_that_fails_says_so():
    with pytest.raises(DeftlyError, match="'observation' is for batches of 1 alone"):
        OnnxNetwork(fifty.model(batch=1), CONTRACT)
    with pytest.raises(PolicyError, match=r"^the network failed: .*[^\n]$"):
        OnnxNetwork(fifty.model(), CONTRACT)(np.zeros((1, 2), np.float32))


def test_many_words_in_one_tick_replay(tmp_path):
    words = ["start", *["hold", "resume"] * 30, "hold"]
    Recorded(tmp_path / "log.npz", {5: words, 6: ["resume", "hold", "resume"]}, 20)
    found = log.read(tmp_path / "log.npz")
    assert [e for e in found.rows["event"] if e] == ["start+hold+resume+hold", "resume"]
    assert inspection.replay(found)[0] == ""


@pytest.mark.parametrize("column", ["signal/joint_pos", "targets", "command", "now"])
def test_the_last_bit_of_one_number_is_missed(column, held, tmp_path, capsys):
    def change(rows):
        value = rows[column][20:21]
        value[...] = np.nextafter(value, np.inf)

    found = log.read(tampered(held, tmp_path, change))
    where, _ = inspection.replay(found)
    if column == "command":
        assert where.startswith("tick 20 differs: the command, by ")
    assert bool(where) == (column in ("targets", "command", "now"))


def test_what_was_tampered_with_is_found(held, tmp_path, bundle, capsys):
    def state(rows):
        rows["state"][30] = State.HOLD

    def event(rows):
        rows["event"][50] = ""

    def odd(rows):
        rows["event"][30] = "resume"

    def unknown(rows):
        rows["event"][30] = "__init__"

    def action(rows):
        rows["action"][30] += 1e-7

    for change, said in (
        (
            state,
            "safety kernel: tick 30 differs: state is 'hold' in the log, 'active' in the replay",
        ),
        (
            event,
            "safety kernel: tick 50 differs: state is 'init' in the log, 'hold' in the replay",
        ),
        (odd, "safety kernel: tick 30 differs: the operator's 'resume' is not possible"),
        (unknown, "safety kernel: tick 30 differs: the operator's '__init__' is not possible"),
        (action, "policy: tick 30 differs: the action, by "),
    ):
        assert (
            cli.main(["inspect", str(tampered(held, tmp_path, change)), "--bundle", str(bundle)])
            == 1
        )
        assert said in capsys.readouterr().out


def test_a_policy_is_followed_up_to_its_first_silence(tmp_path, bundle):
    network, calls = OnnxNetwork(fifty.model(), CONTRACT), []

    def moody(obs):
        calls.append(1)
        if len(calls) == 20:
            raise TimeoutError
        return network(obs) if len(calls) < 20 else -network(obs)

    Recorded(tmp_path / "log.npz", {5: ["start"]}, 60, network=moody)
    found = log.read(tmp_path / "log.npz")
    where, asked = inspection.replay(found)
    assert where == ""
    assert inspection.replay_policy(found, asked, bundle) == ""
    found.rows["decided"][24] = True
    assert inspection.replay_policy(found, asked, bundle).startswith("tick 24 differs: the action")


def test_csv(held, tmp_path, capsys):
    assert cli.main(["inspect", str(held), "--csv", str(tmp_path / "log.csv")]) == 0
    with (tmp_path / "log.csv").open() as file:
        rows = list(csv.DictReader(file))
    found = log.read(held)
    assert len(rows) == len(found)
    assert float(rows[30]["command/b"]) == found.rows["command"][30, 1]
    assert float(rows[30]["measured/a"]) == found.rows["signal/joint_pos"][30, 0]
    assert (rows[5]["event"], rows[5]["state"], rows[100]["fault"]) == (
        "start",
        "active",
        "signals-bad",
    )


def test_a_plot_of_sixteen_joints(tmp_path, capsys):
    from matplotlib import image

    names = tuple(f"finger{i // 4}_joint{i % 4}" for i in range(16))
    hand = PolicyContract(
        robot=RobotInterface(
            name="hand",
            joints=tuple(Joint(name, -0.5, 1.6, 0.3, 3.0) for name in names),
            signals=(Signal("joint_pos", 16),),
        ),
        rate=20.0,
        observe_terms=(Observe("joint_pos"),),
        act_terms=(Act(names, "relative", (0.2,)),),
    )
    path, png = tmp_path / "log.npz", tmp_path / "log.png"
    Recorded(path, {5: ["start"], 40: ["hold"]}, 60, contract=hand, network=np.tanh)
    assert cli.main(["inspect", str(path), "--png", str(png)]) == 0
    pixels = image.imread(png)
    assert pixels.shape[0] > 1500
    for state in ("ready", "active", "hold"):
        colour = np.array([int(inspection.COLOURS[state][i : i + 2], 16) / 255 for i in (1, 3, 5)])
        assert (np.abs(pixels[..., :3] - colour).max(-1) < 0.01).mean() > 0.01
    assert sorted(file.name for file in tmp_path.iterdir()) == ["log.npz", "log.png"]


def test_without_matplotlib_the_rest_is_printed(held, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert cli.main(["inspect", str(held), "--png", str(tmp_path / "log.png")]) == 1
    said = capsys.readouterr()
    assert "replays bit for bit" in said.out
    assert 'pip install "deftly[train]"' in said.err


EVIL = "\x1b[2J\x1b]0;x\x07\nlast line"


def test_what_a_log_says_does_nothing_to_the_terminal(held, tmp_path, capsys):
    found = log.read(held)
    faults = json.dumps(
        [[float(found.rows["now"][99]), "x", EVIL], [float(found.rows["now"][100]), "x", EVIL]]
    )
    facts = {**found.facts, "task": EVIL, "policy": EVIL, "driver": EVIL, "faults": faults}
    rows = {**found.rows, "state": found.rows["state"].copy(), "fault": found.rows["fault"].copy()}
    rows["state"][10], rows["fault"][20] = EVIL, EVIL
    log.write(tmp_path / "evil.npz", found.contract, rows, facts)
    assert cli.main(["inspect", str(tmp_path / "evil.npz")]) == 1  # it does not replay
    out = capsys.readouterr().out
    assert all(c.isprintable() or c == "\n" for c in out)
    assert "last line" in out
    assert not any(line.startswith("last line") for line in out.splitlines())


@pytest.mark.parametrize("name", ["fault", "state"])
def test_text_of_a_log_is_no_formula_and_no_line_of_a_plot(held, tmp_path, capsys, name):
    def change(rows):
        rows[name][20] = "$\\frac{$\x1b[2J\nlast"

    path, png = tampered(held, tmp_path, change), tmp_path / "log.png"
    assert cli.main(["inspect", str(path), "--png", str(png)]) == 1  # it does not replay
    assert png.read_bytes().startswith(b"\x89PNG")
    said = capsys.readouterr()
    assert all(c.isprintable() or c == "\n" for c in said.out + said.err)
    assert not any(line.startswith("last") for line in said.out.splitlines())


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", ["now", "tick_ms", "command", "targets"])
@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan, 1e308])
def test_whatever_numbers_a_log_holds_there_is_no_traceback(held, tmp_path, capsys, name, value):
    def change(rows):
        with np.errstate(over="ignore"):
            rows[name][10:] = value

    path = tampered(held, tmp_path, change)
    png = ["--png", str(tmp_path / "log.png")] if value == 1e308 else []
    assert cli.main(["inspect", str(path), *png]) in (0, 1, 2)
    said = capsys.readouterr()
    assert "Traceback" not in said.err
    assert said.err.count("\n") <= 1
    assert "ticks in" in said.out


DEEP = "[" * 100_000


@pytest.mark.parametrize(
    "facts", [{"safety": DEEP}, {"safety": "7"}, {"safety": '{"speed": "x"}'}, {"safety": "NaN"}]
)
def test_bounds_that_are_none_are_one_line(held, tmp_path, capsys, facts):
    found = log.read(held)
    log.write(tmp_path / "bad.npz", found.contract, found.rows, {**found.facts, **facts})
    assert cli.main(["inspect", str(tmp_path / "bad.npz")]) == 2
    error = capsys.readouterr().err
    assert "does not say the bounds of its safety kernel" in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    "faults", [DEEP, "7", "[1]", "[[1]]", '[["a", 1, 2]]', "[[" + "9" * 4000 + ", 1, 2]]", "{}", ""]
)
def test_faults_that_are_none_are_left_out(held, tmp_path, faults):
    found = log.read(held)
    log.write(tmp_path / "bad.npz", found.contract, found.rows, {**found.facts, "faults": faults})
    assert [fault[3] for fault in inspection.faults(log.read(tmp_path / "bad.npz"))] == [""] * len(
        inspection.faults(found)
    )


def test_what_cannot_be_inspected_is_one_line(held, bundle, tmp_path, capsys):
    (tmp_path / "no.npz").write_bytes(b"no log")
    found = log.read(held)
    log.write(tmp_path / "bare.npz", found.contract, found.rows, {})
    log.write(tmp_path / "none.npz", found.contract, {k: v[:0] for k, v in found.rows.items()}, {})
    other = fifty.write_bundle(tmp_path / "other", replace(CONTRACT, rate=40.0))
    for words, said in (
        ([], "inspect needs a log: deftly inspect LOG.npz"),
        ([str(tmp_path / "no.npz")], "as a log of"),
        ([str(tmp_path / "missing.npz")], "no such file"),
        ([str(tmp_path / "bare.npz")], "does not say the bounds of its safety kernel"),
        ([str(tmp_path / "none.npz")], "holds no ticks"),
        ([str(held), "--bundle", str(other)], "the log was made under another contract: rate"),
    ):
        assert cli.main(["inspect", *words]) == 2
        error = capsys.readouterr().err
        assert said in error
        assert error.count("\n") == 1
