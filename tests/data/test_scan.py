"""What a folder scan counts: no leftovers of systems, each folder once, no class by accident."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from largebatch._errors import UserError
from largebatch.data import DataConfig, build_source
from largebatch.data.check import check_images
from largebatch.data.imagefolder import FileSource
from largebatch.data.source import Split

pytestmark = pytest.mark.timeout(60)


def build(root: Path, split: Split = "train") -> FileSource:
    source = build_source(DataConfig(name="imagefolder", root=str(root), image_size=8), split)
    assert isinstance(source, FileSource)
    return source


def names(source: FileSource, root: Path) -> list[str]:
    return [os.path.relpath(source.path(index), root) for index in range(len(source))]


def labels(source: FileSource) -> list[int]:
    return [source.label(index) for index in range(len(source))]


SPLITS: tuple[Split, ...] = ("train", "val")
LEFT_BY_SYSTEMS = [
    ".ipynb_checkpoints",
    ".Trash-1000",
    "__MACOSX",
    "@eaDir",
    "#recycle",
    "$RECYCLE.BIN",
    "lost+found",
]


def test_what_systems_leave_is_neither_class_nor_sample(folder: Path) -> None:
    before = [names(build(folder, split), folder) for split in SPLITS]
    image = folder / "train" / "ant" / "00.jpg"
    for name in LEFT_BY_SYSTEMS:
        for place in (folder / "train", folder / "val", folder / "train" / "bee"):
            (place / name).mkdir()
            shutil.copy(image, place / name / "x.jpg")
    for name in ("._00.jpg", ".hidden.png", ".DS_Store", "Thumbs.db", "desktop.ini", "00.jpg~"):
        (folder / "train" / "ant" / name).write_bytes(b"no image")
    after = [names(build(folder, split), folder) for split in SPLITS]
    assert after == before
    assert labels(build(folder)) == [0] * 7 + [1] * 7
    assert build(folder).num_classes == 2
    assert all(reason is None for _, reason in check_images(folder))
    assert len(list(check_images(folder))) == 20


def test_the_data_may_themselves_lie_in_a_hidden_folder(folder: Path) -> None:
    hidden = folder / ".cache" / "lost+found"
    hidden.mkdir(parents=True)
    for split in ("train", "val"):
        (folder / split).rename(hidden / split)
    assert len(build(hidden)) == 14


def test_links_are_followed_once_and_never_upwards(folder: Path) -> None:
    expected = names(build(folder), folder)
    ant = folder / "train" / "ant"
    for number in range(40):  # 2^40 paths, were they all followed
        (ant / f"loop{number}").symlink_to(".")
    (ant / "class above").symlink_to("..")
    (ant / "all").symlink_to(folder.resolve())
    (ant / "everything").symlink_to("/")
    (ant / "itself").symlink_to("itself")
    (ant / "nowhere").symlink_to("absent")
    assert names(build(folder), folder) == expected
    assert len(list(check_images(folder))) == 20


def test_a_tree_of_links_that_doubles_at_each_level_is_read_once(folder: Path) -> None:
    place = folder / "train" / "ant"
    for level in range(30):
        (place / f"level{level}").mkdir()
        for name in ("a", "b"):
            (place / f"level{level}" / name).symlink_to(f"../level{level + 1}")
    (place / "level30").mkdir()
    shutil.copy(place / "00.jpg", place / "level30" / "deep.jpg")
    found = names(build(folder), folder)
    assert len(found) == 15
    assert "train/ant/level30/deep.jpg" in found  # by its own path, not by a link's


def test_folders_and_files_of_other_places_may_be_linked(folder: Path, tmp_path: Path) -> None:
    elsewhere = folder / "elsewhere"
    (folder / "train" / "bee").rename(elsewhere)
    (folder / "train" / "bee").symlink_to(elsewhere)
    (folder / "train" / "ant" / "more.jpg").symlink_to(elsewhere / "01.jpg")
    assert len(build(folder)) == 15
    assert labels(build(folder)) == [0] * 8 + [1] * 7


@pytest.mark.parametrize(
    ("link", "target", "message"),
    [
        ("loop", ".", r"train/loop: a link to a folder above it"),
        ("up", "..", r"train/up: a link to a folder above it"),
        ("fly", "bee", r"train: the classes bee and fly are the same folder"),
    ],
)
def test_a_link_that_makes_a_class_by_accident_is_refused(
    folder: Path, link: str, target: str, message: str
) -> None:
    for split in ("train", "val"):
        (folder / split / link).symlink_to(target)
    with pytest.raises(UserError, match=message):
        build(folder)


def test_a_class_without_training_images_is_refused(folder: Path) -> None:
    for split in ("train", "val"):
        (folder / split / "cow").mkdir()
    (folder / "train" / "cow" / "x.heic").write_bytes(b"of no known ending")
    with pytest.raises(UserError, match=r"no image in train of the classes cow"):
        build(folder)
    shutil.copy(folder / "train" / "ant" / "00.jpg", folder / "train" / "cow")
    assert build(folder).num_classes == build(folder, "val").num_classes == 3
    assert labels(build(folder, "val")) == [0] * 3 + [1] * 3  # none of val is allowed


def test_splits_may_differ_in_hidden_folders_alone(folder: Path) -> None:
    (folder / "val" / ".ipynb_checkpoints").mkdir()
    assert len(build(folder)) == 14
    (folder / "val" / "wasp\x1b[31m").mkdir()
    with pytest.raises(UserError, match=r"only in val: wasp\\x1b\[31m"):
        build(folder)


def test_a_folder_that_cannot_be_read_is_named(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scandir = os.scandir

    def refusing(place: str) -> object:
        if str(place).endswith("deep"):
            raise PermissionError(13, "Permission denied")
        return scandir(place)

    (folder / "train" / "ant" / "deep").mkdir()
    monkeypatch.setattr(os, "scandir", refusing)
    with pytest.raises(UserError, match=r"ant/deep: cannot be read: Permission denied"):
        build(folder)
