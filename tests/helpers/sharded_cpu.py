"""`qlseg train ...` under FSDP2 or DeepSpeed on CPUs: torchrun --nproc-per-node 2 tests/helpers/sharded_cpu.py RECIPE

accelerate runs neither without a GPU. Here it is told that its processes, which talk by gloo, are those of GPUs;
nothing else is changed.
"""

import importlib
import os

from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType

from qlseg_hf.cli.train import command


def take_for_gpus(init):
    """`AcceleratorState.__init__` among processes that would be those of GPUs, so that FSDP is taken up."""

    def start(self, *arguments, **settings):
        if PartialState._shared_state.get("distributed_type") in (DistributedType.MULTI_CPU, DistributedType.NO):
            PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
        init(self, *arguments, **settings)

    return start


def pretend() -> None:
    """Let accelerate do on CPUs what its launcher's variables ask for."""
    if os.environ.get("ACCELERATE_USE_FSDP") == "true":
        AcceleratorState.__init__ = take_for_gpus(AcceleratorState.__init__)
    if os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true":
        os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"
        PartialState._prepare_backend = lambda *_: ("gloo", DistributedType.MULTI_GPU)
        communication = importlib.import_module("deepspeed.comm.torch")
        communication.build_shm_op = lambda: None  # it would be compiled for minutes


if __name__ == "__main__":
    pretend()
    command()
