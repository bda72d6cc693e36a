"""A training of one's own after pruning: it follows the dense network's outputs, without labels.

    amcsearch search CONFIG --set recovery.finetune.factory=examples/my_training.py:follow

A trainer of Lightning or ``accelerate`` stands in place of the loops as well: what comes back has to be the network.
"""

import torch
from torch import nn
from torch.utils.data import DataLoader

from amcsearch import TrainingRequest


def follow(request: TrainingRequest) -> nn.Module:
    """Train for two epochs on the squared distance to the outputs of the dense network."""
    model, teacher = request.model.to(request.torch_device), request.teacher.to(request.torch_device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    loader = DataLoader(request.train, batch_size=32, shuffle=True)
    for epoch in range(2):
        for batch, _ in loader:
            inputs = batch.to(request.torch_device)
            with torch.no_grad():
                guide = teacher(inputs)
            loss = nn.functional.mse_loss(model(inputs), guide)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        torch.save(model.state_dict(), request.folder / f"epoch_{epoch + 1}.pt")
    return model
