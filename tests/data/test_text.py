"""Text: which files, what a token is, and which windows."""

from __future__ import annotations

import sysconfig
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from largebatch._errors import UserError
from largebatch.data import DataConfig, Delivery, Request, StreamOrder, build_source, settled
from largebatch.data.text_files import text_files
from largebatch.data.token_store import read_tokens, text_digest

TEXT = "Thou art — said he — a täle;\n" * 40
PLAIN = Delivery(train=False)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def of(path: Path, **keys: Any) -> DataConfig:
    return DataConfig(name="text", root=str(path), **keys)


def written(path: Path, content: bytes | str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_bytes_of_one_file_are_mapped_and_divided(tmp_path: Path) -> None:
    path = written(tmp_path / "a.txt", TEXT)
    tokens = read_tokens(of(path, held_out=0.25))
    assert isinstance(tokens.train, np.memmap)
    assert bytes(tokens.train) + bytes(tokens.val) == TEXT.encode()
    assert len(tokens.train) == int(0.75 * len(TEXT.encode()))
    assert tokens.vocabulary == 256 and tokens.bytes_per_token == 1.0


@pytest.mark.parametrize("tokenizer", ["bytes", "characters"])
def test_files_of_a_folder_are_read_in_the_order_of_their_paths(
    tmp_path: Path, tokenizer: Any
) -> None:
    for name, part in (("b/x.txt", "bärs "), ("a.txt", "Öre "), (".hidden", "no"), ("c.md", TEXT)):
        written(tmp_path / "texts" / name, part)
    tokens = read_tokens(of(tmp_path / "texts", tokenizer=tokenizer))
    whole = "Öre bärs " + TEXT
    both = np.concatenate((tokens.train, tokens.val))
    if tokenizer == "bytes":
        assert bytes(both) == whole.encode()
    else:
        alphabet = sorted(set(whole))
        assert "".join(alphabet[number] for number in both) == whole
        assert tokens.vocabulary == len(alphabet)
        shown = "".join(alphabet[number] for number in tokens.val)
        assert tokens.bytes_per_token == len(shown.encode()) / len(shown)


def test_a_text_is_tokenised_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path / "a.txt", TEXT)
    config = of(path, tokenizer="characters")
    first = read_tokens(config)
    from largebatch.data.tokenizers import Characters

    monkeypatch.setattr(Characters, "encode", None)  # a second time would be an error
    again = read_tokens(config)
    assert np.array_equal(first.train, again.train) and isinstance(again.train, np.memmap)
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    written(path, TEXT + "#")  # another text is another name
    assert read_tokens(config).vocabulary == first.vocabulary + 1


def test_train_and_val_are_the_splits_of_a_folder(tmp_path: Path) -> None:
    for split, count in (("train", 50), ("val", 9)):
        written(tmp_path / f"{split}.bin", np.arange(count, dtype=np.uint16).tobytes())
    tokens = read_tokens(of(tmp_path))
    assert tokens.train.tolist() == list(range(50)) and tokens.val.tolist() == list(range(9))
    assert tokens.vocabulary == 50 and tokens.bytes_per_token is None
    with pytest.raises(UserError, match=r"data.held_out=0.2: .* has a validation text"):
        read_tokens(of(tmp_path, held_out=0.2))


def test_python_s_own_library_is_there() -> None:
    config = DataConfig(name="stdlib", context=64)
    files = text_files(config)
    first = files.train[0]
    assert first.path.startswith(sysconfig.get_paths()["stdlib"])
    source = build_source(config, "train")
    batch = source.batch(Request(0, np.arange(1), np.arange(1)), PLAIN)
    assert bytes(batch.tokens[0].to(torch.uint8).numpy()) == Path(first.path).read_bytes()[:65]
    assert settled(config).digest == text_digest(config)
    assert settled(DataConfig()).digest is None


def test_the_digest_tells_texts_tokenizers_and_divisions_apart(tmp_path: Path) -> None:
    path = written(tmp_path / "a.txt", TEXT)
    found = {text_digest(of(path)), text_digest(of(path, tokenizer="characters"))}
    found.add(text_digest(of(path, held_out=0.5)))
    held = settled(of(path))
    build_source(held, "train")
    written(path, TEXT.replace("art", "ART", 1))
    found.add(text_digest(of(path)))
    assert len(found) == 4
    with pytest.raises(UserError, match=f"data.digest={held.digest}: the text .* another one"):
        build_source(held, "train")


def test_validation_predicts_every_token_once(tmp_path: Path) -> None:
    path = written(tmp_path / "a.txt", bytes(range(200)))
    source = build_source(of(path, context=12, held_out=0.5), "val")
    seen: list[int] = []
    for index in range(len(source)):
        batch = source.batch(Request(0, np.array([index]), np.array([index])), PLAIN)
        assert batch.tokens.shape == (1, 13)
        counted = batch.counted if batch.counted is not None else np.ones((1, 13), bool)
        seen += batch.tokens.numpy()[:, 1:][counted[:, 1:]].tolist()
    assert seen == list(range(101, 200))


def test_training_shifts_the_windows_each_epoch_and_none_overlap(tmp_path: Path) -> None:
    path = written(tmp_path / "a.txt", bytes(range(250)))
    source = build_source(of(path, context=16, held_out=0.2), "train")
    everything = np.arange(len(source))
    shifts = set()
    for epoch in range(6):
        rows = source.batch(Request(epoch, everything, everything), Delivery(seed=3)).tokens
        starts = rows[:, 0].tolist()
        shifts.add(starts[0])
        assert all(b - a == 16 for a, b in pairwise(starts[:-1]))
        assert torch.equal(rows, rows[:, :1] + torch.arange(17))
    assert len(shifts) > 3 and max(shifts) < 16


def test_an_extent_changes_the_length_alone(tmp_path: Path) -> None:
    path = written(tmp_path / "a.txt", bytes(range(250)))
    source = build_source(of(path, context=16), "train")
    some = np.array([3, 0, 7])
    long, short = (
        source.batch(Request(1, some, some, extent), Delivery()).tokens for extent in (None, 4)
    )
    assert short.shape == (3, 5) and torch.equal(long[:, :5], short)
    with pytest.raises(UserError, match="extent=400: longer than the text"):
        source.batch(Request(1, some, some, 400), Delivery())


def test_streams_are_read_on(tmp_path: Path) -> None:
    path = written(tmp_path / "a.txt", bytes(range(250)))
    source = build_source(of(path, context=8, streams=4), "train")
    order = source.order(0)
    assert isinstance(order, StreamOrder) and source.offers()["streams"] == 4
    last = None
    for step in range(len(source) // 4):
        places = np.arange(4 * step, 4 * step + 4)
        ids = order.indices(0, 4 * step, 4 * step + 4)
        batch = source.batch(Request(0, ids, places), Delivery())
        assert batch.begins == (step == 0) and batch.streams.tolist() == [0, 1, 2, 3]
        if last is not None:
            assert torch.equal(batch.tokens[:, 0], last)
        last = batch.tokens[:, -1]


@pytest.mark.parametrize(
    ("content", "keys", "said"),
    [
        (b"", {}, "0 bytes"),
        (b"\xff\xfea" * 50, {"tokenizer": "characters"}, "no UTF-8: byte 0: invalid start byte"),
        (b"abc" * 9, {"context": 64}, "data.context=64: a window .* longer than the training text"),
        (b"abc" * 9, {"tokenizer": "uint16"}, "27 bytes, no whole number of 2 a token"),
        (np.arange(99, dtype=np.uint32).tobytes(), {"tokenizer": "uint16"}, "looks like uint32"),
        (
            np.arange(64, dtype=np.uint16).tobytes(),
            {"tokenizer": "uint32"},
            "looks like uint16",
        ),
        (b"abc" * 99, {"vocabulary": 100}, "data.vocabulary=100: the tokenizer has 256 tokens"),
        (b"abc" * 99, {"tokenizer": "no_such.json"}, "data.tokenizer='no_such.json'"),
        (b"abc" * 99, {"context": 8, "streams": 70}, "data.streams=70: .* only 33 windows"),
    ],
    ids=["empty", "UTF-8", "short", "odd", "wide", "narrow", "vocabulary", "tokenizer", "streams"],
)
def test_what_is_no_such_text_is_refused(
    content: bytes, keys: dict[str, Any], said: str, tmp_path: Path
) -> None:
    config = of(written(tmp_path / "a.txt", content), **keys)
    with pytest.raises(UserError, match=said):
        build_source(config, "train")


@pytest.mark.parametrize("keys", [{"image_size": 8}, {"mixup": 0.2}, {"streams": 0}])
def test_keys_of_images_and_numbers_out_of_range_are_refused(keys: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=rf"data.{next(iter(keys))}="):
        replace(DataConfig(name="stdlib"), **keys).check()
    with pytest.raises(UserError, match=r"data.context=8: data.name=digits is no text"):
        DataConfig(context=8).check()


def test_a_file_of_hugging_face_s_tokenizers(tmp_path: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers", reason="tokenizers is not installed")
    theirs = tokenizers.Tokenizer(tokenizers.models.BPE(unk_token="[UNK]"))
    theirs.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel()
    theirs.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["[UNK]", "[MASK]"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
    )
    theirs.train_from_iterator([TEXT], trainer)
    theirs.save(str(tmp_path / "own.json"))
    path = written(tmp_path / "a.txt", TEXT)
    tokens = read_tokens(of(path, tokenizer=str(tmp_path / "own.json")))
    assert tokens.vocabulary == theirs.get_vocab_size() and tokens.mask == 1
    assert theirs.decode(tokens.train.tolist()).strip() in TEXT
    assert tokens.bytes_per_token > 1
