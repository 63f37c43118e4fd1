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
) -> Sim:
    """Many simulations of a model on an engine.

    Args:
        engine: `cpu` (`mujoco.batch`, float64) or `warp` (`mujoco_warp`, float32).
        model: the nominal model; every environment starts from it.
        num_envs: how many are simulated side by side.
        threads: of the CPU engine; 0 takes all cores.
        device: of the Warp engine: `cpu`, `cuda` or `cuda:N`.
        dump_dir: where environments that break are written for `deftly.sim.guard.replay`; None only counts them.

    Raises DeftlyError if there is no such engine, or if what it needs is not installed.
    """
    if engine == "cpu":
        from deftly.sim.cpu import CpuSim

        return CpuSim(model, num_envs, threads, dump_dir)
    if engine == "warp":
        try:
            from deftly.sim.warp import WarpSim  # type: ignore[import-not-found]
        except ImportError as error:
            raise DeftlyError(f"sim.engine is warp, but {error.name} is missing: pip install 'deftly[gpu]'") from None
        return WarpSim(model, num_envs, device=device, dump_dir=dump_dir)
    raise DeftlyError(f"there is no engine '{engine}': sim.engine is cpu or warp")
