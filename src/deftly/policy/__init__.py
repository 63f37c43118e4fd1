"""Policies: the protocol, ONNX networks, bundles."""
