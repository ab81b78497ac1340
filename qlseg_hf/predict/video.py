# Copyright 2026 The QLSeg for transformers authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""Videos and cameras: frame by frame through the queue, out as a video with overlay and a stream of label maps.

`overlay/NAME.mp4` (H.264) is for people: frames tinted by label. `labels/NAME.mkv` (FFV1, which is lossless; grey of 8
bits, 16 for more than 256 labels) holds in each pixel of each frame its label. Both keep the times of the frames.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice
from pathlib import Path

import numpy as np

from ..model.image_io import load_picture
from ..utils.files import write_into
from ..utils.optional import import_package
from ..utils.text import first_line
from ..utils.visualization import tint_picture, to_visible_rgb
from .items import Item, Video
from .queue import Result, WindowQueue
from .sinks import Output
from .workers import resize_for_runs

SUFFIXES = {"labels": ".mkv", "overlay": ".mp4"}
CAMERA_TICKS = Fraction(1, 1000)  # seconds


@dataclass
class _Frame:
    """`picture`: (H, W, 3) uint8. `time`: in units of `base` seconds."""

    picture: np.ndarray
    time: int
    base: Fraction


def import_av():
    """The package av; ImportError that says what for."""
    return import_package("av", "open", "a video", "'qlseg-hf[video]'")


def is_video(item: Item) -> bool:
    return isinstance(item.reader, Video)


def check_videos(formats: tuple[str, ...]) -> None:
    """ValueError if a format is asked for that videos are not written in; ImportError without a reader."""
    if others := [kind for kind in formats if kind not in SUFFIXES]:
        raise ValueError(
            f"videos are written as {' and '.join(SUFFIXES)}, not as {', '.join(others)}; change --format, "
            "or store their frames as images"
        )
    import_av()


def video_paths(output: Output, name: str) -> list[Path]:
    """The files of a video."""
    return [output.root / kind / f"{name}{SUFFIXES[kind]}" for kind in output.formats]


def _frames_of_file(path: str) -> Iterator[_Frame]:
    """The frames of a video file, upright; ValueError if it cannot be read."""
    av = import_av()
    try:
        with av.open(path) as container:
            if not container.streams.video:
                raise ValueError(f"{path} holds no video")
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            for number, frame in enumerate(container.decode(stream)):
                picture = np.rot90(frame.to_ndarray(format="rgb24"), frame.rotation // 90)
                time = number if frame.pts is None else frame.pts
                yield _Frame(np.ascontiguousarray(picture), time, frame.time_base)
    except av.FFmpegError as error:
        raise ValueError(f"{path} cannot be read as a video: {first_line(error)}") from error


def _frames_of_camera(number: int) -> Iterator[_Frame]:
    """What a camera shows, until Ctrl-C; ValueError if there is none of this number."""
    cv2 = import_package("cv2", "VideoCapture", "a camera", "opencv-python-headless")
    import time

    camera = cv2.VideoCapture(number)
    try:
        start = time.monotonic()
        is_read, picture = camera.read()
        if not is_read:
            raise ValueError(f"there is no camera {number}, or it gives no picture")
        while is_read:
            ticks = int((time.monotonic() - start) / CAMERA_TICKS)
            yield _Frame(np.ascontiguousarray(picture[..., ::-1]), ticks, CAMERA_TICKS)
            is_read, picture = camera.read()
    except KeyboardInterrupt:  # the usual end; what was recorded is kept
        return
    finally:
        camera.release()


def read_frames(reader: Video) -> Iterator[_Frame]:
    """The frames of a video or camera, in their order, at most `max_frames` if that is given."""
    source = reader.source
    yield from islice(
        _frames_of_camera(source) if isinstance(source, int) else _frames_of_file(source), reader.max_frames
    )


class _Writer:
    """Writes frames of one size into a video file."""

    def __init__(self, path: Path, kind: str, is_wide: bool):
        self.container, self.kind, self.stream = import_av().open(str(path), "w"), kind, None
        self.format = "rgb24" if kind == "overlay" else "gray16le" if is_wide else "gray"
        self.time = -1

    def add(self, values: np.ndarray, frame: _Frame) -> None:
        """(H, W, 3) uint8 for an overlay, whose sides become even, or (H, W) labels."""
        if self.kind == "overlay":
            rows, columns = (side % 2 for side in values.shape[:2])
            values = np.pad(values, ((0, rows), (0, columns), (0, 0)), mode="edge")
        height, width = values.shape[:2]
        if self.stream is None:
            codec, pixels = ("libx264", "yuv420p") if self.kind == "overlay" else ("ffv1", self.format)
            self.stream = self.container.add_stream(codec, width=width, height=height, pix_fmt=pixels)
            self.stream.codec_context.time_base = self.stream.time_base = frame.base
        if (height, width) != (self.stream.height, self.stream.width):
            raise ValueError(
                f"a frame has {height} x {width} pixels, those before it {self.stream.height} x {self.stream.width}"
            )
        one = import_av().VideoFrame.from_ndarray(np.ascontiguousarray(values), format=self.format)
        self.time = max(frame.time, self.time + 1)  # two frames of one time would be refused
        one.pts, one.time_base = self.time, frame.base
        self.container.mux(self.stream.encode(one))

    def close(self) -> None:
        if self.stream is not None:
            self.container.mux(self.stream.encode())
        self.container.close()


@contextmanager
def _writing(output: Output, name: str) -> Iterator[dict[str, _Writer]]:
    """A writer per format; files take their places when the block ends, and vanish if it raises."""
    av, paths = import_av(), dict(zip(output.formats, video_paths(output, name)))
    with ExitStack() as stack:
        beside = {kind: stack.enter_context(write_into(path.parent)) for kind, path in paths.items()}
        try:
            is_wide = output.label_dtype is np.uint16
            writers = {kind: _Writer(beside[kind] / path.name, kind, is_wide) for kind, path in paths.items()}
            yield writers
            for writer in writers.values():
                writer.close()
        except av.FFmpegError as error:
            raise OSError(f"{name}: the video cannot be written: {first_line(error)}") from error


def segment_video(item: Item, queue: WindowQueue, output: Output) -> Iterator[tuple[int, int] | str]:
    """Segment a video frame by frame and write it.

    Frames in flight are those whose windows wait for a full batch: fewer than a batch has windows.

    Yields how far it is after each frame, as a text, and at the end (height, width) of the last one.

    Raises:
        ValueError: it cannot be read, or holds no frames.
        OSError: the result cannot be written.
    """
    reading, size = queue.request.settings.reading, None
    waiting: dict[int, _Frame] = {}
    ready: dict[int, Result] = {}
    with _writing(output, item.name) as writers:

        def write_ready(results: Iterator[Result]) -> None:
            """Write what is ready and has nothing before it that is not."""
            ready.update((result.key, result) for result in results)
            while waiting and (number := min(waiting)) in ready:
                frame, labels = waiting.pop(number), output.select(ready.pop(number).label_map.numpy())
                for kind, writer in writers.items():
                    if kind == "overlay":
                        tinted = tint_picture(to_visible_rgb(frame.picture), labels, output.colors)
                        writer.add(np.asarray(tinted), frame)
                    else:
                        writer.add(labels if writer.format == "gray" else labels.astype(np.uint16), frame)

        for number, frame in enumerate(read_frames(item.reader)):
            picture, size = load_picture(frame.picture, **reading), frame.picture.shape[:2]
            waiting[number] = frame
            write_ready(queue.add(number, resize_for_runs(picture, queue.request)))
            yield f"frame {number + 1}"
        write_ready(queue.flush())
        if size is None:
            raise ValueError(f"{item.source} holds no frames")
    yield size


__all__ = ["check_videos", "is_video", "read_frames", "segment_video", "video_paths"]
