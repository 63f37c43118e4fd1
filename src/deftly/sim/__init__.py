"""The simulation: the `Sim` protocol and its engines, scenes, randomization, sensors, and the state that tasks see."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from deftly.errors import DeftlyError

if TYPE_CHECKING:
    import mujoco

    from deftly.sim.protocol import Sim


def make_sim(
    engine: str,
    model: mujoco.MjModel,
    num_envs: int,
    threads: int = 0,
    device: str = "cpu",
    dump_dir: Path | None = None,
    contacts: int = 64,
) -> Sim:
    """Many simulations of a model on an engine.

    Args:
        engine: `cpu` (`mujoco.batch`, float64) or `warp` (`mujoco_warp`, float32).
        model: the nominal model; every environment starts from it.
        num_envs: how many are simulated side by side.
        threads: of the CPU engine; 0 takes all cores.
        device: of the Warp engine: `cpu`, `cuda` or `cuda:N`.
        contacts: of the Warp engine: room for contacts of an environment.
        dump_dir: where environments that break are written for `deftly.sim.guard.replay`; None only counts them.

    Raises DeftlyError if there is no such engine, or if what it needs is not installed.
    """
    if engine == "cpu":
        if device != "cpu":
            raise DeftlyError(
                f"env.device is {device}, but sim.engine cpu runs on CPU cores: take sim.engine warp"
            )
        from deftly.sim.cpu import CpuSim

        return CpuSim(model, num_envs, threads, dump_dir)
    if engine == "warp":
        try:
            import warp

            warp.config.log_level = (
                warp.LOG_ERROR
            )  # before it starts, or it reports each kernel, and a missing GPU
            from deftly.sim.warp import WarpSim
        except ImportError as error:
            raise DeftlyError(
                f"sim.engine is warp, but {error.name} is missing: pip install 'deftly[gpu]'"
            ) from None
        return WarpSim(model, num_envs, device, dump_dir, contacts)
    raise DeftlyError(f"there is no engine '{engine}': sim.engine is cpu or warp")
