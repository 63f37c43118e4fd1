"""Deftly: robot skills from simulation to hardware under one contract."""

import os

__version__ = "0.1.0"

# Idle OpenMP threads sleep instead of spinning: with more busy threads than cores, spinning made torch 10 times slower.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
