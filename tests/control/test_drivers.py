import dataclasses

import numpy as np
import pytest
from four_joints import HOME, LOWER, PERIOD, TOP, TOY, UPPER, Watched

from deftly import contract
from deftly.control.drivers import FAULTS, Driver, DriverError, FakeDriver, Reading, lacking
from deftly.errors import DeftlyError


def read(fault, at=0):
    driver = Watched(fault, at)
    return driver, driver.read()


def test_the_fake_robot_goes_where_it_is_told_at_top_speed():
    driver, first = read("")
    np.testing.assert_array_equal(first.signals["joint_pos"], HOME)
    np.testing.assert_array_equal(first.signals["cube"], np.zeros(3))
    assert first.at == driver.time
    driver.write(LOWER)
    np.testing.assert_allclose(
        driver.read().signals["joint_pos"], HOME - np.minimum(TOP * PERIOD, HOME - LOWER)
    )
    for _ in range(100):
        driver.write(UPPER)
    np.testing.assert_allclose(driver.read().signals["joint_pos"], UPPER)
    np.testing.assert_array_equal(first.signals["joint_pos"], HOME)
    driver.stop()
    assert driver.stopped


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_begins_after_its_tick(fault):
    driver = Watched(fault, at=2)
    for _ in range(2):
        assert driver.read().signals["joint_pos"].shape == (4,)
        driver.write(HOME)
        assert not driver.faulty
    assert driver.time == 100.0


def test_late_and_frozen_measurements_are_old():
    driver, found = read("late")
    assert found.at == pytest.approx(driver.time - 10 * PERIOD)
    driver = Watched("frozen", at=1)
    first = driver.read()
    driver.sleep(1.0)
    assert driver.read() is first


def test_measurements_that_are_wrong():
    assert "joint_pos" not in read("missing")[1].signals
    assert np.isnan(read("nan")[1].signals["joint_pos"]).all()
    assert read("shape")[1].signals["joint_pos"].shape == (5,)
    assert read("beyond")[1].signals["joint_pos"][0] > UPPER[0]
    leap = read("jump")[1].signals["joint_pos"] - HOME
    assert abs(leap[0]) == pytest.approx(0.5 * (UPPER - LOWER)[0])
    assert (HOME + leap >= LOWER).all()
    assert (HOME + leap <= UPPER).all()


def test_robots_that_fail():
    with pytest.raises(DriverError, match="does not answer"):
        read("read")
    with pytest.raises(ZeroDivisionError):
        read("crash")
    driver, _ = read("write")
    with pytest.raises(DriverError, match="takes no command"):
        driver.write(HOME)
    driver, _ = read("slow")
    assert driver.time == pytest.approx(100.0 + 5 * PERIOD)


def test_an_unknown_fault_is_refused_by_name():
    with pytest.raises(DeftlyError, match="has no fault 'gremlin', it has late, frozen"):
        FakeDriver(TOY.robot, TOY.rate, "gremlin")


def test_a_driver_that_inherits_what_does_nothing_lacks_it():
    class Half(Driver):
        def read(self):
            return Reading({}, 0.0)

        def stop(self):
            pass

    damped = dataclasses.replace(TOY.robot, damps=contract.FAULTS)
    assert lacking(Half, TOY.robot) == ["write"]
    assert lacking(Half(), damped) == ["write", "damp"]
    assert lacking(FakeDriver, damped) == []
    assert lacking(FakeDriver(damped, 20.0), damped) == []
    assert lacking(3, TOY.robot) == ["read", "write", "stop"]
