"""How a DexHand 021 looks: palm shell, wrist, knuckles, finger links and their pins. None of it is physics.

Shapes follow the joints' anchors and the collision geoms of `dexhand021`, and public pictures of the hand. Points, m,
are in the frames of the right hand's links; the palm's has z forward and x down.
"""

from __future__ import annotations

from deftly.sim.looks import Paint

SHELL = Paint("dexhand_shell", (0.85, 0.86, 0.88, 1), specular=0.25, shininess=0.35)
BODY = Paint("dexhand_body", (0.16, 0.17, 0.19, 1), specular=0.4, shininess=0.5)
METAL = Paint("dexhand_metal", (0.55, 0.57, 0.60, 1), specular=0.8, shininess=0.7)
ACCENT = Paint("dexhand_accent", (0.20, 0.45, 0.70, 1), specular=0.3, shininess=0.4)

# centre, half sizes, paint
PALM_BOXES = [
    ((-0.0022, 0.0, 0.1100), (0.0273, 0.0500, 0.0500), BODY),
    ((-0.0310, 0.0, 0.1080), (0.0030, 0.0420, 0.0420), SHELL),
    ((-0.0022, 0.0, 0.0540), (0.0240, 0.0400, 0.0080), METAL),
    ((0.0262, -0.0080, 0.1080), (0.0020, 0.0330, 0.0380), SHELL),
    ((0.0290, 0.0220, 0.1050), (0.0080, 0.0160, 0.0180), BODY),
    ((0.0069, 0.0349, 0.1600), (0.0100, 0.0100, 0.0090), BODY),
    ((0.0069, 0.0106, 0.1640), (0.0100, 0.0100, 0.0120), BODY),
    ((0.0069, -0.0137, 0.1600), (0.0100, 0.0100, 0.0090), BODY),
    ((0.0069, -0.0380, 0.1500), (0.0100, 0.0100, 0.0090), BODY),
]
# start, end, radius, paint
PALM_TUBES = [
    ((-0.0022, 0.0, 0.0480), (-0.0022, 0.0, 0.0200), 0.0270, BODY),
    ((-0.0022, 0.0, 0.0200), (-0.0022, 0.0, 0.0150), 0.0320, ACCENT),
    ((-0.0022, 0.0, 0.0150), (-0.0022, 0.0, -0.0100), 0.0340, METAL),
    ((-0.0022, 0.0, -0.0100), (-0.0022, 0.0, -0.1200), 0.0300, SHELL),
]
# place of the link in its finger, start, end, radius, paint: of every finger
LINK_TUBES = [
    (1, (0.0, 0.0, 0.0), (0.0150, 0.0, 0.0), 0.0070, METAL),
    (2, (0.0, 0.0, -0.0095), (0.0, 0.0, 0.0095), 0.0062, METAL),
    (2, (0.0280, 0.0, 0.0), (0.0430, 0.0, 0.0), 0.0070, BODY),
    (3, (0.0, 0.0, -0.0090), (0.0, 0.0, 0.0090), 0.0060, METAL),
    (3, (0.0, 0.0, 0.0), (0.0250, 0.0, 0.0), 0.0062, SHELL),
    (4, (0.0, 0.0, -0.0090), (0.0, 0.0, 0.0090), 0.0056, METAL),
    (4, (0.0040, -0.0040, 0.0), (0.0200, -0.0085, 0.0), 0.0072, SHELL),
]
