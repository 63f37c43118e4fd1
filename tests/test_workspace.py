import errno
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from deftly import workspace
from deftly.commands.runs import main as runs_main
from deftly.config import RunsConfig
from deftly.errors import DeftlyError
from deftly.files import WriteError
from deftly.workspace import (
    WEIGHTS,
    create,
    find_checkpoint,
    find_run,
    follow,
    list_runs,
    lock,
    pin,
    unpin,
)


@pytest.fixture
def cfg(tmp_path, monkeypatch):
    """Runs of an empty folder. A path such as runs/latest is found there alone: a quickstart leaves one in ours."""
    empty = tmp_path / "empty"
    empty.mkdir()
    monkeypatch.chdir(empty)
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
    assert set(facts) == {"task", "kind", "created", "order", "command", "version", "commit"}
    assert abs(facts["order"] - time.time()) < 60
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
    specs = [
        run,
        best,
        best / WEIGHTS,
        best.parent,
        run / "config.yaml",
        "runs/latest",
        f"runs/{run.name}",
    ]
    specs += [f"runs_all/{run.name}/", run.name, "first", "leap_train", "leap_train:best"]
    for spec in specs:
        assert find_checkpoint(spec, "other-task", cfg) == best
    (cfg.root / "runs" / run.name).unlink()
    assert find_checkpoint(f"runs/{run.name}", None, cfg) == best


def test_a_name_that_fits_none_or_several_is_refused(cfg, clock):
    for name in ("one", "two", "three"):
        save(create("leap", "train", cfg, name=name))
    with pytest.raises(
        DeftlyError, match=r"'leap' fits 3 runs, type more of the name: leap_train_one_"
    ):
        find_checkpoint("leap", None, cfg)
    with pytest.raises(
        DeftlyError, match=r"no run or checkpoint 'loap_train_one_20010909.*did you mean"
    ):
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
    assert (newest.path, newest.kind, newest.metrics()) == (fresh, "test", (None, None, None))
    assert (oldest.task, oldest.metrics()) == ("jaka-pick-cube", (4, 0.75, 1.5))
    assert oldest.created < newest.created


def test_runs_without_facts_are_known_by_their_name(cfg):
    old = cfg.root / "runs_all" / "BoxGrasping_train_20250707_183716"
    old.mkdir(parents=True)
    (run,) = list_runs(cfg)
    assert (run.task, run.kind) == ("BoxGrasping", "train")
    (old / "run.json").write_text("[]")
    assert list_runs(cfg)[0].task == "BoxGrasping"


def test_list_runs_shows_the_success_of_test_runs(cfg):
    run = create("leap", "test", cfg)
    (run / "eval.json").write_text('{"success": {"rate": 0.97}, "wall_seconds": 90.0}')
    assert list_runs(cfg)[0].metrics() == (None, 0.97, 1.5)
    for text in (
        "[]",
        '{"success": {"rate": "1"}}',
        '{"success": {"rate": null}}',
        "{",
        '{"success": 1}',
    ):
        (run / "eval.json").write_text(text)
        assert list_runs(cfg)[0].metrics() == (None, None, None)


def test_with_the_clock_set_back_the_latest_is_still_the_one_made_last(cfg, monkeypatch):
    first = create("leap", "train", cfg)
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() - 7200)
    monkeypatch.setattr(time, "strftime", lambda *_: "20200101_000000")
    later = [create("leap", "train", cfg) for _ in range(3)]
    assert [run.path for run in list_runs(cfg)] == [*reversed(later), first]
    best = save(later[-1])
    assert find_checkpoint("latest", "leap", cfg) == best
    monkeypatch.undo()
    assert list_runs(cfg)[0].path == later[-1]
    assert create("leap", "train", cfg) == list_runs(cfg)[0].path


def test_pruning_keeps_the_latest_with_the_clock_set_back(tmp_path, monkeypatch):
    cfg = RunsConfig(root=tmp_path, max_train_runs=1)
    create("leap", "train", cfg)
    monkeypatch.setattr(time, "strftime", lambda *_: "20200101_000000")
    last = create("leap", "train", cfg)
    assert links(cfg) == {last.name, "latest", "latest_train"}


def test_an_order_from_a_hostile_file_does_not_stay_the_latest(cfg):
    for number, order in enumerate(
        ("1e300", "Infinity", "1" * 400, '"now"', "true", "-5.0", "null", "9e10")
    ):
        folder = cfg.root / f"runs_all/leap_train_20250101_00000{number}"
        folder.mkdir(parents=True)
        (folder / "run.json").write_text(
            f'{{"task": "leap", "kind": "train", "created": "2025-01-01T00:00:00", "order": {order}}}'
        )
    run = create("leap", "train", cfg)
    assert list_runs(cfg)[0].path == run


DEEP = '{"task": ' + "[" * 5000 + "]" * 5000 + "}"
DAMAGED = {
    "deep": lambda path: path.write_text(DEEP),
    "huge": lambda path: path.write_bytes(b" " * (1 << 21)),
    "endless": lambda path: path.symlink_to("/dev/zero"),
    "pipe": os.mkfifo,
    "folder": Path.mkdir,
    "cut off": lambda path: path.write_text('{"task": "leap"'),
    "a list": lambda path: path.write_text("[1]"),
    "a number": lambda path: path.write_text("7"),
    "numbers for text": lambda path: path.write_text('{"task": 1, "kind": 2, "created": 3}'),
    "a strange kind": lambda path: path.write_text(
        '{"task": "a", "kind": [], "created": "2025-01-01"}'
    ),
    "a strange date": lambda path: path.write_text(
        '{"task": "a", "kind": "train", "created": "0001-01-01T00:00:00"}'
    ),
    "no text": lambda path: path.write_bytes(b"\xff\xfe\xff"),
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_a_damaged_run_is_listed_as_damaged(cfg, kind, capsys):
    folder = cfg.root / "runs_all" / "leap_train_20250707_183716"
    folder.mkdir(parents=True)
    DAMAGED[kind](folder / "run.json")
    (run,) = list_runs(cfg)
    assert (run.task, run.kind) == ("leap", "train")
    assert run.damaged.isprintable()
    assert "run.json" in run.damaged
    assert runs_main([f"--runs.root={cfg.root}"]) == 0
    assert "damaged" in capsys.readouterr().out
    best = save(create("leap", "train", cfg))
    assert find_checkpoint("latest", "leap", cfg) == best


def test_what_runs_say_does_nothing_to_a_terminal(cfg, capsys):
    folder = cfg.root / "runs_all" / "evil\x1b[2J"
    folder.mkdir(parents=True)
    facts = {"task": "a\x1b]0;x\x07\nb", "kind": "train", "created": "2025-01-01T00:00:00"}
    (folder / "run.json").write_text(json.dumps(facts))
    assert runs_main([f"--runs.root={cfg.root}"]) == 0
    out = capsys.readouterr().out
    assert all(c.isprintable() or c == "\n" for c in out)
    assert len(out.splitlines()) == 2


def test_metrics_that_are_a_pipe_or_no_table_are_none(cfg):
    run = create("leap", "train", cfg)
    os.mkfifo(run / "metrics.csv")
    assert list_runs(cfg)[0].metrics() == (None, None, None)
    (run / "metrics.csv").unlink()
    (run / "metrics.csv").write_bytes(b"iteration,seconds\n1,\x00\n" + b'"' * 200_000)
    assert list_runs(cfg)[0].metrics() in ((None, None, None), (1.0, None, None))


# ------------------------------------------------------------------ links and copies


def no_links(*_, **__):
    raise PermissionError(errno.EPERM, "Operation not permitted")


def test_where_links_are_forbidden_text_files_stand_in(cfg, clock, monkeypatch):
    monkeypatch.setattr(Path, "symlink_to", no_links)
    first, run = create("leap", "train", cfg), create("leap", "train", cfg)
    folder = save(run, "iter_000100")
    for name in ("last", "best"):
        workspace.link(folder.with_name(name), folder)
    assert not [path for path in cfg.root.rglob("*") if path.is_symlink()]
    assert len(list_runs(cfg)) == 2
    specs = (
        "latest",
        "latest:best",
        run,
        f"{run}/checkpoints/best",
        run.name,
        f"runs/{run.name}",
        "runs/latest",
    )
    for spec in specs:
        assert find_checkpoint(spec, "leap", cfg).resolve() == folder.resolve()
    newer = save(run, "iter_000200")
    workspace.link(folder.with_name("last"), newer)
    assert find_checkpoint("latest:last", "leap", cfg).resolve() == newer.resolve()
    assert workspace.follow(folder.with_name("last")) == newer.resolve()
    pin(first.name, "good", cfg)
    assert [item.pinned for item in list_runs(cfg)] == [False, True]
    assert find_run("good", None, cfg) == first
    unpin("good", cfg)
    assert [item.pinned for item in list_runs(cfg)] == [False, False]


@pytest.mark.parametrize("name", ["EPERM", "ENOSYS", "EROFS", "EINVAL", "EACCES", "EPROTO", "EIO"])
def test_however_a_file_system_says_that_it_has_no_links(cfg, monkeypatch, name):
    """VirtualBox's shared folders say EROFS and EPROTO, for instance."""
    number = getattr(errno, name)

    def refused(*_, **__):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(Path, "symlink_to", refused)
    run = create("leap", "train", cfg)
    folder = save(run, "iter_000100")
    workspace.link(folder.with_name("last"), folder)
    assert find_checkpoint("latest:last", "leap", cfg) == folder.resolve()


def test_links_that_an_archive_made_files_are_links(cfg, clock):
    """Python's zipfile unpacks a link as a file that holds its target, and gives all files the age of the unpacking."""
    first, run = create("leap", "train", cfg), create("leap", "train", cfg)
    pin(first.name, "good", cfg)
    for age, iteration in enumerate((100, 1_000_000, 50)):
        folder = save(run, f"iter_{iteration:06d}")
        os.utime(folder / WEIGHTS, (age, age))
        for name in ("last", "best"):
            workspace.link(folder.with_name(name), folder.with_name("iter_000100"))
    for path in [path for path in cfg.root.rglob("*") if path.is_symlink()]:
        target = os.readlink(path)
        path.unlink()
        path.write_text(target)
    assert len(list_runs(cfg)) == 2
    assert find_run("good", None, cfg) == first
    for spec in ("latest", "latest:last", run, f"{run}/checkpoints/best", "runs/latest"):
        assert find_checkpoint(spec, "leap", cfg).name == "iter_000100"
    workspace.link(run / "checkpoints/last", folder)
    assert find_checkpoint("latest:last", "leap", cfg).resolve() == folder


def test_where_links_are_forbidden_pruning_works(tmp_path, clock, monkeypatch):
    monkeypatch.setattr(Path, "symlink_to", no_links)
    cfg = RunsConfig(root=tmp_path, max_train_runs=1)
    runs = [create("leap", "train", cfg) for _ in range(3)]
    assert links(cfg) == {runs[-1].name, "latest", "latest_train"}
    assert all(run.is_dir() for run in runs)


def test_a_pointer_that_leads_nowhere_is_no_run(cfg):
    create("leap", "train", cfg)
    for number, text in enumerate(
        ("deftly.link/1 ../nowhere", "deftly.link/1 ", "deftly.link/1 \0", "text", "")
    ):
        (cfg.root / f"runs/leap_train_20250101_00000{number}").write_text(text)
    (cfg.root / "runs/leap_train_20250101_000009").symlink_to("leap_train_20250101_000009")
    assert len(list_runs(cfg)) == 1


def test_a_copy_with_its_links_followed_still_works(cfg):
    run = create("leap", "train", cfg)
    old = save(run, "iter_000100")
    for name in ("last", "best"):
        workspace.link(old.with_name(name), old)
    copy = cfg.root / "copied"
    shutil.copytree(cfg.root / "runs_all", copy / "runs_all")
    shutil.copytree(cfg.root / "runs", copy / "runs", ignore=shutil.ignore_patterns("latest*"))
    theirs = RunsConfig(root=copy)
    moved = copy / "runs_all" / run.name
    assert (moved / "checkpoints/last").is_dir()
    assert not (moved / "checkpoints/last").is_symlink()
    new = save(moved, "iter_000200")
    for _ in range(2):  # at each save
        workspace.link(new.with_name("last"), new)
    assert find_checkpoint(f"{moved}:last", None, theirs).resolve() == new.resolve()
    assert (moved / "checkpoints/best").is_dir()
    assert sorted(os.listdir(moved / "checkpoints")) == [
        "best",
        "iter_000100",
        "iter_000200",
        "last",
    ]
    create("leap", "train", theirs)
    assert (copy / "runs" / run.name).is_dir()


def test_a_folder_of_the_user_in_the_place_of_a_link_stays(cfg):
    (cfg.root / "runs/latest").mkdir(parents=True)
    (cfg.root / "runs/latest/mine").touch()
    run = create("leap", "train", cfg)
    assert (cfg.root / "runs/latest/mine").exists()
    assert find_run("latest", "leap", cfg) == run


# ------------------------------------------------------------------------------ lock


def test_a_run_is_kept_to_one_process(cfg):
    run = create("leap", "train", cfg)
    code = (
        "import sys, time; from pathlib import Path; from deftly.workspace import lock\n"
        "with lock(Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", code, str(run)], stdout=subprocess.PIPE, text=True
    )
    assert other.stdout
    assert other.stdout.readline() == "held\n"
    with (
        pytest.raises(
            DeftlyError, match=f"'{run.name}' is being written by process {other.pid} on .*: wait"
        ),
        lock(run),
    ):
        pass
    other.kill()
    other.wait()
    with lock(run):
        pass
    with lock(run):
        pass


def test_a_lock_that_is_a_link_or_a_pipe_is_one_line(cfg):
    run = create("leap", "train", cfg)
    (run / ".lock").symlink_to(cfg.root / "elsewhere")
    with pytest.raises(DeftlyError, match="cannot write"), lock(run):
        pass
    assert not (cfg.root / "elsewhere").exists()


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


def test_a_run_that_cannot_be_begun_leaves_no_folder(cfg, clock):
    """The folder of the run can be made here, its link cannot: as on a disk that is just full."""
    cfg.root.mkdir(exist_ok=True)
    (cfg.root / "runs").write_text("in the way")
    with pytest.raises(WriteError, match=r"--runs\.root DIR"):
        create("leap", "train", cfg)
    assert list((cfg.root / "runs_all").iterdir()) == []


@pytest.mark.parametrize("name", ["a/b", "../x", "a b"])
def test_a_name_that_is_no_folder_name_is_refused(name, cfg):
    with pytest.raises(DeftlyError, match="cannot name a run"):
        create("leap", "train", cfg, name=name)


def test_what_cannot_be_compared_is_named(cfg, clock, tmp_path):
    run = workspace.create("toy", "train", cfg)
    (run / "metrics.csv").write_text("steps,success,eval_success\n1,0.5,\n")
    out = tmp_path / "a.png"
    with pytest.raises(DeftlyError, match="nosuch"):
        workspace.compare(["latest", "nosuch"], "eval_success", out, cfg)
    with pytest.raises(
        DeftlyError, match=r"no evaluation has ended in .* yet: give --column success"
    ):
        workspace.compare([run.name], "eval_success", out, cfg)


def test_command_lists_compares_and_pins(cfg, clock, capsys):
    one, two = create("leap", "train", cfg), create("leap", "train", cfg)
    root = f"--runs.root={cfg.root}"
    for run in (one, two):
        (run / "metrics.csv").write_text(
            "iteration,steps,seconds,eval_success\n1,24,60,0.25\n2,48,120,0.5\n"
        )
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


def test_a_pin_stays_among_the_pins(cfg, clock):
    run = create("leap", "train", cfg)
    for name in ("../evil", "/evil", "a/b", "..", "", "x" * 200, "a\nb", "latest"):
        with pytest.raises(DeftlyError):
            pin("latest", name or " ", cfg)
    for name in ("../latest", "../pinned/x", "..", "x/y"):
        with pytest.raises(DeftlyError, match="cannot name a run"):
            unpin(name, cfg)
    assert follow(cfg.root / "runs/latest") == run.resolve()
    assert not (cfg.root / "runs/pinned").exists()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--pin", "a", "--unpin", "b"], "--pin and --unpin are two things"),
        (["--compare", "a", "--pin", "b"], "--compare and --pin are two things"),
        (["--name", "a"], "give --pin RUN too"),
        (["--compare"], "compare is empty"),
        (["--compare", "a", "--out", "a.xyz"], "out is a.xyz, but it must be a .png file"),
    ],
)
def test_words_that_would_be_passed_over_are_refused(words, says):
    with pytest.raises(DeftlyError, match=says):
        runs_main(words)
