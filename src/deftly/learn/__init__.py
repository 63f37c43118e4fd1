"""Adapters to learning libraries, checkpoints and training logs."""
