"""Training with broken pictures and with losses that are no numbers."""

import io
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from networks import tiny_config
from PIL import Image
from programs import make_data, write_recipe, write_tables
from recipes import small_recipe
from safetensors.torch import load_file
from training_runs import FAULTS, launch_two, names_of_step, prepare_for_steps, refused

from qlseg_hf import QLSegForSemanticSegmentation
from qlseg_hf.data.datasets import Sample, SampleError
from qlseg_hf.training.checkpoints import checkpoints
from qlseg_hf.training.step import NotFiniteError, check_finite, training_step

pytestmark = FAULTS


def test_loss_that_is_no_number(server, data, tmp_path):
    """The run stops before the update, names the pictures, and leaves the checkpoint that saving here would have."""
    ends = []
    for save_steps in (1, 100):
        folder = tmp_path / str(save_steps)
        recipe = write_recipe(folder, data, max_steps=4, warmup_steps=0, save_steps=save_steps, eval_steps=100)
        run, log = folder / "run", folder / "log"
        names = ", ".join(names_of_step(data, 2))
        place = run / "checkpoints" / "step-00000001"
        refused(
            *server.run(log, "train", recipe, "--learning_rate", "1e30"),
            f"the loss is nan at step 2 on {names}; the update was not made and {place} holds the run before it",
        )
        assert len((run / "losses.jsonl").read_text().splitlines()) == 1
        ends.append(load_file(place / "model.safetensors") | load_file(place / "average.safetensors"))
        ends[-1]["random"] = torch.load(place / "random-0.pt", weights_only=True)["cpu"]
        states = torch.load(place / "optimizer.bin", weights_only=True)["state"]
        ends[-1] |= {f"{i}.{key}": value for i, state in states.items() for key, value in state.items()}
        code, printed = server.run(log, "train", recipe, "--learning_rate", "1e-40")
        assert code == 1 and "resuming at step 1" in printed, printed  # weights of 1e30 are no start to go on from
        assert "the recipe has changed since step-00000001: learning_rate: 1e+30 -> 1e-40" in printed
    assert ends[0].keys() == ends[1].keys() and len(ends[0]) > 100
    assert all(torch.equal(value, ends[1][key]) for key, value in ends[0].items())


@pytest.mark.slow
def test_loss_that_is_no_number_on_two_processes(data, tmp_path):
    recipe, log = write_recipe(tmp_path, data, max_steps=4, warmup_steps=0, eval_steps=100), tmp_path / "log"
    launcher = launch_two(recipe, log, "--learning_rate", "1e30")
    assert launcher.wait(timeout=600) != 0
    names = "; ".join(f"{', '.join(names_of_step(data, 2, rank, 2))} in process {rank}" for rank in range(2))
    own = [line for line in log.read_text().splitlines() if line.startswith("qlseg train: ")]
    assert len(own) == 1 and f"the loss is nan at step 2 on {names}; the update was not made" in own[0], own
    assert [path.name for path in checkpoints(tmp_path / "run")] == ["step-00000001"]


@pytest.mark.parametrize("broken", ["loss", "gradient"])
def test_no_update_from_what_is_not_finite(broken):
    torch.manual_seed(0)
    accelerator, model, optimizer = prepare_for_steps(QLSegForSemanticSegmentation(tiny_config()), 2)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    batches = [
        {"pixel_values": torch.randn(2, 3, 32, 48), "labels": torch.randint(0, 20, (2, 32, 48))} for _ in range(2)
    ]
    recipe = small_recipe(warmup_steps=0)
    if broken == "loss":
        batches[0]["pixel_values"][1, 0, 3, 3] = torch.inf  # in the batch that is not the last
    else:
        model.decoder.queries.register_hook(lambda gradient: gradient / 0)
    with pytest.raises(NotFiniteError, match="the loss is nan" if broken == "loss" else "the gradient's norm is"):
        training_step(accelerator, model, optimizer, batches, recipe, 0)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_steps_that_fp16_skips_are_no_error():
    scaled = [SimpleNamespace(scaler=SimpleNamespace(get_scale=lambda scale=scale: scale)) for scale in (65536, 0.5)]
    check_finite(scaled[0], 1.0, torch.inf)
    for accelerator, loss in ((scaled[1], 1.0), (scaled[0], torch.nan), (SimpleNamespace(scaler=None), 1.0)):
        with pytest.raises(NotFiniteError):
            check_finite(accelerator, loss, torch.inf)


# ----------------------------------------------------------------------------------------------------- broken pictures


def jpeg(**settings) -> bytes:
    rng = np.random.default_rng(3)
    picture = np.kron(rng.integers(0, 255, (9, 11, 3)), np.ones((5, 5, 1))).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "JPEG", **settings)
    return file.getvalue()


BREAKS = {
    "cut": lambda whole: whole[: len(whole) // 2],
    "empty": lambda whole: b"",
    "zeros": lambda whole: bytes(len(whole)),
    "zeros after the middle": lambda whole: whole[: len(whole) // 2] + bytes(4 * len(whole)),
    "another file": lambda whole: b"<html><body>404 Not Found</body></html>",
    "no end": lambda whole: whole[:-2],
}


@pytest.mark.parametrize("settings", [{}, {"progressive": True}, {"optimize": True}, {"restart_marker_rows": 1}])
def test_broken_jpegs(tmp_path, settings, monkeypatch):
    """None passes as good, from a file or from bytes, even where Pillow was told to fill what is missing with grey."""
    thumbnail = jpeg()  # an end marker of its own, before the picture's data
    whole = jpeg(comment=thumbnail, **settings)
    from PIL import ImageFile

    for fills in (False, True):
        monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", fills)
        for name, breaks in BREAKS.items():
            (tmp_path / "a.jpg").write_bytes(breaks(whole))
            for source in (tmp_path / "a.jpg", breaks(whole)):
                with pytest.raises(SampleError, match="x: picture: .*cannot be read as a picture") as caught:
                    Sample(source, None, "x").read_picture()
                assert caught.value.kind == "picture", name
        expected = Sample(jpeg(**settings), None, "x").read_picture()
        for good in (whole, whole + b"what some cameras append", whole + b"\xff\xda\0\0"):
            np.testing.assert_array_equal(Sample(good, None, "x").read_picture(), expected)


@pytest.mark.parametrize("kind", ["WEBP", "PNG", "JPEG"])
def test_damaged_exif_is_no_syntax_error(kind):
    exif = b"Exif\0\0MM\0e\0\0\0\x08"
    file = io.BytesIO()
    Image.fromarray(np.zeros((4, 6, 3), np.uint8)).save(file, kind, exif=exif)
    assert exif[6:] in file.getvalue()
    try:
        assert Sample(file.getvalue(), None, "x").read_picture().shape == (4, 6, 3)
    except SampleError as error:
        assert "x: picture:" in str(error)  # noqa: PT017 (either may be)


def make_jpegs(root: Path, num_training: int) -> list[Path]:
    """As `make_data`, in JPEG; returns the training pictures."""
    make_data(root, num_training)
    for path in root.glob("images/*/*.png"):
        Image.open(path).save(path.with_suffix(".jpg"), quality=95)
        path.unlink()
    return sorted((root / "images" / "training").iterdir())


def broken_and_clean(tmp_path: Path, num_training: int = 300) -> tuple[Path, Path, list[Path]]:
    """A data set with 1 % broken training pictures, the same without them, and these pictures."""
    pictures = make_jpegs(tmp_path / "broken", num_training)
    shutil.copytree(tmp_path / "broken", tmp_path / "clean")
    chosen = [pictures[i] for i in np.random.default_rng(5).choice(num_training, num_training // 100, replace=False)]
    for path, how in zip(chosen, ("cut", "zeros", "another file")):
        path.write_bytes(BREAKS[how](path.read_bytes()))
        (tmp_path / "clean" / path.relative_to(tmp_path / "broken")).unlink()
    for path in (tmp_path / "clean" / "annotations" / "training").iterdir():
        if not (tmp_path / "clean" / "images" / "training" / f"{path.stem}.jpg").exists():
            path.unlink()
    return tmp_path / "broken", tmp_path / "clean", chosen


LAYOUTS = ["folder", *(pytest.param(name, marks=pytest.mark.slow) for name in ("parquet", "streaming"))]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_broken_pictures_are_left_out(server, tmp_path, layout, monkeypatch):
    """The run is bit for bit that on a data set without them, with any number of workers, and when it is resumed."""
    broken, clean, chosen = broken_and_clean(tmp_path)
    changes = {"max_steps": 8, "save_steps": 2, "eval_steps": 8, "keep_checkpoints": 9}
    runs = []
    for name, root, num_workers in (("broken", broken, 2), ("clean", clean, 0)):
        if layout != "folder":
            changes |= write_tables(root, tmp_path / f"{name}-table", layout)
        recipe = write_recipe(tmp_path / f"{name}-run", root, num_workers=num_workers, **changes)
        printed = server.succeed(tmp_path / "log", "train", recipe)
        runs.append(tmp_path / f"{name}-run" / "run")
        if name == "broken":
            assert "3 of 300 pictures cannot be read; they are left out" in printed
            last = printed[printed.index("3 training pictures that cannot be read were left out") :]
            lines = (runs[0] / "unreadable.txt").read_text().splitlines()
            assert len(lines) == 3
            for path, line in zip(sorted(chosen), lines):
                assert path.name in last and re.match(rf"\S*{path.name}: picture: .*cannot be read", line)
            for checkpoint in checkpoints(runs[0])[2:]:  # as if it had been killed after step 4
                shutil.rmtree(checkpoint)
            printed = server.succeed(tmp_path / "log", "train", recipe, "--num_workers", "1")
            assert "resuming at step 4" in printed, printed
            assert "3 training pictures that cannot be read were left out" in printed
    assert not (runs[1] / "unreadable.txt").exists()
    for part in ("losses.jsonl", "evaluations.jsonl", "last/model.safetensors"):
        assert (runs[0] / part).read_bytes() == (runs[1] / part).read_bytes(), part
    print(f"{layout}: 3 of 300 pictures broken, 3 left out and named, run identical with one without them")


def test_what_is_refused(server, tmp_path):
    """What `qlseg check` refuses; all that is: unit/data/test_check.py and unit/cli/test_check_command.py."""
    path, recipe = make_jpegs(tmp_path / "data", 20)[3], write_recipe(tmp_path, tmp_path / "data", max_steps=2)
    path.write_bytes(path.read_bytes()[:300])
    sentence = f"the data set cannot be trained on: 1 of 20 pictures .*training/{path.name}: pict"
    refused(*server.run(tmp_path / "log", "train", recipe, "--strict", "true"), sentence)
    assert not (tmp_path / "run").exists()


def test_picture_that_breaks_during_the_run(server, running, data, tmp_path):
    """The workers' error is the sentence, and the run goes on when the picture is whole again."""
    shutil.copytree(data, tmp_path / "data")
    recipe = write_recipe(tmp_path, tmp_path / "data", max_steps=6, save_steps=1, eval_steps=6)
    server.succeed(tmp_path / "log", "train", recipe)
    for checkpoint in checkpoints(tmp_path / "run")[-1:]:
        shutil.rmtree(checkpoint)
    path = tmp_path / "data" / names_of_step(tmp_path / "data", 6)[1]
    whole = path.read_bytes()
    path.write_bytes(whole[:90])
    name = path.relative_to(tmp_path / "data")
    refused(*server.run(tmp_path / "log", "train", recipe), f"{name}: picture: .* goes on from what was saved")
    path.write_bytes(whole)
    server.succeed(tmp_path / "log", "train", recipe)
