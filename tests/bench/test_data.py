"""The data benchmark: every loader delivers, and an absent one says why."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from largebatch._errors import UserError
from largebatch.bench import data, data_peers


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    for number in range(3):
        image = np.random.default_rng(number).integers(0, 256, (30, 40, 3), dtype=np.uint8)
        Image.fromarray(image).resize((260, 240)).save(tmp_path / f"{number}.jpg")
    return tmp_path


def test_loaders_are_measured_in_turn_and_absent_ones_are_named(
    photographs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    absent = partial(__import__, "peer")  # can be sent to another process, and fails there
    peers = {"torchvision": data_peers.torchvision_loader, "peer": absent}
    monkeypatch.setattr(data, "PEERS", peers)
    record = data.run(str(photographs), workers=1, seconds=0.05, rounds=2)
    rows = {row["loader"]: row for row in record.rows}
    assert rows["peer"]["images/s"] == "not run: No module named 'peer'"
    assert rows["torchvision"]["ratio to torchvision"] == 1
    ours = rows.pop("largebatch, pipeline dali")
    if not ours.get("rounds"):
        assert ours["images/s"].startswith("not run: data.pipeline='dali': DALI cannot be used")
    else:
        assert ours["rounds"] == 2
    for name in ("largebatch", "largebatch, normalised on the CPU", "torchvision"):
        assert rows[name]["rounds"] == 2
        assert rows[name]["min"] <= rows[name]["images/s"] <= rows[name]["max"]
        assert rows[name]["CPU ms an image"] > 0


def test_a_folder_without_images_is_the_users_mistake(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no image below it"):
        data.run(str(tmp_path))
