"""A raster that is segmented block by block gives the map of the whole raster, and holds little of it."""

import json

import numpy as np
import pytest
import torch
from media import ORIGIN, write_raster
from networks import first_network, tiny_config, tiny_model_and_processor
from PIL import Image

from qlseg_hf import segment
from qlseg_hf.model import scores
from qlseg_hf.model.request import Request
from qlseg_hf.predict import raster
from qlseg_hf.predict.items import Item, LocalFile, RemoteFile
from qlseg_hf.predict.raster import is_blockwise, open_raster, segment_raster
from qlseg_hf.predict.sinks import Output

rasterio = pytest.importorskip("rasterio")
PLACE = rasterio.transform.from_origin(*ORIGIN)


def noise(height: int, width: int, bands: int = 3) -> np.ndarray:
    coarse = np.random.default_rng(0).integers(0, 256, (bands, height // 9 + 1, width // 9 + 1), dtype=np.uint8)
    return np.kron(coarse, np.ones((1, 9, 9), np.uint8))[:, :height, :width]


def run(path, tmp_path, model, processor, batch_size=2, formats=("geotiff", "csv"), wanted=None):
    names = tuple(model.config.id2label.values())
    output = Output(tmp_path / "out", formats, names, np.zeros((len(names), 3), np.uint8), wanted)
    request = Request(processor.settings(), [1.0], False, None, None, False, False)
    item = Item("a", str(path), (), LocalFile(str(path)))
    *progress, size = segment_raster(item, model, request, batch_size, output)
    shares = [int(text.removesuffix("%")) for text in progress]
    assert shares == sorted(shares) and shares[0] > 0 and shares[-1] == 100
    with rasterio.open(tmp_path / "out" / "geotiff" / "a.tif") as file:
        assert (file.height, file.width) == size and file.crs.to_epsg() == 32632 and file.transform == PLACE
        return file.read(1)


@pytest.mark.parametrize(
    "size, batch_size", [((333, 190), 3), ((190, 333), 3), ((32, 32), 1), ((20, 90), 1), ((700, 41), 1)]
)
def test_equals_the_whole_raster(size, batch_size, tmp_path, monkeypatch):
    monkeypatch.setattr(raster, "ROWS_AT_A_TIME", 64)
    monkeypatch.setattr(scores, "CPU_BLOCK_BYTES", 4 * 20 * 1500)  # blocks of 27 x 55 pixels
    model, processor = tiny_model_and_processor(do_resize=False)
    values = noise(*size)
    path = write_raster(tmp_path / "in.tif", values)
    found = run(path, tmp_path, model, processor, batch_size)
    (expected,) = segment(model, processor, values.transpose(1, 2, 0).copy(), window_batch_size=batch_size)
    assert np.array_equal(found, expected.numpy())
    assert np.array_equal(found, segment(model, processor, path, window_batch_size=batch_size)[0].numpy())
    areas = json.loads((tmp_path / "out" / "records" / "a.json").read_text())
    assert {int(k): v for k, v in areas.items()} == dict(zip(*np.unique(found, return_counts=True)))


def test_windows_are_not_kept(tmp_path, monkeypatch):
    """Of a tall raster no more windows are held than strips of it need."""
    monkeypatch.setattr(raster, "ROWS_AT_A_TIME", 64)
    monkeypatch.setattr(scores, "CPU_BLOCK_BYTES", 4 * 20 * 1500)
    model, processor = tiny_model_and_processor(do_resize=False)
    seen, real = [], raster.finish_strip

    def counted(strip, request):
        seen.append(len(strip.runs[0].windows))
        assert strip.rows[0] % 27 == 0  # whole blocks of the map, whose matrix products may round by their sizes
        real(strip, request)

    monkeypatch.setattr(raster, "finish_strip", counted)
    path = write_raster(tmp_path / "in.tif", noise(900, 64))
    run(path, tmp_path, model, processor, formats=("geotiff",))
    assert len(seen) > 8 and max(seen) <= 3 * 8  # three columns of windows


def test_16_bits_grey_alpha_and_wanted_labels(tmp_path):
    model, processor = tiny_model_and_processor(do_resize=False)
    deep = noise(70, 80).astype(np.uint16) * 256 + 77
    found = run(write_raster(tmp_path / "deep.tif", deep), tmp_path, model, processor)
    assert np.array_equal(found, segment(model, processor, (deep >> 8).astype(np.uint8).transpose(1, 2, 0))[0])
    grey = noise(70, 80, 1)
    found = run(write_raster(tmp_path / "grey.tif", grey), tmp_path, model, processor, wanted=[3, 7])
    expected = segment(model, processor, grey[0])[0].numpy()
    assert np.array_equal(found, np.where(np.isin(expected, [3, 7]), expected, 255)) and (found == 255).any()
    four = np.concatenate([noise(70, 80), np.full((1, 70, 80), 255, np.uint8)])
    path = write_raster(tmp_path / "alpha.tif", four, photometric="RGB", alpha="YES")
    assert np.array_equal(run(path, tmp_path, model, processor), segment(model, processor, path)[0])


@pytest.mark.parametrize(
    "kind, scale, profile",
    [
        ("uint8", 1, {"photometric": "MINISWHITE"}),
        ("uint16", 257, {"photometric": "MINISWHITE"}),
        ("uint16", 16, {"nbits": 12}),
    ],
)
def test_grey_whose_values_mean_something_else(kind, scale, profile, tmp_path):
    """White that is zero, and 12 bits, as `load_picture` reads them."""
    _, processor = tiny_model_and_processor(do_resize=False)
    path = write_raster(tmp_path / "in.tif", noise(70, 80, 1).astype(kind) * scale, **profile)
    model = first_network(tiny_config(), lambda model: len(segment(model, processor, path)[0].unique()) > 1)
    expected = segment(model, processor, path)[0].numpy()
    assert np.array_equal(run(path, tmp_path, model, processor), expected)


def test_what_is_not_a_number_is_refused(tmp_path):
    """It made all labels of its windows 0."""
    settings = {"do_resize": False, "do_rescale": False, "image_mean": 127.5, "image_std": 127.5}
    model, processor = tiny_model_and_processor(**settings)
    values = noise(70, 80).astype(np.float32)
    path = write_raster(tmp_path / "in.tif", values)
    assert np.array_equal(run(path, tmp_path, model, processor), segment(model, processor, path)[0].numpy())
    for wrong in (np.nan, np.inf):
        values[1, 60, 70] = wrong
        path = write_raster(tmp_path / "wrong.tif", values)
        for refusing in (lambda path: run(path, tmp_path / "2", model, processor), processor.load_picture):
            with pytest.raises(ValueError, match="the picture holds NaN or infinite values"):
                refusing(path)
        assert not list((tmp_path / "2").rglob("*.tif"))


@pytest.mark.parametrize(
    "values, message",
    [
        (noise(40, 40, 5), "it has 5 bands; the processor takes 3"),
        (noise(40, 40).astype(np.int16), "it holds int16 values; uint16 or uint8 is wanted"),
        (noise(40, 40).astype(np.uint16), "so it would be read as black"),
    ],
)
def test_what_is_refused(values, message, tmp_path):
    model, processor = tiny_model_and_processor(do_resize=False)
    with pytest.raises(ValueError, match=message):
        run(write_raster(tmp_path / "in.tif", values), tmp_path, model, processor)
    assert not list((tmp_path / "out").rglob("*.tif"))


def test_a_damaged_raster_is_named(tmp_path):
    model, processor = tiny_model_and_processor(do_resize=False)
    path = write_raster(tmp_path / "in.tif", noise(200, 200))
    path.write_bytes(path.read_bytes()[:30000])
    with pytest.raises(ValueError, match="in.tif cannot be read as a raster"):
        run(path, tmp_path, model, processor)
    assert not list((tmp_path / "out").rglob("*.tif"))


def test_a_result_that_was_not_written_whole(tmp_path):
    path = write_raster(tmp_path / "in.tif", np.zeros((1, 40, 40), np.uint8))
    raster._check_written(path, np.array([1600, 0]))
    with pytest.raises(OSError, match="was not written whole"):
        raster._check_written(path, np.array([1599, 1]))


def test_which_images_are_segmented_block_by_block():
    _, processor = tiny_model_and_processor(do_resize=False)
    settings, item = processor.settings(), Item("a", "/a.tif", (), LocalFile("/a.tif"))
    assert is_blockwise(item, settings, [1.0], False, ("geotiff", "csv"))
    assert not is_blockwise(item, settings, [1.0], False, ("geotiff", "labels"))
    assert not is_blockwise(item, settings, [1.0], False, ("csv",))
    assert not is_blockwise(item, settings, [1.5], False, ("geotiff",))
    assert not is_blockwise(item, settings, [1.0], True, ("geotiff",))
    assert not is_blockwise(item, tiny_model_and_processor()[1].settings(), [1.0], False, ("geotiff",))
    assert not is_blockwise(Item("a", "/a.png", (), LocalFile("/a.png")), settings, [1.0], False, ("geotiff",))


@pytest.mark.parametrize("is_remote", [False, True])
@pytest.mark.parametrize("profile", [{"photometric": "YCBCR", "compress": "JPEG"}, {"compress": "JPEG"}])
def test_ycbcr_is_read_whole_where_it_can_be(is_remote, profile, tmp_path, monkeypatch):
    """Some versions of GDAL smooth its colours, Pillow repeats them: labels were not those of the whole image."""
    _, processor = tiny_model_and_processor(do_resize=False)
    path = write_raster(tmp_path / "in.tif", noise(90, 80), **profile)
    reader = RemoteFile(f"file://{path}") if is_remote else LocalFile(str(path))
    item, settings = Item("a", str(path), (), reader), processor.settings()
    with rasterio.open(path) as file:
        differ = np.abs(file.read().transpose(1, 2, 0).astype(int) - processor.load_picture(path)).max()
    assert differ == 0 or "photometric" in profile
    assert is_blockwise(item, settings, [1.0], False, ("geotiff",)) == ("photometric" not in profile)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 90 * 80 // 2 - 1)  # no other reader is left
    assert is_blockwise(item, settings, [1.0], False, ("geotiff",))


def test_pixels_are_those_of_the_whole(tmp_path):
    _, processor = tiny_model_and_processor(do_resize=False)
    values = noise(50, 60)
    with rasterio.open(write_raster(tmp_path / "in.tif", values)) as file:
        found = open_raster(file, processor.settings()).read((5, 25), (7, 47))
    assert torch.equal(found, processor.settings().normalized(torch.from_numpy(values[:, 5:25, 7:47].copy())))
