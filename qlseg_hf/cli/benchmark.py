# Copyright 2026 The QLSeg for transformers authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""`qlseg benchmark [MODE...]`"""

import click

from .options import PATH, POSITIVE, Device, Several, subcommand


@subcommand("benchmark")
@click.argument("modes", nargs=-1, metavar="[MODE...]")
@click.option("--release", default="vit-b-ade20k", help="Which network.")
@click.option("--size", type=click.IntRange(1), help="Side of the square input in pixels; the network's if not given.")
@click.option("--batch_sizes", type=Several(click.IntRange(1)), default="1")
@click.option("--training_batch_sizes", type=Several(click.IntRange(1)), default="2")
@click.option("--repeats", type=click.IntRange(1), default=7, help="Turns.")
@click.option("--compile", is_flag=True, help="Also torch.compile; refused where it gives other numbers.")
@click.option(
    "--dtype", "dtypes", type=Several(click.STRING), metavar="fp32,bf16,fp16", help="By default what suits the mode."
)
@click.option("--device", type=Device(), help="A GPU if there is one.")
@click.option("--threads", type=click.IntRange(1), help="CPU threads; PyTorch's if not given.")
@click.option("--output", type=PATH, metavar="FILE.json", help="Also write the results to this file.")
@click.option("--minutes", type=POSITIVE, default=20, help="Of gpu: what would start later is left out.")
@click.option("--tiny", is_flag=True, help="Of gpu: tiny networks, to try the program.")
def command(modes: tuple[str, ...], minutes: float, tiny: bool, **settings) -> None:
    """Time and memory as ratios against baselines of the same run: encoder alone, eager, fp32, peers.

    \b
    MODE is one or several of
      forward   encoder and whole network by batch size, in fp32 and bf16 (and compiled, with --compile)
      tricks    the network with one trick of ours taken back at a time
      picture   JPEG file to label map, and what of it the network takes
      training  forward, loss and backward of encoder and whole network, and the whole step with AdamW
      loading   augmented training pictures per second and worker
      peers     EoMT-L, Mask2Former Swin-L (these need scipy), UperNet-BEiT-L, SegFormer-B5, same size
      runtimes  ONNX Runtime and OpenVINO (these need the extras export and openvino) beside PyTorch, on a CPU
      limit     ratios to the limit: the operations at the rate of a matrix product of this machine, by stage and kind
    or alone: limit training (those of a training step), or
      gpu       all that wants measuring on a GPU, each part for itself, within --minutes; status 1 if one failed
    Without a mode: forward, picture, training. Weights are random; results do not depend on them.

    Everything that is compared takes turns, so that a slow minute of the machine meets all alike; a ratio is the
    median over the turns. On a GPU times are those of CUDA events after warm-up, memory that of the allocator; on a
    CPU memory is the peak of resident memory above what the process held before (Linux), and with --threads 1 times
    are CPU seconds of the process, which other work on the machine changes little.
    """
    if modes == ("gpu",):
        from ..benchmark.gpu import report_gpu

        report_gpu(device=settings["device"], output=settings["output"], minutes=minutes, tiny=tiny)
    else:
        from ..benchmark.speed import benchmark

        benchmark(("limit training",) if modes == ("limit", "training") else modes, **settings)
