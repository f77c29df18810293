"""From apex: FusedLAMB's settings and state in largebatch.optim.LAMB. Runs without apex."""

import torch
from torch.nn.functional import cross_entropy

from largebatch.optim import LAMB, from_apex, to_apex


def train(model: torch.nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> float:
    draw = torch.Generator().manual_seed(0)
    for _ in range(steps):
        inputs = torch.randn(64, 16, generator=draw)
        labels = inputs[:, :4].argmax(1)
        loss = cross_entropy(model(inputs), labels)
        loss.backward()
        optimizer.step()  # clips to max_grad_norm, as apex does: no clip_grad_norm_ before it
        optimizer.zero_grad()
    return float(loss.detach())


torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(16, 32), torch.nn.ReLU(), torch.nn.Linear(32, 4))

# apex: FusedLAMB(model.parameters(), lr=1e-2, weight_decay=0.01, max_grad_norm=1.0)
optimizer = LAMB(model.parameters(), lr=1e-2, weight_decay=0.01, preset="nvlamb")
before = train(model, optimizer, 30)

# A checkpoint in apex's form, here made by the way back; torch.load gives yours.
state = to_apex(optimizer.state_dict())
continued = LAMB(model.parameters(), lr=1e-2, weight_decay=0.01, preset="nvlamb")
continued.load_state_dict(from_apex(state, use_nvlamb=True))
after = train(model, continued, 30)
assert after < before, (before, after)
print(f"loss {before:.3f}, then {after:.3f}")
