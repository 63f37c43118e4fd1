"""Trains as one rank of a torchrun and writes what it came to: two_ranks.py OUT TRAIN_ARGUMENTS..."""

import sys

import torch
from safetensors.torch import save_file

from deftly.commands import train
from deftly.learn.ranks import Ranks
from deftly.learn.trainer import Trainer

kept = []
original = Trainer.train
Trainer.train = lambda self: (kept.append(self), original(self))[1]
status = train.main(sys.argv[2:])
assert status == 0, status
trainer = kept[0]
found = {
    f"{name}/{key}": value
    for name, net in trainer.learner.networks.items()
    for key, value in net.state_dict().items()
}
found |= {f"scale/{name}": torch.tensor(value) for name, value in trainer.env.state.scale.items()}
found["obs"] = next(iter(trainer.env.obs.values())).clone()
found["steps"] = torch.tensor(trainer.steps)
save_file(found, f"{sys.argv[1]}-{Ranks.join().rank}.safetensors")
