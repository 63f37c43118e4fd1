"""System identification: parameters of a robot's servos, from logs of what was commanded and what was measured.

`logs` reads, `model` simulates many candidates at once, `fit` finds the one that fits best and
how far it can be trusted, `report` writes, and warns of what to doubt; `excite` makes the motion for a log, `driver` is
a simulated robot to try it on.
"""
