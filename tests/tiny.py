"""Tiny models and batches that most tests are made of."""

import torch
from transformers import AutoConfig, AutoModelForSequenceClassification

SIZES = {
    "vocab_size": 120,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 40,
    "num_labels": 3,
    "pad_token_id": 1,
    "initializer_range": 0.15,  # attention far from uniform, so that heads differ
}
FAMILIES = {"bert": {}, "roberta": {}, "xlm-roberta": {}, "albert": {"embedding_size": 16}}


def tiny_model(family, seed=0, **overrides):
    """A model of the family, random weights, 3 layers (albert: 3 passes of one block) x 4 heads of 8."""
    config = AutoConfig.for_model(family, **{**SIZES, **FAMILIES.get(family, {}), **overrides})
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForSequenceClassification.from_config(config)
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                torch.nn.init.normal_(parameter, std=0.1)
    return model.eval()


def without_elements(model):
    """The names of the parameters and buffers of size 0."""
    return [name for name, tensor in (*model.named_parameters(), *model.named_buffers()) if not tensor.numel()]


def ragged_batches(count=3, size=5, seed=1, longest=17, vocabulary=120, labels=3):
    """Batches of random texts of 2 to ``longest`` tokens, each padded to its own longest; the last one is smaller."""
    generator = torch.Generator().manual_seed(seed)
    batches = []
    for i in range(count):
        n = size if i < count - 1 else size - 2
        lengths = torch.randint(2, longest + 1, (n,), generator=generator)
        width = int(lengths.max())
        mask = (torch.arange(width)[None] < lengths[:, None]).long()
        ids = torch.randint(3, vocabulary, (n, width), generator=generator)
        batches.append(
            {
                "input_ids": torch.where(mask == 1, ids, 1),
                "attention_mask": mask,
                "labels": torch.randint(0, labels, (n,), generator=generator),
            }
        )
    return batches
