# Copyright 2026 The QLSeg for transformers authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""COCO: polygons and run lengths in JSON, and panoptic PNG files with the JSON that explains them."""

import json
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from types import ModuleType
from typing import Any

import numpy as np
from PIL import ExifTags, Image

from ...model.image_io import open_picture
from ...utils.optional import import_package
from ...utils.picture_files import base_of, is_picture, listed, stem_of, suffix_of
from ...utils.text import read_text
from ..samples import DrawnLabelMap, FolderSamples
from .files import Locator
from .layout import Family, Found, Source
from .polygons import IGNORED_NAMES, check_size, divide_by_images, ignored_label, label_of, order_names, read_points
from .splits import ALL, SPLIT_WORDS, find_kind
from .words import split_of_name

KEYS = {"images", "annotations", "categories"}
OTHER_TASKS = ("captions", "keypoints", "image_info")
HEAD = 1 << 16  # bytes that are looked at before a JSON file is read
TREES = {
    "coco-json": "annotations/instances_{train2017,val2017}.json  {train2017,val2017}/a.jpg  (or one "
    ".json beside images/; "
    "{train,valid}/_annotations.coco.json)",
    "coco-panoptic": "annotations/panoptic_val2017.json  annotations/panoptic_val2017/a.png  val2017/a.jpg",
}


def import_masks() -> ModuleType:
    return import_package("pycocotools.mask", "decode", "COCO annotations", "'qlseg-hf[train]'")


def find_coco(source: Source, is_panoptic: bool) -> Found | None:
    """One JSON per split, or one for all."""
    contents = {name: read_content(source, name) for name in candidates(source)}
    contents = {n: c for n, c in contents.items() if c is not None and has_panoptic_segments(c) == is_panoptic}
    if not contents:
        return None
    by_split = defaultdict(list)
    for name in contents:
        by_split[split_of(name)].append(name)
    if many := [names for names in by_split.values() if len(names) > 1]:
        raise ValueError(
            f"{' and '.join(many[0])} in {source.root} annotate the same split; keep the one that counts, "
            "or give that file "
            "as the data set"
        )
    categories = merge_categories(contents)
    names = [name for _, name in sorted(categories.items())]
    names = list(dict.fromkeys(names)) if is_panoptic else order_names(names)
    open_one = open_panoptic if is_panoptic else open_json
    if set(by_split) != {ALL}:
        by_split.pop(ALL, None)
    openers = {
        split: partial(open_one, source, split, name, contents[name], categories, names)
        for split, (name,) in by_split.items()
    }
    notes: list[str] = []
    if set(by_split) == {ALL}:
        (file,) = by_split[ALL]
        try:
            images = [path for path, _ in locate_images(source, file, contents[file])[0].values()]
        except ValueError:  # which opening says
            images = []
        openers = divide_by_images(source, images, openers[ALL], notes) or openers
    kind = "panoptic segments" if is_panoptic else "polygons"
    used = [name for (name,) in by_split.values()]
    void = ignored_label(names)
    name = "coco-panoptic" if is_panoptic else "coco-json"
    return Found(name, f"{kind} of {listed(used)}", openers, names, listed(used), void, notes=notes)


def candidates(source: Source) -> list[str]:
    """JSON files that may be COCO's: the one that was given, or those that are not beside each image."""
    if source.file is not None:
        return [source.file.name] if suffix_of(source.file.name) == ".json" else []
    files = [name for name in source.files if suffix_of(name) == ".json"]
    pictures = {stem_of(name) for name in source.files if is_picture(name)} if files else set()
    return [n for n in files if stem_of(n) not in pictures and not any(task in n.lower() for task in OTHER_TASKS)][
        :200
    ]


def read_json(source: Source, name: str, marks: Iterable[str], opening: str = "{") -> Any:
    """What a JSON file holds if it begins with `opening` and its start or end has one of `marks` as a key, else None.

    Raises:
        ValueError: it is damaged.
    """
    path = source.root / name
    with path.open("rb") as file:
        head = file.read(HEAD)
        file.seek(max(path.stat().st_size - HEAD, 0))
        ends = head + file.read(HEAD)
    is_one = head.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(opening.encode())
    if not is_one or not any(f'"{mark}"'.encode() in ends for mark in marks):
        return None
    try:
        return json.loads(read_text(path))
    except (RecursionError, ValueError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error


def read_content(source: Source, name: str) -> dict | None:
    """What a JSON file holds, if it is COCO's; ValueError if it is and cannot be read."""
    content = read_json(source, name, KEYS)
    if not isinstance(content, dict) or not content.keys() >= KEYS:
        return None
    for key in KEYS:
        if not isinstance(content[key], list) or not all(isinstance(entry, dict) for entry in content[key]):
            raise ValueError(f"{source.root / name}: {key} must be a list of objects")
    return content


def has_panoptic_segments(content: dict) -> bool:
    return any("segments_info" in annotation for annotation in content["annotations"][:1])


def split_of(name: str) -> str:
    """The split that a JSON's name or its folder tells."""
    path = PurePosixPath(name)
    words = [*path.stem.replace("-", "_").replace(".", "_").split("_")[::-1], *path.parent.parts[::-1]]
    return next((word for word in words if word.lower() in SPLIT_WORDS), split_of_name(path.stem) or ALL)


def merge_categories(contents: dict[str, dict]) -> dict[int, str]:
    """{category id: name}; ValueError if two files give one id two names.

    Roboflow puts a category in front that only groups the others; it is left out where nothing is of it.
    """
    categories, origin = {}, {}
    for file, content in contents.items():
        for entry in content["categories"]:
            number, name = entry.get("id"), entry.get("name")
            if type(number) is not int or not isinstance(name, str) or not name.strip():
                raise ValueError(f"{file}: category {str(entry)[:60]} must have a number as id, and a name")
            if categories.setdefault(number, name.strip()) != name.strip():
                raise ValueError(
                    f"category {number} is {categories[number]!r} in {origin[number]} and {name!r} in "
                    f"{file}; annotations "
                    "of one data set must agree"
                )
            origin.setdefault(number, file)
    entries = [entry for content in contents.values() for entry in content["categories"]]
    groups = {entry.get("supercategory") for entry in entries}
    used = {a.get("category_id") for content in contents.values() for a in content["annotations"]}
    for entry in entries:
        if entry.get("supercategory") == "none" and entry["name"] in groups and entry["id"] not in used:
            categories.pop(entry["id"], None)
    return categories


def locate_images(source: Source, file: str, content: dict) -> tuple[dict[Any, tuple[str, dict]], list[str]]:
    """{image id: (path, entry)} of the JSON's images, and sentences on pictures beside them that it lacks."""
    folder = PurePosixPath(file).parent
    split = split_of(file)
    root = folder.parent if folder.name.lower() in ("annotations", "annotation", "labels") else folder
    pictures = [name for name in source.files if is_picture(name)]
    inside = {path.rpartition("/")[0] for path in pictures}
    named = [name for name in source.folders if find_kind(base_of(name)) == find_kind(split)]
    named = [name for name in named if any(f"{place}/".startswith(f"{name}/") for place in inside)]
    named.sort(key=lambda name: base_of(name).lower() != split.lower())
    near = named[0] if named else root.as_posix()
    locator = Locator(path for path in pictures if "panoptic" not in path.rpartition("/")[0])
    found, missing = {}, []
    for entry in content["images"]:
        if entry.get("id") in found:
            raise ValueError(f"{source.root / file}: two images have the id {entry.get('id')}")
        name = entry.get("file_name") or entry.get("coco_url")  # LVIS has addresses alone
        path = locator.find(name, near) if isinstance(name, str) else None
        if path is None:
            missing.append(str(name))
        else:
            found[entry.get("id")] = (path, entry)
    if missing:
        raise ValueError(
            f"{len(missing)} of {len(content['images'])} pictures of {source.root / file} are missing in "
            f"{source.root}: "
            f"{listed(missing)}"
        )
    if len({path for path, _ in found.values()}) < len(found):
        raise ValueError(f"{source.root / file} lists the same picture twice")
    own = {path for path, _ in found.values()}
    beside = {path.rpartition("/")[0] for path in own}
    left = [path for path in pictures if path not in own and path.rpartition("/")[0] in beside]
    return found, [f"{len(left)} pictures are not in {file} and are left out: {listed(left)}"] if left else []


def open_json(
    source: Source, split: str, file: str, content: dict, categories: dict, names: list[str]
) -> FolderSamples:
    """Samples of a JSON of polygons and run lengths."""
    import_masks()
    images, notes = locate_images(source, file, content)
    by_image, boxes, lines, rectangles = defaultdict(list), 0, 0, 0
    for annotation in content["annotations"]:
        if annotation.get("image_id") not in images:
            raise ValueError(
                f"{source.root / file}: an annotation is of image {annotation.get('image_id')!r}, which is not listed"
            )
        if annotation.get("category_id") not in categories:
            raise ValueError(
                f"{source.root / file}: an annotation has category {annotation.get('category_id')!r}, "
                "which is not listed"
            )
        if shapes := annotation.get("segmentation"):
            by_image[annotation["image_id"]].append(annotation)
            rectangles += is_rectangle(shapes)
            lines += sum(isinstance(points, list) and len(points) < 6 and not len(points) % 2 for points in shapes)
        else:
            boxes += 1
    if not by_image and content["annotations"]:
        raise ValueError(f"{source.root / file} has boxes alone and no segmentation; annotate polygons or masks")
    if rectangles and rectangles == sum(map(len, by_image.values())):
        notes.append(f"all polygons of {file} are upright rectangles, as of boxes that nobody outlined")
    if boxes:
        notes.append(f"{boxes} annotations of {file} have no segmentation and are left out")
    if lines:
        notes.append(f"{lines} polygons of {file} have fewer than 3 points, so no inside, and are left out")
    if empty := [path for number, (path, _) in images.items() if number not in by_image]:
        notes.append(
            f"{len(empty)} pictures of {file} have no annotation, so all of each is background: {listed(empty)}"
        )
    items = []
    for number, (path, entry) in images.items():
        try:
            height, width = entry.get("height"), entry.get("width")
            size = plain_size(source.root / path) if height is None is width else check_size(height, width)
        except ValueError as error:
            raise ValueError(f"{source.root / file}: image {path}: {error}") from error
        items.append((path, CocoMap(f"{file}#{number}", size, by_image[number], categories, names)))
    return FolderSamples(source.root, items, split, None, notes)


def is_rectangle(polygons: Any) -> bool:
    """Whether a segmentation is one upright rectangle, as converters make of a box."""
    points = polygons[0] if isinstance(polygons, list) and len(polygons) == 1 and isinstance(polygons[0], list) else []
    return len(points) >= 8 and len({*points[::2]}) == 2 == len({*points[1::2]})


def plain_size(path: Path) -> tuple[int, int]:
    """(height, width) of an image; ValueError if EXIF turns it: a JSON without sizes does not tell what it means."""
    with Image.open(path) as picture:
        if picture.getexif().get(ExifTags.Base.Orientation, 1) != 1:
            raise ValueError("the JSON tells no size, and its EXIF orientation turns it; add height and width")
        return check_size(picture.height, picture.width)


@dataclass(frozen=True)
class CocoMap(DrawnLabelMap):
    """Annotations of one image. Smaller regions are drawn over larger ones, all of them over crowds.

    A crowd has its category's label, because for single pixels it does not matter where one of many ends; what is
    marked `"ignore": 1` does not count.
    """

    name: str
    size: tuple[int, int]
    annotations: list[dict]
    categories: dict[int, str]
    names: list[str]

    def labels(self) -> set[str]:
        return {self.categories[annotation["category_id"]] for annotation in self.annotations}

    def draw(self) -> np.ndarray:
        regions = [(self.region(annotation), annotation) for annotation in self.annotations]
        regions.sort(key=lambda pair: (not pair[1].get("iscrowd"), -int(pair[0].sum())))
        label_map = np.zeros(self.size, dtype=np.int64)
        for region, annotation in regions:
            label = label_of(self.categories[annotation["category_id"]], self.names)
            label_map[region] = ignored_label(self.names) if annotation.get("ignore") else label
        return label_map

    def region(self, annotation: dict) -> np.ndarray:
        """(H, W) bool; ValueError if the annotation is damaged."""
        (height, width), segmentation = self.size, annotation["segmentation"]
        if isinstance(segmentation, list):
            polygons = [points for points in map(read_points, segmentation) if len(points) > 2]
            if not polygons:
                return np.zeros(self.size, dtype=bool)
            flat = [[v for point in points for v in point] for points in polygons]
            masks = import_masks()
            counts, size = masks.merge(masks.frPyObjects(flat, height, width))["counts"].decode(), [height, width]
        elif isinstance(segmentation, dict):
            counts, size = segmentation.get("counts"), segmentation.get("size")
        else:
            raise ValueError(f"the segmentation is {str(segmentation)[:40]}; polygons or run lengths are wanted")
        if size != [height, width]:
            raise ValueError(f"run lengths of size {size} are given for a picture of [{height}, {width}]")
        return fill_runs(counts, size)


def fill_runs(counts: Any, size: list[int]) -> np.ndarray:
    """(H, W) bool of `size` [height, width] of run lengths, numbers or COCO's text; ValueError if they are damaged."""
    runs = read_runs(counts) if isinstance(counts, str) else counts
    if not isinstance(runs, list) or not all(type(run) is int and run >= 0 for run in runs):
        raise ValueError("run lengths must be a list of numbers or COCO's text")
    height, width = size
    if sum(runs) != height * width:
        raise ValueError(f"run lengths do not add up to {height} x {width} pixels")
    return np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(width, height).T  # column after column


def read_runs(text: str) -> list[int]:
    """Run lengths of COCO's text; ValueError if it is damaged, which pycocotools does not notice.

    Source: `rleFrString` of pycocotools: five bits a letter from 48 on, a sixth to go on; from the fourth run on the
    difference to the run before the last.
    """
    runs, value, shift = [], 0, 0
    for letter in text:
        bits = ord(letter) - 48
        if not 0 <= bits < 64 or shift > 55:
            raise ValueError("run lengths are damaged")
        value |= (bits & 31) << shift
        shift += 5
        if not bits & 32:
            if bits & 16:
                value -= 1 << shift
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            value = shift = 0
    if shift:
        raise ValueError("run lengths are damaged")
    return runs


def open_panoptic(
    source: Source, split: str, file: str, content: dict, categories: dict, names: list[str]
) -> FolderSamples:
    """Samples of a JSON of segments, whose numbers are the colours of PNG files."""
    images, notes = locate_images(source, file, content)
    locator = Locator(
        name for name in source.files if suffix_of(name) == ".png" and name not in {p for p, _ in images.values()}
    )
    near, items, seen = stem_of(file), [], set()
    for annotation in content["annotations"]:
        number, name = annotation.get("image_id"), annotation.get("file_name")
        path = locator.find(name, near) if isinstance(name, str) else None
        if number not in images or path is None:
            raise ValueError(
                f"{source.root / file}: {'picture' if number not in images else 'PNG file'} of {name!r} is missing"
            )
        segments = {}
        for segment in annotation["segments_info"]:
            if segment.get("category_id") not in categories:
                raise ValueError(
                    f"{source.root / file}: {name} has category {segment.get('category_id')!r}, which is not listed"
                )
            category = categories[segment["category_id"]]
            segments[segment.get("id")] = (
                ignored_label(names) if category.lower() in IGNORED_NAMES else names.index(category)
            )
        items.append((images[number][0], PanopticMap(path, source.root / path, segments, names)))
        seen.add(number)
    if left := [path for number, (path, _) in images.items() if number not in seen]:
        notes.append(f"{len(left)} pictures of {file} have no annotation and are left out: {listed(left)}")
    return FolderSamples(source.root, items, split, None, notes)


@dataclass(frozen=True)
class PanopticMap(DrawnLabelMap):
    """A PNG file whose colour r + 256 g + 65536 b is a segment's number; 0, no segment, does not count."""

    name: str
    path: Any
    segments: dict[int, int]  # number -> label
    names: list[str]

    def labels(self) -> set[str]:
        return {str(label) for label in self.segments.values()}

    def draw(self) -> np.ndarray:
        picture = open_picture(self.path)
        if picture.mode not in ("RGB", "RGBA") or picture.format != "PNG":
            raise ValueError(f"a panoptic PNG has mode RGB; this is {picture.format}, mode {picture.mode}")
        numbers = np.asarray(picture.convert("RGB")).astype(np.int64) @ [1, 256, 65536]
        table = {0: ignored_label(self.names)} | self.segments
        values, places = np.unique(numbers, return_inverse=True)
        if odd := [int(value) for value in values if int(value) not in table]:
            raise ValueError(f"segment {odd[0]} of the PNG file is not in segments_info")
        return np.array([table[int(value)] for value in values], dtype=np.int64)[places].reshape(numbers.shape)


COCO = Family({"coco-json": TREES["coco-json"]}, partial(find_coco, is_panoptic=False))
PANOPTIC = Family({"coco-panoptic": TREES["coco-panoptic"]}, partial(find_coco, is_panoptic=True))

__all__ = ["COCO", "PANOPTIC", "candidates", "fill_runs", "read_json", "split_of"]
