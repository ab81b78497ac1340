"""A Ray cluster of two nodes on this machine, one of which is killed at work; and the step for own pipelines."""

import csv
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from media import read_maps
from networks import tiny_model_and_processor
from PIL import Image
from programs import ROOT, read_lines

from qlseg_hf import segment
from qlseg_hf.predict.request import Request
from qlseg_hf.ray import Segmenter, predict_on_cluster

ray = pytest.importorskip("ray")  # extra `ray`, 300 MB with what it needs, which CI does without
pytestmark = pytest.mark.slow
NUM_IMAGES = 120


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    folder, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for number in range(NUM_IMAGES):
        coarse = rng.integers(0, 256, (*rng.integers(4, 14, 2), 3), dtype=np.uint8)
        Image.fromarray(np.kron(coarse, np.ones((9, 9, 1), np.uint8))).save(folder / f"{number:03d}.png")
    (folder / "text.jpg").write_text("hello")
    return folder


@pytest.fixture
def cluster(monkeypatch):
    """Two nodes of one core each; the driver belongs to the first."""
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    memory = {"num_cpus": 1, "object_store_memory": 150 * 2**20}
    made = Cluster(initialize_head=True, head_node_args=memory)
    made.add_node(**memory)
    made.wait_for_nodes()
    ray.init(made.address, log_to_driver=False)
    yield made
    ray.shutdown()
    made.shutdown()


def test_a_node_is_killed_while_it_works(cluster, network, images, tmp_path):
    """Nothing is lost, nothing is there twice, and label maps equal `segment`'s."""
    output = tmp_path / "out"
    busy = threading.Event()

    def kill() -> None:
        while len(list(output.glob("labels/*.png"))) < 10:
            time.sleep(0.02)
        victim = next(node for node in cluster.list_all_nodes() if node is not cluster.head_node)
        cluster.remove_node(victim, allow_graceful=False)
        if len(list(output.glob("labels/*.png"))) < NUM_IMAGES:
            busy.set()

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    request = Request(str(network), (str(images),), output, formats=("labels", "csv"))
    summary = predict_on_cluster(request, "auto")
    killer.join(60)
    assert busy.is_set()  # it was killed before the end
    assert (summary.num_done, summary.num_before, summary.num_failed) == (NUM_IMAGES, 0, 1)
    found, (model, processor) = read_maps(output), tiny_model_and_processor()
    assert len(found) == NUM_IMAGES
    for name, labels in found.items():
        assert np.array_equal(labels, segment(model, processor, images / f"{name}.png")[0].numpy())
    rows = list(csv.DictReader((output / "areas.csv").open()))
    assert len({(row["image"], row["label"]) for row in rows}) == len(rows)
    assert sum(int(row["pixels"]) for row in rows) == sum(labels.size for labels in found.values())
    (failure,) = read_lines(output / "failures.jsonl")
    assert failure["name"] == "text"
    before = (output / "areas.csv").read_bytes()
    (output / "labels" / "003.png").unlink()
    summary = predict_on_cluster(request, "auto")
    assert (summary.num_done, summary.num_before, summary.num_failed) == (1, NUM_IMAGES - 1, 1)
    assert (output / "areas.csv").read_bytes() == before and len(read_maps(output)) == NUM_IMAGES


def test_strict(cluster, network, images, tmp_path):
    request = Request(str(network), (str(images / "text.jpg"),), tmp_path / "out", strict=True)
    with pytest.raises(ValueError, match="text.jpg: .*cannot be read as a picture"):
        predict_on_cluster(request, "auto")


def test_segmenter_in_a_pipeline(cluster, network, images):
    names = ("000.png", "001.png", "text.jpg")
    table = ray.data.from_items([{"image": (images / name).read_bytes(), "id": i} for i, name in enumerate(names)])
    arguments = {"fn_constructor_args": (str(network),), "fn_constructor_kwargs": {"flip": True}}
    rows = table.map_batches(
        Segmenter, batch_size=2, compute=ray.data.ActorPoolStrategy(size=1), **arguments
    ).take_all()
    rows = sorted(rows, key=lambda row: row["id"])
    assert [bool(row["error"]) for row in rows] == [False, False, True] and "image" not in rows[0]
    for row, name in zip(rows[:2], ("000.png", "001.png")):
        expected = segment(*tiny_model_and_processor(), images / name, flip=True)[0].numpy()
        found = np.frombuffer(row["label_map"], np.uint8).reshape(row["height"], row["width"])
        assert np.array_equal(found, expected)


def test_segmenter_with_pandas(network, images):
    """As Spark's mapInPandas calls it."""
    pandas = pytest.importorskip("pandas")
    step = Segmenter(str(network), column="path")
    frame = pandas.DataFrame({"path": [str(images / "000.png"), str(images / "text.jpg")], "key": [1, 2]})
    found = pandas.DataFrame(step(frame.to_dict("list")))
    assert found["key"].tolist() == [1, 2] and found["error"].map(bool).tolist() == [False, True]
    expected = segment(*tiny_model_and_processor(), images / "000.png")[0].numpy()
    assert found["label_map"][0] == expected.astype(np.uint8).tobytes()


def test_no_cluster(network, images, tmp_path):
    request = Request(str(network), (str(images),), tmp_path / "out")
    with pytest.raises(OSError, match="there is no Ray cluster at 127.0.0.1:1"):
        predict_on_cluster(request, "127.0.0.1:1")
    assert not (tmp_path / "out").exists()
