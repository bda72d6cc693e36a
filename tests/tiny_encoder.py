"""A sentence encoder of seconds, without labels: transformers' BERT with random weights, mean-pooled, with padding."""

import torch
import transformers
from torch import Tensor, nn
from torch.utils.data import TensorDataset


class Encoder(nn.Module):
    """Token ids (N, T), 0 is padding → embeddings (N, 32)."""

    def __init__(self) -> None:
        super().__init__()
        config = transformers.BertConfig(
            vocab_size=60, hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=48,
            max_position_embeddings=16, initializer_range=0.3,
            hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
        )  # fmt: skip
        self.bert = transformers.BertModel(config, add_pooling_layer=False)

    def forward(self, ids: Tensor) -> Tensor:
        present = (ids != 0).long()
        hidden = self.bert(input_ids=ids, attention_mask=present).last_hidden_state
        weight = present.unsqueeze(-1).to(hidden.dtype)
        return (hidden * weight).sum(1) / weight.sum(1)


def encoder() -> nn.Module:
    """The network, its weights drawn from the seed that the caller set."""
    return Encoder()


def sentences(samples: int = 160, length: int = 8) -> dict[str, TensorDataset]:
    """Random tokens, half of the samples padded at the end; no labels."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(1, 60, (samples, length), generator=generator)
    ids[::2, length // 2 :] = 0
    return {"train": TensorDataset(ids, torch.full((samples,), -100))}
