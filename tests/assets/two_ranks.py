"""Trains as one rank of a torchrun and writes its weights: two_ranks.py OUT TRAIN_ARGUMENTS..."""

import sys

from safetensors.torch import save_file

from deftly.commands import train
from deftly.learn.ppo import Ranks
from deftly.learn.trainer import Training

kept = []
close = Training.close
Training.close = lambda self: (kept.append(self), close(self))[1]
assert train.main(sys.argv[2:]) == 0
models = kept[0].ppo.models
weights = {f"{n}/{k}": v for n, m in models.items() for k, v in m.state_dict().items()}
save_file(weights, f"{sys.argv[1]}-{Ranks.join().rank}.safetensors")
