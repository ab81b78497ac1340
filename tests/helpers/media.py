"""What the tests of prediction read and write: label maps, GeoTIFFs, videos.

Without rasterio or av the test that asks for them is skipped.
"""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ORIGIN = (500000, 5400000, 10, 10)  # as `rasterio.transform.from_origin` takes it


def write_raster(path: Path, values: np.ndarray, **more) -> Path:
    """(bands, H, W) values as a GeoTIFF; `more` of its profile."""
    rasterio = pytest.importorskip("rasterio")
    profile = {"driver": "GTiff", "count": len(values), "height": values.shape[1], "width": values.shape[2]}
    profile |= {"dtype": values.dtype.name, "crs": "EPSG:32632"}
    profile["transform"] = rasterio.transform.from_origin(*ORIGIN)
    with rasterio.open(path, "w", **(profile | more)) as file:
        file.write(values)
    return path


def write_video(path: Path, count: int, height: int = 50, width: int = 70, codec: str = "ffv1") -> Path:
    """Coarse noise that moves, with a gap in time after the third frame."""
    av = pytest.importorskip("av")
    coarse = np.random.default_rng(0).integers(0, 256, (9, 99, 3), dtype=np.uint8)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25, width=width, height=height)
        stream.pix_fmt = "bgr0" if codec == "ffv1" else "yuv420p"
        for number in range(count):
            picture = np.kron(coarse, np.ones((8, 8, 1), np.uint8))[:height, 8 * (number % 80) :][:, :width]
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
            frame.pts = number + 5 * (number > 2)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def read_video(path: Path, form: str) -> list[tuple[float, np.ndarray]]:
    """(time, values) of each frame; `form`: PyAV's, such as rgb24 and gray."""
    with pytest.importorskip("av").open(str(path)) as container:
        return [(frame.time, frame.to_ndarray(format=form)) for frame in container.decode(video=0)]


def read_maps(output: Path) -> dict[str, np.ndarray]:
    """The label maps of `qlseg predict`, by the names of their images."""
    root = output / "labels"
    names = {path.relative_to(root).with_suffix("").as_posix(): path for path in root.rglob("*.png")}
    return {name: np.asarray(Image.open(path)) for name, path in names.items()}
