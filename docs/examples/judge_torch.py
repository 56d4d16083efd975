"""A loop of torch, judged by Theorem 2: ``python docs/examples/judge_torch.py``."""

import torch

import lrdyn

torch.manual_seed(0)
torch.set_default_dtype(torch.float64)
d, r, eta = 12, 2, 0.1
target = torch.randn(d, r) @ torch.randn(r, d) / d
layers = [torch.nn.Linear(d, d, bias=False) for _ in range(3)]
for layer in layers:
    torch.nn.init.orthogonal_(layer.weight, gain=0.5)
model = torch.nn.Sequential(*layers)
optimizer = torch.optim.SGD(model.parameters(), lr=eta)
weights = []
for t in range(201):
    if t % 20 == 0:
        weights.append((t, {name: W.clone() for name, W in model.state_dict().items()}))
    optimizer.zero_grad()
    loss = (model(torch.eye(d)) - target.T).square().sum() / 2
    loss.backward()
    optimizer.step()

found = lrdyn.judge_run("theorem2", weights=weights, target=target, step_size=eta)
print(found)
assert found.holds
