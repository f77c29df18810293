"""From accelerate: the optimizer goes through prepare() as torch's do. Needs accelerate."""

import torch
from accelerate import Accelerator
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from largebatch.nn import convert_batch_norm, merge_running_stats
from largebatch.optim import LAMB, param_groups

torch.manual_seed(0)
accelerator = Accelerator(gradient_accumulation_steps=2, cpu=True)
network = nn.Sequential(nn.Linear(16, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 4))
network = convert_batch_norm(network, "ghost", ghost_size=16)
optimizer = LAMB(param_groups(network, weight_decay=0.01), lr=0.02)
inputs = torch.randn(256, 16)
loader = DataLoader(TensorDataset(inputs, inputs[:, :4].argmax(1)), batch_size=32)

network, optimizer, loader = accelerator.prepare(network, optimizer, loader)
losses = []
for _ in range(8):
    for batch, labels in loader:
        with accelerator.accumulate(network):
            loss = cross_entropy(network(batch), labels)
            accelerator.backward(loss)
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
        losses.append(float(loss.detach()))
merge_running_stats(accelerator.unwrap_model(network))
assert losses[-1] < losses[0], losses
print(f"loss {losses[0]:.3f}, then {losses[-1]:.3f}")
