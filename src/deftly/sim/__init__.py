"""Batched simulation on MuJoCo's own batch stepping, and what surrounds it: scenes, randomization, pictures."""
