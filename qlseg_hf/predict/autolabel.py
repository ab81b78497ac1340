# Copyright 2026 The QLSeg for transformers authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""`qlseg autolabel`: a model's own label maps as a data set, without the pixels that it is not sure of.

The network runs as in `qlseg predict`, into a hidden folder: label maps, and the confidence of each pixel in 255
steps. From these the pseudo labels are made, all of them each time, so another threshold costs no forward pass. Label
maps take their place together, after the images: who opens the folder in between is told that label maps are missing.
"""

import json
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from ..data.check.outputs import to_yaml
from ..export.loading import is_file, load_network_or_file
from ..model.configuration_qlseg import QLSegConfig
from ..model.image_io import NamedBytes, load_label_map, load_picture
from ..model.image_processing_qlseg import QLSegImageProcessor
from ..utils.files import partial_folder, replace_folder, write_atomically, write_into
from ..utils.picture_files import PICTURE_SUFFIXES, listed, suffix_of
from ..utils.text import printable
from ..utils.visualization import label_colors, label_map_picture, save_picture
from .items import Item, LocalFile
from .manifest import MANIFEST, as_stored, read_entries
from .request import Request, Summary, num_workers
from .run import predict, source_options
from .sources import find_items

PREDICTIONS = ".predictions"  # hidden, so that no layout of data sets looks there
IMAGES, MASKS, REPORT = "images", "masks", "autolabel.json"
STEPS = 255  # of the stored confidence
MOST_NAMED = 1000  # images in the report


@dataclass(frozen=True)
class Teacher:
    """What the pseudo labels need to know of the model that made them. `names`, `colors`: of the K labels."""

    source: str
    names: list[str]
    colors: np.ndarray
    processor: QLSegImageProcessor

    @property
    def void(self) -> int:
        """What pixels hold that do not count; outside the labels."""
        return 255 if len(self.names) <= 255 else 65535


@dataclass(frozen=True)
class _Paths:
    """Of one image: its `name` in the data set, and the files of its `labels` and `confidence`."""

    name: str
    labels: Path
    confidence: Path

    def read(self) -> tuple[np.ndarray, np.ndarray]:
        """(H, W) int64 labels, and (H, W) int64 confidence in steps, 0..255."""
        return load_label_map(self.labels), load_label_map(self.confidence)


def autolabel(request: Request, confidence: float, least_share: float) -> tuple[Summary, dict[str, Any] | None]:
    """Segment all images of the sources, and write those that have pixels of enough confidence as a data set.

    `request.output` then holds `images` (hard links where that is possible, else copies), `masks` (PNG, a label per
    pixel, or `Teacher.void`), `data.yaml`, `labels.json` with names and colours, and `autolabel.json`. The same call
    goes on where a run was stopped; another `confidence` makes new label maps of what was segmented.

    Args:
        request: what to segment, and how; its formats and labels do not count.
        confidence: the least of a pixel that counts, in (0, 1]; see `segment` for what it is, rounded to 1/255.
        least_share: of each label's pixels, 0..1, the surest that count even below that.

    Returns:
        what was segmented; and the report that is written as JSON, see `make_report`, in the main process alone.

    Raises:
        ValueError: `confidence` or `least_share` is out of range, no pixel counts, the folder holds images or label
            maps of another origin, two images would have one name, an image has changed meanwhile; or see `predict`.
        OSError: something cannot be written.
    """
    if not 0 < confidence <= 1:
        raise ValueError(f"confidence is {confidence}; it must be above 0 and at most 1")
    if not 0 <= least_share <= 1:
        raise ValueError(f"least_share is {least_share}; it must be 0..1")
    work = request.output / PREDICTIONS
    check_output(request.output)
    inner = replace(
        request,
        output=work,
        formats=("labels", "confidence"),
        labels=None,
        left_out=request.left_out or request.output,
    )
    summary = predict(inner)
    if os.environ.get("RANK", "0") != "0":
        return summary, None
    teacher = read_teacher(request.model)
    settings, entries = read_entries(work)
    items = list_done(inner, entries)
    paths = make_paths(items, work)
    threads = max(1, num_workers(request))
    counts = count_confidences(list(paths.values()), len(teacher.names), threads)
    least = choose_steps(counts, confidence, least_share)
    if not any(row[step:].any() for row, step in zip(counts, least)):
        highest = np.flatnonzero(counts.any(axis=0))
        found = f"the highest is {highest[-1] / STEPS:.2f}" if highest.size else "none was segmented"
        raise ValueError(
            f"no pixel of {len(items)} images has a confidence of {confidence} or more, {found}; lower --confidence"
        )
    kept = write_pairs(request.output, items, paths, teacher, least, threads)
    report = make_report(teacher, counts, least, kept)
    given = {"confidence": confidence, "least_share": least_share}
    report = {"teacher": {"model": teacher.source} | settings} | given | report
    report["num_failed"] = summary.num_failed
    write_descriptions(request.output, teacher, report)
    return summary, report


def list_done(request: Request, entries: dict[str, dict]) -> list[Item]:
    """The images of a request that were segmented; ValueError if one is not what it was then."""
    found = [item for item in find_items(list(request.sources), source_options(request))[0] if item.name in entries]
    items = [item for item in found if "failed" not in entries[item.name]]
    if changed := [item.source for item in items if entries[item.name]["stamp"] != as_stored(item.stamp)]:
        raise ValueError(
            f"{len(changed)} images have changed while others were segmented: {listed(changed)}; give the same "
            "command again"
        )
    return items


def check_output(output: Path) -> None:
    """ValueError if a folder holds images or label maps that are not of this command, which it would replace."""
    others = [name for name in (IMAGES, MASKS, "data.yaml", "labels.json") if (output / name).exists()]
    if others and not (output / PREDICTIONS / MANIFEST).is_file():
        raise ValueError(
            f"{output} holds {' and '.join(others)}, which qlseg autolabel has not written and would replace; give "
            "another --output"
        )


def read_teacher(source: str) -> Teacher:
    """Names, colours and processor of a model, or of a file that it was exported to."""
    if is_file(source):
        model, processor = load_network_or_file(source)
        config = model.config
    else:
        config, processor = QLSegConfig.from_pretrained(source), QLSegImageProcessor.from_pretrained(source)
    names = [config.id2label[label] for label in range(config.num_labels)]
    return Teacher(str(source), names, label_colors(config), processor)


def make_paths(items: list[Item], work: Path) -> dict[str, _Paths]:
    """Of each image, by its name among the results. Folders become a part of the name: a/b is a__b.

    A folder called train or masks would else be taken for a split or for one of label maps.

    Raises:
        ValueError: two images would have one name.
    """
    found: dict[str, str] = {}
    for item in items:
        flat = item.name.replace("/", "__")
        flat = f"_{flat[1:]}" if flat.startswith(".") else flat  # hidden files are passed by
        other = found.setdefault(flat, item.name)
        if other != item.name:
            raise ValueError(f"images {other} and {item.name} would both be called {flat}; rename one")
    return {
        name: _Paths(flat, work / "labels" / f"{name}.png", work / "confidence" / f"{name}.png")
        for flat, name in found.items()
    }


def count_confidences(paths: list[_Paths], num_labels: int, threads: int) -> np.ndarray:
    """(K, 256) int64: pixels of each label by the steps of their confidence.

    Pictures are decoded outside of Python's lock.
    """
    counts = np.zeros((num_labels, STEPS + 1), dtype=np.int64)

    def count(one: _Paths) -> np.ndarray:
        labels, steps = one.read()
        return np.bincount((labels * (STEPS + 1) + steps).ravel(), minlength=counts.size)

    with ThreadPoolExecutor(threads) as pool:
        for found in tqdm(pool.map(count, paths), total=len(paths), desc="counting", unit=" images"):
            counts += found.reshape(counts.shape)
    return counts


def choose_steps(counts: np.ndarray, confidence: float, least_share: float) -> np.ndarray:
    """(K,) int64: for each label, the step of confidence from which on its pixels count, 1 at least.

    That of `confidence`, or the highest that keeps `least_share` of the label's pixels if that is lower: a network
    gives rare labels less of the scores, also where it is right, so by one threshold they would vanish.

    Args:
        counts: (K, 256), see `count_confidences`.
    """
    wanted = int(np.ceil(STEPS * confidence - 1e-9))
    at_least = counts[:, ::-1].cumsum(axis=1)[:, ::-1]  # pixels of each step or more
    needed = least_share * at_least[:, :1]
    keeping = (at_least >= np.maximum(needed, 1)).sum(axis=1) - 1  # the number falls, so the highest step is the last
    return np.clip(keeping, 1, wanted) if least_share > 0 else np.full(len(counts), wanted)


def keep_confident(labels: np.ndarray, steps: np.ndarray, least: np.ndarray, void: int) -> np.ndarray:
    """(H, W) int64 labels, `void` where the confidence is below `least` steps, (K,) by label."""
    return np.where(steps >= least[labels], labels, void)


def write_pairs(
    output: Path, items: list[Item], paths: dict[str, _Paths], teacher: Teacher, least: np.ndarray, threads: int
) -> dict[str, np.ndarray]:
    """Write `images` and `masks` of the images that keep a pixel; {name: (K,) pixels kept} of all."""
    reading, place = teacher.processor.settings().reading, output / PREDICTIONS / "placed.json"
    placed: dict[str, list] = {}  # {name: [file in `images`, stamp of its source]}
    placed_before = json.loads(place.read_bytes()) if place.is_file() else {}

    def write(item: Item, masks: Path) -> np.ndarray:
        one = paths[item.name]
        pseudo = keep_confident(*one.read(), least, teacher.void)
        kept = np.bincount(pseudo[pseudo != teacher.void], minlength=len(teacher.names))
        if kept.any():
            save_picture(label_map_picture(pseudo, teacher.colors, teacher.void), masks / f"{one.name}.png")
            stamp = as_stored(item.stamp)
            file, was = placed_before.get(one.name, (None, None))
            if was != stamp or not (output / IMAGES / file).is_file():
                file = place_image(item, output / IMAGES, one.name, reading)
            placed[one.name] = [file, stamp]
        return kept

    with partial_folder(MASKS, output) as masks:
        with ThreadPoolExecutor(threads) as pool:
            written = pool.map(write, items, repeat(masks))
            found = list(tqdm(written, total=len(items), desc="writing", unit=" images"))
        replace_folder(masks, output / MASKS)
    files = {file for file, _ in placed.values()}
    for path in (output / IMAGES).iterdir():
        if path.name not in files:
            path.unlink()
    write_atomically(place, json.dumps(placed).encode())
    return dict(zip(paths, found))


def place_image(item: Item, folder: Path, name: str, reading: dict[str, Any]) -> str:
    """Put an image into a folder, whatever was there under its name; returns the file's name.

    A file of this machine is linked (hard), or copied where that cannot be. The bytes of another picture file are
    written as they are. What is neither, such as an array, becomes a PNG, or `.npy` where that holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if isinstance(item.reader, LocalFile) and suffix_of(item.reader.path) in PICTURE_SUFFIXES:
        target = folder / f"{name}{suffix_of(item.reader.path)}"
        _link_or_copy(os.path.realpath(item.reader.path), target)
        return target.name
    source = item.reader.read()
    if isinstance(source, NamedBytes) and suffix_of(source.name) in PICTURE_SUFFIXES:
        target = folder / f"{name}{suffix_of(source.name)}"
        write_atomically(target, source.getvalue())
        return target.name
    picture = load_picture(source, **reading)
    if picture.dtype == np.uint8 and picture.shape[-1] in (1, 3):
        save_picture(Image.fromarray(picture[..., 0] if picture.shape[-1] == 1 else picture), folder / f"{name}.png")
        return f"{name}.png"
    with write_into(folder) as beside:
        np.save(beside / f"{name}.npy", picture)
    return f"{name}.npy"


def _link_or_copy(source: str, target: Path) -> None:
    with partial_folder(target.name, target.parent) as beside:
        try:
            os.link(source, beside / target.name)
        except OSError:  # another disk, or a file system without links
            shutil.copy2(source, beside / target.name)
        os.replace(beside / target.name, target)


def make_report(
    teacher: Teacher, counts: np.ndarray, least: np.ndarray, kept: dict[str, np.ndarray]
) -> dict[str, Any]:
    """What was kept, as plain data.

    Args:
        teacher: names of the labels.
        counts: (K, 256), see `count_confidences`.
        least: (K,) steps of confidence from which on pixels of each label count.
        kept: {name: (K,) pixels kept} of every image.

    Returns:
        `num_images` written; `num_left_out` of them that keep no pixel and `left_out`, the first names;
        `share_kept` of all pixels, 0..1; `labels`: of each `label`, `name`, `least` confidence that counts,
        `predicted` and `kept` pixels, `share_kept` (None if none was predicted), mean `confidence` of the predicted
        ones, and `images` that keep some; `warnings`.
    """
    left_out = [name for name, found in kept.items() if not found.any()]
    predicted = counts.sum(axis=1)
    num_kept = np.array([row[step:].sum() for row, step in zip(counts, least)])
    in_images = sum((found > 0).astype(int) for found in kept.values())
    means = counts @ np.arange(STEPS + 1) / STEPS / np.maximum(predicted, 1)
    labels = [
        {
            "label": label,
            "name": name,
            "least": int(least[label]) / STEPS,
            "predicted": int(predicted[label]),
            "kept": int(num_kept[label]),
            "share_kept": num_kept[label] / predicted[label] if predicted[label] else None,
            "confidence": float(means[label]) if predicted[label] else None,
            "images": int(in_images[label]),
        }
        for label, name in enumerate(teacher.names)
    ]
    never = [row["name"] for row in labels if not row["predicted"]]
    unsure = [row["name"] for row in labels if row["predicted"] and not row["kept"]]
    warnings = [f"{len(never)} of {len(labels)} labels are never predicted: {listed(never)}"] if never else []
    if unsure:
        text = f"{len(unsure)} of {len(labels)} labels have no pixel, because their predictions are all less sure"
        warnings.append(f"{text}: {listed(unsure)}; lower --confidence or raise --least_share")
    return {
        "num_images": len(kept) - len(left_out),
        "num_left_out": len(left_out),
        "left_out": left_out[:MOST_NAMED],
        "share_kept": float(num_kept.sum() / predicted.sum()),
        "labels": labels,
        "warnings": warnings,
    }


def write_descriptions(output: Path, teacher: Teacher, report: dict[str, Any]) -> None:
    """`data.yaml`, `labels.json` and `autolabel.json`."""
    keys = {"data": ".", "layout": f"{IMAGES}:{MASKS}", "label_names": teacher.names, "do_reduce_labels": False}
    keys |= {"ignore_index": teacher.void, "label_mapping": {}}
    bands = teacher.processor.settings().num_channels
    keys |= {"num_channels": bands} if bands != 3 else {}
    head = (
        f"# Labels that {printable(teacher.source)} has predicted with a confidence of {report['confidence']} or "
        f"more, and of each label the surest {report['least_share']:.0%}.\n"
    )
    write_atomically(output / "data.yaml", (head + to_yaml(keys)).encode())
    palette = {"labels": teacher.names, "palette": teacher.colors.tolist()}
    write_atomically(output / "labels.json", json.dumps(palette).encode())
    write_atomically(output / REPORT, (json.dumps(report, indent=1, allow_nan=False) + "\n").encode())


def describe_report(report: dict[str, Any], output: Path) -> str:
    """A table of the labels, and sentences, for people."""
    width = max(5, *(len(printable(row["name"])) for row in report["labels"]))
    lines = [f"{'label':{width}}  predicted pixels  confidence  least   kept  images"]
    for row in report["labels"]:
        numbers = "         -      -      -"
        if row["predicted"]:
            numbers = f"{row['confidence']:10.2f}   {row['least']:.2f} {100 * row['share_kept']:5.1f}%"
        lines.append(f"{printable(row['name']):{width}}  {row['predicted']:16d}  {numbers}  {row['images']:6d}")
    lines += [f"warning: {printable(text)}" for text in report["warnings"]]
    left = f"; {report['num_left_out']} images without such a pixel are left out" if report["num_left_out"] else ""
    share = 100 * report["share_kept"]
    lines.append(f"{report['num_images']} images with labels in {share:.1f}% of their pixels{left}: {output}")
    return "\n".join(lines)


__all__ = ["Teacher", "autolabel", "choose_steps", "describe_report", "keep_confident", "make_report", "place_image"]
