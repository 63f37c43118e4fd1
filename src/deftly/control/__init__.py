"""The control loop of a robot: safety kernel, drivers, operator, log."""
