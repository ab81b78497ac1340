"""FSDP2, DeepSpeed ZeRO and DDP in two processes, against one; accelerate's configurations; what is refused."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.commands.config.config_args import ClusterConfig
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.state import AcceleratorState
from accelerate.utils import DeepSpeedPlugin
from conftest import ROOT
from layouts import HAS_DEEPSPEED, LAYOUTS, recipe_for, train_in
from programs import STILL, make_data, read_lines
from safetensors.torch import load_file
from sharded_cpu import take_for_gpus

from qlseg_hf import QLSegForSemanticSegmentation
from qlseg_hf.training.checkpoints import checkpoints
from qlseg_hf.training.distributed import check_deepspeed, start_accelerator
from qlseg_hf.training.recipe import Recipe

CONFIGURATIONS = sorted((ROOT / "qlseg_hf" / "recipes" / "accelerate").glob("*.yaml"))
SHORT = {"max_steps": 6, "eval_steps": 3, "save_steps": 3}


def assert_same_numbers(one: Path, other: Path, num_steps: int) -> None:
    """Losses, gradients, every number of the evaluations, and the models' weights, up to rounding."""
    curves = [
        [[line[key] for key in ("loss", "grad_norm")] for line in read_lines(run / "losses.jsonl")]
        for run in (one, other)
    ]
    assert len(curves[0]) == num_steps
    np.testing.assert_allclose(curves[0], curves[1], rtol=5e-4)
    scores = [
        [line["miou"], line["aacc"], line["boundary_f1"], *(label["iou"] for label in line["per_label"])]
        for run in (one, other)
        for line in read_lines(run / "evaluations.jsonl")
    ]
    assert len(scores) == 4
    np.testing.assert_allclose(scores[:2], scores[2:], atol=2e-3)  # a pixel at the edge between labels
    weights, expected = (load_file(run / "last" / "model.safetensors") for run in (one, other))
    assert weights.keys() == expected.keys()
    gaps = torch.cat([(value - expected[name]).abs().flatten() for name, value in weights.items()])
    # of biases that a norm undoes Adam makes steps out of rounding; 0.3 % of all numbers, and of the weights that are
    # trained 64 % differ so much from their average
    assert (gaps > 1e-4).float().mean() < 0.01


def assert_same_weights(one: Path, other: Path) -> None:
    """Models, moving average and optimiser are equal, bit for bit."""
    for name in ("last/model.safetensors", "best/model.safetensors", "average"):
        found = [
            load_file(checkpoints(run)[-1] / "average.safetensors" if name == "average" else run / name)
            for run in (one, other)
        ]
        assert found[0].keys() == found[1].keys() and found[0]
        assert all(torch.equal(value, found[1][key]) for key, value in found[0].items()), name
    assert (one / "losses.jsonl").read_text() == (other / "losses.jsonl").read_text()
    assert (one / "evaluations.jsonl").read_text() == (other / "evaluations.jsonl").read_text()


def drop_after(run: Path, step: int) -> None:
    """Leave a run as it was after a step."""
    for checkpoint in checkpoints(run):
        if int(checkpoint.name[5:]) > step:
            shutil.rmtree(checkpoint)


def train_and_check(layout: str, recipe: Path, *arguments: str, server=None, **variables: str):
    done = train_in(layout, recipe, *arguments, server=server, **variables)
    assert done.returncode == 0, done.stderr[-4000:]
    return done


def test_fsdp2_is_one_process(server, data, tmp_path):
    """The same losses, evaluations on three images in two processes, and models; goes on exactly where it stopped."""
    changes = SHORT | {"total_batch_size": 2, "warmup_steps": 0}
    for name, layout in (("one", "one process"), ("two", "FSDP2")):
        train_and_check(layout, recipe_for(tmp_path / name, data, **changes), server=server)
    one, two = tmp_path / "one" / "run", tmp_path / "two" / "run"
    assert_same_numbers(one, two, num_steps=6)
    QLSegForSemanticSegmentation.from_pretrained(two / "last")
    assert len(list((two / "overlays").glob("*.png"))) == 2
    assert "distribution: FSDP" in (two / "last" / "README.md").read_text()

    shutil.copytree(two, tmp_path / "whole")
    drop_after(two, 3)
    done = train_and_check("FSDP2", tmp_path / "two" / "recipe.yaml", server=server)
    assert "resuming at step 3" in done.stdout
    assert_same_weights(tmp_path / "whole", two)


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory) -> Path:
    """20 steps in one process."""
    folder = tmp_path_factory.mktemp("one")
    train_and_check("one process", recipe_for(folder, data))
    return folder / "run"


def needs(layout: str) -> None:
    if "ZeRO" in layout and not HAS_DEEPSPEED:
        # it wants other versions than the rest, so it lies apart
        pytest.skip("DeepSpeed is not installed; `make test-all` installs it")


@pytest.mark.slow
@pytest.mark.parametrize("layout", [name for name in LAYOUTS if name != "one process"])
def test_twenty_steps_of_each_layout(whole, data, tmp_path, layout):
    """As one process; and the second half again from its checkpoint, bit for bit."""
    needs(layout)
    recipe, run = recipe_for(tmp_path / "two", data), tmp_path / "two" / "run"
    train_and_check(layout, recipe)
    assert_same_numbers(whole, run, num_steps=20)
    assert read_lines(run / "evaluations.jsonl")[-1]["miou"] > 0.4  # it tells weights apart
    shutil.copytree(run, tmp_path / "before")
    drop_after(run, 10)
    done = train_and_check(layout, recipe)
    assert "resuming at step 10" in done.stdout
    assert_same_weights(tmp_path / "before", run)
    if "ZeRO" in layout:
        done = train_in("one process", recipe, "--max_steps=30")
        assert done.returncode == 1 and f"(DEEPSPEED {layout})" in done.stderr, done.stderr[-3000:]
        assert "resume as it was, or start a new run" in done.stderr


@pytest.mark.slow
def test_fsdp2_goes_on_from_other_layouts_and_into_them(whole, data, tmp_path):
    shutil.copytree(whole, tmp_path / "run")
    recipe, run = recipe_for(tmp_path, data), tmp_path / "run"
    drop_after(run, 10)
    done = train_and_check("FSDP2", recipe, "--max_steps=20", "--save_steps=5")
    assert "distribution: NO -> FSDP" in done.stderr
    drop_after(run, 15)
    done = train_and_check("DDP", recipe)
    assert "distribution: FSDP -> MULTI_CPU" in done.stderr
    assert_same_numbers(whole, run, num_steps=20)


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["FSDP2", "ZeRO-3"])
@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_lora_in_layouts(tmp_path, layout, precision):
    """Adapters are merged; without a moving average, and with one image to evaluate, which one process has."""
    needs(layout)
    pytest.importorskip("peft")
    make_data(tmp_path / "data", num_validation=1)
    changes = SHORT | {"lora": 2, "ema_decay": None, "total_batch_size": 2}
    changes["precision"] = "fp32" if precision == "no" else precision
    for name, of in (("one", "one process"), ("two", layout)):
        recipe = recipe_for(tmp_path / name, tmp_path / "data", **changes)
        train_and_check(of, recipe, ACCELERATE_MIXED_PRECISION=precision)
    runs = [tmp_path / name / "run" for name in ("one", "two")]
    if precision == "no":
        assert_same_numbers(*runs, num_steps=6)
    else:  # sums in another order, rounded to 8 bits
        losses = [[line["loss"] for line in read_lines(run / "losses.jsonl")] for run in runs]
        np.testing.assert_allclose(*losses, rtol=2e-3)
        assert "forward pass: bf16" in (runs[1] / "last" / "README.md").read_text()
    found = [load_file(run / "last" / "model.safetensors") for run in runs]
    assert found[0].keys() == found[1].keys() and {value.dtype for value in found[1].values()} == {torch.float32}


@pytest.mark.slow
def test_fsdp2_from_a_model_with_another_backbone(data, tmp_path):
    """From a folder, whose weights transformers would give to the first process alone; and DINOv2's classes."""
    backbone = {"model_type": "dinov2", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    backbone |= {"image_size": 28, "patch_size": 14, "out_indices": [1, 2], "mlp_ratio": 2, "drop_path_rate": 0.0}
    shared = SHORT | {"crop_size": 28, "total_batch_size": 2}
    start = recipe_for(tmp_path / "start", data, config=STILL | {"backbone_config": backbone}, **shared)
    train_and_check("one process", start)
    shared |= {"model": str(tmp_path / "start" / "run" / "last"), "config": {}, "label_names": None}
    for name, layout in (("one", "one process"), ("two", "FSDP2")):
        train_and_check(layout, recipe_for(tmp_path / name, data, **shared))
    assert_same_numbers(tmp_path / "one" / "run", tmp_path / "two" / "run", num_steps=6)


def test_fsdp_of_version_1_is_refused(monkeypatch, fresh_accelerate):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "1")
    monkeypatch.setattr(AcceleratorState, "__init__", take_for_gpus(AcceleratorState.__init__))
    recipe = Recipe(data="-", crop_size=32, total_batch_size=2, per_device_batch_size=2, max_steps=2, output_dir="-")
    with pytest.raises(ValueError, match="FSDP of version 1 .* set fsdp_version: 2"):
        start_accelerator(recipe)


@pytest.mark.parametrize(
    "settings, precision, sentence",
    [
        ({"zero_stage": 0}, "no", "ZeRO stage 0 cuts nothing up; take stage 2 or 3"),
        ({"zero_stage": 3}, "fp16", "fp16 with DeepSpeed .* choose bf16 or no"),
        ({"zero_stage": 3, "offload_param_device": "cpu"}, "bf16", "offload_param_device cpu, .* set it to none"),
    ],
)
def test_deepspeed_is_refused(settings, precision, sentence):
    with pytest.raises(ValueError, match=sentence):
        check_deepspeed(DeepSpeedPlugin(**settings), precision)
    check_deepspeed(DeepSpeedPlugin(zero_stage=2, offload_optimizer_device="cpu"), "bf16")


@pytest.mark.parametrize("path", CONFIGURATIONS, ids=lambda path: path.stem)
def test_accelerate_configurations(path):
    """accelerate's own class takes each, its launcher has every option of it, and precision and layout are meant."""
    config = ClusterConfig.from_yaml_file(yaml_file=str(path))
    parser = launch_command_parser()
    args = parser.parse_args(["--config_file", str(path), "-m", "qlseg_hf.cli.train", "tiny"])
    known = vars(args).keys() - {"nondefault"}
    assert not (config.fsdp_config | config.deepspeed_config).keys() - known
    args, _, is_precision_of_file = _validate_launch_command(args)
    assert args.mixed_precision == "bf16" and is_precision_of_file
    layout = {"fsdp2": args.use_fsdp, "zero3": args.use_deepspeed, "one-gpu": args.num_processes == 1}
    assert layout.get(path.stem, args.multi_gpu)
    assert args.num_processes == {"one-gpu": 1, "two-nodes": 16}.get(path.stem, 8)
    if path.stem == "fsdp2":
        assert args.fsdp_version == 2
    if path.stem == "zero3":
        assert args.zero_stage == 3


def test_there_are_configurations():
    assert [path.stem for path in CONFIGURATIONS] == ["ddp-8-gpus", "fsdp2", "one-gpu", "two-nodes", "zero3"]
