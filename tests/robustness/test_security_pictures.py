"""Pictures of attackers: refused, without taking memory, by every way in."""

import io
import struct
import zlib
from pathlib import Path

import pytest
from attacks import MOST_MIB, TRAP, measure_peak
from conftest import FIXTURES
from PIL import Image
from transformers import pipeline

from qlseg_hf import QLSegImageProcessor, load_label_map, load_picture
from qlseg_hf.app import page as app


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width: int, height: int, kind: int = 2) -> bytes:
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, kind, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")


def with_head(kind: str, width: int, height: int) -> bytes:
    """A small picture whose head says another size."""
    encoded = io.BytesIO()
    Image.new("RGB", (16, 16)).save(encoded, format=kind)
    data = bytearray(encoded.getvalue())
    if kind == "JPEG":
        place = data.index(b"\xff\xc0") + 5
        data[place : place + 4] = struct.pack(">HH", height, width)
    elif kind == "BMP":
        data[18:26] = struct.pack("<ii", width, height)
    elif kind == "GIF":
        data[6:10] = struct.pack("<HH", width, height)
        place = data.index(b"\x2c", 13)
        data[place + 5 : place + 9] = struct.pack("<HH", width, height)
    elif kind == "TIFF":
        place, little = struct.unpack("<I", data[4:8])[0], "<"
        for entry in range(place + 2, place + 2 + 12 * struct.unpack("<H", data[place : place + 2])[0], 12):
            tag = struct.unpack(f"{little}H", data[entry : entry + 2])[0]
            if tag in (256, 257):
                data[entry + 2 : entry + 12] = struct.pack("<HII", 4, 1, width if tag == 256 else height)
    return bytes(data)


def webp(width: int, height: int) -> bytes:
    """An extended WebP whose canvas is huge."""
    canvas = struct.pack("<I", 0) + (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    body = b"WEBP" + b"VP8X" + struct.pack("<I", 10) + canvas
    return b"RIFF" + struct.pack("<I", len(body)) + body


PICTURES = {
    "png 60000": lambda: png(60000, 60000),
    "png widest": lambda: png(2**31 - 1, 2**31 - 1),
    "png strip": lambda: png(2**31 - 1, 1),
    "png grey": lambda: png(20000, 20000, 0),
    "png palette": lambda: png(20000, 20000, 3),
    "png without pixels": lambda: png(10000, 10000)[:60],
    "jpeg": lambda: with_head("JPEG", 65500, 65500),
    "bmp": lambda: with_head("BMP", 60000, 60000),
    "bmp negative": lambda: with_head("BMP", 60000, -60000),
    "gif": lambda: with_head("GIF", 65000, 65000),
    "tiff": lambda: with_head("TIFF", 10**6, 10**6),
    "tiff beyond 32 bit": lambda: with_head("TIFF", 2**32 - 1, 2**32 - 1),
    "webp": lambda: webp(16000, 16000),
    "ppm": lambda: b"P6 100000 100000 255\n" + bytes(100),
    "ppm digits": lambda: b"P6 " + b"9" * 5000 + b" 1 255\n",
    "tga": lambda: struct.pack("<BBBHHBHHHHBB", 0, 0, 2, 0, 0, 0, 0, 0, 65535, 65535, 24, 0),
    "eps that Ghostscript would run": lambda: (
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n(trapped) (w) file\n"
    ),
    "svg": lambda: b"<svg xmlns='http://www.w3.org/2000/svg'><image href='/etc/passwd'/></svg>",
    "pdf": lambda: b"%PDF-1.4\n",
    "png text bomb": lambda: (
        png(4, 4)[:33]
        + b"".join(chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(50 << 20))) for _ in range(3))
        + png(4, 4)[33:]
    ),
    "nothing": lambda: b"",
}


@pytest.mark.parametrize("name", PICTURES)
def test_pictures(name, tmp_path, monkeypatch, tiny_model):
    """By every way in: reader, label maps, tables, addresses, the page, the pipeline."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("subprocess.check_call", lambda *args, **kwargs: pytest.fail(f"{args} was started"))
    monkeypatch.setattr("PIL.EpsImagePlugin.has_ghostscript", lambda: True)
    path = tmp_path / "x.png"
    path.write_bytes(PICTURES[name]())
    for read in (load_picture, load_label_map, app.read_upload):
        with pytest.raises(ValueError, match="x.png"):
            read(str(path))
    from base64 import b64encode

    from qlseg_hf.data.datasets import Sample

    with pytest.raises(ValueError, match="data:image/png"):
        load_picture(f"data:image/png;base64,{b64encode(path.read_bytes()[:100000]).decode()}")
    for sample in (
        Sample(path, path, "sample 3"),
        Sample({"bytes": path.read_bytes(), "path": None}, path, "sample 3"),
    ):
        with pytest.raises(ValueError, match="sample 3"):
            sample.read()
    with pytest.raises(ValueError, match="x.png"):
        pipeline("image-segmentation", model=tiny_model, image_processor=QLSegImageProcessor())(str(path))
    assert not Path(TRAP).exists()


@pytest.mark.slow
def test_bombs_take_no_memory(tmp_path):
    """All of them in one process of its own, whose peak is measured."""
    for number, make in enumerate(PICTURES.values()):
        (tmp_path / f"{number}.png").write_bytes(make())
    prepare = f"""
from qlseg_hf import load_picture
def look(path):
    try:
        load_picture(path)
    except ValueError:
        print("refused")
load_picture({str(FIXTURES / "b" / "wide.png")!r})
"""
    lines, peak, _ = measure_peak(prepare, "look(path)", sorted(tmp_path.iterdir()))
    assert lines == ["refused"] * len(PICTURES) and peak < MOST_MIB


@pytest.mark.slow
def test_large_pictures_still_work(tmp_path):
    """12000 x 6000 as the README says."""
    Image.new("L", (12000, 6000), 7).save(tmp_path / "large.png", compress_level=1)
    assert load_label_map(tmp_path / "large.png").shape == (6000, 12000)
    assert load_picture(tmp_path / "large.png").shape == (6000, 12000, 3)


def test_the_limit_on_pixels_can_be_raised(tmp_path, monkeypatch):
    Image.new("L", (400, 300), 7).save(tmp_path / "small.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50000)
    with pytest.raises(ValueError, match="raise PIL.Image.MAX_IMAGE_PIXELS"):
        load_picture(tmp_path / "small.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 120000)
    assert load_picture(tmp_path / "small.png").shape == (300, 400, 3)
