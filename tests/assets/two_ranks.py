"""Two ranks that train together, as torchrun starts them: two_ranks.py OUT TRAIN_ARGUMENTS... [-- OUT ...]

Each rank is forked, so that what takes seconds is imported once; it writes what it came to into OUT-RANK.safetensors.
After `--` comes the next training, of two new ranks.
"""

import os
import socket
import sys

import torch
import torch._dynamo  # which the first step of an optimizer imports
from safetensors.torch import save_file

from deftly.commands import train
from deftly.learn.ranks import Ranks
from deftly.learn.trainer import Trainer

RANKS = 2


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return taken.getsockname()[1]


def be(rank: int, port: int, out: str, words: list[str]) -> None:
    where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": RANKS}
    where |= {"RANK": rank, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": RANKS}
    os.environ.update({name: str(value) for name, value in where.items()})
    kept = []
    original = Trainer.train
    Trainer.train = lambda self: (kept.append(self), original(self))[1]
    status = train.main(words)
    assert status == 0, status
    trainer = kept[0]
    found = {
        f"{name}/{key}": value
        for name, net in trainer.learner.networks.items()
        for key, value in net.state_dict().items()
    }
    scale = trainer.env.state.scale
    found |= {f"scale/{name}": torch.tensor(value) for name, value in scale.items()}
    found["obs"] = next(iter(trainer.env.obs.values())).clone()
    found["steps"] = torch.tensor(trainer.steps)
    save_file(found, f"{out}-{Ranks.join().rank}.safetensors")


def train_together(out: str, words: list[str]) -> bool:
    """Whether both ranks came to the end."""
    port, children = free_port(), []
    for rank in range(RANKS):
        child = os.fork()
        if not child:
            be(rank, port, out, words)
            sys.exit(0)
        children.append(child)
    statuses = [os.waitpid(child, 0)[1] for child in children]
    return not any(statuses)


rest = sys.argv[1:]
while rest:
    end = rest.index("--") if "--" in rest else len(rest)
    if not train_together(rest[0], rest[1:end]):
        sys.exit(1)
    rest = rest[end + 1 :]
