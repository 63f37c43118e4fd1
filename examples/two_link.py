"""A robot in one file, outside the package: an arm of two links over its base, turning about y.

deftly robots examples/two_link.py
"""

import mujoco

from deftly.contract import Joint
from deftly.robots import Robot

LENGTH, RADIUS, MASS = 0.3, 0.03, 1.0  # m, m, kg of each link
TORQUE = 20.0  # N m
KP, KV = 200.0, 16.0  # N m/rad, N m s/rad

JOINTS = (
    Joint("shoulder", lower=-1.5, upper=1.5, home=0.3, velocity=2.0),
    Joint("elbow", lower=-2.0, upper=2.0, home=0.6, velocity=2.0),
)


def spec() -> mujoco.MjSpec:
    """The arm on its base at the origin, upright when both joints are zero."""
    s = mujoco.MjSpec()
    s.modelname = "two_link"
    s.compiler.degree = False
    body = s.worldbody.add_body(name="base", pos=[0, 0, 0.05])
    body.add_geom(name="base", type=mujoco.mjtGeom.mjGEOM_BOX, size=[0.08, 0.08, 0.05], mass=5.0)
    height = 0.1
    for joint in JOINTS:
        body = body.add_body(name=joint.name, pos=[0, 0, height], gravcomp=1)
        limits = (joint.lower, joint.upper)
        body.add_joint(
            name=joint.name, axis=[0, 1, 0], range=limits, armature=0.05, damping=[0.5, 0, 0]
        )
        link = body.add_geom(type=mujoco.mjtGeom.mjGEOM_CAPSULE, fromto=[0, 0, 0, 0, 0, LENGTH])
        link.size[0], link.mass = RADIUS, MASS
        servo = s.add_actuator(
            name=joint.name, target=joint.name, trntype=mujoco.mjtTrn.mjTRN_JOINT
        )
        servo.set_to_position(kp=KP, kv=KV)
        servo.ctrlrange, servo.forcerange = limits, (-TORQUE, TORQUE)
        height = LENGTH
    body.add_site(name="tip", pos=[0, 0, LENGTH], size=[0.01, 0, 0])
    return s


ROBOT = Robot(name="two-link", title="Arm of two links", spec=spec, joints=JOINTS)
