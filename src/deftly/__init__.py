"""Deftly: robot skills from simulation to hardware under one contract."""

import os

__version__ = "0.1.0"

# Idle OpenMP threads sleep instead of spinning, which would take the cores from the simulation's own threads.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
