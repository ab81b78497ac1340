"""What is written of a label map reads back as that label map."""

import csv
import json

import numpy as np
import pytest
from media import ORIGIN, write_raster
from PIL import Image

from qlseg_hf.predict.items import Item, LocalFile
from qlseg_hf.predict.sinks import FORMATS, Output, check_formats, write_tables

RNG = np.random.default_rng(0)
LABELS = np.kron(RNG.integers(0, 5, (9, 13)), np.ones((3, 4), int))
LABELS[10:13, 5:9] = 3
BLACK = np.zeros((3, 27, 52), np.uint8)
COLORS = RNG.integers(0, 256, (5, 3), dtype=np.uint8)


def item(name: str = "sub/a", path: str = "/in/sub/a.png") -> Item:
    return Item(name, path, (1, 2), LocalFile(path))


def output(root, *formats, names=("wall", "sky", "a, b", "tree", "sea"), colors=COLORS, wanted=None) -> Output:
    return Output(root, check_formats(formats), names, colors, wanted)


def entry(one: Item, shape, formats) -> dict:
    return {"name": one.name, "source": one.source, "height": shape[0], "width": shape[1], "formats": list(formats)}


def write(out: Output, labels=LABELS, one: Item | None = None) -> np.ndarray:
    """Write, and return what was to be written."""
    labels = out.select(labels)
    picture = np.zeros((*labels.shape, 3), np.uint8)
    out.write(one or item(), picture, labels, np.arange(labels.size, dtype=np.uint8).reshape(labels.shape))
    return labels


def test_pictures(tmp_path):
    out = output(tmp_path, "labels", "overlay", "confidence")
    write(out)
    stored = Image.open(tmp_path / "labels" / "sub" / "a.png")
    assert stored.mode == "P" and np.array_equal(np.asarray(stored), LABELS)
    assert np.asarray(stored.convert("RGB"))[0, 0].tolist() == COLORS[LABELS[0, 0]].tolist()
    assert Image.open(tmp_path / "overlay" / "sub" / "a.png").height >= LABELS.shape[0]
    assert np.asarray(Image.open(tmp_path / "confidence" / "sub" / "a.png"))[0, 1] == 1
    assert sorted(out.paths("sub/a")) == sorted(path for path in tmp_path.rglob("*.png"))


@pytest.mark.parametrize("num_labels, mode, void", [(5, "P", 255), (256, "I;16", 65535), (300, "I;16", 65535)])
def test_labels_that_are_not_wanted_are_void(tmp_path, num_labels, mode, void):
    names, colors = tuple(map(str, range(num_labels))), np.zeros((num_labels, 3), np.uint8)
    labels = np.arange(num_labels).reshape(1, -1)
    out = output(tmp_path, "labels", "csv", names=names, colors=colors, wanted=[1, num_labels - 1])
    write(out, labels)
    stored = Image.open(tmp_path / "labels" / "sub" / "a.png")
    expected = np.full_like(labels, void)
    expected[0, [1, -1]] = 1, num_labels - 1
    assert stored.mode == mode and np.array_equal(np.asarray(stored), expected)
    write_tables(out, [entry(item(), labels.shape, out.formats)])
    rows = list(csv.DictReader((tmp_path / "areas.csv").open()))
    assert [row["label"] for row in rows] == ["1", str(num_labels - 1)]


def test_coco(tmp_path):
    coco = pytest.importorskip("pycocotools.coco")
    out, others = output(tmp_path, "coco"), item("b", "/in/b.png")
    entries = [entry(item(), LABELS.shape, ["coco"]), entry(others, (2, 3), ["coco"])]
    write(out)
    write(out, np.full((2, 3), 4), others)
    write_tables(out, entries)
    stored = coco.COCO(str(tmp_path / "coco.json"))
    back = np.full(LABELS.shape, -1)
    for annotation in stored.loadAnns(stored.getAnnIds(imgIds=[1])):
        mask = stored.annToMask(annotation).astype(bool)
        assert (back[mask] == -1).all() and annotation["area"] == mask.sum()
        rows, columns = mask.nonzero()
        assert annotation["bbox"] == [columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1]
        back[mask] = annotation["category_id"]
    assert np.array_equal(back, LABELS)
    assert [image["file_name"] for image in stored.loadImgs([1, 2])] == ["/in/sub/a.png", "/in/b.png"]
    assert [stored.annToMask(a).all() for a in stored.loadAnns(stored.getAnnIds(imgIds=[2]))] == [True]
    assert stored.loadCats([2])[0]["name"] == "a, b"
    write_tables(out, [])
    assert json.loads((tmp_path / "coco.json").read_text())["annotations"] == []


def test_areas_and_parquet(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    mask = pytest.importorskip("pycocotools.mask")
    out = output(tmp_path, "csv", "parquet")
    write(out)
    write_tables(out, [entry(item(), LABELS.shape, out.formats), {"name": "x", "failed": "why"}])
    rows = list(csv.DictReader((tmp_path / "areas.csv").open()))
    assert {int(row["label"]): int(row["pixels"]) for row in rows} == dict(zip(*np.unique(LABELS, return_counts=True)))
    assert sum(float(row["share"]) for row in rows) == pytest.approx(1, abs=1e-5)
    assert rows[2]["label_name"] == "a, b" and rows[0]["image"] == "/in/sub/a.png"
    back = np.zeros_like(LABELS)
    for row in parquet.read_table(tmp_path / "rle.parquet").to_pylist():
        back += row["label"] * mask.decode({"size": [row["height"], row["width"]], "counts": row["counts"]})
    assert np.array_equal(back, LABELS)


def test_a_table_that_is_added_leaves_the_others(tmp_path):
    """`--format coco`, then `csv`, then both: the areas had taken the place of the run lengths."""
    pytest.importorskip("pycocotools")
    for formats in (["coco"], ["csv"]):
        write(output(tmp_path, *formats))
    both = output(tmp_path, "coco", "csv")
    assert all(path.exists() for path in both.paths("sub/a"))
    write_tables(both, [entry(item(), LABELS.shape, both.formats)])
    annotations = json.loads((tmp_path / "coco.json").read_text())["annotations"]
    areas = {a["category_id"]: a["area"] for a in annotations}
    assert areas == dict(zip(*np.unique(LABELS, return_counts=True)))


@pytest.mark.parametrize("wanted", [None, [0, 3]])
def test_polygons(tmp_path, wanted):
    shapely = pytest.importorskip("shapely")
    features_of = pytest.importorskip("rasterio.features")
    out = output(tmp_path, "geojson", wanted=wanted)
    labels = write(out)
    stored = json.loads((tmp_path / "geojson" / "sub" / "a.geojson").read_text())
    assert stored["type"] == "FeatureCollection" and "crs" not in stored
    shapes = [(shapely.geometry.shape(f["geometry"]), f["properties"]["label"]) for f in stored["features"]]
    assert all(shape.is_valid for shape, _ in shapes)
    back = features_of.rasterize(shapes, out_shape=LABELS.shape, fill=255)
    assert np.array_equal(back, labels)
    for label in np.unique(labels[labels != 255]):
        assert sum(shape.area for shape, own in shapes if own == label) == (labels == label).sum()


def test_georeference(tmp_path):
    rasterio = pytest.importorskip("rasterio")
    source, place = write_raster(tmp_path / "in.tif", BLACK), rasterio.transform.from_origin(*ORIGIN)
    out = output(tmp_path, "geotiff", "geojson")
    write(out, one=item("a", str(source)))
    with rasterio.open(tmp_path / "geotiff" / "a.tif") as file:
        assert np.array_equal(file.read(1), LABELS)
        assert file.crs.to_epsg() == 32632 and file.transform == place
        assert file.colormap(1)[3][:3] == tuple(COLORS[3])
    stored = json.loads((tmp_path / "geojson" / "a.geojson").read_text())
    assert stored["crs"]["properties"]["name"] == "urn:ogc:def:crs:EPSG::32632"
    xs = [x for f in stored["features"] for ring in f["geometry"]["coordinates"] for x, _ in ring]
    assert (min(xs), max(xs)) == (500000, 500520)


def test_a_reference_system_without_a_code_is_named(tmp_path):
    """A reader takes coordinates of no named system for degrees."""
    rasterio = pytest.importorskip("rasterio")
    crs = rasterio.CRS.from_proj4("+proj=tmerc +lat_0=12.3 +lon_0=4.5 +k=1 +x_0=100 +y_0=0 +ellps=GRS80 +units=m")
    write_raster(tmp_path / "in.tif", BLACK, crs=crs)
    write(output(tmp_path, "geojson"), one=item("a", str(tmp_path / "in.tif")))
    name = json.loads((tmp_path / "geojson" / "a.geojson").read_text())["crs"]["properties"]["name"]
    with rasterio.open(tmp_path / "in.tif") as file:
        assert rasterio.CRS.from_user_input(name) == file.crs


def test_formats():
    assert check_formats(["overlay", "labels", "overlay"]) == ("overlay", "labels")
    with pytest.raises(ValueError, match=f"does not know mask; it knows {', '.join(FORMATS)}"):
        check_formats(["labels", "mask"])
    with pytest.raises(ValueError, match="names nothing to write"):
        check_formats([])


def test_more_labels_than_16_bits_hold_beside_void_are_refused(tmp_path):
    colors = np.zeros((65536, 3), np.uint8)
    Output(tmp_path, ("labels",), tuple(map(str, range(65535))), colors[1:])
    with pytest.raises(ValueError, match="65536 labels do not fit into files of 16 bits; 65,535 at most do"):
        Output(tmp_path, ("labels",), tuple(map(str, range(65536))), colors)
