# Copyright 2026 The QLSeg for transformers authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""Label maps for geographic information systems: polygons as GeoJSON, and GeoTIFF with the source's georeference."""

import json
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..model.image_io import NamedBytes
from ..utils.optional import import_package
from .items import Reader

GEO = "'qlseg-hf[geo]'"
TIFF_HEADS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


@dataclass(frozen=True)
class Georeference:
    """`crs`: as rasterio has it, None if there is none. `transform`: affine, from (column, row) to coordinates."""

    crs: Any
    transform: Any


def import_rasterio(what: str = "GeoTIFF"):
    """The package rasterio; ImportError that says what for."""
    return import_package("rasterio", "open", what, GEO)


def read_georeference(reader: Reader) -> Georeference | None:
    """Where an image lies on the earth; None if its file is no TIFF or does not say."""
    rasterio = import_rasterio()
    source = reader.read()
    if isinstance(source, NamedBytes):
        head = source.getvalue()[:4]
    else:
        try:
            with open(source, "rb") as file:
                head = file.read(4)
        except (OSError, TypeError, ValueError):  # no file: an address, an array
            return None
    if head not in TIFF_HEADS:
        return None
    with rasterio.open(source) as file:
        if file.crs is None and file.transform.is_identity:
            return None
        return Georeference(file.crs, file.transform)


def encode_polygons(labels: np.ndarray, names: tuple[str, ...], void: int | None, place: Georeference | None) -> bytes:
    """GeoJSON of the connected regions of each label, along the edges of pixels.

    Args:
        labels: (H, W) unsigned integers.
        names: of the labels.
        void: a value that is outlined nowhere.
        place: gives coordinates in the source's reference system, which is named by its code, or by its text (WKT) if
            it has none; else columns and rows in pixels from the upper left corner.
    """
    features_of = import_package("rasterio.features", "shapes", "GeoJSON", GEO)
    options = {} if place is None else {"transform": place.transform}
    mask = None if void is None else labels != void
    found = features_of.shapes(labels.astype(np.int32), mask=mask, connectivity=4, **options)
    features = [
        {
            "type": "Feature",
            "properties": {"label": int(value), "name": names[int(value)]},
            "geometry": geometry,
        }
        for geometry, value in found
    ]
    collection: dict[str, Any] = {"type": "FeatureCollection"}
    if place is not None and place.crs is not None:  # without a name, readers take degrees of WGS 84
        code = place.crs.to_authority()
        name = f"urn:ogc:def:crs:{code[0]}::{code[1]}" if code else place.crs.to_wkt()
        collection["crs"] = {"type": "name", "properties": {"name": name}}
    return json.dumps(collection | {"features": features}).encode()


def geotiff_profile(shape: tuple[int, int], num_labels: int, void: int | None, place: Georeference | None) -> dict:
    """What rasterio needs to write an (H, W) label map: tiles of 512 x 512, deflated; BigTIFF if it must be."""
    profile = {
        "driver": "GTiff",
        "height": shape[0],
        "width": shape[1],
        "count": 1,
        "dtype": "uint8" if max(num_labels - 1, void or 0) <= 255 else "uint16",
        "compress": "deflate",
        "tiled": True,
        "blockxsize": 512,
        "blockysize": 512,
        "bigtiff": "if_safer",
    }
    if void is not None:
        profile["nodata"] = void
    return profile if place is None else profile | {"crs": place.crs, "transform": place.transform}


def write_palette(file, colors: np.ndarray) -> None:
    """Give an open 8-bit GeoTIFF the labels' colours."""
    if file.dtypes[0] == "uint8":
        file.write_colormap(1, {label: (*map(int, color), 255) for label, color in enumerate(colors)})


def encode_geotiff(labels: np.ndarray, colors: np.ndarray, void: int | None, place: Georeference | None) -> bytes:
    """A GeoTIFF whose values are the labels; see `geotiff_profile`."""
    rasterio = import_rasterio()
    profile = geotiff_profile(labels.shape, len(colors), void, place)
    with rasterio.MemoryFile() as memory:
        with memory.open(**profile) as file:
            write_palette(file, colors)
            file.write(labels.astype(profile["dtype"]), 1)
        return memory.read()


__all__ = [
    "Georeference",
    "encode_geotiff",
    "encode_polygons",
    "geotiff_profile",
    "import_rasterio",
    "read_georeference",
    "write_palette",
]
