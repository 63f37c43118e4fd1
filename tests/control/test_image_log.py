"""Images of a control loop: PNG files beside the log that come back bit for bit, and what happens to damaged ones."""

import threading
from dataclasses import replace

import numpy as np
import pytest
from toy_robot import CONTRACT, ROBOT

from deftly.contract import Observe, Signal
from deftly.control import log as logs
from deftly.control.image_log import ImageLog, png, read_png
from deftly.control.log import LogBuffer
from deftly.files import FileError

SHAPE = (6, 5, 3)
SEEING = replace(
    CONTRACT,
    robot=replace(ROBOT, signals=(*ROBOT.signals, Signal("front/left", SHAPE, dtype="uint8"))),
    observe_terms=(Observe("joint_pos"), Observe("front/left", group="front")),
)


def image(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, SHAPE, np.uint8)


def filled(path, ticks: int, kept: int) -> LogBuffer:
    """A log of some ticks, each of which saw another image."""
    buffer = LogBuffer(SEEING, kept, images=ImageLog(path, SEEING.robot, kept))
    for tick in range(ticks):
        buffer.add(now=float(tick), **{"signal/front/left": image(tick)})
    return buffer


def test_images_come_back_bit_for_bit_and_old_ones_are_deleted(tmp_path):
    path = tmp_path / "log.npz"
    filled(path, 9, kept=4).save(path, {})
    found = logs.read(path)
    assert len(found) == 4
    for tick in range(4):
        assert found.rows["now"][tick] == 5 + tick
        np.testing.assert_array_equal(found.image(tick, "front/left"), image(5 + tick))
        np.testing.assert_array_equal(
            found.signals(tick, images=True)["front/left"], image(5 + tick)
        )
    assert len(list((tmp_path / "log.images").iterdir())) == 4
    assert found.facts["images_dropped"] == 0


def test_another_log_of_the_same_name_deletes_no_images(tmp_path):
    path = tmp_path / "log.npz"
    filled(path, 3, kept=4).save(path, {})
    filled(path, 2, kept=4).save(path, {})
    assert len(list((tmp_path / "log.images").iterdir())) == 3
    assert str(logs.read(path).facts["images"]) == "log.1.images"


def test_what_was_not_kept_is_named(tmp_path):
    path = tmp_path / "log.npz"
    buffer = LogBuffer(SEEING, 4, images=ImageLog(path, SEEING.robot, 4))
    buffer.add(now=0.0)
    buffer.add(now=1.0, **{"signal/front/left": np.zeros(3)})
    buffer.save(path, {})
    found = logs.read(path)
    assert found.image(0, "front/left") is None
    with pytest.raises(FileError, match="the image 'front/left' of tick 1 was not kept"):
        found.signals(1, images=True)
    assert "front/left" not in found.signals(1)


def test_a_disk_that_is_slow_holds_nothing_up(tmp_path, monkeypatch):
    gate = threading.Event()
    images = ImageLog(tmp_path / "log.npz", SEEING.robot, 1000)
    write = type(images.folder).write_bytes
    monkeypatch.setattr(
        type(images.folder), "write_bytes", lambda *a: (gate.wait(10), write(*a))[1]
    )
    images._images.maxsize = 3
    for tick in range(10):
        images.put(tick, "front/left", image(tick))
    assert images.dropped >= 6
    gate.set()
    images.flush()


def test_a_folder_elsewhere_is_not_read(tmp_path):
    path = tmp_path / "log.npz"
    filled(path, 1, kept=4).save(path, {})
    found = logs.read(path)
    for name in ("../log.images", "/etc", "..", "a/b"):
        facts = {**found.facts, "images": name}
        assert replace(found, facts=facts).image(0, "front/left") is None


@pytest.mark.parametrize("kind", ["cut", "flipped", "other", "long", "empty", "size"])
def test_a_damaged_image_is_refused(tmp_path, kind):
    whole = png(image(0))
    data = {
        "cut": whole[:-20],
        "flipped": whole[:50] + bytes((whole[50] ^ 1,)) + whole[51:],
        "other": b"GIF89a" + whole[6:],
        "long": whole + bytes(100_000),
        "empty": b"",
        "size": png(np.zeros((5, 6, 3), np.uint8)),
    }[kind]
    path = tmp_path / "x.png"
    path.write_bytes(data)
    with pytest.raises(FileError):
        read_png(path, SHAPE)


def test_other_programs_read_the_images(tmp_path):
    images = pytest.importorskip("PIL.Image")
    path = tmp_path / "x.png"
    path.write_bytes(png(image(3)))
    with images.open(path) as found:
        np.testing.assert_array_equal(np.asarray(found), image(3))
    np.testing.assert_array_equal(read_png(path, SHAPE), image(3))
