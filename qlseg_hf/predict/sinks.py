# Copyright 2026 The QLSeg for transformers authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""What is written of a label map: files per image, and a record per image that whole tables are assembled from.

`labels`, `overlay`, `confidence` (PNG), `geojson` and `geotiff` are files per image in folders of these names. `coco`,
`csv` and `parquet` are one file for all images. They are assembled at the end of a run, by name, from `records/`
(areas) and `runs/` (run lengths), so that a run that goes on after a kill has everything in them once.
"""

import csv
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..utils.files import write_atomically, write_into
from ..utils.optional import import_package
from ..utils.visualization import draw_overlay, label_map_picture, save_picture
from .items import Item

SUFFIXES = {"labels": ".png", "overlay": ".png", "confidence": ".png", "geojson": ".geojson", "geotiff": ".tif"}
TABLES = {"coco": "coco.json", "csv": "areas.csv", "parquet": "rle.parquet"}
FORMATS = (*SUFFIXES, *TABLES)
AREAS, MASKS = "records", "runs"  # folders of what each image adds to tables
ROWS_PER_GROUP = 10_000


def check_formats(formats: Iterable[str]) -> tuple[str, ...]:
    """The formats in their order, each once; ValueError for an unknown one, ImportError if one needs a package."""
    formats = tuple(dict.fromkeys(formats))
    if unknown := [name for name in formats if name not in FORMATS]:
        raise ValueError(f"--format does not know {', '.join(unknown)}; it knows {', '.join(FORMATS)}")
    if not formats:
        raise ValueError(f"--format names nothing to write; it knows {', '.join(FORMATS)}")
    if {"coco", "parquet"} & set(formats):
        _coco_mask()
    if "parquet" in formats:
        _parquet()
    if {"geojson", "geotiff"} & set(formats):
        import_package("rasterio.features", "shapes", "--format geojson and geotiff", "'qlseg-hf[geo]'")
    return formats


def _coco_mask():
    return import_package("pycocotools.mask", "encode", "--format coco and parquet", "'qlseg-hf[coco]'")


def _parquet():
    return import_package("pyarrow.parquet", "ParquetWriter", "--format parquet", "'qlseg-hf[train]'")


@dataclass(frozen=True)
class Output:
    """Where results go and what they are.

    `names`: of the K labels. `colors`: (K, 3) uint8. `wanted`: numbers of the labels to write; all if None.
    """

    root: Path
    formats: tuple[str, ...]
    names: tuple[str, ...]
    colors: np.ndarray
    wanted: list[int] | None = None

    def __post_init__(self) -> None:
        """ValueError for more labels than 16 bits hold beside void."""
        if len(self.names) > 65535:
            raise ValueError(f"{len(self.names)} labels do not fit into files of 16 bits; 65,535 at most do")

    @property
    def void(self) -> int | None:
        """What pixels of labels that are not wanted hold; None if all are wanted."""
        return None if self.wanted is None else 255 if len(self.names) <= 255 else 65535

    @property
    def label_dtype(self) -> type[np.uint8] | type[np.uint16]:
        """Of stored label maps: uint8, uint16 if that is too little for labels or void."""
        return np.uint8 if max(len(self.names) - 1, self.void or 0) <= 255 else np.uint16

    def select(self, labels: np.ndarray) -> np.ndarray:
        """(H, W) integers -> (H, W) `label_dtype`, void where a label is not wanted."""
        if self.wanted is not None:
            labels = np.where(np.isin(labels, self.wanted), labels, self.void)
        return labels.astype(self.label_dtype)

    def paths(self, name: str) -> list[Path]:
        """The files of an image."""
        paths = [self.root / kind / f"{name}{SUFFIXES[kind]}" for kind in self.formats if kind in SUFFIXES]
        return [*paths, *(self.record_path(kind, name) for kind in self.records)]

    def record_path(self, kind: str, name: str) -> Path:
        return self.root / kind / f"{name}.json"

    @property
    def records(self) -> list[str]:
        """The kinds of records that the tables need: `AREAS`, and `MASKS` for some."""
        needed = {AREAS: set(TABLES), MASKS: {"coco", "parquet"}}
        return [kind for kind, formats in needed.items() if formats & set(self.formats)]

    def write(self, item: Item, picture: np.ndarray | None, labels: np.ndarray, confidence: np.ndarray | None) -> None:
        """Write all files of an image.

        Args:
            item: the image.
            picture: (H, W, n), for an overlay.
            labels: (H, W) unsigned integers.
            confidence: (H, W) uint8, 255 for 1.
        """
        for kind in self.formats:
            path = self.root / kind / f"{item.name}{SUFFIXES.get(kind, '')}"
            if kind == "labels":
                save_picture(label_map_picture(labels, self.colors, self.void), path)
            elif kind == "overlay":
                save_picture(draw_overlay(picture, labels, dict(enumerate(self.names)), self.colors), path)
            elif kind == "confidence":
                save_picture(Image.fromarray(confidence), path)
            elif kind in ("geojson", "geotiff"):
                from . import geo

                place = geo.read_georeference(item.reader)
                if kind == "geojson":
                    write_atomically(path, geo.encode_polygons(labels, self.names, self.void, place))
                else:
                    write_atomically(path, geo.encode_geotiff(labels, self.colors, self.void, place))
        if self.records:
            counts = np.bincount(labels.ravel(), minlength=len(self.names))[: len(self.names)]
            self.write_records(item.name, counts, labels)

    def write_records(self, name: str, counts: np.ndarray, labels: np.ndarray | None = None) -> None:
        """Write what an image adds to tables. `counts`: (K,) pixels of each label; `labels`: as of `write`."""
        for kind in self.records:
            found = {int(label): int(counts[label]) for label in counts.nonzero()[0]}
            record = found if kind == AREAS else {label: _run_lengths(labels == label) for label in found}
            write_atomically(self.record_path(kind, name), json.dumps(record).encode())


def _run_lengths(is_label: np.ndarray) -> dict[str, Any]:
    """COCO's run lengths and box of an (H, W) mask."""
    mask = _coco_mask()
    code = mask.encode(np.asfortranarray(is_label, dtype=np.uint8))
    return {"counts": code["counts"].decode("ascii"), "bbox": mask.toBbox(code).astype(int).tolist()}


def write_tables(output: Output, entries: Iterable[dict]) -> None:
    """Assemble `coco.json`, `areas.csv` and `rle.parquet` of the images that the manifest's `entries` have done."""
    writers = {"coco": _write_coco, "csv": _write_areas, "parquet": _write_parquet}
    for kind in output.formats:
        if kind in TABLES:
            done = [entry for entry in entries if kind in entry.get("formats", ())]
            with write_into(output.root) as beside:
                writers[kind](beside / TABLES[kind], output, done)


def _records(output: Output, done: list[dict]) -> Iterator[tuple[int, dict, dict]]:
    """(number from 1, entry of the manifest, records by their kind) of each image."""
    for number, entry in enumerate(done, 1):
        records = {kind: json.loads(output.record_path(kind, entry["name"]).read_bytes()) for kind in output.records}
        yield number, entry, records


def _write_coco(path: Path, output: Output, done: list[dict]) -> None:
    """One annotation per image and label; ids count from 1, categories are the label numbers."""
    images = [
        {"id": number, "file_name": entry["source"], "name": entry["name"]} | _sides(entry)
        for number, entry in enumerate(done, 1)
    ]
    categories = [{"id": label, "name": name} for label, name in enumerate(output.names)]
    with path.open("w", encoding="utf-8", errors="surrogatepass") as file:
        file.write('{"annotations": [')
        count = 0
        for number, entry, record in _records(output, done):
            for label, found in record[MASKS].items():
                annotation = {
                    "id": (count := count + 1),
                    "image_id": number,
                    "category_id": int(label),
                    "segmentation": {"size": [entry["height"], entry["width"]], "counts": found["counts"]},
                    "area": record[AREAS][label],
                    "bbox": found["bbox"],
                    "iscrowd": 0,
                }
                file.write(",\n"[count == 1 :] + json.dumps(annotation))
        file.write(f'],\n"images": {json.dumps(images)},\n"categories": {json.dumps(categories)}}}\n')


def _sides(entry: dict) -> dict[str, int]:
    return {"width": entry["width"], "height": entry["height"]}


def _write_areas(path: Path, output: Output, done: list[dict]) -> None:
    """A row per image and label that occurs in it."""
    with path.open("w", encoding="utf-8", errors="surrogatepass", newline="") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(["image", "label", "label_name", "pixels", "share"])
        for _, entry, record in _records(output, done):
            for label, pixels in record[AREAS].items():
                share = pixels / (entry["height"] * entry["width"])
                rows.writerow([entry["source"], label, output.names[int(label)], pixels, f"{share:.6f}"])


def _write_parquet(path: Path, output: Output, done: list[dict]) -> None:
    """A row per image and label: COCO's run lengths, area and size."""
    import pyarrow

    kinds = {"image": "string", "height": "int32", "width": "int32", "label": "int32", "label_name": "string"}
    kinds |= {"area": "int64", "counts": "string"}
    schema = pyarrow.schema([(name, getattr(pyarrow, kind)()) for name, kind in kinds.items()])
    rows: list[dict[str, Any]] = []
    with _parquet().ParquetWriter(path, schema) as writer:
        for _, entry, record in _records(output, done):
            image = entry["source"].encode(errors="replace").decode()
            for label, found in record[MASKS].items():
                known = {"image": image, "label": int(label), "label_name": output.names[int(label)]}
                rows.append(known | _sides(entry) | {"area": record[AREAS][label], "counts": found["counts"]})
            if len(rows) >= ROWS_PER_GROUP:
                writer.write_table(pyarrow.Table.from_pylist(rows, schema))
                rows.clear()
        writer.write_table(pyarrow.Table.from_pylist(rows, schema))


__all__ = ["FORMATS", "Output", "check_formats", "write_tables"]
