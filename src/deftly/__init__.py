"""Deftly: robot skills from simulation to hardware under one contract."""

__version__ = "0.1.0"
