"""Hugging Face Trainer: a subclass of a few lines, with its accumulation, clipping and logging.

    pip install transformers accelerate
    python examples/transformers_trainer.py

A small BERT of random weights has two heads: the most frequent token, and how often it occurs.
"""

import tempfile
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import BertConfig, BertModel, Trainer, TrainingArguments

from anynest.multitask import OSGD, Combiner, Stats


class MultitaskTrainer(Trainer):
    """A Trainer of a model whose ``forward`` returns a dict of losses."""

    combiner: Combiner
    stats: Stats | None = None

    def training_step(self, model: nn.Module, inputs: dict[str, Any], *_: Any) -> Tensor:
        model.train()
        with self.compute_loss_context_manager():
            losses = model(**self._prepare_inputs(inputs))
        parts = self.current_gradient_accumulation_steps
        self.combiner.accumulate({name: loss / parts for name, loss in losses.items()})
        if self.accelerator.sync_gradients:  # the last micro-batch of a step
            self.stats = self.combiner.combine()
        return torch.stack(list(losses.values())).detach().sum() / parts

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        if self.stats is not None:
            logs |= {key: value.item() for key, value in self.stats.log_dict("train/").items()}
        super().log(logs, *args, **kwargs)


class TwoHeads(nn.Module):
    def __init__(self, vocabulary: int = 8) -> None:
        super().__init__()
        config = BertConfig(
            vocab_size=vocabulary, hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
            intermediate_size=64, max_position_embeddings=16,
        )  # fmt: skip
        self.bert = BertModel(config, add_pooling_layer=False)
        self.token, self.count = nn.Linear(32, vocabulary), nn.Linear(32, 1)

    def forward(self, input_ids: Tensor, token: Tensor, count: Tensor) -> dict[str, Tensor]:
        features = self.bert(input_ids).last_hidden_state.mean(dim=1)
        return {
            "token": F.cross_entropy(self.token(features), token),
            "count": F.mse_loss(self.count(features)[:, 0], count),
        }


def train(steps: int = 30, micro_batches: int = 2) -> list[dict[str, float]]:
    torch.manual_seed(0)
    ids = torch.randint(0, 8, (512, 12))
    counts = F.one_hot(ids, 8).sum(dim=1)
    rows = zip(ids, counts.argmax(dim=1), counts.amax(dim=1) / 12.0, strict=True)
    data: Any = [{"input_ids": x, "token": token, "count": count} for x, token, count in rows]
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder, max_steps=steps, per_device_train_batch_size=32, learning_rate=5e-3,
            gradient_accumulation_steps=micro_batches, max_grad_norm=1.0, logging_steps=10,
            save_strategy="no", report_to="none", use_cpu=True, disable_tqdm=True,
        )  # fmt: skip
        trainer = MultitaskTrainer(TwoHeads(), arguments, train_dataset=data)
        trainer.combiner = OSGD(priority=["count", "token"])
        trainer.train()
    return list(trainer.state.log_history)


if __name__ == "__main__":
    train()
