"""A user's DeepSpeed config beside ours: what is taken over, what is refused and how."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from largebatch._errors import UserError
from largebatch.engine import DistributedConfig, Terms, check_engine
from largebatch.engine.deepspeed_config import resolve

TERMS = Terms(
    batch=256, micro=32, optimizer="lamb", lr=0.01, weight_decay=0.1, clip_norm=5.0, compute="bf16"
)


def given(folder: Path, content: Any, **keys: Any) -> DistributedConfig:
    path = folder / "ds_config.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return DistributedConfig(engine="deepspeed", deepspeed_config=str(path), **keys)


def test_without_a_file_it_is_stage_one_and_sums() -> None:
    found = resolve(DistributedConfig(engine="deepspeed"), Terms())
    assert found["zero_optimization"] == {"stage": 1}
    assert found["gradient_allreduce_op"] == "sum" and found["gradient_clipping"] == 0.0
    assert "fp16" not in found and "bf16" not in found


def test_what_agrees_is_taken_over(tmp_path: Path) -> None:
    user = {
        "train_batch_size": 256,
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": 5.0,
        "bf16": {"enabled": True},
        "fp16": {"enabled": False},
        "zero_optimization": {"stage": 2, "reduce_bucket_size": 1000000, "overlap_comm": "auto"},
        "wall_clock_breakdown": False,
    }
    found = resolve(given(tmp_path, user), TERMS)
    assert found["zero_optimization"] == {"stage": 2, "reduce_bucket_size": 1000000}
    assert "bf16" not in found and found["wall_clock_breakdown"] is False
    assert "train_batch_size" not in found and found["gradient_accumulation_steps"] == 1


def test_sixteen_bit_sections_may_only_agree(tmp_path: Path) -> None:
    user = {"fp16": {"enabled": "auto", "loss_scale": 0}, "bf16": {"enabled": False, "x": 1}}
    found = resolve(given(tmp_path, user), Terms(compute="fp16"))
    assert "fp16" not in found and "bf16" not in found  # the engine casts and scales by itself


REFUSED = [
    ({"train_batch_size": 512}, ["train_batch_size=512", "batch.size=256"]),
    ({"train_micro_batch_size_per_gpu": 8}, ["train_micro_batch_size_per_gpu=8", "batch.micro=32"]),
    ({"gradient_accumulation_steps": 4}, ["gradient_accumulation_steps=4", "batch.micro"]),
    ({"gradient_clipping": 1.0}, ["gradient_clipping=1.0", "optim.clip_norm=5.0"]),
    ({"gradient_allreduce_op": "mean"}, ["gradient_allreduce_op"]),
    ({"scheduler": {"type": "WarmupLR"}}, ["scheduler", "schedule"]),
    ({"fp16": {"enabled": True}}, ["fp16.enabled=true", "precision.compute=bf16"]),
    ({"bf16": {"enabled": False}}, ["bf16.enabled=false", "precision.compute=bf16"]),
    ({"torch_autocast": {"enabled": True}}, ["torch_autocast.enabled", "precision.compute"]),
    ({"bf16": True}, ["bf16=true", "section"]),
    ({"bf16": {"check_grad_overflow": True}}, ["bf16.check_grad_overflow=true", "precision"]),
    ({"zero_optimization": {"stage": 3}}, ["zero_optimization.stage=3", "fsdp"]),
    ({"optimizer": {"type": "Adam"}}, ["optimizer.type", "optim.name=lamb"]),
    ("{", ["malformed JSON"]),
    ("[1]", ["expected an object"]),
]  # fmt: skip


@pytest.mark.parametrize(("user", "words"), REFUSED, ids=lambda v: str(v)[:40])
def test_contradictions_are_refused_by_name(user: Any, words: list[str], tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        resolve(given(tmp_path, user), TERMS)
    text = str(caught.value)
    assert text.startswith("distributed.deepspeed_config") and "\n" not in text
    for word in words:
        assert word in text


def test_stage_and_loss_scale_contradictions(tmp_path: Path) -> None:
    stage = given(tmp_path, {"zero_optimization": {"stage": 1}}, zero_stage=2)
    with pytest.raises(UserError, match=r"stage=1.*distributed\.zero_stage=2"):
        resolve(stage, TERMS)
    scale = given(tmp_path, {"fp16": {"loss_scale": 1024}})
    with pytest.raises(UserError, match=r"fp16\.loss_scale=1024.*precision\.loss_scale=dynamic"):
        resolve(scale, Terms(compute="fp16"))


def test_deepspeeds_own_optimizer(tmp_path: Path) -> None:
    own = Terms(optimizer="deepspeed", lr=0.01, weight_decay=0.1)
    section = {"type": "AdamW", "params": {"lr": "auto", "betas": [0.9, 0.99]}}
    found = resolve(given(tmp_path, {"optimizer": section}), own)
    assert found["optimizer"] == {
        "type": "AdamW",
        "params": {"betas": [0.9, 0.99], "lr": 0.01},
    }
    with pytest.raises(UserError, match=r"optim\.name=deepspeed takes the optimizer"):
        resolve(DistributedConfig(engine="deepspeed"), own)
    for key, name in (("lr", "optim.lr=0.01"), ("weight_decay", "optim.weight_decay=0.1")):
        wrong = {"optimizer": {"type": "Adam", "params": {key: 0.5}}}
        with pytest.raises(UserError, match=rf"optimizer\.params\.{key}=0\.5.*{name}"):
            resolve(given(tmp_path, wrong), own)


def test_what_deepspeed_cannot_step_is_refused() -> None:
    zero, plain = (DistributedConfig(engine="deepspeed", zero_stage=n) for n in (1, 0))
    with pytest.raises(UserError, match=r"optim\.name=adagrad.*zero_stage=0"):
        resolve(zero, Terms(optimizer="adagrad"))
    assert resolve(plain, Terms(optimizer="adagrad"))["zero_optimization"] == {"stage": 0}
    with pytest.raises(UserError, match=r"optim\.name=muon.*take ddp"):
        check_engine(zero, Terms(optimizer="muon"))


def test_keys_belong_to_their_engines() -> None:
    for keys, match in (
        ({"engine": "ddp", "shard_ranks": 2}, r"shard_ranks=2: only with .*fsdp"),
        ({"engine": "fsdp", "zero_stage": 1}, r"zero_stage=1: only with .*deepspeed"),
        ({"engine": "fsdp", "shard_ranks": 0}, r"shard_ranks=0: at least 1"),
    ):
        with pytest.raises(UserError, match=match):
            check_engine(DistributedConfig(**keys), Terms())
