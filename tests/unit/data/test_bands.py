"""Pictures of other bands than RGB and of 16 bits: what is read, what is refused, and what is measured of them."""

import io
import sys

import numpy as np
import pytest
import torch
from networks import first_network, tiny_config, tiny_model_and_processor
from PIL import Image
from transformers import AutoImageProcessor, pipeline

import qlseg_hf
from qlseg_hf import QLSegImageProcessor, load_picture, segment
from qlseg_hf.data.bands import BandSums, measure_bands
from qlseg_hf.data.datasets import Sample, SampleError
from qlseg_hf.model import image_files
from qlseg_hf.utils.visualization import to_visible_rgb

tifffile = pytest.importorskip("tifffile")

RNG = np.random.default_rng(0)
BLOCKS = np.kron(RNG.integers(0, 65536, (4, 5, 5)), np.ones((10, 10, 1), int)).astype(np.uint16)
DEEP = RNG.integers(0, 65536, (40, 50, 5), dtype=np.uint16)
FIVE = {"num_channels": 5, "keep_values": True}
SIXTEEN = {"rescale_factor": 1 / 65535, "image_mean": [0.4, 0.5, 0.6, 0.3, 0.2], "image_std": [0.2] * 5}


def tiff(array: np.ndarray, **how) -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(file, array, **({"photometric": "minisblack", "planarconfig": "contig"} | how))
    return file.getvalue()


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


# ------------------------------------------------------------------------------------------------------------ reading


def encodings() -> dict[str, bytes]:
    planes = np.ascontiguousarray(np.moveaxis(DEEP, -1, 0))
    return {
        "together": tiff(DEEP),
        "apart": tiff(planes, planarconfig="separate"),
        "pages": tiff(planes, planarconfig=None),
        "rows as pages": tiff(DEEP, planarconfig=None),  # what tifffile makes of an array without more words
        "big-endian": tiff(DEEP, byteorder=">"),
        "BigTIFF": tiff(DEEP, bigtiff=True),
        "tiles": tiff(DEEP, tile=(16, 16), compression="zlib"),
        "npy": npy(DEEP),
        "npy-fortran": npy(np.asfortranarray(DEEP)),
        "npy-big-endian": npy(DEEP.astype(">u2")),
        "npy-planes": npy(planes),
    }


@pytest.mark.parametrize("kind", encodings())
def test_five_bands_of_16_bits(tmp_path, kind):
    data = encodings()[kind]
    (tmp_path / "x.tif").write_bytes(data)
    for source in (data, tmp_path / "x.tif", str(tmp_path / "x.tif")):
        found = load_picture(source, **FIVE)
        assert found.dtype == np.uint16 and found.flags.c_contiguous and found.flags.writeable
        assert np.array_equal(found, DEEP)
    assert np.array_equal(Sample(tmp_path / "x.tif", None, "x").read_picture(), DEEP)
    assert np.array_equal(load_picture(found, **FIVE), DEEP)  # what is returned is read again
    for length in (len(data) // 2, len(data) * 9 // 10):
        with pytest.raises(ValueError, match="cannot be read as a picture: .*truncated"):
            load_picture(data[:length], **FIVE)


def test_lzw_as_geographers_write_it():
    pytest.importorskip("imagecodecs")
    data = tiff(DEEP, compression="lzw", predictor=True)
    assert np.array_equal(load_picture(data, **FIVE), DEEP)
    damaged = bytearray(data)
    damaged[1000:1300] = bytes(300)
    with pytest.raises(ValueError, match="cannot be read as a picture"):
        load_picture(bytes(damaged), **FIVE)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_as_pillow_turns_it(orientation):
    small = (DEEP[..., 0] >> 8).astype(np.uint8)
    data = tiff(small, extratags=[(274, "H", 1, orientation, True)])
    upright = load_picture(data)[..., 0]  # by Pillow
    found = load_picture(tiff(small.astype(np.uint16) * 257, extratags=[(274, "H", 1, orientation, True)]), **SHALLOW)
    assert np.array_equal(found[..., 0], upright.astype(np.uint16) * 257)


SHALLOW = {"num_channels": 1, "keep_values": True}


def test_white_is_zero_and_alpha():
    grey = DEEP[..., 0]
    assert np.array_equal(load_picture(tiff(65535 - grey, photometric="miniswhite"), **SHALLOW)[..., 0], grey)
    four = tiff(DEEP[..., :4], photometric="rgb", extrasamples=["unassalpha"])
    assert np.array_equal(load_picture(four, num_channels=4, keep_values=True), DEEP[..., :4])
    assert np.array_equal(load_picture(four, num_channels=3, keep_values=True), DEEP[..., :3])
    infrared = tiff(DEEP[..., :4], photometric="rgb", extrasamples=["unspecified"])
    assert np.array_equal(load_picture(infrared, num_channels=None), DEEP[..., :4])
    with pytest.raises(ValueError, match="has 4 bands; the processor takes 3"):
        load_picture(infrared, num_channels=3, keep_values=True)


def test_grey_and_rgb_are_what_they_were():
    """8 bits, and 16 divided by 256; and for a processor of 16 bits their values."""
    small = (DEEP >> 8).astype(np.uint8)
    for picture in (small[..., 0], small[..., :3], DEEP[..., 0]):
        expected = np.broadcast_to(
            small[..., : picture.shape[2]] if picture.ndim == 3 else small[..., :1], (40, 50, 3)
        )
        for source in (picture, tiff(picture, photometric=None), npy(picture)):
            assert np.array_equal(load_picture(source), expected)
            assert np.array_equal(load_picture(source, num_channels=None), expected)
    for source in (DEEP[..., 0], Image.fromarray(DEEP[..., 0]), tiff(DEEP[..., 0]), npy(DEEP[..., 0])):
        found = load_picture(source, keep_values=True)
        assert found.dtype == np.uint16 and np.array_equal(found, np.broadcast_to(DEEP[..., :1], (40, 50, 3)))


def test_one_band():
    grey = (DEEP[..., 0] >> 8).astype(np.uint8)
    same = np.repeat(grey[..., None], 3, axis=-1)
    for source in (grey, grey[..., None], same, Image.fromarray(grey), Image.fromarray(same), DEEP[..., 0]):
        assert np.array_equal(load_picture(source, num_channels=1), grey[..., None])
    same[0, 0, 1] ^= 1
    with pytest.raises(ValueError, match="the picture has colours; the processor takes 1"):
        load_picture(same, num_channels=1)


def test_four_bands_of_pil():
    four = (DEEP[..., :4] >> 8).astype(np.uint8)
    for mode in ("RGBA", "RGBX"):
        picture = Image.frombytes(mode, (50, 40), four.tobytes())
        assert np.array_equal(load_picture(picture, num_channels=4), four)
    with pytest.raises(ValueError, match="the picture has 3 bands; the processor takes 4"):
        load_picture(Image.fromarray(four[..., :3]), num_channels=4)
    with pytest.raises(ValueError, match="mode CMYK; 4 bands are wanted"):
        load_picture(Image.new("CMYK", (4, 4)), num_channels=4)


def test_floats_of_a_tiff():
    floats = DEEP.astype(np.float32) / 65535
    for bands in (1, 3, 5):
        data = tiff(floats[..., :bands]) if bands > 1 else tiff(floats[..., 0], planarconfig=None)
        found = load_picture(data, keep_float=True, num_channels=bands)
        assert found.dtype == np.float32 and np.array_equal(found, floats[..., :bands])
    with pytest.raises(ValueError, match="do_rescale=False"):
        load_picture(tiff(floats), num_channels=5)


@pytest.mark.parametrize(
    "source, reading, sentence",
    [
        (DEEP, {"num_channels": 3}, "no axis of 1, 3 or 4 channels, first or last; the processor takes 3"),
        (tiff(DEEP), {"num_channels": 3}, "TIFF of 5 bands of 16 bits"),
        (tiff(DEEP), {"num_channels": 4, "keep_values": True}, "has 5 bands; the processor takes 4"),
        (DEEP, {"num_channels": 5}, "16-bit values, and the processor takes 8 bits: set rescale_factor"),
        (DEEP.astype(np.uint8), FIVE, "uint8 values of 8 bits; the processor's rescale_factor is for more"),
        ((DEEP >> 8).astype(np.int64), FIVE, "int64 values of 8 bits"),
        (Image.new("RGB", (4, 4)), {"keep_values": True}, "mode RGB, of which Pillow reads 8 bits"),
        (DEEP.astype(np.int64) * 1000, FIVE, "at most are read"),
        (DEEP / 65535, FIVE, "do_rescale=False"),
        (np.full((4, 4, 5), np.nan), {"num_channels": 5, "keep_float": True}, "NaN or infinite"),
        (np.zeros((4, 4, 5), complex), FIVE, "complex128"),
        (npy(DEEP.astype(complex)), FIVE, "an array of complex128; numbers are wanted"),
        (npy(np.array([{}])), FIVE, "an array of object"),
        (b"\x93NUMPY\x09\x00nonsense", FIVE, "its head is that of no array"),
        (tiff(DEEP[..., 0] > 9), SHALLOW, "bits"),
        (b"II*\0" + bytes(40), FIVE, "cannot be read as a picture"),
    ],
)
def test_refused(source, reading, sentence):
    with pytest.raises(ValueError, match=sentence):
        load_picture(source, **reading)


def test_refused_tiffs():
    pages = io.BytesIO()
    with tifffile.TiffWriter(pages) as file:
        for side in (8, 9):
            file.write(np.zeros((side, 8), np.uint16))
    several = tiff(np.zeros((2, 8, 9, 5), np.uint16))
    Image.fromarray(DEEP.astype(np.uint8)[..., 0]).convert("P").save(palette := io.BytesIO(), "TIFF")
    for data, sentence in (
        (pages.getvalue(), "its pages differ"),
        (several, "2 pages of several bands each"),
        (palette.getvalue(), "stored as PALETTE"),
    ):
        with pytest.raises(ValueError, match=sentence):
            load_picture(data, **FIVE)


def test_a_tiff_without_some_of_its_strips():
    data = bytearray(tiff(DEEP, compression="zlib", rowsperstrip=40, metadata=None))
    with tifffile.TiffFile(io.BytesIO(bytes(data))) as file:
        height = file.pages[0].tags["ImageLength"].valueoffset
    data[height : height + 2] = (80).to_bytes(2, "little")
    with pytest.raises(ValueError, match="it has 1 of its 2 strips or tiles"):
        load_picture(bytes(data), **FIVE)


def test_a_large_tiff_is_refused_before_it_is_read(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 999)
    with pytest.raises(ValueError, match="decompression bomb"):
        load_picture(tiff(DEEP), **FIVE)


def test_without_tifffile(monkeypatch):
    monkeypatch.setitem(sys.modules, "tifffile", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"needs the package tifffile: pip install 'qlseg-hf\[bands\]'"):
        load_picture(tiff(DEEP), **FIVE)
    assert np.array_equal(load_picture(npy(DEEP), **FIVE), DEEP)
    monkeypatch.setattr(image_files, "tiff_reader", None)  # as beside the weights, without the package
    with pytest.raises(ValueError, match="import the package qlseg_hf"):
        load_picture(tiff(DEEP), **FIVE)


# ---------------------------------------------------------------------------------------------- processor and network


def five_band_network():
    config = tiny_config()
    config.backbone_config.num_channels = 5
    _, processor = tiny_model_and_processor(**SIXTEEN)
    model = first_network(config, lambda model: len(segment(model, processor, BLOCKS)[0].unique()) > 1)
    return model, processor


def test_every_way_gives_the_same(tmp_path):
    """File, arrays with bands first and last, tensor, pipeline, processor and network one after the other."""
    model, processor = five_band_network()
    (tmp_path / "five.tif").write_bytes(tiff(BLOCKS))
    np.save(tmp_path / "five.npy", BLOCKS)
    (expected,) = segment(model, processor, BLOCKS)
    assert expected.shape == (40, 50)
    sources = [str(tmp_path / "five.tif"), tmp_path / "five.npy", np.moveaxis(BLOCKS, -1, 0), BLOCKS.astype(np.int32)]
    sources += [torch.from_numpy(np.moveaxis(BLOCKS, -1, 0).astype(np.int32)), processor.load_picture(BLOCKS)]
    for source in sources:
        assert torch.equal(segment(model, processor, source)[0], expected)
    assert torch.equal(segment(model, processor, BLOCKS, max_memory_mb=70)[0], expected)
    with torch.no_grad():
        outputs = model(**processor(BLOCKS, return_tensors="pt"))
    assert outputs.logits.ndim == 4
    (found,) = processor.post_process_semantic_segmentation(outputs, [(40, 50)])
    assert torch.equal(found, expected)
    pipe = pipeline("image-segmentation", model=model, image_processor=processor)
    for given in (BLOCKS, str(tmp_path / "five.tif")):
        for part in pipe(given):
            label = model.config.label2id[part["label"]]
            assert np.array_equal(np.asarray(part["mask"]) > 0, expected.numpy() == label)
    processor.save_pretrained(tmp_path)
    again = AutoImageProcessor.from_pretrained(tmp_path)
    assert again.settings().num_channels == 5 and torch.equal(segment(model, again, BLOCKS)[0], expected)


def test_values_are_scaled_as_the_processor_says():
    processor = QLSegImageProcessor(do_resize=False, do_sliding_window=False, **SIXTEEN)
    found = processor(DEEP, return_tensors="np")["pixel_values"][0]
    expected = (DEEP / 65535 - SIXTEEN["image_mean"]) / SIXTEEN["image_std"]
    assert np.allclose(np.moveaxis(found, 0, -1), expected, atol=1e-4)
    resized = QLSegImageProcessor(size={"height": 20, "width": 25}, do_sliding_window=False, **SIXTEEN)
    found = resized(DEEP, return_tensors="pt")["pixel_values"]
    whole = torch.from_numpy(expected).permute(2, 0, 1)[None].float()
    wanted = torch.nn.functional.interpolate(whole, size=(20, 25), mode="bilinear")
    assert torch.allclose(found, wanted, atol=1e-4)  # halves: weights of 1/2048 are exact


@pytest.mark.parametrize(
    "settings, sentence",
    [
        ({"image_mean": [0.5] * 5}, "both must have one entry per band"),
        ({"image_mean": [0.5] * 5, "image_std": [0.5] * 4}, "both must have one entry per band"),
        ({"image_mean": [], "image_std": []}, "one finite number per band"),
        ({"image_mean": [0.5] * 5000, "image_std": 1}, "4096 at most"),
    ],
)
def test_settings_that_do_not_go_together(settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        QLSegImageProcessor(**settings)


def test_network_and_processor_of_other_bands():
    model, five = five_band_network()
    rgb, three = tiny_model_and_processor()
    with pytest.raises(ValueError, match="the processor takes pictures of 3 bands, the network of 5"):
        segment(model, three, DEEP)
    with pytest.raises(ValueError, match="the processor takes pictures of 5 bands, the network of 3"):
        segment(rgb, five, DEEP)
    with pytest.raises(ValueError, match="no axis of 5 channels, first or last; the processor takes 5"):
        segment(model, five, DEEP[..., :4])


# ---------------------------------------------------------------------------------------------------------- measuring


def samples(*pictures) -> list[Sample]:
    return [Sample(picture, None, f"{number}.tif") for number, picture in enumerate(pictures)]


def test_statistics_are_those_of_all_pixels():
    """Far from 0 and with a small deviation, where sums of squares would cancel."""
    pictures = [
        (RNG.normal(0, 3, (7 + i, 9, 4)) + [9000, 20000, 1, 60000]).clip(0).astype(np.uint16) for i in range(5)
    ]
    found = measure_bands(samples(*pictures), progress=False)
    everything = np.concatenate([p.reshape(-1, 4) for p in pictures]).astype(np.float64)
    assert (found.num_channels, found.dtype, found.num_pictures, found.num_pixels) == (4, "uint16", 5, len(everything))
    assert np.allclose(found.mean, everything.mean(axis=0), rtol=1e-12)
    assert np.allclose(found.deviation, everything.std(axis=0), rtol=1e-9)
    assert found.least == tuple(everything.min(axis=0)) and found.most == tuple(everything.max(axis=0))
    processor = QLSegImageProcessor(do_resize=False, do_sliding_window=False, **found.processor_settings)
    normalised = np.concatenate([processor(p)["pixel_values"][0].reshape(4, -1) for p in pictures], axis=1)
    assert np.allclose(normalised.mean(axis=1), 0, atol=0.02) and np.allclose(normalised.std(axis=1), 1, atol=0.02)


def test_parts_that_were_counted_apart_are_the_whole():
    pictures = [RNG.integers(0, 9000, (5, 6, 2), dtype=np.int16) for _ in range(6)]
    whole, parts = BandSums(), [BandSums() for _ in range(3)]
    for number, picture in enumerate(pictures):
        whole.add(picture)
        parts[number % 2].add(picture)
    for part in parts[1:]:
        parts[0].merge(part)
    one, other = whole.statistics(), parts[0].statistics()
    assert np.allclose(one.mean, other.mean) and np.allclose(one.deviation, other.deviation)
    assert (one.least, one.most, one.num_pixels) == (other.least, other.most, other.num_pixels)


def test_8_bit_colours_need_no_settings(tmp_path):
    Image.fromarray(DEEP.astype(np.uint8)[..., 0]).save(tmp_path / "grey.png")
    Image.fromarray(DEEP.astype(np.uint8)[..., :3]).save(tmp_path / "rgb.png")
    found = measure_bands(samples(tmp_path / "grey.png", tmp_path / "rgb.png", DEEP[..., 0]), progress=False)
    assert (found.num_channels, found.dtype, found.processor_settings) == (3, "uint8", {})
    deep = measure_bands(samples(DEEP[..., 0]), keep_values=True, progress=False)
    assert (deep.num_channels, deep.dtype, deep.rescale_factor) == (3, "uint16", 1 / 65535)
    assert deep.mean == pytest.approx([DEEP[..., 0].mean()] * 3)


def test_floats_constant_bands_and_large_values():
    floats = np.dstack([RNG.random((6, 7)), np.full((6, 7), 0.25)]).astype(np.float32)
    settings = measure_bands(samples(floats), progress=False).processor_settings
    assert settings["do_rescale"] is False and "rescale_factor" not in settings
    assert settings["image_mean"][1] == 0.25 and settings["image_std"][1] == 1
    large = RNG.integers(0, 500_000, (6, 7, 5), dtype=np.int32)
    found = measure_bands(samples(large), progress=False)
    assert found.rescale_factor == 1 / large.max() and max(found.processor_settings["image_mean"]) < 1


def test_nodata_does_not_count():
    picture = RNG.integers(100, 200, (8, 8, 5), dtype=np.int16)
    expected = measure_bands(samples(picture), progress=False)
    holed = np.concatenate([picture, np.full((3, 8, 5), -9999, np.int16)])
    found = measure_bands(samples(holed), nodata=-9999, progress=False)
    assert found.mean == pytest.approx(expected.mean) and found.deviation == pytest.approx(expected.deviation)
    assert measure_bands(samples(holed), progress=False).least == (-9999,) * 5
    with pytest.raises(ValueError, match="no value that counts"):
        measure_bands(samples(np.full((3, 8, 5), -9999, np.int16)), nodata=-9999, progress=False)


def test_what_cannot_be_measured():
    with pytest.raises(ValueError, match="there is no picture"):
        measure_bands([], progress=False)
    with pytest.raises(ValueError, match="0.tif has 5 bands of uint16 and 1.tif 4 of uint16"):
        measure_bands(samples(DEEP, DEEP[..., :4]), progress=False)
    with pytest.raises(SampleError, match="0.tif: picture: .*NaN"):
        measure_bands(samples(np.full((4, 4, 5), np.nan)), progress=False)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_infrared_that_is_called_alpha_is_noted(dtype):
    four = (DEEP[..., :4] >> (8 if dtype == np.uint8 else 0)).astype(dtype)
    infrared = tiff(four, photometric="rgb", extrasamples=["unassalpha"])
    found = measure_bands(samples(infrared), progress=False)
    assert found.num_channels == 3 and "set num_channels to 4" in found.notes[0]
    again = measure_bands(samples(infrared), num_channels=4, keep_values=dtype == np.uint16, progress=False)
    assert (again.num_channels, again.dtype, again.notes) == (4, np.dtype(dtype).name, ())
    four[..., 3] = np.iinfo(dtype).max
    opaque = tiff(four, photometric="rgb", extrasamples=["unassalpha"])
    assert measure_bands(samples(opaque), progress=False).notes == ()


# ------------------------------------------------------------------------------------------------------------- seeing


def test_what_people_are_shown():
    small = DEEP.astype(np.uint8)
    assert np.array_equal(to_visible_rgb(small[..., :3]), small[..., :3])
    assert np.array_equal(to_visible_rgb(small), small[..., :3])
    assert np.array_equal(to_visible_rgb(small[..., :1]), np.repeat(small[..., :1], 3, axis=-1))
    bands = DEEP.astype(np.float32) * [1, 0.01, 100, 1, 1]  # each has a range of its own, and one has a glare
    bands[0, 0, 0] = 1e9
    shown = to_visible_rgb(bands)
    assert shown.dtype == np.uint8 and shown.shape == (40, 50, 3)
    for band in range(3):
        assert (shown[..., band].min(), shown[..., band].max()) == (0, 255)
        assert abs(int(np.median(shown[..., band])) - 128) < 12
    assert not to_visible_rgb(np.full((4, 4, 5), 7, np.uint16)).any()


def test_the_public_names():
    assert qlseg_hf.load_picture is load_picture and image_files.tiff_reader is qlseg_hf.utils.tiff.read_tiff
