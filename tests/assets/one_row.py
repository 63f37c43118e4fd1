"""A policy of a test that decides for one robot: `decide(signals, applied, inputs)` gives its `Decision`."""

from deftly.policy.protocol import NO_INPUTS, Decision


class OneRow:
    """The protocol of policies around `decide`."""

    deterministic = True

    def reset(self, ids=None):
        pass

    def infer(self, signals, inputs=NO_INPUTS, applied=None, ids=None):
        rows = {name: value[0] for name, value in signals.items()}
        action, targets = self.decide(rows, None if applied is None else applied[0], inputs)
        return Decision(action[None], targets[None])

    def forget(self, ids):
        pass

    def close(self):
        pass
