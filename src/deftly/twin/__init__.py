"""The simulated robot that stands in for hardware."""
