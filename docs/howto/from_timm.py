"""From timm: a model with ghost batch norms, Lars's settings, adaptive clipping. Needs timm."""

import timm
import torch
from torch.nn.functional import cross_entropy

from largebatch.nn import GhostBatchNorm, convert_batch_norm, merge_running_stats
from largebatch.optim import LARS, adaptive_grad_clip_, clipped_parameters, param_groups

torch.manual_seed(0)
model = timm.create_model("resnet10t", num_classes=4)

# timm: convert_splitbn_model(model, num_splits=2), which divides the batch of one process
model = convert_batch_norm(model, "ghost", ghost_size=8)
assert any(isinstance(module, GhostBatchNorm) for module in model.modules())

# timm: create_optimizer_v2(model, "lars", lr=1.0, weight_decay=1e-4)
optimizer = LARS(param_groups(model, weight_decay=1e-4), lr=1.0, momentum=0.9, preset="timm")

images, labels = torch.randn(16, 3, 64, 64), torch.arange(16) % 4
losses = []
for _ in range(6):
    loss = cross_entropy(model(images), labels)
    loss.backward()
    # timm: adaptive_clip_grad(model_parameters(model, exclude_head=True), 0.01)
    adaptive_grad_clip_(clipped_parameters(model), 0.01)
    optimizer.step()
    optimizer.zero_grad()
    losses.append(float(loss.detach()))
merge_running_stats(model)
assert losses[-1] < losses[0], losses
print(f"loss {losses[0]:.3f}, then {losses[-1]:.3f}")
