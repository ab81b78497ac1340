"""The Triton kernel of the pixel encoder against the plain version.

Without a GPU the kernel runs in Triton's interpreter on CPU tensors, in a process of its own because Triton looks for
TRITON_INTERPRET while it is imported, and it is compiled for an H100 without being run there.
"""

import importlib.util
import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from qlseg_hf.model import deformable_attention as sampling
from qlseg_hf.model import deformable_attention_triton as sampling_triton

HERE = Path(__file__).resolve()
needs_triton = pytest.mark.skipif(sampling_triton.triton is None, reason="triton is not installed")


def drawn(batch, levels, heads, points, width, grid, dtype=torch.float32, device="cpu") -> list[torch.Tensor]:
    """Value, offsets (many of them far outside the map) and weights, none of them contiguous."""
    torch.manual_seed(0)
    tokens = levels * grid[0] * grid[1]
    value = torch.randn(batch, heads, tokens, width).transpose(1, 2)
    offsets = 3 * torch.randn(batch, tokens, heads, 2, levels, points).movedim(3, -1)
    weights = torch.randn(batch, tokens, heads, points, levels).softmax(-2).transpose(-1, -2)
    tensors = value.to(device, dtype), offsets.to(device, dtype), weights.to(device)
    return [tensor.requires_grad_() for tensor in tensors]


def assert_agreement(inputs: list[torch.Tensor], grid: sampling.Grid, tolerance: float, function) -> None:
    """`function` and its gradients against the plain version in fp32; the error is relative to the largest number."""
    exact = [tensor.detach().float().requires_grad_() for tensor in inputs]
    found, expected = function(*inputs, grid), plain(*exact, grid)
    assert found.dtype == inputs[0].dtype
    seed = torch.randn(expected.shape, device=expected.device).to(found.dtype)
    grads, expected_grads = (
        torch.autograd.grad(found, inputs, seed),
        torch.autograd.grad(expected, exact, seed.float()),
    )
    assert [grad.dtype for grad in grads] == [tensor.dtype for tensor in inputs]
    for mine, theirs in zip((found, *grads), (expected, *expected_grads)):
        atol = tolerance * max(theirs.abs().max().item(), 1)
        torch.testing.assert_close(mine.float(), theirs, atol=atol, rtol=0)


def plain(*inputs) -> torch.Tensor:
    """`sample_levels` as it is without a kernel, on GPUs too."""
    was_deterministic = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        return sampling.sample_levels(*inputs)
    finally:
        torch.use_deterministic_algorithms(was_deterministic)


# (B, L, heads, points, c, (h, w)): the last program half empty, one of everything, the width of ViT-B, a long grid
SHAPES = [(2, 3, 2, 4, 5, (4, 6)), (1, 1, 1, 1, 1, (1, 1)), (1, 2, 3, 2, 96, (3, 5)), (3, 2, 1, 3, 16, (1, 9))]
# a unit in the last place of the largest number: the interpreter cuts bf16 off, where a GPU rounds
ROUNDING = {torch.float32: 1e-5, torch.bfloat16: 2**-7, torch.float16: 2**-10}


# ------------------------------------------------------------------------------------- what the interpreter is asked


def interpret_agreement():
    for dtype, tolerance in ROUNDING.items():
        for *shape, grid in SHAPES if dtype == torch.float32 else SHAPES[::2]:
            assert_agreement(drawn(*shape, grid, dtype), grid, tolerance, sampling_triton.fused_sample_levels)


def interpret_operator():
    """Schema, gradients, fake tensors and dynamic shapes; under torch.compile in one graph; no second derivative."""
    *shape, grid = SHAPES[0]
    inputs = drawn(*shape, grid)
    torch.library.opcheck(torch.ops.qlseg.sample_levels.default, (*inputs, *grid))
    torch._dynamo.reset()  # what earlier tests compiled counts towards the limit of recompilations
    compiled = torch.compile(sampling_triton.fused_sample_levels, fullgraph=True, backend="aot_eager")
    assert_agreement(inputs, grid, ROUNDING[torch.float32], compiled)
    out = sampling_triton.fused_sample_levels(*inputs, grid)
    (grad,) = torch.autograd.grad(out.square().sum(), inputs[:1], create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative"):
        grad.sum().backward()


def interpret_bad_offsets():
    """Offsets onto and over the border, huge, infinite and NaN: nothing beside the maps is read or written."""
    grid, levels, heads, width = (2, 3), 2, 2, 3
    inf, nan = float("inf"), float("nan")
    steps = torch.tensor([-3.0, -2.0, -1.0, 1.0, 2.0, 3.0, -1e30, 1e30, -inf, inf, nan])
    tokens = levels * grid[0] * grid[1]
    offsets = torch.full((1, tokens, heads, levels, len(steps), 2), 0.25)
    offsets[:, ::2, ..., 0] = steps
    offsets[:, 1::2, ..., 1] = steps
    weights = torch.rand(offsets.shape[:-1])
    guarded = torch.full((3, tokens, heads, width), nan)  # the maps lie between NaN
    guarded[1] = torch.randn(tokens, heads, width)
    exact = guarded[1:2].clone(), offsets.nan_to_num(1e6).clamp(-1e6, 1e6), weights.clone()
    exact = [tensor.requires_grad_() for tensor in exact]
    inputs = (guarded[1:2], offsets, weights)
    out, expected = sampling_triton._forward(*inputs, *grid), plain(*exact, grid)
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=0)

    seed = torch.randn_like(out)
    sums = torch.zeros_like(guarded)  # gradients of the maps, between zeros
    grads = sums[1:2], torch.full_like(offsets, nan), torch.full_like(weights, nan)
    sampling_triton._launch(sampling_triton.backward_kernel, (*inputs, seed, *grads), *inputs[:2], *grid)
    for mine, theirs in zip(grads, torch.autograd.grad(expected, exact, seed)):
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=0)
    assert not sums[0].any() and not sums[2].any()


# ------------------------------------------------------------------------------------------------------- the tests


@pytest.mark.integration
@needs_triton
def test_interpreted():
    checks = (interpret_agreement, interpret_operator, interpret_bad_offsets)
    code = f"import {HERE.stem} as here; " + "; ".join(f"here.{check.__name__}()" for check in checks)
    paths = os.pathsep.join([str(HERE.parent), str(HERE.parent.parent)])
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": paths}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]


@needs_triton
@pytest.mark.skipif("TRITON_INTERPRET" in os.environ, reason="an interpreted kernel is not compiled")
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("width", [96, 128])  # ViT-B, ViT-L
@pytest.mark.parametrize("name", ["forward_kernel", "backward_kernel"])
def test_compiles_for_an_h100(name, width, dtype, tmp_path, monkeypatch):
    """Down to machine code; ptxas comes with Triton."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    kernel = getattr(sampling_triton, name)
    sizes = sampling_triton._constants(torch.empty(1, 1, 8, width), torch.empty(1, 1, 8, 3, 4, 2))
    pointers = dict.fromkeys(["value", "offsets", "out", "grad_out", "grad_offsets"], f"*{dtype}")
    pointers |= dict.fromkeys(["weights", "grad_value", "grad_weights"], "*fp32")
    kinds = pointers | dict.fromkeys(sizes, "constexpr") | dict.fromkeys(["rows", "h", "w"], "i32")
    aligned = {(place,): [["tt.divisibility", 16]] for place, name in enumerate(kernel.arg_names) if name in pointers}
    source = ASTSource(kernel, {name: kinds[name] for name in kernel.arg_names}, sizes, aligned)
    compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32))
    assert compiled.asm["cubin"]
    assert ".target sm_90" in compiled.asm["ptx"]
    assert "ld.global.v4.b32" in compiled.asm["ptx"]  # 16 bytes at a time


class Recorder(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.add(function.overloadpacket._qualified_op_name)
        return function(*args, **kwargs or {})


def takes_kernel(device: str) -> bool:
    """Which way `sample_levels` goes; fake tensors stand for those of a GPU."""
    with FakeTensorMode(), Recorder() as recorder:
        shapes = (1, 12, 2, 8), (1, 12, 2, 2, 3, 2), (1, 12, 2, 2, 3)
        tensors = [torch.empty(shape, device=device) for shape in shapes]
        assert sampling.sample_levels(*tensors, (2, 3)).shape == (1, 12, 16)
    kernel, bags = "qlseg::sample_levels" in recorder.names, "embedding_bag" in str(recorder.names)
    assert kernel != bags, recorder.names
    return kernel


def test_which_way_is_taken(monkeypatch):
    def supports(width: int = 8, dtype: torch.dtype = torch.float32) -> bool:
        with FakeTensorMode():
            return sampling_triton.supports(torch.empty(1, 12, 2, width, dtype=dtype, device="cuda"))

    monkeypatch.setattr(sampling_triton, "CAN_LAUNCH", True)
    assert takes_kernel("cuda") and not takes_kernel("cpu")
    assert supports() and supports(256, torch.bfloat16)
    assert not supports(257)
    assert not supports(dtype=torch.float64)  # the kernel adds up in fp32
    with monkeypatch.context() as patch:
        patch.setattr(torch.compiler, "is_exporting", lambda: True)
        assert not supports()
    torch.use_deterministic_algorithms(True)
    try:
        assert not supports()
    finally:
        torch.use_deterministic_algorithms(False)
    monkeypatch.setattr(sampling_triton, "CAN_LAUNCH", False)
    assert not supports()


def copy_of_module(folder: Path):
    """The module as remote code has it: another file under another name."""
    path = Path(shutil.copy(sampling_triton.__file__, folder / "copied_sampling_triton.py"))
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("sampler, can_launch", [(None, False), ("plain", False), ("triton", True), ("fast", None)])
def test_the_kernel_is_off_unless_asked_for(tmp_path, monkeypatch, sampler, can_launch):
    monkeypatch.delenv("QLSEG_SAMPLER", raising=False)
    monkeypatch.setenv("CC", "cc")
    monkeypatch.setattr(Path, "exists", lambda path: True)  # Python's headers
    if sampler is not None:
        monkeypatch.setenv("QLSEG_SAMPLER", sampler)
    if can_launch is None:
        with pytest.raises(ValueError, match="QLSEG_SAMPLER is 'fast' in the environment; plain or triton is wanted"):
            copy_of_module(tmp_path)
    else:
        assert copy_of_module(tmp_path).CAN_LAUNCH is can_launch


def test_a_copy_shares_the_operators(tmp_path, monkeypatch):
    registered = torch.ops.qlseg.sample_levels.default
    assert copy_of_module(tmp_path).forward_kernel is not sampling_triton.forward_kernel
    assert torch.ops.qlseg.sample_levels.default is registered
    monkeypatch.setattr(sampling_triton, "CAN_LAUNCH", True)
    assert takes_kernel("cuda")  # the package still reaches them


def test_imports_without_triton(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "triton", None)
    module = copy_of_module(tmp_path)
    assert module.triton is None and not module.CAN_LAUNCH


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("is_compiled", [False, True])
def test_on_a_gpu(dtype, is_compiled):
    """Values and gradients at the width of ViT-B, and under torch.compile; the kernel is what runs."""
    grid = (7, 5)
    inputs = drawn(2, 3, 8, 4, 96, grid, dtype, "cuda")
    assert sampling_triton.supports(inputs[0])
    function = torch.compile(sampling.sample_levels, fullgraph=True) if is_compiled else sampling.sample_levels
    assert_agreement(inputs, grid, ROUNDING[dtype], function)


@pytest.mark.parametrize(
    "text, word",
    [
        ("raise ModuleNotFoundError(\"No module named 'triton'\", name='triton')", ""),
        ("raise ImportError('libtriton.so: undefined symbol')", "libtriton.so: undefined symbol"),
    ],
)
def test_triton_that_cannot_be_imported(text, word, tmp_path, monkeypatch, caplog):
    """Absent it is not missed; broken is told. The module is run anew, as where it comes with remote code."""
    (tmp_path / "triton.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    for name in [name for name in sys.modules if name.partition(".")[0] == "triton"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setenv("QLSEG_SAMPLER", "triton")
    anew = runpy.run_path(sampling_triton.__file__)
    assert anew["triton"] is None and not anew["CAN_LAUNCH"] and word in caplog.text
    assert ("triton is there and cannot be imported" in caplog.text) == bool(word)
