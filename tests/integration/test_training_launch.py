"""What accelerate, DeepSpeed and torchrun start: the same curve, or a refusal."""

from contextlib import nullcontext
from types import SimpleNamespace

import pytest
from accelerate.utils import DeepSpeedPlugin, DistributedType
from recipes import small_recipe

from qlseg_hf.training.distributed import check_batch, fit_to_recipe, launch_facts, start_accelerator


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
        start_accelerator(small_recipe(output_dir=str(tmp_path / "run")))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_half_precision_is_not_compiled_on_cpus(monkeypatch, fresh_accelerate, precision):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    recipe = small_recipe(compile=True, precision=precision)
    refusal = pytest.raises(ValueError, match="compile: true in bf16 gives wrong numbers on CPUs")
    with refusal if precision == "bf16" else nullcontext():
        start_accelerator(recipe)


def test_precision_is_stated(monkeypatch, fresh_accelerate):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "8")
    accelerator = start_accelerator(small_recipe())
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
    recipe = small_recipe(total_batch_size=12, max_grad_norm=3.0)
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
