"""Drives a policy server with `openpi-client`, which wants numpy < 2 and thus a Python of its own; prints what it got.

Arguments: host, port, and the observation as JSON: lists of numbers, or `{"image": [height, width]}`.
"""

import json
import sys

import numpy as np
from openpi_client.action_chunk_broker import ActionChunkBroker
from openpi_client.websocket_client_policy import WebsocketClientPolicy


def value(said):
    if isinstance(said, dict):
        return np.full((*said["image"], 3), 51, np.uint8)
    return np.array(said, np.float32) if isinstance(said, list) else said


observation = {key: value(said) for key, said in json.loads(sys.argv[3]).items()}
policy = WebsocketClientPolicy(sys.argv[1], int(sys.argv[2]))
reply = policy.infer(observation)
broker = ActionChunkBroker(policy, len(reply["actions"]))
steps = [broker.infer(observation)["actions"].tolist() for _ in reply["actions"]]
try:
    policy.infer({"prompt": "nothing else"})
    refused = ""
except RuntimeError as error:
    refused = str(error)
found = {"metadata": policy.get_server_metadata(), "actions": reply["actions"].tolist()}
print(json.dumps({**found, "steps": steps, "timing": reply["server_timing"], "refused": refused}))
