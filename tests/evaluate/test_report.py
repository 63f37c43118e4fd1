"""What a task names for its report: metrics, plots, a breakdown; and randomization wider than in training."""

import json
import shutil
from dataclasses import dataclass, field
from html import escape

import numpy as np
import pytest

from deftly.commands import main as cli
from deftly.commands.eval import EvalArgs
from deftly.commands.eval import main as eval_main
from deftly.config import EnvConfig, PPOConfig, SimConfig, to_yaml, with_task
from deftly.errors import DeftlyError
from deftly.evaluate import evaluate, report
from deftly.evaluate.comparison import Side, compare
from deftly.evaluate.evaluate import measure
from deftly.evaluate.gates import check_gate
from deftly.learn import checkpoint
from deftly.learn.networks import Network, NetworkSpec
from deftly.sim.randomize import Randomize
from deftly.stats import wilson
from deftly.tasks import Report, Task, load, shipped

HOSTILE = "a\x1b[2Jb\nerror: no"

HAND = "leap-right-cube-rotate"


class Parted(Task):
    """Divides its episodes by `size`."""

    name = "parted"
    report = Report(
        metrics={"size": "size of the thing, mm", "rate": "how fast, 1/s"},
        plots=(("rate", "Rate, 1/s"),),
        breakdown=("size", (1.0, 2.0, 3.0, 4.0)),
    )


def values(size, success, **more):
    n = len(size)
    base = {
        "success": np.array(success, float),
        "steps": np.full(n, 20.0),
        "seconds": np.full(n, 1.0),
    }
    return {
        **base,
        "size": np.array(size, float),
        "rate": np.arange(n, dtype=float),
        "return": np.zeros(n),
        **more,
    }


# ------------------------------------------------------------------- breakdown


def test_breakdown():
    out = report.divide(values([1.0, 1.5, 2.0, np.nan], [1, 0, 1, 1]), Parted)["breakdown"]
    assert out["metric"] == "size"
    first, second, third = out["bins"]
    assert (first["low"], first["high"], first["episodes"]) == (1.0, 2.0, 2)
    assert first["success"] == {"rate": 0.5, "count": 1, "wilson95": list(wilson(1, 2))}
    assert first["metrics"] == {"size": 1.25, "rate": 0.5}  # its own metrics, not `return`
    assert (second["episodes"], second["metrics"]["rate"]) == (
        1,
        2.0,
    )  # an edge belongs to the bin above it
    assert third["episodes"] == 0
    assert third["success"] == {"rate": None, "count": 0, "wilson95": [0.0, 1.0]}
    assert third["metrics"] == {"size": None, "rate": None}


def test_what_is_beyond_the_edges_has_its_own_bins():
    bins = report.divide(values([0.5, 1.5, 4.0, 9.0], [0, 1, 1, 1]), Parted)["breakdown"]["bins"]
    assert [(b["low"], b["high"], b["episodes"]) for b in bins] == [
        (None, 1.0, 1),
        (1.0, 2.0, 1),
        (2.0, 3.0, 0),
        (3.0, 4.0, 0),
        (4.0, None, 2),
    ]


def test_no_breakdown_no_key():
    assert report.divide(values([1.0], [1]), Task) == {}
    assert report.bins_table({"metrics": {}}) == []  # a report from before there were breakdowns


def test_an_unknown_breakdown_is_named():
    class Wrong(Parted):
        report = Report(breakdown=("sise", (1.0, 2.0)))

    with pytest.raises(DeftlyError, match="by 'sise', which none of its metrics is"):
        report.divide(values([1.0], [1]), Wrong)


def test_table_of_the_breakdown():
    head, *rows = report.bins_table(
        report.divide(values([0.5, 1.5, 1.6, 7.0], [0, 1, 0, 1]), Parted)
    )
    assert head == ("size", "to 1", "1 to 2", "2 to 3", "3 to 4", "4 to")
    cells = {name: cells for name, *cells in rows}
    assert cells["episodes"] == ["1", "2", "0", "0", "1"]
    assert cells["success"] == ["0.0%", "50.0%", "", "", "100.0%"]
    assert cells["95 % interval"][1] == "9% to 91%"
    assert cells["rate"] == ["0", "1.5", "", "", "3"]


# ------------------------------------------------------------------------ page


def page(values, task):
    data = json.loads((load_shipped() / "eval.json").read_text()) | report.divide(values, task)
    return report.html(data, values, None, task)


def load_shipped():
    found = checkpoint.shipped("jaka-pick-cube")
    assert found is not None
    return found.parent


def test_page_of_a_breakdown():
    text = page(values([0.5, 1.5, 2.5, 2.6], [0, 1, 0, 1]), Parted)
    for part in (
        "Success by size of the thing, mm",
        "Rate, 1/s, mean by size of the thing, mm",
        "how fast, 1/s",
    ):
        assert part in text
    assert "<th>to 1</th>" in text
    assert "Episode length" not in text  # `Parted` does not name it


def test_page_without_a_breakdown():
    text = page(values([0.5, 1.5], [0, 1]), Task)
    assert "Episode length, s" in text
    assert "mean by" not in text


@pytest.mark.parametrize(
    "rate",
    [
        [0.0, 0.0, 0.0],
        [0.3137] * 3,
        [-0.1, 0.213, 0.7],
        [0.3137, np.nan, 0.3137 + 1e-16],
        [0.05, 2.0, 7.5],
    ],
)
def test_histograms_of_any_figure(rate):
    cards: list[str] = []
    report._histogram(cards, "Rate, 1/s", np.array(rate), np.array([True, False, True]), 0.05)
    assert cards[0].startswith("<section class=card><h2>Rate, 1/s</h2><svg")
    report._histogram(cards, "Rate, 1/s", np.full(3, np.nan), np.ones(3, bool), 0.05)
    assert len(cards) == 1


def test_the_page_says_what_disturbed():
    data = json.loads((load_shipped() / "eval.json").read_text())
    data["disturbances"] |= {"noise": False, "wider": 1.5, "only_outside": True}
    text = report.html(data, values([1.0], [1]))
    assert "noise False, pushes True, latency_ms [0.0, 0.0], wider 1.5, only_outside True" in text


# ----------------------------------------------------- randomization held out


def test_comparison_names_what_differs_in_the_disturbances():
    old = json.loads((load_shipped() / "eval.json").read_text())
    new = old | {"disturbances": {**old["disturbances"], "wider": 1.5, "only_outside": False}}
    _, lines = compare(Side(old), Side(new))
    assert lines[0].startswith("warning: disturbances differs, {'randomize': True, ")
    assert "'wider': 1.5, 'only_outside': False} now" in lines[0]


def test_comparison_with_a_hostile_report_does_nothing_to_the_terminal():
    old = json.loads((load_shipped() / "eval.json").read_text())
    old["metrics"] = {**old["metrics"], HOSTILE: next(iter(old["metrics"].values()))}
    side, lines = compare(Side(old | {"task": HOSTILE, "disturbances": HOSTILE}), Side(old))
    cells = [*side.columns[0]._cells, *lines]
    assert all(text.isprintable() for text in cells), cells
    assert any("a?[2Jb error: no" in text for text in cells)


@pytest.fixture
def drawn(slider, monkeypatch):
    """Draws of a task's draws under `EvalArgs`: the fields of the model in 300 environments."""

    def draw(*entries: Randomize, **flags):
        env = slider(1)
        task = type(env.task)(type(env.task.cfg)(goal=0.0, randomize=entries))
        wide = evaluate._widened(task, EvalArgs(**flags))
        assert task.randomize() == entries
        monkeypatch.setattr(type(env.task), "randomize", lambda self: wide.randomize())
        return slider(300)._randomizer.fields

    return draw


MASS = Randomize("mass", 0.8, 1.2, ("block",))


def test_wider(drawn):
    mass = drawn(MASS, wider=1.5)["body_mass"].max(-1).values
    assert 0.7 <= mass.min() < 0.72 < 1.28 < mass.max() <= 1.3
    assert ((mass > 0.8) & (mass < 1.2)).any()


def test_only_outside_draws_nothing_of_the_task_s_own_range(drawn):
    mass = drawn(MASS, wider=1.5, only_outside=True)["body_mass"].max(-1).values
    assert 0.7 <= mass.min() < 0.72 < 1.28 < mass.max() <= 1.3
    assert not ((mass > 0.8) & (mass < 1.2)).any()
    assert 0.4 < (mass < 1.0).double().mean() < 0.6


def test_latency_only_outside_is_longer(drawn):
    delay = drawn(Randomize("latency", 0.0, 0.04, ("x",), op="add"), wider=1.5, only_outside=True)[
        "actuator_delay"
    ]
    x = delay[:, 0]
    assert 0.04 <= x.min() < x.max() <= 0.05


def test_added_figures_cannot_use_up_what_they_are_added_to(drawn):
    with pytest.raises(DeftlyError, match=r"randomize mass: adding -1\.1 to 1 leaves nothing"):
        drawn(Randomize("mass", -0.6, 0.4, ("block",), op="add"), wider=2.0)


@pytest.mark.parametrize(
    "flags", [{"wider": 0.5}, {"wider": float("nan")}, {"wider": float("inf")}]
)
def test_factors_that_widen_nothing(flags):
    with pytest.raises(
        DeftlyError, match=r"wider is .*, but it must be (1 or more|a finite number)"
    ):
        EvalArgs(**flags)


def test_only_outside_needs_wider():
    with pytest.raises(DeftlyError, match=r"add --wider 1\.5"):
        EvalArgs(only_outside=True)


# -------------------------------------------------------------------- the hand


@dataclass(frozen=True)
class Saved:
    sim: SimConfig = field(default_factory=SimConfig)
    train: PPOConfig = field(default_factory=PPOConfig)


@pytest.fixture(scope="module")
def hand(tmp_path_factory):
    """The task, which needs no grasp cache, and an untrained policy."""
    cls, folder = load(HAND), tmp_path_factory.mktemp("hand") / "policy"
    task = cls(cls.Config(start="sample"))  # type: ignore[call-arg]
    contract, train = task.contract(), PPOConfig(hidden=(8,))
    actor = Network(
        NetworkSpec({"state": contract.obs_size()}, contract.action_size, (8,), head="gaussian")
    )
    config = with_task(Saved, cls.Config)(SimConfig(preset="fast", threads=1), train, task.cfg)  # type: ignore[call-arg]
    checkpoint.write(
        folder, task, {"actor": actor}, contract=contract, config=to_yaml(config), iteration=1
    )
    return task, folder


def test_evaluation_of_the_hand(hand, tmp_path, capsys):
    task, folder = hand
    words = [
        HAND,
        "--checkpoint",
        str(folder),
        "--episodes",
        "12",
        "--env.episode-steps",
        "3",
        "--video",
        "False",
    ]
    gates = ["--gate", "yaw_rate<9", "--gate", "drop_rate<=0.05"]
    assert eval_main([*words, *gates, "--wider", "1.5", "--out", str(tmp_path)]) == 0
    data = json.loads((tmp_path / "eval.json").read_text())
    assert (data["disturbances"]["wider"], data["disturbances"]["only_outside"]) == (1.5, False)
    bins = data["breakdown"]["bins"]
    assert data["breakdown"]["metric"] == "cube_edge"
    assert {(b["low"], b["high"]) for b in bins} >= {(67.5, 70.5), (79.5, 82.5)}
    assert sum(b["episodes"] for b in bins) == 12
    assert sum(b["success"]["count"] for b in bins) == data["success"]["count"] == 0
    assert set(bins[0]["metrics"]) == set(task.report.metrics)
    text, out = (tmp_path / "report.html").read_text(), capsys.readouterr().out
    assert "70.5 to 73.5" in out
    assert all(title in text for _, title in task.report.plots)
    assert "Success by edge of the cube, mm" in text
    assert all(escape(report.meaning(name, task)) in text for name in data["metrics"])


def test_there_must_be_something_to_widen(hand):
    task, folder = hand
    args = EvalArgs(episodes=1, wider=1.5, env=EnvConfig(randomize=False))
    with pytest.raises(DeftlyError, match="nothing to widen"):
        measure(task, checkpoint.load(folder), args)


def test_a_gate_takes_the_task_s_own_figures():
    data = {"success": {"rate": 1.0}, "broken_physics": 0, "metrics": {"drop_rate": {"mean": 0.04}}}
    assert check_gate("drop_rate<=5%", report.means(data))["holds"]


@pytest.mark.parametrize("name", shipped())
def test_shipped_tasks_explain_what_they_measure(name):
    cls = load(name)
    assert cls.report.metrics
    assert all(plot in {**cls.report.metrics, "seconds": ""} for plot, _ in cls.report.plots)
    assert not cls.report.breakdown or cls.report.breakdown[0] in cls.report.metrics


@pytest.mark.parametrize("value", [0.0, 20.0, 2.95, -1.7e-3, 1e6, 0.3])
def test_the_histogram_of_a_constant_is_a_bar_in_the_middle(value):
    """Not one block: an evaluation whose episodes all last 20 s, say."""
    edges = report._bins(np.full(50, value), 0.05)
    low, high = report._limits(edges)
    assert len(edges) == 2
    assert edges[0] < value < edges[1]
    assert (edges[1] - edges[0]) / (high - low) < 0.1
    assert (low + high) / 2 == pytest.approx(value, abs=1e-3 * (high - low))


def test_the_histogram_of_many_values_fills_its_axis():
    edges = report._bins(np.linspace(0, 1, 50) ** 2, 0.05)
    assert report._limits(edges) == (edges[0], edges[-1])
    assert (edges[0], edges[-1]) == (0.0, 1.0)


def test_two_neighbouring_times_are_two_bars():
    edges = report._bins(np.array([1.0, 1.05, 1.0]), 0.05)
    low, high = report._limits(edges)
    assert edges == pytest.approx([0.975, 1.025, 1.075])
    assert (edges[1] - edges[0]) / (high - low) < 0.1


@pytest.mark.parametrize(("file", "what"), sorted(report.HOLDS.items()))
def test_no_report_is_written_into_something_else(tmp_path, file, what):
    report.require_place(tmp_path, "slider")
    report.require_place(tmp_path / "new", "slider")
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_text("{}")
    with pytest.raises(DeftlyError, match=f"is {what}, .*name another --out"):
        report.require_place(tmp_path, "slider")


def test_a_report_is_replaced_by_one_of_its_task_alone(tmp_path):
    (tmp_path / "eval.json").write_text('{"task": "slider"}')
    report.require_place(tmp_path, "slider")
    with pytest.raises(DeftlyError, match=r"holds a report of slider, .*name another --out"):
        report.require_place(tmp_path, "rail")
    for compared in (tmp_path, tmp_path / "eval.json"):
        with pytest.raises(DeftlyError, match="holds the report to compare with"):
            report.require_place(tmp_path, "slider", compared)
    report.require_place(tmp_path, "slider", tmp_path / "other" / "eval.json")
    (tmp_path / "eval.json").write_text("{")
    report.require_place(tmp_path, "rail")


@pytest.mark.parametrize("command", ["eval", "sim2sim"])
def test_the_commands_leave_a_bundle_as_it_is(exported, tmp_path, command):
    bundle = shutil.copytree(exported.bundle, tmp_path / "b")
    before = {path.name: path.read_bytes() for path in bundle.iterdir()}
    words = [exported.task, "--policy", str(bundle), "--episodes", "2", "--out", str(bundle)]
    assert cli.main([command, *words]) == 2
    assert {path.name: path.read_bytes() for path in bundle.iterdir()} == before
