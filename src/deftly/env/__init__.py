"""The one batched loop that every task shares, and the state that tasks see."""

from deftly.env.env import Env, Obs, Step, group_of
from deftly.env.metrics import means
from deftly.sim.state import State

__all__ = ["Env", "Obs", "State", "Step", "group_of", "means"]
