"""A video's label maps are those of its frames, in their order and at their times."""

import numpy as np
import pytest
from media import read_video, write_video
from networks import first_network, tiny_config, tiny_model_and_processor

from qlseg_hf import segment
from qlseg_hf.model.request import Request
from qlseg_hf.predict import video
from qlseg_hf.predict.items import Item, Video
from qlseg_hf.predict.queue import WindowQueue
from qlseg_hf.predict.sinks import Output
from qlseg_hf.predict.video import check_videos, read_frames, segment_video, video_paths

av = pytest.importorskip("av")


def run(
    path, tmp_path, model, processor, *formats, batching="exact", batch_size=2, max_frames=None, names=20, wanted=None
):
    colors = np.random.default_rng(1).integers(0, 256, (names, 3), dtype=np.uint8)
    output = Output(tmp_path / "out", formats, tuple(map(str, range(names))), colors, wanted)
    request = Request(processor.settings(), [1.0], False, None, "auto", False, False)
    waiting = WindowQueue(model, request, batch_size, batching)
    item = Item("sub/clip", str(path), (), Video(str(path), max_frames))
    steps = list(segment_video(item, waiting, output))
    assert steps[:-1] == [f"frame {number + 1}" for number in range(len(steps) - 1)]
    return steps[-1], len(steps) - 1, video_paths(output, item.name)


@pytest.mark.parametrize("size", [(50, 70), (33, 41)], ids=["even", "odd"])
def test_every_frame_is_segmented(size, tmp_path):
    source, processor = write_video(tmp_path / "in.mkv", 80, *size), tiny_model_and_processor()[1]
    some = [picture for _, picture in read_video(source, "rgb24")[::8]]
    model = first_network(
        tiny_config(), lambda model: len({x.numpy().tobytes() for x in segment(model, processor, some)}) > 8
    )
    last, count, (labels, overlay) = run(source, tmp_path, model, processor, "labels", "overlay")
    assert (last, count) == (size, 80) and labels.name == "clip.mkv" and overlay.name == "clip.mp4"
    pictures, maps, shown = read_video(source, "rgb24"), read_video(labels, "gray"), read_video(overlay, "rgb24")
    assert len(maps) == len(shown) == 80
    for (time, picture), (label_time, found), (shown_time, tinted) in zip(pictures, maps, shown):
        assert label_time == pytest.approx(time, abs=2e-3) and shown_time == pytest.approx(time, abs=2e-3)
        assert np.array_equal(found, segment(model, processor, picture)[0].numpy())
        assert tinted.shape[:2] == (size[0] + size[0] % 2, size[1] + size[1] % 2)
    assert len({found.tobytes() for _, found in maps}) > 50
    assert sorted(path.name for path in (tmp_path / "out").rglob("*.*")) == ["clip.mkv", "clip.mp4"]


def test_few_frames_are_held_and_keep_their_order(tmp_path, monkeypatch):
    model, processor = tiny_model_and_processor(do_sliding_window=False)  # one window a frame
    held, real = [], WindowQueue.add

    def counted(self, key, image):
        yield from real(self, key, image)
        held.append(sum(map(len, self.waiting.values())))

    monkeypatch.setattr(WindowQueue, "add", counted)
    source = write_video(tmp_path / "in.mkv", 30)
    *_, (labels,) = run(source, tmp_path, model, processor, "labels", batching="shared", batch_size=4)
    assert max(held) == 3
    differing = [
        (found != segment(model, processor, picture)[0].numpy()).mean()
        for (_, picture), (_, found) in zip(read_video(source, "rgb24"), read_video(labels, "gray"))
    ]
    assert len(differing) == 30 and max(differing) < 0.01


@pytest.mark.parametrize("num_labels, wanted", [(300, None), (256, list(range(0, 256, 2)))])
def test_labels_of_16_bits(num_labels, wanted, tmp_path):
    """256 labels fit into 8 bits, and one more for what is not wanted does not."""
    source, processor = write_video(tmp_path / "in.mkv", 3), tiny_model_and_processor()[1]
    config, first = (
        tiny_config(num_labels=num_labels, semantic_loss_ignore_index=-100),
        read_video(source, "rgb24")[0][1],
    )

    def is_telling(label_map):
        return bool((label_map > 255 if wanted is None else label_map % 2 == 1).any())

    model = first_network(config, lambda model: is_telling(segment(model, processor, first)[0]))
    *_, (labels,) = run(source, tmp_path, model, processor, "labels", names=num_labels, wanted=wanted)
    found = read_video(labels, "gray16le")
    expected = [segment(model, processor, picture)[0].numpy() for _, picture in read_video(source, "rgb24")]
    if wanted is not None:
        expected = [np.where(np.isin(one, wanted), one, 65535) for one in expected]
    assert all(np.array_equal(one, other) for (_, one), other in zip(found, expected)) and np.max(expected) > 255


def test_max_frames(tmp_path):
    model, processor = tiny_model_and_processor()
    source = write_video(tmp_path / "in.mp4", 9, codec="libx264")
    _, count, (labels,) = run(source, tmp_path, model, processor, "labels", max_frames=4)
    assert count == 4 and len(read_video(labels, "gray")) == 4


def test_what_is_no_video(tmp_path):
    model, processor = tiny_model_and_processor()
    (tmp_path / "text.mp4").write_text("hello")
    with pytest.raises(ValueError, match="text.mp4 cannot be read as a video"):
        run(tmp_path / "text.mp4", tmp_path, model, processor, "labels")
    assert not [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    with pytest.raises(ValueError, match="videos are written as labels and overlay, not as coco, csv"):
        check_videos(("labels", "coco", "csv"))


class FakeCamera:
    def __init__(self, number):
        self.frames = [np.full((40, 50, 3), (1, 2, 3), np.uint8)] * 5 if number == 0 else []
        self.is_released = False

    def read(self):
        return (True, self.frames.pop()) if self.frames else (False, None)

    def release(self):
        self.is_released = True


def test_camera(monkeypatch):
    cv2 = pytest.importorskip("cv2")
    made = []
    monkeypatch.setattr(cv2, "VideoCapture", lambda number: made.append(FakeCamera(number)) or made[-1])
    frames = list(read_frames(Video(0, max_frames=3)))
    assert len(frames) == 3 and frames[0].picture[0, 0].tolist() == [3, 2, 1]  # OpenCV has blue first
    assert all(b.time >= a.time for a, b in zip(frames, frames[1:])) and made[0].is_released
    with pytest.raises(ValueError, match="there is no camera 7, or it gives no picture"):
        list(read_frames(Video(7)))


def test_upright(tmp_path, monkeypatch):
    """A phone's video says that it is to be turned."""
    source = write_video(tmp_path / "in.mkv", 1, 40, 60)
    (frame,) = read_frames(Video(str(source)))

    class Turned:
        def __init__(self, one):
            self.one, self.rotation = one, -90

        def __getattr__(self, name):
            return getattr(self.one, name)

    real = av.open

    class Container:
        def __init__(self, path):
            self.container = real(path)
            self.streams = self.container.streams

        def decode(self, stream):
            return map(Turned, self.container.decode(stream))

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.container.close()

    monkeypatch.setattr(video.import_av(), "open", Container)
    (turned,) = read_frames(Video(str(source)))
    assert np.array_equal(turned.picture, np.rot90(frame.picture, -1))
