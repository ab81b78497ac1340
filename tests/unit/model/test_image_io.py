"""What is a picture, and what is refused because it would be read wrongly."""

import base64
import io
import struct

import numpy as np
import pytest
import torch
from networks import tiny_model_and_processor
from PIL import Image, ImageOps
from transformers import pipeline

from qlseg_hf import load_label_map, load_picture, segment
from qlseg_hf.model.image_io import resize_picture

GRAY = np.random.default_rng(0).integers(0, 256, (20, 30), dtype=np.uint8)
RAMP = np.arange(24 * 30 * 3, dtype=np.uint8).reshape(24, 30, 3)
RGB = np.random.default_rng(1).integers(0, 256, (20, 30, 3), dtype=np.uint8)


def encoded(picture: Image.Image, kind: str = "PNG", **settings) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **settings)
    return file.getvalue()


def tiff(array: np.ndarray, tags: dict[int, tuple[str, tuple]] | None = None) -> bytes:
    """An uncompressed TIFF of (H, W, bands) in one strip, with whatever tags are wanted; Pillow writes few kinds."""
    height, width, bands = array.shape
    kind = {"u": 1, "i": 2, "f": 3}[array.dtype.kind]
    entries = {
        256: ("I", (width,)),
        257: ("I", (height,)),
        258: ("H", (array.itemsize * 8,) * bands),
        259: ("H", (1,)),
        262: ("H", (2 if bands in (3, 4) else 1,)),
        273: ("I", (8,)),
        277: ("H", (bands,)),
        278: ("I", (height,)),
        279: ("I", (array.nbytes,)),
        339: ("H", (kind,) * bands),
    } | (tags or {})
    data = array.tobytes()
    place = 8 + len(data)
    extra, directory = b"", struct.pack("<H", len(entries))
    after = place + 2 + 12 * len(entries) + 4
    for tag, (form, values) in sorted(entries.items()):
        packed = struct.pack(f"<{len(values)}{form}", *values)
        field = packed.ljust(4, b"\0")
        if len(packed) > 4:
            field, extra = struct.pack("<I", after + len(extra)), extra + packed
        directory += struct.pack("<HHI", tag, {"H": 3, "I": 4}[form], len(values)) + field
    return b"II*\0" + struct.pack("<I", place) + data + directory + b"\0" * 4 + extra


def bands(count: int, dtype=np.uint8) -> np.ndarray:
    return np.stack([GRAY] * count, axis=-1).astype(dtype)


# ------------------------------------------------------------------------------------------------- files and arrays


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "YCbCr", "HSV"])
def test_modes(tmp_path, mode):
    picture = Image.fromarray(RAMP).convert(mode)
    expected = np.asarray(picture.convert("RGB"))
    assert np.array_equal(load_picture(picture), expected)
    suffix = "tif" if mode == "YCbCr" else "png"
    if mode != "HSV":
        picture.save(tmp_path / f"x.{suffix}", compression="tiff_lzw")  # below 13, Pillow reads no plain YCbCr TIFF
        found = load_picture(tmp_path / f"x.{suffix}")
        assert found.shape == expected.shape and found.dtype == np.uint8
        assert np.abs(found.astype(int) - expected).max() <= (0 if mode != "YCbCr" else 3)
        assert np.array_equal(found, load_picture(str(tmp_path / f"x.{suffix}")))


def test_sixteen_bit(tmp_path):
    values = np.array([[0, 255, 256, 65535]], dtype=np.uint16)
    Image.fromarray(values).save(tmp_path / "x.png")
    expected = np.array([[0, 0, 1, 255]], dtype=np.uint8)[..., None].repeat(3, axis=2)
    assert np.array_equal(load_picture(tmp_path / "x.png"), expected)
    assert np.array_equal(load_picture(Image.fromarray(values)), expected)
    assert np.array_equal(load_picture(values), expected)
    assert np.array_equal(load_picture(Image.fromarray(values.astype(np.int32), mode="I")), expected)


def test_exif_orientation(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees clockwise to see it upright
    Image.fromarray(RAMP).save(tmp_path / "x.png", exif=exif)
    expected = np.rot90(RAMP, k=-1)
    assert np.array_equal(load_picture(tmp_path / "x.png"), expected)
    assert np.array_equal(load_picture(Image.open(tmp_path / "x.png")), RAMP)  # taken as it is


def test_arrays_and_tensors():
    assert np.array_equal(load_picture(RAMP), RAMP)
    assert np.array_equal(load_picture(np.moveaxis(RAMP, -1, 0)), RAMP)
    assert np.array_equal(load_picture(torch.from_numpy(RAMP).permute(2, 0, 1)), RAMP)
    assert np.array_equal(load_picture(torch.from_numpy(RAMP)), RAMP)
    grey = RAMP[..., 0]
    for array in (grey, grey[..., None], grey[None], np.stack([grey, grey], axis=-1)):
        assert np.array_equal(load_picture(array), np.stack([grey] * 3, axis=-1))
    assert np.array_equal(load_picture(RAMP.astype(np.int64)), RAMP)
    assert np.array_equal(load_picture(grey > 100)[..., 0], (grey > 100) * 255)
    loaded = load_picture(RAMP)
    loaded[:] = 0  # a copy, not the caller's array
    assert RAMP.max() == 255


@pytest.mark.parametrize(
    "picture, error, message",
    [
        (RAMP / 255, ValueError, "floating-point values"),
        (RAMP.astype(int) + 1, ValueError, "outside 0..255"),
        (np.zeros((0, 5, 3), np.uint8), ValueError, "empty"),
        (np.zeros((5, 5, 7), np.uint8), ValueError, "no axis of 1, 3 or 4 channels"),
        (np.zeros((2, 5, 5, 3), np.uint8), ValueError, "2 or 3 dimensions"),
        (Image.new("F", (3, 3)), ValueError, "mode F, whose colours or range are not agreed"),
        (None, TypeError, "got NoneType"),
        (7, TypeError, "got int"),
    ],
)
def test_no_picture(picture, error, message):
    with pytest.raises(error, match=message):
        load_picture(picture)


def test_no_picture_file(tmp_path):
    (tmp_path / "text.jpg").write_text("hello")
    with pytest.raises(ValueError, match="text.jpg cannot be read as a picture"):
        load_picture(tmp_path / "text.jpg")
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(tmp_path / "x.png")
    (tmp_path / "half.png").write_bytes((tmp_path / "x.png").read_bytes()[:3000])
    with pytest.raises(ValueError, match="half.png cannot be read as a picture"):
        load_picture(tmp_path / "half.png")
    with pytest.raises(FileNotFoundError):
        load_picture(tmp_path / "none.png")


def test_label_files(tmp_path):
    labels = np.array([[0, 1, 2, 255]], dtype=np.uint8)
    palette = Image.fromarray(labels, mode="P")
    palette.putpalette([7, 8, 9] * 256)
    for picture in (Image.fromarray(labels), palette):
        picture.save(tmp_path / "x.png")
        assert np.array_equal(load_label_map(tmp_path / "x.png"), labels)
    wide = np.array([[0, 300, 65535]], dtype=np.uint16)
    Image.fromarray(wide).save(tmp_path / "x.png")
    assert np.array_equal(load_label_map(tmp_path / "x.png"), wide)
    assert np.array_equal(load_label_map(torch.from_numpy(labels)[None]), labels)
    for wrong, message in ((Image.new("RGB", (4, 4)), "has mode RGB"), (np.zeros((4, 4)), "array of integers")):
        with pytest.raises(ValueError, match=message):
            load_label_map(wrong)


# ------------------------------------------------------------------------------------------------- bits, modes, bands


@pytest.mark.parametrize("mode", ["RGBX", "I"])
def test_modes_that_no_file_has(mode):
    picture = Image.fromarray(GRAY).convert("RGB" if mode == "RGBX" else "L").convert(mode)
    expected = np.asarray(picture.convert("L").convert("RGB") if mode == "I" else picture.convert("RGB"))
    assert np.array_equal(load_picture(picture), expected)


def test_colours_multiplied_by_alpha_are_restored():
    picture = Image.fromarray(np.dstack([RGB, np.full((20, 30), 128, np.uint8)]))
    found = load_picture(picture.convert("RGBa"))
    assert np.abs(found.astype(int) - RGB).max() <= 2


@pytest.mark.parametrize(
    "picture, sentence",
    [
        (
            Image.fromarray(GRAY.astype(np.int32) - 5),
            r"mode I \(32 bits\) and values -\d+..\d+; 0..255 or the full range",
        ),
        (Image.fromarray(GRAY.astype(np.int32) * 16), "values 0..4080; 0..255 or the full range of 16 bits"),
        (Image.fromarray(GRAY.astype(np.uint16)), "largest value is 255 of 65535, so it would be read as black"),
        (Image.fromarray(GRAY.astype(np.uint16) * 16), "largest value is 4080 of 65535"),
        (Image.fromarray(GRAY.astype(np.float32)), "mode F, whose colours or range are not agreed"),
        (Image.new("LAB", (4, 4)), "mode LAB"),
        (torch.zeros(3, 4, 4).to_sparse(), "sparse or quantized"),
        (Image.frombytes("RGBX", (2, 1), bytes(range(8))), "values in the fourth band"),
        (GRAY.astype(np.uint16) * 16, "largest value is 4080 of 65535"),
        (torch.from_numpy(GRAY.astype(np.int32)) - 300, "int32 values outside 0..255"),
        (torch.zeros(3, 4, 4, device="meta"), "on the meta device"),
        (GRAY / 255, "do_rescale=False"),
        (np.ma.masked_array(GRAY), r"masked array; give plain values, as of .filled\(0\)"),
    ],
)
def test_refused_values_and_modes(picture, sentence):
    with pytest.raises(ValueError, match=sentence):
        load_picture(picture)


def test_what_is_hidden_of_a_label_map_is_no_label():
    with pytest.raises(ValueError, match="the label map is a masked array; give plain values"):
        load_label_map(np.ma.masked_equal(GRAY, 0))


def test_sixteen_bits_of_the_full_range():
    values = GRAY.astype(np.uint16) * 257
    for picture in (values, Image.fromarray(values), encoded(Image.fromarray(values)), tiff(values[..., None])):
        assert np.array_equal(load_picture(picture)[..., 0], GRAY)
    assert np.array_equal(load_picture(tiff(bands(3, np.uint16) * 257))[..., 1], GRAY)
    assert not load_picture(np.zeros((4, 5), np.uint16)).any()  # black is black
    white_is_zero = tiff((65535 - values)[..., None], {262: ("H", (0,))})
    assert np.array_equal(load_picture(white_is_zero)[..., 0], GRAY)
    with pytest.raises(ValueError, match="cannot be read as a picture: its largest value is 15 of 255"):
        load_picture(tiff(bands(3, np.uint16) * 16))


@pytest.mark.parametrize(
    "data, sentence",
    [
        (tiff(bands(4), {338: ("H", (0,))}), "TIFF of 4 bands, of which some are neither grey, RGB nor alpha"),
        (tiff(bands(4), {262: ("H", (1,))}), "TIFF of 4 bands of 8 bits"),
        (tiff(bands(12)), "TIFF of 12 bands of 8 bits"),
        (tiff(bands(5, np.uint16)), "TIFF of 5 bands of 16 bits"),
        (tiff(bands(3, np.float32)), r"TIFF of 3 bands of 32 bits \(floating-point\)"),
        (tiff(bands(1, np.float32)), "mode F"),
        (tiff(bands(1, np.int16) - 100), "mode I"),
        (tiff(bands(1).view(np.int8)), "signed values"),
        (encoded(Image.fromarray(GRAY).convert("CMYK"), "TIFF"), "mode CMYK"),
        (encoded(Image.fromarray(GRAY), "TIFF", save_all=True, append_images=[Image.fromarray(GRAY)] * 2), "3 pages"),
    ],
)
def test_refused_files(data, sentence):
    with pytest.raises(ValueError, match=sentence):
        load_picture(data)


def test_pages_that_are_no_pictures_of_their_own():
    """Overviews of a GeoTIFF; a page that somebody has chosen; the first picture of an animation."""
    two = Image.open(
        io.BytesIO(encoded(Image.fromarray(GRAY), "TIFF", save_all=True, append_images=[Image.new("L", (3, 2))]))
    )
    with pytest.raises(ValueError, match="TIFF of 2 pages"):
        load_picture(two)
    two.seek(1)
    assert load_picture(two).shape == (2, 3, 3)
    frames = [Image.fromarray(RGB), Image.fromarray(255 - RGB)]
    for kind in ("PNG", "WEBP"):
        animated = encoded(frames[0], kind, save_all=True, append_images=frames[1:], lossless=True)
        assert np.array_equal(load_picture(animated), RGB)


def test_cmyk_of_the_web_is_read():
    picture = encoded(Image.fromarray(GRAY).convert("CMYK"), "JPEG", quality=95)
    assert np.abs(load_picture(picture)[..., 0].astype(int) - GRAY).mean() < 20


# --------------------------------------------------------------------------------------------------- where it is from


def test_base64_and_bytes():
    data = encoded(Image.fromarray(RGB))
    text = base64.b64encode(data).decode()
    folded = "\n".join(text[i : i + 76] for i in range(0, len(text), 76))
    for source in (data, bytearray(data), text, folded, f"data:image/png;base64,{text}"):
        assert np.array_equal(load_picture(source), RGB)


@pytest.mark.parametrize("source", ["A" * 400_000, "/none/" + "a." * 9000, "data:image/png;base64," + "A" * 99_999])
def test_messages_repeat_little_of_an_input(source):
    with pytest.raises((ValueError, FileNotFoundError)) as refusal:
        load_picture(source)
    assert len(str(refusal.value)) < 300


# --------------------------------------------------------------------------------------------------------------- EXIF


@pytest.mark.parametrize("orientation", range(1, 9))
def test_snippet_of_transformers_with_any_orientation(tmp_path, orientation):
    """A PIL picture is taken as it is; a file, bytes and the pipeline are turned."""
    model, processor = tiny_model_and_processor()
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(RGB).save(tmp_path / "x.png", exif=exif)
    picture = Image.open(tmp_path / "x.png")
    with torch.no_grad():
        outputs = model(**processor(images=picture, return_tensors="pt"))
    found = processor.post_process_semantic_segmentation(outputs, target_sizes=[picture.size[::-1]])[0]
    assert torch.equal(found, segment(model, processor, RGB)[0])
    upright = np.asarray(ImageOps.exif_transpose(picture))
    for source in (tmp_path / "x.png", (tmp_path / "x.png").read_bytes()):
        assert np.array_equal(load_picture(source), upright)
    expected = segment(model, processor, upright)[0].numpy()
    for given in (str(tmp_path / "x.png"), picture):
        for part in pipeline("image-segmentation", model=model, image_processor=processor)(given):
            label = model.config.label2id[part["label"]]
            assert np.array_equal(np.asarray(part["mask"]) > 0, expected == label)


# -------------------------------------------------------------------------------------------------------------- floats


def test_floats_without_rescaling():
    """Values in 0..1 and do_rescale=False: nearly what 8 bits give, and the same by processor and segment."""
    model, processor = tiny_model_and_processor()
    _, as_given = tiny_model_and_processor(do_rescale=False)
    floats = RGB / 255
    whole = processor(RGB, return_tensors="pt")["pixel_values"]
    for given in (floats, torch.from_numpy(floats).permute(2, 0, 1), torch.from_numpy(floats.astype(np.float32))):
        found = as_given(given, return_tensors="pt")["pixel_values"]
        assert torch.allclose(found, whole, atol=1.5 / 255 / 0.5)  # 8 bits are rounded after resizing
    with torch.no_grad():
        outputs = model(**as_given(floats, return_tensors="pt"))
    maps = as_given.post_process_semantic_segmentation(outputs, [RGB.shape[:2]])
    assert torch.equal(maps[0], segment(model, as_given, floats)[0])
    for wrong in (np.full((4, 4), np.nan), np.full((4, 4), np.inf)):
        with pytest.raises(ValueError, match="NaN or infinite"):
            segment(model, as_given, wrong)
    with pytest.raises(ValueError, match="do_rescale=False"):
        segment(model, processor, floats)


def test_integers_that_are_not_rescaled_are_told(recwarn):
    """0..255 less 0.5 is a picture of another kind than the network has seen, and was segmented without a word."""
    model, processor = tiny_model_and_processor()
    wholes = {"image_mean": [127.5] * 3, "image_std": [127.5] * 3}
    for settings, picture in (({"do_normalize": False}, RGB), (wholes, RGB), ({}, RGB / 255), ({}, RGB % 3 + 1)):
        segment(model, tiny_model_and_processor(do_rescale=False, **settings)[1], picture)
    segment(model, processor, RGB)
    assert not [warning for warning in recwarn if "rescale" in str(warning.message)]
    _, processor = tiny_model_and_processor(do_rescale=False)
    floats = RGB.astype(np.float32)
    for use in (lambda: segment(model, processor, RGB), lambda: processor(RGB), lambda: processor(floats)):
        with pytest.warns(UserWarning, match="values up to 2.., do_rescale is False, and image_mean is .0.5"):
            use()


def test_float_resize_is_bilinear():
    floats = torch.from_numpy(RGB / 255).permute(2, 0, 1).float()
    for size in ((7, 55), (20, 30), (64, 9)):
        expected = torch.nn.functional.interpolate(floats[None], size=size, mode="bilinear")[0]
        found = resize_picture((RGB / 255).astype(np.float32), size)
        assert torch.allclose(found, expected, atol=1e-3)
        part = resize_picture((RGB / 255).astype(np.float32), size, slice(2, 6), slice(1, 8))
        assert torch.equal(part, found[:, 2:6, 1:8])


# ---------------------------------------------------------------------------------------------------------- label maps


def test_label_maps_that_are_refused(tmp_path):
    Image.fromarray(GRAY).save(tmp_path / "x.jpg")
    two = encoded(Image.fromarray(GRAY), "TIFF", save_all=True, append_images=[Image.fromarray(GRAY)])
    (tmp_path / "x.tif").write_bytes(two)
    for source, sentence in (
        (tmp_path / "x.jpg", "the label map is a JPEG"),
        (Image.open(tmp_path / "x.jpg"), "the label map is a JPEG"),
        (tmp_path / "x.tif", "TIFF of 2 pages"),
    ):
        with pytest.raises(ValueError, match=sentence):
            load_label_map(source)
    Image.fromarray(GRAY).save(tmp_path / "x.png")
    assert np.array_equal(load_label_map(tmp_path / "x.png"), GRAY)


@pytest.mark.parametrize("kind", [np.uint8, np.int64])
def test_integers_of_0_and_1_alone_are_told(kind, recwarn):
    """Floats that were made integers too early, or a mask in the place of its picture: black, to the eye."""
    array = np.zeros((4, 5, 3), dtype=kind)
    load_picture(array)
    load_picture(array.astype(bool))
    load_picture(array + 2)
    assert not [w for w in recwarn if "0 and 1 alone" in str(w.message)]
    array[1] = 1
    with pytest.warns(UserWarning, match="a picture holds 0 and 1 alone, which is nearly black"):
        load_picture(array)
