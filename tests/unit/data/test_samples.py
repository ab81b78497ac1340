"""Every kind of picture and mask that a sample may hold, and the sentence that each broken one gets."""

import pickle
import struct
import zipfile
import zlib

import numpy as np
import pytest
from made_data import LABELS, colors, encoded, put_ade20k, read_all, write
from PIL import Image

from qlseg_hf.data.datasets import Sample, SampleError, open_dataset

TABLE = {0: [0, 0, 0], 1: [255, 0, 0], 2: [0, 0, 255], 3: [1, 2, 3], 255: [255, 255, 255]}


@pytest.mark.parametrize("name", ["a.jpg", "a.webp", "a.png"])
def test_jpeg_label_maps_of_two_colours(tmp_path, name):
    """Kvasir-SEG and many others exist as JPEG alone; of two colours the nearer one is right but for the very edge."""
    put_ade20k(tmp_path, "a")
    (tmp_path / "annotations/training/a.png").unlink()
    labels = np.zeros((32, 48), dtype=np.uint8)
    labels[8:24, 16:40] = 1
    table = {1: [250, 240, 230], 0: [0, 0, 0]}
    colored = np.array([table[0], table[1]], dtype=np.uint8)[labels]
    path, kind = tmp_path / "annotations/training" / name, "webp" if "webp" in name else "jpeg"
    Image.fromarray(colored).save(path, format=kind, quality=60)
    found = open_dataset(tmp_path, "train", label_colors=table)[0].read_label_map()
    np.testing.assert_array_equal(found, labels)
    for other in ((128, 120, 110), (200, 0, 0)):
        colored[:6, :6] = other
        Image.fromarray(colored).save(path, format=kind, quality=60)
        with pytest.raises(SampleError, match="pixels lie in regions of other colours than the two") as caught:
            open_dataset(tmp_path, "train", label_colors=table)[0].read_label_map()
        assert caught.value.kind == "unknown colour"


def test_gif_label_maps_are_read_by_their_colours(tmp_path):
    """Programs that save GIF put its palette in any order."""
    labels = np.array([[0, 0, 2, 1], [2, 1, 0, 0]], dtype=np.uint8)
    for stored, is_grey in (
        ([(0, 0, 0), (7, 7, 7), (255, 255, 255)], True),
        ([(0, 0, 0), (9, 0, 0), (0, 9, 0)], False),
    ):
        for order in ([0, 1, 2], [2, 0, 1]):
            picture = Image.fromarray(np.array(order, dtype=np.uint8)[labels], mode="P")
            palette = np.zeros((256, 3), dtype=np.uint8)
            palette[order] = stored
            picture.putpalette(palette.flatten().tolist())
            picture.save(tmp_path / "m.gif", optimize=False)
            sample = Sample(np.zeros((2, 4, 3), dtype=np.uint8), tmp_path / "m.gif", "x")
            if is_grey:
                np.testing.assert_array_equal(sample.read_label_map(), np.array([0, 7, 255])[labels])
            else:
                with pytest.raises(SampleError, match="is a colour picture"):
                    sample.read_label_map()
            table = {color: label for label, color in enumerate(stored)}
            sample = Sample(sample.picture, sample.label_map, "x", table)
            np.testing.assert_array_equal(sample.read_label_map(), labels)


@pytest.mark.parametrize("name", ["m.npy", "m.tif"])
def test_label_maps_of_whole_floating_point_numbers(tmp_path, name):
    """NumPy makes float64 of zeros(), and GIS programs write Float32."""
    stored = LABELS.astype(np.float64 if name == "m.npy" else np.float32)
    write(tmp_path / name, stored)
    found = Sample(colors(0), tmp_path / name, "x").read()[1]
    np.testing.assert_array_equal(found, LABELS)
    assert found.dtype == np.int64
    for odd, text in ((0.5, "0.5"), (np.nan, "nan"), (np.inf, "inf")):
        stored[0, 1] = odd
        write(tmp_path / name, stored)
        with pytest.raises(SampleError, match=f"floating-point numbers, of which {text} is no label"):
            Sample(colors(0), tmp_path / name, "x").read()


@pytest.mark.parametrize(
    "head, file, message",
    [
        ("P5 4 2 3", bytes(LABELS.clip(max=3)), r"its numbers up to 3 would be scaled to 0\.\.255; store it as PNG"),
        ("P2 4 2 3", b"0 1 2 3 3 1 0 2", r"its numbers up to 3 would be scaled"),
        ("P5 4 2 1000", LABELS.astype(">u2").tobytes(), r"its numbers up to 1000 would be scaled"),
    ],
)
def test_label_maps_that_are_scaled(tmp_path, head, file, message):
    (tmp_path / "m.pgm").write_bytes(f"{head}\n".encode() + file)
    with pytest.raises(SampleError, match=f"x: label map: {message}"):
        Sample(colors(0), tmp_path / "m.pgm", "x").read_label_map()


@pytest.mark.parametrize("ending", [".png", ".tif"])
def test_label_maps_of_deep_colours(tmp_path, ending):
    """As SYNTHIA's, whose labels are in the red band of 16 bits: Pillow would read 0 throughout."""
    cv2 = pytest.importorskip("cv2")
    for bands in (np.dstack([LABELS * 0, LABELS * 0, LABELS]), np.dstack([LABELS] * 3)):
        cv2.imwrite(str(tmp_path / f"m{ending}"), bands.astype(np.uint16))
        with pytest.raises(
            SampleError, match="colours of 16 bits, of which the upper 8 alone would be read; store the"
        ):
            Sample(colors(0), tmp_path / f"m{ending}", "x").read_label_map()


@pytest.mark.parametrize("compression", [None, "zlib"])
def test_label_maps_in_which_0_is_white(tmp_path, compression):
    """Pillow would invert them: label 1 would come as 254."""
    tifffile = pytest.importorskip("tifffile")
    tifffile.imwrite(tmp_path / "m.tif", LABELS.astype(np.uint8), photometric="miniswhite", compression=compression)
    with pytest.raises(SampleError, match="x: label map: 0 is white in it"):
        Sample(colors(0), tmp_path / "m.tif", "x").read_label_map()


@pytest.mark.parametrize("name, settings", [("m.bmp", {}), ("m.tif", {"compression": "tiff_adobe_deflate"})])
def test_label_maps_of_colours_whose_files_have_16_in_a_number(tmp_path, name, settings):
    """The bytes of a line are 2160, or the directory of the file is at place 16; before, they were refused."""
    for height in range(1, 60):
        labels = np.random.default_rng(height).integers(0, 2, (height, 720))
        Image.fromarray(np.dstack([labels * 128] * 2 + [labels]).astype(np.uint8)).save(tmp_path / name, **settings)
        if "16" in str(Image.open(tmp_path / name).tile[0][3]):
            break
    else:
        pytest.fail("no file with 16 in a number")
    table = {(0, 0, 0): 0, (128, 128, 1): 1}
    assert (Sample(None, tmp_path / name, "x", table).read_label_map() == labels).all()


@pytest.mark.parametrize("kind, text", [("jpeg", "JPEG file"), ("webp", "WebP file .*store it as PNG.*")])
@pytest.mark.parametrize("table", [None, {0: [0, 0, 0], 1: [255, 255, 255], 2: [9, 9, 9]}])
def test_lossy_label_maps_are_refused_by_their_contents(tmp_path, table, kind, text):
    put_ade20k(tmp_path, "a")
    Image.fromarray(np.zeros_like(LABELS)).save(tmp_path / "annotations/training/a.png", format=kind)
    with pytest.raises(
        SampleError, match=f"a.jpg: the label map is a {text}, which does not keep its values"
    ) as caught:
        open_dataset(tmp_path, "train", label_colors=table)[0].read()
    assert caught.value.kind == "lossy label map"


def test_jpeg_label_maps_in_tiff(tmp_path):
    Image.fromarray(LABELS).save(tmp_path / "m.tif", compression="jpeg")
    with pytest.raises(
        SampleError, match="the label map is a TIFF file that JPEG compresses, which does not"
    ) as caught:
        Sample(colors(0), tmp_path / "m.tif", "x").read_label_map()
    assert caught.value.kind == "lossy label map"


def test_picture_in_an_archive(tmp_path):
    """A stream may give addresses inside an archive instead of bytes."""
    pytest.importorskip("datasets")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("m.png", encoded(LABELS, "P"))
    sample = Sample(colors(1), {"path": f"zip://m.png::{tmp_path / 'a.zip'}", "bytes": None}, "x")
    np.testing.assert_array_equal(sample.read()[1], LABELS)


@pytest.mark.parametrize("kind", ["L", "P", "I;16"])
def test_kinds_of_masks(tmp_path, kind):
    stored = LABELS.astype(np.uint16) * 257 if kind == "I;16" else LABELS
    path = write(tmp_path / "m.png", stored, kind)
    assert Image.open(path).mode == kind
    np.testing.assert_array_equal(Sample(colors(0), path, "x").read()[1], stored.astype(np.int64))


def painted() -> np.ndarray:
    palette = np.zeros((256, 3), dtype=np.uint8)
    for label, color in TABLE.items():
        palette[label] = color
    return palette[LABELS]


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P"])
def test_color_masks(tmp_path, mode):
    put_ade20k(tmp_path, "a")
    picture = Image.fromarray(painted())
    picture = picture.quantize(8, dither=Image.Dither.NONE) if mode == "P" else picture.convert(mode)
    picture.save(tmp_path / "annotations/training/a.png")
    read_all(open_dataset(tmp_path, "train", label_colors=TABLE))
    as_json = {str(label): color for label, color in TABLE.items()}
    read_all(open_dataset(tmp_path, "train", label_colors=as_json))


@pytest.mark.parametrize("mode", ["LA", "RGB", "RGBA"])
def test_grey_masks_of_three_bands(tmp_path, mode):
    picture = Image.fromarray(LABELS).convert(mode)
    picture.save(tmp_path / "a.png")
    np.testing.assert_array_equal(Sample(colors(0), tmp_path / "a.png", "x").read()[1], LABELS)
    if mode != "LA":
        picture.putpixel((0, 0), (7, 7, 8))
        picture.save(tmp_path / "a.png")
        with pytest.raises(SampleError, match="the label map is a colour picture"):
            Sample(colors(0), tmp_path / "a.png", "x").read()
    if mode != "RGB":  # transparency says something that is not in the bands
        picture.putpixel((0, 0), (7, 0) if mode == "LA" else (7, 7, 7, 0))
        picture.save(tmp_path / "a.png")
        with pytest.raises(SampleError, match="the label map is a colour picture"):
            Sample(colors(0), tmp_path / "a.png", "x").read()


def test_colours_that_are_transparent_in_places(tmp_path):
    """White that alpha cuts out is one colour throughout, so a table of colours would make all of it one label."""
    mask = Image.fromarray(painted()).convert("RGBA")
    mask.putpixel((0, 0), (*mask.getpixel((0, 0))[:3], 0))
    mask.save(tmp_path / "a.png")
    table = {tuple(color): label for label, color in TABLE.items()}
    with pytest.raises(SampleError, match="are seen in one place and transparent in another, so colours do not tell"):
        Sample(colors(0), tmp_path / "a.png", "x", table).read_label_map()
    mask.putalpha(Image.fromarray(np.where(LABELS == LABELS[0, 0], 0, 255).astype(np.uint8)))
    mask.save(tmp_path / "a.png")  # each colour is seen, or is not
    np.testing.assert_array_equal(Sample(colors(0), tmp_path / "a.png", "x", table).read_label_map(), LABELS)


def test_color_mask_errors(tmp_path):
    put_ade20k(tmp_path, "a")
    mask = painted()
    mask[0, :2], mask[1, 0] = (9, 8, 7), (7, 7, 7)
    write(tmp_path / "annotations/training/a.png", mask)
    unknown = r"a.jpg: 2 colours are not in label_colors: \(9, 8, 7\) in 2 pixels, \(7, 7, 7\) in 1 pixels; add them"
    with pytest.raises(SampleError, match=unknown) as caught:
        open_dataset(tmp_path, "train", label_colors=TABLE)[0].read()
    assert caught.value.kind == "unknown colour"
    with pytest.raises(SampleError, match=r"a.jpg: the label map is a colour picture \(mode RGB\); give") as caught:
        open_dataset(tmp_path, "train")[0].read()
    assert caught.value.kind == "colour mask"
    write(tmp_path / "annotations/training/a.png", np.arange(24, dtype=np.uint8).reshape(2, 4, 3))
    with pytest.raises(SampleError, match="8 colours are not in label_colors"):
        open_dataset(tmp_path, "train", label_colors=TABLE)[0].read()
    smooth = np.array(Image.fromarray(painted()).resize((40, 20), Image.Resampling.BILINEAR))
    with pytest.raises(SampleError, match="so many come of JPEG or smoothed edges: store the mask as PNG"):
        Sample(colors(0), smooth, "x", {(1, 2, 3): 0, (255, 0, 0): 1}).read_label_map()
    for table, message in (
        ({0: [0, 0]}, r"label_colors\[0\] is \[0, 0\]"),
        ({0: [0, 0, 256]}, r"label_colors\[0\] is"),
        ({0: [0, 0, 1], 1: [0, 0, 1]}, r"gives \[0, 0, 1\] to labels 0 and 1"),
        ({}, "label_colors is empty"),
        ({1: 1}, r"label_colors\[1\] is \[1\]; \[red, green, blue\] of 0..255 is wanted"),
        ({"road": [1, 2, 3]}, "label_colors has 'road'; the number of a label is wanted"),
    ):
        with pytest.raises(ValueError, match=message):
            open_dataset(tmp_path, "train", label_colors=table)
    write(tmp_path / "annotations/training/a.png", LABELS.astype(np.uint16))
    with pytest.raises(SampleError, match="a mask of mode I;16 has no 8-bit colours"):
        open_dataset(tmp_path, "train", label_colors=TABLE)[0].read()
    with pytest.raises(SampleError, match=r"no \(H, W, 3\) array; got shape \(2, 4\)"):
        Sample(colors(0), LABELS, "x", {(0, 0, 0): 0}).read()


def test_sample_errors(tmp_path):
    (tmp_path / "torn.png").write_bytes(encoded(colors(1))[:45])
    for picture, label_map, kind, message in (
        (tmp_path / "torn.png", LABELS, "picture", "x: picture: .*torn.png cannot be read"),
        (encoded(colors(1))[:45], LABELS, "picture", "x: picture: x cannot be read as a picture"),
        (tmp_path / "gone.png", LABELS, "picture", "x: picture: .*No such file"),
        (colors(0), None, "label map", "x: label map: missing"),
        (colors(0), LABELS[:1], "size", "x: picture 2 x 4, label map 1 x 4; labels are never resized"),
        (colors(0), LABELS.T, "size", r"label map 4 x 2; one is turned \(EXIF orientation, or swapped axes\)"),
    ):
        with pytest.raises(SampleError, match=message) as caught:
            Sample(picture, label_map, "x").read()
        assert caught.value.kind == kind
        assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_orientation_of_the_picture(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned by 90 degrees
    Image.fromarray(colors(5).transpose(1, 0, 2)).save(tmp_path / "a.png", exif=exif)
    assert Sample(tmp_path / "a.png", LABELS, "x").read()[0].shape[:2] == LABELS.shape


def grey_png(numbers, bits):
    """Bytes of a grey PNG of `bits` bits; Pillow writes 1 and 8 alone."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    all_bits = np.unpackbits(numbers.astype(np.uint8)[..., None], axis=2)
    rows = [np.packbits(row[:, 8 - bits :].ravel()) for row in all_bits]
    head = struct.pack(">IIBBBBB", numbers.shape[1], numbers.shape[0], bits, 0, 0, 0, 0)
    body = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_grey_of_few_bits_is_read_as_its_numbers(tmp_path, bits):
    """Pillow multiplies them by 85 or 17, so that names stood beside other labels."""
    numbers = np.arange(32).reshape(4, 8) % min(2**bits, 11)
    (tmp_path / "a.png").write_bytes(grey_png(numbers, bits))
    for source in (grey_png(numbers, bits), tmp_path / "a.png"):
        sample = Sample(None, source, "a")
        np.testing.assert_array_equal(sample.read_label_map(), numbers)
        assert sample.read_bits() == bits


def test_animations_are_no_label_maps(tmp_path):
    """Of which the first picture alone was read, as of a label each."""
    for name in ("a.gif", "a.png"):
        first, *others = (Image.fromarray((LABELS == label).astype(np.uint8) * 255) for label in range(3))
        first.save(tmp_path / name, save_all=True, append_images=others)
        with pytest.raises(SampleError, match="it is an animation of 3 pictures, of which the first alone would be"):
            Sample(None, tmp_path / name, "a").read_label_map()


def test_masks_in_the_transparency_alone():
    """Which no table of colours can tell, so none is asked for."""
    mask = np.full((2, 4, 4), 255, dtype=np.uint8)
    mask[0, :, 3] = 0
    with pytest.raises(SampleError, match=r"colour \[255, 255, 255\] are seen in one place and transparent"):
        Sample(None, encoded(mask), "a").read_label_map()
