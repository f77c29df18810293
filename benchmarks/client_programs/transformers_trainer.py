"""Hugging Face's Trainer on a tiny BERT of random weights: LAMB and SGD, bf16, resumption."""

from __future__ import annotations

import sys
from functools import partial

import torch
from outcomes import Outcomes
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    Trainer,
    TrainingArguments,
    set_seed,
)

from largebatch.optim import LAMB, SGD

OPTIMIZERS = {"LAMB": (LAMB, {"lr": 0.005}), "SGD": (SGD, {"lr": 0.05, "momentum": 0.9})}


class Sentences(torch.utils.data.Dataset):
    """Random words whose class is the parity of the first."""

    def __len__(self) -> int:
        return 64

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        words = torch.randint(0, 64, (12,), generator=torch.Generator().manual_seed(index))
        return {"input_ids": words, "labels": words[0] % 2}


def trainer(name: str, folder: str, **options) -> Trainer:
    set_seed(0)
    config = BertConfig(
        vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=64, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    arguments = TrainingArguments(
        output_dir=folder,
        per_device_train_batch_size=8,
        gradient_accumulation_steps=2,
        max_grad_norm=1.0,
        num_train_epochs=4,
        save_steps=8,
        logging_steps=1,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        **options,
    )
    return Trainer(
        BertForSequenceClassification(config),
        arguments,
        train_dataset=Sentences(),
        optimizer_cls_and_kwargs=OPTIMIZERS[name],
    )


def trains(name: str, **options) -> None:
    run = trainer(name, f"{name}-{len(options)}", **options)
    run.train()
    losses = [line["loss"] for line in run.state.log_history if "loss" in line]
    assert sum(losses[-4:]) < sum(losses[:4]), losses


def resumes(name: str) -> None:
    whole = trainer(name, f"{name}-whole")
    whole.train()
    again = trainer(name, f"{name}-whole")
    again.train(resume_from_checkpoint=f"{name}-whole/checkpoint-8")
    for (key, a), b in zip(
        whole.model.state_dict().items(), again.model.state_dict().values(), strict=True
    ):
        assert torch.equal(a, b), key


def main() -> None:
    outcomes = Outcomes(sys.argv[1])
    for name in OPTIMIZERS:
        outcomes.check(f"{name} fp32", partial(trains, name))
        outcomes.check(f"{name} bf16", partial(trains, name, bf16=True))
        outcomes.check(f"{name} resumed", partial(resumes, name))


if __name__ == "__main__":
    main()
