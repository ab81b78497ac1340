"""The trainer: its step against stored numbers, exact resume after kills, processes, refusals."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DeepSpeedPlugin, DistributedType
from conftest import ROOT
from networks import tiny_config
from PIL import Image
from programs import NETWORK, environment, make_data, stats_of, train, write_recipe
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModel, pipeline

from qlseg_hf import QLSegConfig, QLSegForSemanticSegmentation, QLSegImageProcessor, segment
from qlseg_hf.training.average import MovingAverage
from qlseg_hf.training.build import add_lora, build_model, build_processor, plain_model
from qlseg_hf.training.checkpoints import checkpoints, save_checkpoint
from qlseg_hf.training.distributed import check_batch, fit_to_recipe, launch_facts, start_accelerator
from qlseg_hf.training.optimization import parameter_groups
from qlseg_hf.training.recipe import Recipe, load_recipe
from qlseg_hf.training.step import training_step
from qlseg_hf.training.synonyms import ADVICE, SYNONYMS
from qlseg_hf.utils.files import recover_folder, replace_folder, write_beside


def run_files(run: Path) -> dict:
    """Everything that must be equal: losses, weights, average, optimiser."""
    newest = checkpoints(run)[-1]
    found = {"losses": (run / "losses.jsonl").read_text() + (run / "evaluations.jsonl").read_text()}
    for name in ("last/model.safetensors", "best/model.safetensors"):
        found[name] = load_file(run / name)
    found["average"] = load_file(newest / "average.safetensors")
    found["weights"] = load_file(newest / "model.safetensors")
    states = torch.load(newest / "optimizer.bin", weights_only=True)["state"]
    found["optimizer"] = {f"{i}.{key}": value for i, state in states.items() for key, value in state.items()}
    return found


def assert_equal_runs(one: dict, other: dict) -> None:
    assert one["losses"] == other["losses"] and one["losses"].count("\n") == 24 + 3
    for part in one.keys() - {"losses"}:
        assert one[part].keys() == other[part].keys() and one[part]
        for key, value in one[part].items():
            assert torch.equal(value, other[part][key]), (part, key)


@pytest.fixture(scope="module")
def whole_run(data, tmp_path_factory) -> Path:
    """A run that was never stopped: accumulation, workers, augmentation, dropout, moving average."""
    folder = tmp_path_factory.mktemp("whole")
    done = train(write_recipe(folder, data))
    assert done.returncode == 0, done.stderr[-2000:]
    return folder / "run"


# ------------------------------------------------------------------------------------------------------ stored numbers


def test_training_trajectory(stored):
    """8 steps of the published implementation, through the trainer's own step; dropout off."""
    expected, numbers = stored.numbers["training"], stored.numbers
    model = stored.model().eval()
    recipe = Recipe(
        data="-",
        crop_size=numbers["config"]["img"],
        total_batch_size=2,
        per_device_batch_size=2,
        max_steps=expected["total_steps"],
        warmup_steps=expected["warmup_steps"],
        poly_power=expected["power"],
        learning_rate=expected["base_lr"],
        output_dir="-",
    )
    accelerator = Accelerator(cpu=True)
    groups = parameter_groups(model, recipe.learning_rate, recipe.weight_decay, recipe.head_lr_multiplier)
    optimizer = torch.optim.AdamW([group | {"initial_lr": group["lr"]} for group in groups], betas=(0.9, 0.999))
    model, optimizer = accelerator.prepare(model, optimizer)
    pictures, labels = stored.tensors["train_images_uint8"].float(), stored.tensors["train_labels_uint8"].long()
    mean, std = (torch.tensor(numbers[name]).view(3, 1, 1) for name in ("mean", "std"))
    for step in range(8):
        batch = {"pixel_values": (pictures[step] - mean) / std, "labels": labels[step]}
        loss, norm, terms = training_step(accelerator, model, optimizer, [batch], recipe, step)
        assert terms.sum().item() == pytest.approx(loss.item(), rel=1e-5) and (terms > 0).all()
        assert loss.item() == pytest.approx(expected["loss"][step], rel=1e-4)
        assert float(norm) == pytest.approx(expected["grad_norm"][step], rel=1e-3)


def test_accumulation_does_not_change_the_step():
    """One batch of four or four of one: same loss and gradient, though pictures have different numbers of labels."""
    torch.manual_seed(0)
    pixel_values = torch.randn(4, 3, 32, 48)
    labels = torch.randint(0, 20, (4, 32, 48))
    labels[0], labels[1, :16] = 3, 255
    found = []
    for parts in (1, 4):
        torch.manual_seed(1)
        model = QLSegForSemanticSegmentation(tiny_config(dropout=0.0)).eval()
        accelerator = Accelerator(cpu=True)
        accelerator.gradient_accumulation_steps = parts
        groups = [{"params": list(model.parameters()), "initial_lr": 1.0}]
        model, optimizer = accelerator.prepare(model, torch.optim.SGD(groups, lr=1.0))
        recipe = Recipe(
            data="-",
            crop_size=32,
            total_batch_size=4,
            per_device_batch_size=4 // parts,
            max_steps=10,
            output_dir="-",
            warmup_steps=0,
        )
        batches = [{"pixel_values": p, "labels": t} for p, t in zip(pixel_values.chunk(parts), labels.chunk(parts))]
        result = training_step(accelerator, model, optimizer, batches, recipe, 0)
        found.append([float(result.loss), float(result.norm), *result.terms.tolist()])
    assert found[0] == pytest.approx(found[1], rel=1e-5)


def test_step_without_any_label_is_finite():
    model = QLSegForSemanticSegmentation(tiny_config())
    accelerator = Accelerator(cpu=True)
    groups = [{"params": list(model.parameters()), "initial_lr": 1.0}]
    model, optimizer = accelerator.prepare(model, torch.optim.SGD(groups, lr=1.0))
    batch = {"pixel_values": torch.randn(2, 3, 32, 48), "labels": torch.full((2, 32, 48), 255)}
    recipe = Recipe(
        data="-",
        crop_size=32,
        total_batch_size=2,
        per_device_batch_size=2,
        max_steps=10,
        output_dir="-",
        warmup_steps=0,
        learning_rate=1e-5,
    )
    loss, norm, _ = training_step(accelerator, model, optimizer, [batch], recipe, 0)
    assert torch.isfinite(loss) and torch.isfinite(norm) and loss > 0
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())


# ------------------------------------------------------------------------------------------------------------ resume


def test_resume_is_exact_after_kills(whole_run, data, tmp_path):
    """SIGKILL to the whole process group at three random moments; the same command each time."""
    recipe, draw, exit_codes = write_recipe(tmp_path, data), random.Random(7), []
    command = [sys.executable, "-m", "qlseg_hf.cli.train", str(recipe)]
    for _ in range(3):
        before = checkpoints(tmp_path / "run")
        process = subprocess.Popen(
            command, env=environment(), start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        deadline = time.monotonic() + 120
        # let it get past what the last kill left, then strike at any moment, saving included
        while checkpoints(tmp_path / "run") == before and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        time.sleep(draw.uniform(0, 0.3))
        os.killpg(process.pid, signal.SIGKILL)
        exit_codes.append(process.wait())
    assert exit_codes == [-signal.SIGKILL] * 3  # none had ended by itself
    done = train(recipe)
    assert done.returncode == 0, done.stderr[-2000:]
    assert_equal_runs(run_files(tmp_path / "run"), run_files(whole_run))


def test_resume_in_the_middle_of_saving(whole_run, data, tmp_path):
    """What a kill during a save leaves behind: half a checkpoint beside, a model moved away, a torn last line."""
    shutil.copytree(whole_run, tmp_path / "run")
    newest = checkpoints(tmp_path / "run")[-1]
    os.rename(newest, newest.with_name(f".{newest.name}.new"))
    os.rename(tmp_path / "run" / "best", tmp_path / "run" / ".best.old")
    with (tmp_path / "run" / "losses.jsonl").open("a") as file:
        file.write('{"step": 25, "lo')
    recipe = write_recipe(tmp_path, data)
    done = train(recipe)
    assert done.returncode == 0 and "resuming at step 22" in done.stdout, done.stderr[-2000:]
    assert_equal_runs(run_files(tmp_path / "run"), run_files(whole_run))
    before = stats_of(tmp_path / "run")
    again = train(recipe)
    assert again.returncode == 0 and "is finished: 24 of 24 steps are made" in again.stdout
    assert stats_of(tmp_path / "run") == before


def test_starting_over_does_not_mix_runs(whole_run, data, tmp_path):
    """Pruning keeps the highest steps, so an older run's checkpoints would outlive those of a new one."""
    shutil.copytree(whole_run, tmp_path / "run")
    done = train(write_recipe(tmp_path, data), "--resume", "none")
    assert done.returncode == 1 and "holds step-00000024 of an earlier run" in done.stderr, done.stderr[-2000:]
    assert_equal_runs(run_files(tmp_path / "run"), run_files(whole_run))


# dropout draws by process, so without it any number of them makes the same steps
STILL = NETWORK | {"dropout": 0.0, "backbone_config": NETWORK["backbone_config"] | {"drop_path_rate": 0.0}}


def test_resume_with_other_processes_and_accumulation(data, tmp_path):
    """2 steps on one process, 2 on two, 2 on one with batches of 1: the curve of one run, and each change is said."""
    changes = {"config": STILL, "eval_steps": 6, "num_workers": 0, "warmup_steps": 0}
    curves = []
    for name in ("whole", "cut"):
        (tmp_path / name).mkdir()
        recipe = write_recipe(tmp_path / name, data, max_steps=6, per_device_batch_size=2, **changes)
        run = tmp_path / name / "run"
        if name == "whole":
            assert train(recipe).returncode == 0
        else:
            steps = (([], 1), (["--per_device_batch_size=1"], 2), (["--per_device_batch_size=4"], 1))
            for number, (more, processes) in enumerate(steps):
                done = train(recipe, *more, "--keep_checkpoints=9", processes=processes)
                assert done.returncode == 0, done.stderr[-3000:]
                if number:
                    assert f"num_processes: {3 - processes} -> {processes}" in done.stderr, done.stderr
                    assert "dropout and drop path draw other numbers" in done.stderr
                for checkpoint in checkpoints(run)[number + 1 :] if number < 2 else []:
                    shutil.rmtree(checkpoint)
        lines = (run / "losses.jsonl").read_text().splitlines()
        curves.append([[json.loads(line)[key] for key in ("loss", "grad_norm")] for line in lines])
    assert len(curves[0]) == 6
    np.testing.assert_allclose(curves[0], curves[1], rtol=5e-4)
    state = json.loads((checkpoints(run)[-1] / "state.json").read_text())
    assert (state["num_processes"], state["distribution"], state["precision"]) == (1, "NO", "fp32")
    state = json.loads((checkpoints(run)[1] / "state.json").read_text())
    assert (state["num_processes"], state["distribution"], state["precision"]) == (2, "MULTI_CPU", "fp32")

    done = train(recipe, "--total_batch_size=8", "--max_steps=9", processes=2)
    assert done.returncode == 1 and "this run has 2 (MULTI_CPU) and 8; resume as it was, or start a new" in done.stderr
    assert f"with model: {run}/last" in done.stderr


def test_keep_checkpoints(whole_run):
    assert [path.name for path in checkpoints(whole_run)] == ["step-00000022", "step-00000024"]


def test_full_disk_leaves_the_checkpoint_before(tmp_path, monkeypatch):
    model = torch.nn.Linear(2, 2)
    accelerator = Accelerator(cpu=True)
    model = accelerator.prepare(model)
    recipe = Recipe(
        data="-", crop_size=32, total_batch_size=2, per_device_batch_size=2, max_steps=10, output_dir=str(tmp_path)
    )
    save_checkpoint(accelerator, tmp_path, 3, {}, None, recipe)

    def no_space(folder):
        (Path(folder) / "half").write_text("half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(accelerator, "save_state", no_space)
    with pytest.raises(OSError, match="cannot be written: .*No space left.*step-00000003 is still valid"):
        save_checkpoint(accelerator, tmp_path, 6, {}, None, recipe)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000003"]


def test_folders_are_replaced_whole(tmp_path):
    place = tmp_path / "best"
    for text in ("one", "two"):
        with write_beside(place) as folder:
            (folder / "x").write_text(text)
    assert (place / "x").read_text() == "two"
    with pytest.raises(OSError), write_beside(place) as folder:
        raise OSError("disk full")
    assert (place / "x").read_text() == "two" and [path.name for path in tmp_path.iterdir()] == ["best"]
    os.rename(place, tmp_path / ".best.old")
    recover_folder(place)
    assert (place / "x").read_text() == "two"
    (tmp_path / "new").mkdir()
    replace_folder(tmp_path / "new", place)
    assert list(place.iterdir()) == [] and [path.name for path in tmp_path.iterdir()] == ["best"]


# --------------------------------------------------------------------------------------------------------- processes


@pytest.mark.parametrize("processes", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_processes_do_not_change_the_curve(data, tmp_path, processes):
    """The same total batch on one process and on several, dropout off: the same losses up to rounding."""
    network = NETWORK | {"dropout": 0.0, "backbone_config": NETWORK["backbone_config"] | {"drop_path_rate": 0.0}}
    curves = []
    for count in (1, processes):
        folder = tmp_path / str(count)
        folder.mkdir()
        recipe = write_recipe(folder, data, config=network, per_device_batch_size=1, max_steps=6, num_workers=0)
        done = train(recipe, processes=count)
        assert done.returncode == 0, done.stderr[-3000:]
        lines = (folder / "run" / "losses.jsonl").read_text().splitlines()
        curves.append([[json.loads(line)[key] for key in ("loss", "grad_norm")] for line in lines])
    assert len(curves[0]) == 6
    np.testing.assert_allclose(curves[0], curves[1], rtol=2e-4)


@pytest.fixture
def fresh_accelerate():
    """accelerate reads its environment anew, here and in the tests that follow."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.parametrize(
    "variables, sentence",
    [
        ({"MIXED_PRECISION": "fp16"}, "mixed_precision fp16 does nothing on a CPU, where fp32 would be used"),
        ({"MIXED_PRECISION": "float16"}, "mixed_precision is 'float16'; give accelerate no, bf16 or fp16"),
        ({"MIXED_PRECISION": "BF16"}, "mixed_precision is 'BF16'; give accelerate no, bf16 or fp16"),
        ({"MIXED_PRECISION": "fp8"}, "fp8 has not been tried|Using `fp8` precision requires|FP8"),
        ({"DYNAMO_BACKEND": "inductor"}, "dynamo_backend inductor wraps .* set compile: true in the recipe"),
        ({"USE_FSDP": "true"}, "FSDP was asked for, but accelerate would run NO on 1 CPU"),
        ({"USE_MEGATRON_LM": "true"}, "Megatron-LM does not know this network"),
    ],
)
def test_what_accelerate_would_not_do_is_refused(monkeypatch, fresh_accelerate, tmp_path, variables, sentence):
    for name, value in (variables | {"USE_CPU": "true"}).items():
        monkeypatch.setenv(f"ACCELERATE_{name}", value)
    with pytest.raises((ImportError, ValueError), match=sentence):
        start_accelerator(
            Recipe(
                data="-",
                crop_size=32,
                total_batch_size=4,
                per_device_batch_size=2,
                max_steps=10,
                output_dir=str(tmp_path / "run"),
            )
        )
    assert not (tmp_path / "run").exists()


def test_precision_is_stated(monkeypatch, fresh_accelerate):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "8")
    accelerator = start_accelerator(
        Recipe(data="-", crop_size=32, total_batch_size=4, per_device_batch_size=2, max_steps=10, output_dir="-")
    )
    assert launch_facts(accelerator)["precision"] == "bf16" and accelerator.gradient_accumulation_steps == 2


def deepspeed(**config) -> SimpleNamespace:
    """What accelerate is before `prepare` with DeepSpeed on two devices, which is not installed here."""
    plugin = DeepSpeedPlugin(hf_ds_config={"zero_optimization": {"stage": 2}} | config if config else None)
    state, said = SimpleNamespace(deepspeed_plugin=plugin), []
    return SimpleNamespace(
        distributed_type=DistributedType.DEEPSPEED,
        state=state,
        num_processes=2,
        gradient_accumulation_steps=1,
        said=said,
        print=lambda text, **options: said.append(text),
    )


def test_deepspeed_takes_the_batch_of_the_recipe(monkeypatch):
    """`prepare` takes accumulation, batch and clipping from the plugin, whatever the recipe says."""
    recipe = Recipe(
        data="-",
        crop_size=32,
        total_batch_size=12,
        per_device_batch_size=2,
        max_steps=10,
        output_dir="-",
        max_grad_norm=3.0,
    )
    wanted = {"train_micro_batch_size_per_gpu": 2, "gradient_accumulation_steps": 3, "train_batch_size": 12}
    wanted["gradient_clipping"] = 3.0
    for config in (
        {},  # by flags, of which accelerate's launcher fills in an accumulation of 1
        {"train_micro_batch_size_per_gpu": "auto", "gradient_clipping": "auto"},
        {"train_micro_batch_size_per_gpu": 8, "gradient_clipping": 1.0, "gradient_accumulation_steps": 5},
    ):
        monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "1")
        accelerator = deepspeed(**config)
        fit_to_recipe(accelerator, recipe)
        found = accelerator.state.deepspeed_plugin.deepspeed_config
        assert {key: found[key] for key in wanted} == wanted and accelerator.gradient_accumulation_steps == 3
        assert len(accelerator.said) == (config.get("gradient_clipping") == 1.0)
        check_batch(accelerator, recipe)
    assert "gradient_accumulation_steps 5 -> 3, train_micro_batch_size_per_gpu 8 -> 2" in accelerator.said[0]
    found["gradient_accumulation_steps"] = accelerator.gradient_accumulation_steps = 1
    with pytest.raises(ValueError, match="total_batch_size is 4 and not 12"):
        check_batch(accelerator, recipe)
    found |= wanted | {"gradient_clipping": 1.0}
    accelerator.gradient_accumulation_steps = 3
    with pytest.raises(ValueError, match="max_grad_norm is 1.0 and not 3.0"):
        check_batch(accelerator, recipe)
    for key in ("optimizer", "scheduler", "tensor_parallel"):
        with pytest.raises(ValueError, match=f"configuration holds {key}, which the recipe decides"):
            fit_to_recipe(deepspeed(**{key: {"type": "x"}}), recipe)


def test_torchrun_joins_on_cpus(data, tmp_path):
    """Without a word of accelerate's: one run of two processes, and not two runs."""
    recipe = write_recipe(tmp_path, data, max_steps=2, eval_steps=2, num_workers=0)
    done = train(recipe, processes=2, ACCELERATE_USE_CPU="false")
    assert done.returncode == 0, done.stderr[-3000:]
    card = (tmp_path / "run" / "last" / "README.md").read_text()
    assert "- hardware: 2 x " in card and "forward pass: fp32; distribution: MULTI_CPU" in card
    assert len((tmp_path / "run" / "losses.jsonl").read_text().splitlines()) == 2


# ---------------------------------------------------------------------------------------------------- what comes out


def test_trained_folder(whole_run, data):
    picture = data / "images" / "validation" / "0.png"
    assert (whole_run / "best" / "segmentation.py").is_file()  # its code, for use without the package
    pipe = pipeline("image-segmentation", model=str(whole_run / "best"))
    assert {part["label"] for part in pipe(str(picture))} <= {"red", "green", "blue"}
    card = (whole_run / "best" / "README.md").read_text()
    front = yaml.safe_load(card.split("---")[1])
    value = front["model-index"][0]["results"][0]["metrics"][0]
    assert value["type"] == "mean_iou" and 0 <= value["value"] <= 1
    assert "| green |" in card and "max_steps: 24" in card and "mIoU" in card
    published = load_recipe(whole_run / "recipe.yaml").published()
    assert load_recipe(whole_run / "best" / "recipe.yaml") == published
    assert len(list((whole_run / "overlays").glob("*.png"))) == 3


def test_it_learns(data, tmp_path):
    """Pictures whose colour tells the label: a minute of training knows them."""
    changes = {"max_steps": 60, "eval_steps": 60, "save_steps": 60, "ema_decay": None, "num_workers": 0}
    done = train(write_recipe(tmp_path, data, **changes))
    assert done.returncode == 0, done.stderr[-2000:]
    lines = [json.loads(line)["loss"] for line in (tmp_path / "run" / "losses.jsonl").read_text().splitlines()]
    assert np.mean(lines[-5:]) < 0.7 * np.mean(lines[:5])


def test_moving_average():
    model = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.constant_(model.weight, 0.0)
    average = MovingAverage(model, decay=0.75)
    torch.nn.init.constant_(model.weight, 1.0)
    average.update(model)
    average.update(model)
    assert average.weights["weight"].item() == pytest.approx(1 - 0.75**2)
    with average.swap_in(model):
        assert model.weight.item() == pytest.approx(1 - 0.75**2)
    assert model.weight.item() == 1.0


def test_lora_trains_and_merges(tmp_path):
    pytest.importorskip("peft")
    torch.manual_seed(0)
    model = QLSegForSemanticSegmentation(tiny_config()).eval()
    pixel_values = torch.randn(1, 3, 32, 48)
    before = model(pixel_values).logits
    add_lora(model, rank=2)
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert all("lora_" in name for name in trained if name.startswith("backbone"))
    assert sum("lora_" in name for name in trained) == 2 * 4 * 2  # A and B of q, k, v, o in two layers
    torch.testing.assert_close(model(pixel_values).logits, before)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    adapted = model(pixel_values).logits
    assert not torch.allclose(adapted, before)
    plain = plain_model(model, model.state_dict())
    torch.testing.assert_close(plain(pixel_values).logits, adapted, atol=1e-5, rtol=0)
    plain.save_pretrained(tmp_path)
    assert "lora" not in " ".join(load_file(tmp_path / "model.safetensors"))


def test_models_that_recipes_build(stored, data, tmp_path):
    names = {0: "class 3", 1: "something new"}
    recipe = Recipe(
        data=str(data),
        crop_size=64,
        total_batch_size=2,
        per_device_batch_size=2,
        max_steps=10,
        output_dir=str(tmp_path),
        model=str(stored.folder),
        label_names=names,
    )
    recipe.do_reduce_labels = False
    recipe.class_weights = {"something new": 3.0}
    recipe.config, recipe.freeze_backbone = {"dropout": 0.0}, True
    processor = build_processor(recipe)
    assert processor.window_size == stored.processor.window_size
    model = build_model(recipe, processor.ignore_index)
    assert model.config.id2label == names and model.config.label_weights == [1.0, 3.0] and model.config.dropout == 0.0
    assert torch.equal(model.decoder.queries[:, 0], stored.model().decoder.queries[:, 3])
    assert not any(parameter.requires_grad for parameter in model.backbone.parameters())
    with pytest.raises(ValueError, match="class_weights names .'nothing'."):
        build_model(
            Recipe(
                data=str(data),
                crop_size=64,
                total_batch_size=2,
                per_device_batch_size=2,
                max_steps=10,
                output_dir="-",
                model=str(stored.folder),
                class_weights={"nothing": 1},
            ),
            255,
        )
    with pytest.raises(ValueError, match="label_names is needed"):
        build_model(
            Recipe(
                data=str(data), crop_size=64, total_batch_size=2, per_device_batch_size=2, max_steps=10, output_dir="-"
            ),
            255,
        )


def shifted(stored, data, tmp_path, **settings) -> Recipe:
    """A recipe of three labels of its own on a model that reduces labels."""
    names = {0: "red", 1: "green", 2: "blue"}
    sizes = {"crop_size": 64, "total_batch_size": 2, "per_device_batch_size": 2, "max_steps": 10}
    places = {"data": str(data), "output_dir": str(tmp_path), "model": str(stored.folder), "label_names": names}
    return Recipe(**(sizes | places | settings))


@pytest.mark.parametrize("stored", ["a"], indirect=True)
def test_own_labels_on_a_model_that_reduces_labels(stored, data, tmp_path):
    assert stored.processor.do_reduce_labels
    both = (
        "which may be wrong for them: set do_reduce_labels: false if 'red' is stored as 0, 'blue' as 2, or "
        "do_reduce_labels: true if 0 is void and 'red' is stored as 1, 'blue' as 3"
    )
    with pytest.raises(ValueError, match=f"brings label_names, and {stored.folder} reduces labels, {both}$"):
        build_processor(shifted(stored, data, tmp_path))
    with pytest.raises(ValueError, match="brings label_names, .* 'sky' is stored as 0, 'sea' as 1, or"):
        build_processor(shifted(stored, data, tmp_path, label_names=["sky", "sea"]))
    for key, value in (("label_map", {10: 0, 20: 1}), ("label_colors", {0: [0, 0, 0]})):
        with pytest.raises(ValueError, match=f"brings {key}, .*set do_reduce_labels: false if label 0 is 0, or"):
            build_processor(shifted(stored, data, tmp_path, label_names=None, **{key: value}))
    for said in ({"do_reduce_labels": False}, {"do_reduce_labels": True}, {"processor": {"do_reduce_labels": False}}):
        wanted = said.get("processor", said)["do_reduce_labels"]
        assert build_processor(shifted(stored, data, tmp_path, **said)).do_reduce_labels is wanted
    assert build_processor(shifted(stored, data, tmp_path, label_names=None)).do_reduce_labels
    with pytest.raises(ValueError, match="do_reduce_labels is True, but False in processor; give it once"):
        build_processor(shifted(stored, data, tmp_path, do_reduce_labels=True, processor={"do_reduce_labels": False}))


@pytest.mark.parametrize("stored", ["a"], indirect=True)
def test_own_labels_on_a_model_with_a_label_map(stored, data, tmp_path):
    model = shutil.copytree(stored.folder, tmp_path / "model")
    QLSegImageProcessor.from_pretrained(model, label_map={255: 1}, do_reduce_labels=False).save_pretrained(model)
    recipe = shifted(stored, data, tmp_path)
    recipe.model = str(model)
    with pytest.raises(ValueError, match=r"translates stored values by label_map {255: 1}, .* set label_map: {} if"):
        build_processor(recipe)
    recipe.label_map = {}
    assert not build_processor(recipe).label_map
    recipe.label_map, recipe.label_names = None, None
    assert build_processor(recipe).label_map == {255: 1}


@pytest.mark.parametrize("stored", ["a"], indirect=True)
def test_ignored_value_that_is_a_label(stored, data, tmp_path):
    remedy = "set do_reduce_labels: true and ignore_index: 255 if 0 is void and 'red' is stored as 1"
    for changes in ({}, {"model": None}):
        recipe = shifted(stored, data, tmp_path, **({"do_reduce_labels": False, "ignore_index": 0}))
        recipe.model = changes.get("model", recipe.model)
        with pytest.raises(ValueError, match=f"ignore_index: 0 is also label 0, 'red', of 3; {remedy}"):
            build_model(recipe, build_processor(recipe).ignore_index)
    with pytest.raises(ValueError, match="ignore_index: 4 is also label 4, 'class 4', of 20; set label_map: {4: 255}"):
        build_model(shifted(stored, data, tmp_path, label_names=None), 4)
    with pytest.raises(ValueError, match="config sets semantic_loss_ignore_index, which follows ignore_index"):
        build_model(shifted(stored, data, tmp_path, config={"semantic_loss_ignore_index": 7}), 255)


@pytest.mark.parametrize("stored", ["a"], indirect=True)
def test_doubtful_reduction_stops_a_recipe_that_says_nothing(stored, tmp_path):
    """Labels of the model's own names, stored from 0: 1..20 would be reduced rightly."""
    for lowest in (0, 1):
        for split in ("training", "validation"):
            for part in ("images", "annotations"):
                folder = tmp_path / f"{lowest}" / part / split
                folder.mkdir(parents=True)
                values = np.arange(20, dtype=np.uint8).repeat(40).reshape(20, 40) + lowest
                Image.fromarray(values if split == "training" else values[::-1]).save(folder / "a.png")
    reads = {"model": str(stored.folder), "label_names": None, "config": {}}
    done = train(write_recipe(tmp_path, tmp_path / "0", **reads), command="check")
    sentence = "0 is ignored, and 20 is 'class 19', but never occurs; set do_reduce_labels: false if 0 is 'wall"
    assert done.returncode == 1 and "the data set cannot be trained on: with do_reduce_labels: true" in done.stderr
    assert sentence in done.stderr
    assert "reduced: do_reduce_labels: true (as set)" in done.stdout
    said = train(write_recipe(tmp_path, tmp_path / "0", **reads), "--do_reduce_labels", "true", command="check")
    assert said.returncode == 0 and f"warning: with do_reduce_labels: true the stored value {sentence}" in said.stdout
    done = train(write_recipe(tmp_path, tmp_path / "1", **reads), command="check")
    assert done.returncode == 0 and "warning" not in done.stdout and "20 of 20 labels occur" in done.stdout


def test_dinov3_recipe(data, tmp_path):
    """recipes/dinov3-vit-l-ade20k.yaml, its sizes cut down, for two steps from stored weights, with LoRA."""
    pytest.importorskip("peft")
    pytest.importorskip("cv2")
    path = ROOT / "qlseg_hf" / "recipes" / "dinov3-vit-l-ade20k.yaml"
    recipe = yaml.safe_load(path.read_text(encoding="utf-8"))
    vit_l = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}
    backbone = recipe["config"]["backbone_config"]
    assert vit_l.items() <= backbone.items() and backbone["out_indices"] == [8, 16, 24]
    head = path.read_text(encoding="utf-8").split("\n\n")[0]
    assert "HAS NOT BEEN RUN" in head and "Expected mIoU: unknown" in head
    with torch.device("meta"):
        whole = QLSegForSemanticSegmentation(QLSegConfig(**recipe["config"]))
    assert whole.unused_weights == ["embeddings.mask_token"]

    backbone |= {key: value for key, value in NETWORK["backbone_config"].items() if key in vit_l}
    backbone |= {"out_indices": [1, 2]}
    AutoModel.from_config(AutoConfig.for_model(**backbone)).save_pretrained(tmp_path / "weights")
    small = {key: value for key, value in NETWORK.items() if key != "backbone_config"}
    recipe["config"] |= small | {"backbone_config": backbone}
    changes = recipe | {
        "data": str(data),
        "label_names": {0: "red", 1: "green", 2: "blue"},
        "do_reduce_labels": False,
        "backbone": str(tmp_path / "weights"),
        "crop_size": 32,
        "resize_box": None,
        "processor": recipe["processor"] | {"size": {"shortest_edge": 32}, "window_size": 32, "window_stride": 20},
        "max_steps": 2,
        "num_workers": 0,
        "lora": 2,
        "output_dir": str(tmp_path / "run"),
    }
    done = train(write_recipe(tmp_path, data, **changes))
    assert done.returncode == 0, done.stderr
    trained = QLSegForSemanticSegmentation.from_pretrained(tmp_path / "run" / "last").backbone
    weights = load_file(tmp_path / "weights" / "model.safetensors")  # named as DINOv3's repositories have it
    stored = {re.sub(r"^layer\.", "model.layer.", name): value for name, value in weights.items()}
    moved = [name for name, value in trained.state_dict().items() if not torch.equal(value, stored[name])]
    assert sorted(moved) == sorted(
        f"model.layer.{i}.attention.{part}_proj.weight" for i in range(2) for part in ("q", "k", "v", "o")
    )


# ------------------------------------------------------------------------------------------------------- refusals


def relaid(data: Path, root: Path, layout: str) -> dict:
    """The same pictures in another layout; returns what the recipe must say of it."""
    pairs = {
        split: [(data / kind / split / f"{i}.png") for i in range(count) for kind in ("images", "annotations")]
        for split, count in (("training", 9), ("validation", 3))
    }
    if layout == "coco-stuff":
        for split, name in (("training", "train2014"), ("validation", "test2014")):
            for kind, ending in (("images", ".jpg"), ("annotations", "_labelTrainIds.png")):
                (root / kind / name).mkdir(parents=True)
                for path in pairs[split][kind == "annotations" :: 2]:
                    Image.open(path).save(root / kind / name / f"{path.stem}{ending}")
        return {"data": str(root)}
    if layout == "pascal-context":
        for folder in ("JPEGImages", "SegmentationClassContext", "ImageSets/SegmentationContext"):
            (root / folder).mkdir(parents=True)
        for split, name in (("training", "train"), ("validation", "val")):
            for picture, labels in zip(pairs[split][::2], pairs[split][1::2]):
                stem = f"{name}_{picture.stem}"
                Image.open(picture).save(root / "JPEGImages" / f"{stem}.jpg")
                shutil.copy(labels, root / "SegmentationClassContext" / f"{stem}.png")
            names = "".join(f"{name}_{path.stem}\n" for path in pairs[split][::2])
            (root / "ImageSets" / "SegmentationContext" / f"{name}.txt").write_text(names)
        return {"data": str(root)}
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"image": datasets.Image(), "annotation": datasets.Image()})
    tables = {
        name: datasets.Dataset.from_dict(
            {
                "image": [{"bytes": path.read_bytes(), "path": path.name} for path in pairs[split][::2]],
                "annotation": [{"bytes": path.read_bytes(), "path": path.name} for path in pairs[split][1::2]],
            },
            features=features,
        )
        for split, name in (("training", "train"), ("validation", "validation"))
    }
    root.mkdir()
    if layout == "save_to_disk":
        datasets.DatasetDict(tables).save_to_disk(root)
    else:
        for name, table in tables.items():
            table.to_parquet(root / f"{name}-00000-of-00001.parquet")
    return {"data": str(root), "streaming": layout == "streaming"}


SLOW_LAYOUTS = [pytest.param(name, marks=pytest.mark.slow) for name in ("coco-stuff", "save_to_disk", "parquet")]


@pytest.mark.parametrize("layout", ["streaming", "pascal-context", *SLOW_LAYOUTS])
def test_every_layout_trains(data, tmp_path, layout, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    changes = relaid(data, tmp_path / "set", layout) | {"max_steps": 2, "eval_steps": 2, "save_steps": 2}
    done = train(write_recipe(tmp_path, data, **changes))
    assert done.returncode == 0, done.stderr[-2000:]
    assert "checked 9 pictures: 3 of 3 labels occur" in done.stderr
    assert (tmp_path / "run" / "last" / "model.safetensors").is_file()
    evaluation = json.loads((tmp_path / "run" / "evaluations.jsonl").read_text())
    assert evaluation["step"] == 2 and 0 <= evaluation["miou"] <= 1


def test_recipe_from_file_and_overrides(data, tmp_path):
    path = write_recipe(tmp_path, data)
    recipe = load_recipe(path, ["--learning_rate", "1e-4", "--max_steps=7", "--resume", "none"])
    assert (recipe.learning_rate, recipe.max_steps, recipe.resume) == (1e-4, 7, "none")
    (tmp_path / "again.yaml").write_text(recipe.to_yaml())
    assert load_recipe(tmp_path / "again.yaml") == recipe


@pytest.mark.parametrize(
    "overrides, message",
    [
        (["--lerning_rate", "1"], "unknown key lerning_rate; did you mean learning_rate?"),
        (["--max_steps", "many"], "max_steps wants int or null, got 'many'"),
        (["--photometric", "1"], "photometric wants bool, got 1"),
        (["--scale_range", "[1]"], "scale_range wants two numbers"),
        (["--ema_decay", "1.5"], "ema_decay 1.5 must be between"),
        (["--save_steps", "0"], "save_steps is 0"),
        (["--max_steps"], "--max_steps has no value"),
        (["max_steps", "3"], "max_steps is not an override"),
        (["--config", "{"], "is not YAML"),
        (["--dataset", "null"], "the recipe lacks data"),
        (["--push_to_hub", "true"], "push_to_hub wants hub_model_id"),
        (["--hub_private", "true"], "hub_private and hub_revision want push_to_hub"),
        (["--model", "a", "--backbone", "b"], "exclude each other"),
        (["--lora", "4", "--freeze_backbone", "true"], "exclude each other"),
        (["--lr", "1e-4", "--learning_rate", "1e-3"], "lr is another name of learning_rate; give learning_rate alone"),
        (["--epochs", "0"], "epochs is 0.0; it must be more than 0"),
        (["--patience", "0"], "patience is 0; it must be at least 1"),
        (["--rotation", "200"], "rotation 200.0 must be 0..180 degrees"),
        (["--val_fraction", "1"], "val_fraction 1.0 must be at least 0 and below 1"),
        (["--class_weights", "some"], "class_weights is 'some'; give .* or auto"),
        (["--precision", "fp8"], "precision is 'fp8'; give one of fp32, bf16, fp16"),
    ],
)
def test_wrong_recipes(data, tmp_path, overrides, message):
    with pytest.raises(ValueError, match=message):
        load_recipe(write_recipe(tmp_path, data), overrides)


@pytest.mark.parametrize("text", ["- a\n", "a: [", "a: !!python/object/apply:os.system ['touch ran']\n"])
def test_recipes_that_are_no_recipes(tmp_path, text, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.yaml").write_text(text)
    with pytest.raises(ValueError, match="must hold `key: value` lines|is not a YAML file"):
        load_recipe(tmp_path / "x.yaml")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "key, hint",
    [
        ("lr0", "learning_rate"),
        ("numTrainEpochs", "epochs"),
        ("train_batch_size", "total_batch_size"),
        ("imgsz", "crop_size"),
        ("image-size", "crop_size"),
        ("mixed_precision", "precision"),
        ("fp16", "precision"),
        ("early_stopping_patience", "patience"),
        ("degrees", "rotation"),
        ("workers", "num_workers"),
        ("pretrained", "model"),
        ("data_dir", "data"),
        ("classes", "label_names"),
        ("gpus", "devices belong to the launcher"),
        ("save_dir", "output_dir"),
        ("optimizer", "AdamW"),
        ("lr_scheduler_type", "polynomial"),
        ("warmup", "warmup_steps"),
        ("gradient_accumulation_steps", "accumulation follows"),
        ("dice_weight", "config: {"),
        ("window_size", "processor: {"),
        ("check-data", "qlseg check RECIPE looks at the data alone"),
        ("num_worker", "num_workers"),
        ("maxsteps", "max_steps"),
        ("lod", "keys are data, "),  # spelt somewhat like lora
        ("banana", "keys are data, "),
    ],
)
def test_names_of_other_trainers(data, tmp_path, key, hint):
    hint = f"did you mean {hint}?" if hint in Recipe.__dataclass_fields__ else hint
    with pytest.raises(ValueError, match=re.escape(f"unknown key {key}; ") + ".*" + re.escape(hint)):
        load_recipe(write_recipe(tmp_path, data), [f"--{key}", "1"])


def test_synonyms_are_of_keys():
    assert SYNONYMS.keys() <= Recipe.__dataclass_fields__.keys()
    words = " ".join([*SYNONYMS.values(), *ADVICE.values()]).split()
    assert len(words) == len(set(words)) and all(re.fullmatch("[a-z0-9]+", word) for word in words)
    assert not set(words) & Recipe.__dataclass_fields__.keys()


def test_batch_that_does_not_divide():
    with pytest.raises(
        ValueError, match="total_batch_size 6 is not a multiple of per_device_batch_size 2 x 2 processes"
    ):
        Recipe(
            data="-", crop_size=32, total_batch_size=6, per_device_batch_size=2, max_steps=10, output_dir="-"
        ).accumulation_steps(2)
    assert (
        Recipe(
            data="-", crop_size=32, total_batch_size=8, per_device_batch_size=2, max_steps=10, output_dir="-"
        ).accumulation_steps(2)
        == 2
    )


def break_data(folder: Path, how: str) -> None:
    """Spoil the training label maps in `folder` in one way."""
    for path in sorted(folder.iterdir()) if how in ("from one", "void", "one label") else [folder / "4.png"]:
        labels = np.asarray(Image.open(path))
        spoilt = {
            "out of range": np.full_like(labels, 77),
            "from one": labels + 1,
            "colours": np.stack([labels] * 3, axis=-1),
            "size": labels[:-3],
            "void": np.full_like(labels, 255),
            "one label": np.full_like(labels, 1),
        }
        if how == "unreadable":
            path.write_bytes(path.read_bytes()[:60])
        else:
            Image.fromarray(spoilt[how]).save(path)


@pytest.mark.parametrize(
    "how, sentence",
    [
        (
            "out of range",
            r"77 in 1620 pixels of 1 label maps; in images/training/4.png. Translate them, as in label_map: {77: 255}",
        ),
        (
            "from one",
            r"set do_reduce_labels: true if 0 is void, .*; set do_reduce_labels: false and ignore_index: 3 if 3",
        ),
        ("one label", r"only one label occurs, 'green', so every answer is right"),
        ("colours", r"1 of 9 label maps are colour pictures; set label_colors"),
        ("size", r"1 of 9 label maps differ in size from their pictures"),
        ("void", r"9 of 9 label maps are ignored throughout"),
        ("unreadable", r"1 of 9 label maps cannot be read; copy them again"),
    ],
)
def test_broken_data_gets_its_sentence(tmp_path, how, sentence):
    make_data(tmp_path / "data")
    break_data(tmp_path / "data" / "annotations" / "training", how)
    done = train(write_recipe(tmp_path, tmp_path / "data"), command="check")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert re.search(f"the data set cannot be trained on: .*{sentence}", done.stderr), done.stderr
    assert not (tmp_path / "run").exists()


def test_training_refuses_broken_data(tmp_path):
    make_data(tmp_path / "data")
    break_data(tmp_path / "data" / "annotations" / "training", "out of range")
    done = train(write_recipe(tmp_path, tmp_path / "data"))
    assert done.returncode == 1 and "the data set cannot be trained on" in done.stderr
    assert not (tmp_path / "run").exists()


def test_check_data_alone(data, tmp_path):
    done = train(write_recipe(tmp_path, data), command="check")
    assert done.returncode == 0 and "checked 9 pictures: 3 of 3 labels occur" in done.stdout
    assert not (tmp_path / "run").exists()


def test_sentences_of_the_command_line(data, tmp_path):
    recipe = write_recipe(tmp_path, data)
    for arguments, sentence in (
        ([tmp_path / "none.yaml"], "there is no recipe"),
        ([recipe, "--dataset", str(tmp_path / "nothing")], "is no folder"),
        ([recipe, "--resume", str(tmp_path)], "is no checkpoint of a run"),
    ):
        done = train(*arguments)
        assert done.returncode == 1 and sentence in done.stderr and "Traceback" not in done.stderr, done.stderr


def test_segment_after_training_uses_the_processor(whole_run):
    processor = QLSegImageProcessor.from_pretrained(whole_run / "last")
    model = QLSegForSemanticSegmentation.from_pretrained(whole_run / "last")
    assert processor.window_size == 32
    assert segment(model, processor, np.zeros((40, 50, 3), np.uint8))[0].shape == (40, 50)
