"""Writes torch_cnn.onnx: a network of PyTorch, as its users export it, for tests.

    pip install torch onnx onnxscript
    python tests/export/torch_cnn.py

It takes floats [batch, 1, 6, 6] of 0..1, channels first, and gives the logits of 4 classes.
tests/torch_twin.py builds the same network in Keras from the weights that are in the file.
"""

from pathlib import Path

import onnx
import torch
from torch import nn

torch.manual_seed(0)
network = nn.Sequential(
    nn.Conv2d(1, 4, 3, padding=1),
    nn.BatchNorm2d(4),
    nn.ReLU(),
    nn.MaxPool2d(2),
    nn.Conv2d(4, 8, 3),
    nn.ReLU(),
    nn.Flatten(),
    nn.Linear(8, 4),
)
with torch.no_grad():  # statistics and scales of a trained network, not of a fresh one
    for tensor in (network[1].running_mean, network[1].weight, network[1].bias):
        tensor.uniform_(0.2, 0.8)
    network[1].running_var.uniform_(0.02, 0.1)
    for layer in (network[4], network[7]):
        layer.weight *= 3
network.eval()
place = Path(__file__).with_suffix(".onnx")
torch.onnx.export(
    network,
    (torch.zeros(2, 1, 6, 6),),
    str(place),
    input_names=["pixels"],
    output_names=["scores"],
    dynamic_shapes=[{0: torch.export.Dim("batch")}],
    dynamo=True,
    external_data=False,
)
model = onnx.load(place)
for node in model.graph.node:  # where on this machine each came from
    node.ClearField("metadata_props")
onnx.save(model, place)
