"""Folders of images as a source: one folder per class, decoded once and resized.

The training images may lie in train/ without class folders: they have no labels then. Or images
without labels lie beside the labelled ones, in a folder of their own.
"""

from __future__ import annotations

import itertools
import logging
import os
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np

from kd_cli.data import listing, pictures
from kd_cli.data.arrays import Arrays, decoded, stamp
from kd_cli.data.splits import stratified
from kd_cli.errors import ConfigError
from kd_cli.files import file_hash
from kd_cli.terminal import CountProgress

log = logging.getLogger("kd")

# Part of the key of decoded images: another number where the same files give other pixels.
_READER = 2

Files = dict[str, list[tuple[Path, int]]]


def class_folders(path: Path) -> list[str]:
    """Names of the class folders that hold images, sorted: one per class number.

    Of `path/train` where that exists, or of `path/test` where train/ has images instead of class
    folders; else of `path`.
    """
    return listing.layout(path).classes


def image_folder(
    path: str,
    image_shape: list[int],
    cache_dir: str,
    test_fraction: float = 0.2,
    test_seed: int = 0,
    unreadable: str = "error",
    unlabelled_path: str | None = None,
) -> Arrays:
    """Images in one folder per class, under train/ and test/ or under one folder that is split.

    Beside train/, validation/ is the official validation split; the splits' folders have any of the
    names of `listing.SPLITS`. With images in train/ itself, not in class folders, the training
    images have no labels and test/ names the classes. What is left out is counted in a notice.

    Args:
        path: The folder.
        image_shape: [H, W, C] to which every image is resized; C is 1 for grey, 3 for colour, 4 for
            colour and opacity.
        cache_dir: Where the decoded arrays are kept.
        test_fraction: Share of each class that becomes the test split, without train/ and test/.
        test_seed: Draws that split. Nothing else moves it, so no seed of a run brings test images
            into the training split of another.
        unreadable: `error` names a file that can't be decoded, `skip` leaves such files out.
        unlabelled_path: A folder whose images, at any depth, are training images without labels.

    Raises:
        ConfigError: For a missing folder, differing classes, an unreadable file, or a folder of
            unlabelled images that shares images with the labelled ones.
    """
    if unreadable not in ("error", "skip"):
        raise ConfigError(f"dataset.source.unreadable={unreadable} must be error or skip")
    if image_shape[-1] not in (1, 3, 4):
        raise ConfigError(
            f"dataset.image_shape={list(image_shape)}: images of a folder have 1 (grey), 3 "
            "(colour) or 4 (colour and opacity) channels; put others into an .npz file"
        )
    root = Path(path).expanduser()
    found = listing.layout(root)
    if found.parts:
        files = {part: listing.class_files(folder, found) for part, folder in found.parts.items()}
        if found.bare:
            images = listing.images_in(found.parts["train"], found.left)
            files["train"] = [(file, -1) for file in images]
    else:
        files = _split_files(listing.class_files(root, found), test_fraction, test_seed)
    lefts = [found.left]
    if unlabelled_path is not None:
        heap = _unlabelled_folder(unlabelled_path)
        listing.refuse_overlap(heap, found)
        found.left.without(heap)
        lefts.append(listing.Left(heap))
        files["unlabelled"] = [(file, -1) for file in listing.images_in(heap, lefts[1])]
    _check(files, found, unreadable, lefts)
    for notice in filter(None, (listing.doubt(found), *(left.notice() for left in lefts))):
        log.warning("%s", notice)
    beside = [file for file, _ in files.get("unlabelled", ())]
    everything = [file for name, part in files.items() if name != "unlabelled" for file, _ in part]
    key = {
        "image_folder": [listing.plain(name) for name in found.classes],
        "shape": list(image_shape),
        "files": stamp(everything, root),
        "split": [len(files["train"]), test_fraction, test_seed],
        "unreadable": unreadable,
        "reader": _READER,
    }
    if "validation" in files:
        key["validation"] = len(files["validation"])
    if beside:
        key["unlabelled"] = stamp(beside, heap)
    arrays = decoded(
        Path(cache_dir),
        key,
        lambda: _decode_folder(files, key["image_folder"], image_shape, unreadable),
        f"the images of {listing.plain(root)}",
    )
    return replace(arrays, scale=1.0)  # a file says its range itself, however dark its image


def _unlabelled_folder(path: str) -> Path:
    folder = Path(path).expanduser()
    if not path or not folder.is_dir():
        raise ConfigError(
            f"dataset.unlabelled_path={listing.plain(path)} is not a folder; expected a folder of "
            "images without labels, or leave it out"
        )
    return folder


def _check(files: Files, found: listing.Layout, unreadable: str, lefts: list[listing.Left]) -> None:
    """Refuses splits without images, the same images twice, and what only looks like an image."""
    for left, kind in itertools.product(lefts, listing.BROKEN):
        if unreadable == "error" and (paths := left.paths.get(kind)):
            raise ConfigError(
                f"{listing.plain(min(paths))} is a{'n' * (kind[0][0] in 'aei')} {kind[0]}; remove "
                "it, or leave such files out with dataset.source.unreadable=skip"
            )
    for part, listed in files.items():
        if listed:
            continue
        if part == "unlabelled":
            raise ConfigError(
                f"dataset.unlabelled_path={listing.plain(lefts[1].root)} holds no images; choose "
                "another folder, or leave it out"
            )
        where = listing.plain(found.parts.get(part, found.root))
        stray = found.left.paths.get(listing.STRAY, ())
        if part in found.parts and any(p.parent == found.parts[part] for p in stray):
            raise ConfigError(f"{where} has images but no class folders; expected <class>/ in it")
        few = "" if found.parts else "; no class has the 2 images of which one can be taken for it"
        raise ConfigError(f"{where}: no images for the {part} split{few}")
    for part in ("test", "validation"):
        if part in found.parts and os.path.samefile(found.parts[part], found.parts["train"]):
            raise ConfigError(
                f"{listing.plain(found.parts[part])} and {found.parts['train'].name}/ are the same "
                "folder; images to be measured on must not be trained on"
            )


def _split_files(files: list[tuple[Path, int]], fraction: float, seed: int) -> Files:
    if not 0 < fraction < 1:
        raise ConfigError(f"dataset.source.test_fraction={fraction} must be between 0 and 1")
    labels = np.array([label for _, label in files], dtype=np.int64)
    test = set(stratified(labels, fraction, seed).tolist())
    return {
        "train": [item for number, item in enumerate(files) if number not in test],
        "test": [item for number, item in enumerate(files) if number in test],
    }


def _decode_folder(
    files: Files, classes: list[str], image_shape: list[int], unreadable: str
) -> Arrays:
    height, width, channels = image_shape
    skipped: list[Path] = []
    remarked: dict[str, list[Path]] = defaultdict(list)
    brightest = 0  # of the images with 16 bits
    done = 0

    def pixels_of(file: Path) -> np.ndarray:
        nonlocal brightest
        image, remarks = pictures.read(file, channels)
        for remark in remarks:
            remarked[remark].append(file)
        if pictures.DEEP in remarks:
            brightest = max(brightest, int(image[..., :3].max()))
        return pictures.resized(image, height, width)

    def read(*parts: str) -> tuple[np.ndarray, np.ndarray]:
        nonlocal done
        images = np.empty((sum(len(files[part]) for part in parts), *image_shape), np.uint8)
        labels: list[int] = []
        for part in parts:
            before = len(labels)
            for file, label in files[part]:
                try:
                    images[len(labels)] = pixels_of(file)
                    labels.append(label)
                except pictures.Unreadable as error:
                    if unreadable == "error":
                        raise ConfigError(
                            f"{listing.plain(file)} {error}; remove it, or leave such files out "
                            "with dataset.source.unreadable=skip"
                        ) from error
                    skipped.append(file)
                done += 1
                progress.done(done)
            kept[part] = len(labels) - before
            if not kept[part]:
                where = "unlabelled_path" if part == "unlabelled" else f"the {part} split"
                raise ConfigError(f"no readable image in {where}")
        return images[: len(labels)], np.array(labels, dtype=np.int64)

    kept: dict[str, int] = {}
    with CountProgress("decoding images", sum(map(len, files.values())), slow=True) as progress:
        of_split = {part: [part] for part in files if part != "unlabelled"}
        of_split["train"] += ["unlabelled"] if "unlabelled" in files else []
        splits = {split: read(*parts) for split, parts in of_split.items()}
    notices = _copies(files)
    if skipped:
        several = "s" * (len(skipped) > 1)
        notices.append(
            f"left out {len(skipped)} unreadable image{several}, the first: "
            f"{listing.plain(skipped[0])}"
        )
    for remark, those in sorted(remarked.items()):
        more = f", and the largest pixel is {brightest}" if remark == pictures.DEEP else ""
        some = listing.shortened([f"{file.parent.name}/{file.name}" for file in those])
        notices.append(f"{remark}{more}: {len(those)} image{'s' * (len(those) > 1)} ({some})")
    return Arrays(
        **splits,
        class_names=tuple(classes),
        notice="; ".join(notices),
        unlabelled=kept.get("unlabelled", 0),
    )


def _copies(files: Files) -> list[str]:
    """Says which unlabelled images are files of a split, too, byte for byte; a line each split."""
    beside: dict[int, list[Path]] = defaultdict(list)
    for file, _ in files.get("unlabelled", ()):
        beside[file.stat().st_size].append(file)
    notices = []
    for part in ("test", "validation", "train") if beside else ():
        found = []
        theirs: dict[int, set[str]] = defaultdict(set)
        for file, _ in files.get(part, ()):
            if (size := file.stat().st_size) in beside:  # most files need not be read
                theirs[size].add(file_hash(file))
        for size, hashes in theirs.items():
            found += [file for file in beside[size] if file_hash(file) in hashes]
        if found:
            names = listing.shortened([str(file) for file in sorted(found)])
            why = "" if part == "train" else ", because what is measured on must not be trained on"
            notices.append(
                f"images in unlabelled_path that are in the {part} split, too: {len(found)} "
                f"({names}); take them out of one of the two{why}"
            )
    return notices
