import json
import multiprocessing
import os
import time
from pathlib import Path

import pytest

from deftly import workspace
from deftly.commands.runs import main as runs_main
from deftly.config import RunsConfig
from deftly.errors import DeftlyError
from deftly.workspace import WEIGHTS, create, find_checkpoint, find_run, list_runs, pin, unpin


@pytest.fixture
def cfg(tmp_path):
    return RunsConfig(root=tmp_path)


@pytest.fixture
def clock(monkeypatch):
    """Stamps that step one second per run, so that tests need not wait."""
    seconds = iter(range(60))
    real = time.strftime
    stamp = lambda form, *at: real(form, *(at or [time.localtime(1e9 + next(seconds))]))  # noqa: E731
    monkeypatch.setattr(time, "strftime", stamp)


def save(run: Path, name: str = "best") -> Path:
    folder = run / "checkpoints" / name
    folder.mkdir(parents=True)
    (folder / WEIGHTS).write_bytes(b"w")
    return folder


def links(cfg: RunsConfig) -> set[str]:
    return {path.name for path in (cfg.root / "runs").iterdir()}


def test_create_makes_the_folder_the_facts_and_the_links(cfg):
    run = create("jaka-pick-cube", "train", cfg)
    assert workspace.NAME.fullmatch(run.name)["task"] == "jaka-pick-cube"
    assert run.parent == cfg.root / "runs_all"
    assert links(cfg) == {run.name, "latest", "latest_train"}
    for link in (cfg.root / "runs").iterdir():
        assert link.resolve() == run.resolve()
        assert not os.path.isabs(os.readlink(link))
    facts = json.loads((run / "run.json").read_text())
    assert (facts["task"], facts["kind"]) == ("jaka-pick-cube", "train")
    assert set(facts) == {"task", "kind", "created", "command", "version", "commit"}
    assert os.listdir(run) == ["run.json"]


def test_a_test_run_leaves_latest_at_the_train_run(cfg):
    train, test = create("leap", "train", cfg, name="grasp"), create("leap", "test", cfg)
    assert "_train_grasp_" in train.name
    assert (cfg.root / "runs/latest").resolve() == train.resolve()
    assert (cfg.root / "runs/latest_test").resolve() == test.resolve()


def test_without_a_workspace_runs_are_plain_folders(tmp_path):
    cfg = RunsConfig(root=tmp_path, workspace=False)
    run = create("leap", "train", cfg)
    assert run.parent == tmp_path / "runs"
    assert links(cfg) == {run.name}
    assert not (tmp_path / "runs_all").exists()
    best = save(run)
    assert find_checkpoint("latest", "leap", cfg) == best


def start_many(root: Path, count: int) -> None:
    for _ in range(count):
        create("leap", "train", RunsConfig(root=root))


def test_processes_that_start_together_get_their_own_runs(cfg):
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=start_many, args=(cfg.root, 15)) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(30)
    assert [worker.exitcode for worker in workers] == [0, 0]
    assert len(list((cfg.root / "runs_all").iterdir())) == 30
    assert len(list_runs(cfg)) == 30
    assert len(links(cfg) - {"latest", "latest_train"}) == 10
    assert (cfg.root / "runs/latest").is_dir()


def test_pruning_unlinks_the_oldest_of_the_kind_only(tmp_path, clock):
    cfg = RunsConfig(root=tmp_path, max_train_runs=2, max_test_runs=1)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "leap_train_20000101_000000").mkdir()
    first = create("leap", "train", cfg)
    pinned = pin(first.name, "keep", cfg)
    tests = [create("leap", "test", cfg) for _ in range(2)]
    later = [create("jaka", "train", cfg) for _ in range(3)]
    kept = {later[1].name, later[2].name, tests[1].name}
    fixed = {"pinned", "latest", "latest_train", "latest_test", "leap_train_20000101_000000"}
    assert links(cfg) == kept | fixed
    assert all(run.is_dir() for run in (first, *tests, *later))
    assert pinned.resolve() == first.resolve()


def test_latest_is_the_newest_run_of_the_task_with_a_checkpoint(cfg):
    mine, other, empty = (create(task, "train", cfg) for task in ("leap", "jaka", "leap"))
    best, theirs = save(mine), save(other)
    (empty / "checkpoints" / ".tmp-best").mkdir(parents=True)
    (empty / "checkpoints" / ".tmp-best" / WEIGHTS).write_bytes(b"w")
    (empty / "checkpoints" / "last").mkdir()
    assert find_checkpoint("latest", "leap", cfg) == best
    assert find_checkpoint("latest_train", "jaka", cfg) == theirs
    assert find_checkpoint("latest", None, cfg) == theirs
    with pytest.raises(DeftlyError, match=r"no train run of wild .*jaka, leap.*deftly train wild"):
        find_checkpoint("latest", "wild", cfg)
    with pytest.raises(DeftlyError, match="no test run"):
        find_checkpoint("latest_test", "leap", cfg)
    with pytest.raises(DeftlyError, match="no complete checkpoint"):
        find_checkpoint(empty, "leap", cfg)


def test_a_run_means_its_best_then_last_then_newest_checkpoint(cfg):
    run = create("leap", "train", cfg)
    for number, name in enumerate(("iter_000100", "iter_000050", "last", "best")):
        weights = save(run, name) / WEIGHTS
        os.utime(weights, (number, number))
        newest = "iter_000050" if name == "iter_000100" else name
        if name != "iter_000100":
            assert find_checkpoint(run, None, cfg).name == newest
    assert find_checkpoint("latest:last", "leap", cfg).name == "last"
    assert find_checkpoint("latest", "leap", cfg, "last").name == "last"  # where a training goes on
    assert find_checkpoint(f"{run}:iter_000100", "leap", cfg).name == "iter_000100"
    assert find_checkpoint(f"{run}/checkpoints/best:last", None, cfg).name == "last"
    with pytest.raises(DeftlyError, match=r"no checkpoint 'iter_7'; it has best, iter_000050"):
        find_checkpoint("latest:iter_7", "leap", cfg)


def test_a_checkpoint_can_be_named_in_many_ways(cfg, monkeypatch):
    run = create("leap", "train", cfg, name="first")
    best = save(run)
    (run / "config.yaml").touch()
    monkeypatch.chdir(cfg.root)
    specs = [run, best, best / WEIGHTS, best.parent, run / "config.yaml", "runs/latest", f"runs/{run.name}"]
    specs += [f"runs_all/{run.name}/", run.name, "first", "leap_train", "leap_train:best"]
    for spec in specs:
        assert find_checkpoint(spec, "other-task", cfg) == best
    (cfg.root / "runs" / run.name).unlink()
    assert find_checkpoint(f"runs/{run.name}", None, cfg) == best


def test_a_name_that_fits_none_or_several_is_refused(cfg, clock):
    for name in ("one", "two", "three"):
        save(create("leap", "train", cfg, name=name))
    with pytest.raises(DeftlyError, match=r"'leap' fits 3 runs, type more of the name: leap_train_one_"):
        find_checkpoint("leap", None, cfg)
    with pytest.raises(DeftlyError, match=r"no run or checkpoint 'loap_train_one_20010909.*did you mean"):
        find_checkpoint("loap_train_one_20010909", None, cfg)
    with pytest.raises(DeftlyError, match="deftly runs"):
        find_checkpoint("qqq", None, cfg)


def test_a_partial_name_passes_over_runs_without_a_checkpoint(cfg, clock):
    run, _ = create("leap", "train", cfg), create("leap", "train", cfg)
    best = save(run)
    assert find_checkpoint("leap", None, cfg) == best


def test_a_folder_that_is_no_run_does_not_hide_a_name(cfg, monkeypatch):
    best = save(create("leap", "train", cfg))
    monkeypatch.chdir(cfg.root)
    (cfg.root / "leap").mkdir()
    assert find_checkpoint("leap", None, cfg) == best


def test_list_runs_reads_the_metrics(cfg):
    run, fresh = create("jaka-pick-cube", "train", cfg), create("leap", "test", cfg)
    rows = (
        "iteration,steps,seconds,success,eval_success",
        "1,24,30.0,0.1,",
        "2,48,60.5,0.3,0.75",
        "3,72,90,0,0.5",
        "4,9",
    )
    (run / "metrics.csv").write_text("\n".join(rows))
    newest, oldest = list_runs(cfg)
    assert (newest.path, newest.kind, newest.figures()) == (fresh, "test", (None, None, None))
    assert (oldest.task, oldest.figures()) == ("jaka-pick-cube", (4, 0.75, 1.5))
    assert oldest.created < newest.created


def test_runs_without_facts_are_known_by_their_name(cfg):
    old = cfg.root / "runs_all" / "BoxGrasping_train_20250707_183716"
    old.mkdir(parents=True)
    (run,) = list_runs(cfg)
    assert (run.task, run.kind) == ("BoxGrasping", "train")
    (old / "run.json").write_text("[]")
    assert list_runs(cfg)[0].task == "BoxGrasping"


def test_pin_and_unpin(cfg, clock):
    run = create("leap", "train", cfg)
    link = pin("latest", "best-grasp", cfg)
    assert link == cfg.root / "runs/pinned/best-grasp"
    assert not os.path.isabs(os.readlink(link))
    assert find_run("best-grasp", None, cfg) == run
    assert [item.pinned for item in list_runs(cfg)] == [True]
    with pytest.raises(DeftlyError, match="--unpin best-grasp"):
        pin("latest", "best-grasp", cfg)
    with pytest.raises(DeftlyError, match="did you mean 'best-grasp'"):
        unpin("best-gras", cfg)
    unpin("best-grasp", cfg)
    assert [item.pinned for item in list_runs(cfg)] == [False]


def test_a_run_pinned_with_mv_is_mended(cfg, clock):
    run = create("leap", "train", cfg)
    best = save(run)
    (cfg.root / "runs/pinned").mkdir()
    moved = cfg.root / "runs/pinned/excellent"
    (cfg.root / "runs" / run.name).rename(moved)
    assert not moved.exists()
    assert find_checkpoint("excellent", None, cfg) == best
    assert moved.resolve() == run.resolve()
    assert find_checkpoint(moved, None, cfg) == best


def test_a_place_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(DeftlyError, match=r"cannot write '.*file.*--runs.root DIR") as error:
        create("leap", "train", RunsConfig(root=tmp_path / "file"))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["a/b", "../x", "a b"])
def test_a_name_that_is_no_folder_name_is_refused(name, cfg):
    with pytest.raises(DeftlyError, match="cannot name a run"):
        create("leap", "train", cfg, name=name)


def test_command_lists_compares_and_pins(cfg, clock, capsys):
    one, two = create("leap", "train", cfg), create("leap", "train", cfg)
    root = f"--runs.root={cfg.root}"
    for run in (one, two):
        (run / "metrics.csv").write_text("iteration,steps,seconds,eval_success\n1,24,60,0.25\n2,48,120,0.5\n")
    assert runs_main([root]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:]] == [two.name, one.name]
    assert "50.0%" in lines[1]
    out = cfg.root / "c.png"
    assert runs_main(["--compare", one.name, two.name, f"--out={out}", root]) == 0
    assert "0.25" in capsys.readouterr().out
    assert out.read_bytes().startswith(b"\x89PNG")
    assert runs_main(["--pin", one.name, "--name", "good", root]) == 0
    assert runs_main(["--unpin", "good", root]) == 0
    with pytest.raises(DeftlyError, match="did you mean 'eval_success'"):
        runs_main(["--compare", one.name, "--column", "eval_succes", root])


def test_command_without_runs_says_how_to_start(cfg, capsys):
    assert runs_main([f"runs.root={cfg.root}"]) == 0
    assert "deftly train TASK" in capsys.readouterr().out
