"""Small encoders of each family; a small task of texts, its protocol. Without transformers its importers skip."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.config.protocol import load_protocol
from benchmarks.tasks.data_sets import grammar
from benchmarks.tasks.text import TextData, Texts, TextTask

transformers = pytest.importorskip("transformers", reason="the extra [text] is not installed")

CPU = torch.device("cpu")

SMALL = {"hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 32, "vocab_size": 90}

FAMILIES: dict[str, dict[str, Any]] = {
    "bert": SMALL,
    "roberta": {**SMALL, "type_vocab_size": 1},
    "electra": {**SMALL, "embedding_size": 8},
    "distilbert": {"dim": 16, "n_layers": 4, "n_heads": 2, "hidden_dim": 32, "vocab_size": 90},
    "mpnet": SMALL,
    "deberta-v2": SMALL,
    "modernbert": {
        **SMALL,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "cls_token_id": 1,
        "sep_token_id": 2,
    },
}


def model(family: str = "bert", seed: int = 0, **changes: Any) -> Any:
    torch.manual_seed(seed)
    values = {"num_labels": 3, **FAMILIES[family], **changes}
    config = transformers.AutoConfig.for_model(family, **values)
    return transformers.AutoModelForSequenceClassification.from_config(config).eval()


def inputs(lengths: Sequence[int] = (7, 4, 5), seed: int = 1) -> Tensor:
    longest = max(lengths)
    mask = (torch.arange(longest) < torch.tensor(lengths)[:, None]).long()
    ids = torch.randint(5, 90, (len(lengths), longest), generator=torch.Generator().manual_seed(seed))
    return torch.stack([ids * mask, mask, torch.zeros_like(ids)], 1)


def texts(count: int) -> dict[str, Texts]:
    splits = grammar.load(Path(), False)
    return {name: Texts(t.first[:count], (), t.labels[:count]) for name, t in splits.items()}


SMALL_TASK = TextTask(
    "small",
    grammar.TASKS[0].labels,
    lambda root, download: texts(150),
    grammar.score,
    "accuracy",
    vocabulary=grammar.WORDS,
)

PROTOCOL = load_protocol("grammar-demo").model_copy(
    update={"name": "test", "task": "small", "epochs": 2, "recipe_epochs": 20, "batch_size": 16}
)


def open_task(task: TextTask, **changes: Any) -> TextData:
    return task.open(Path(), PROTOCOL.model_copy(update=changes), CPU)
