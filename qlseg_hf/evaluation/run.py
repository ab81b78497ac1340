"""Measuring a model on a data set by the paper's protocol: the work behind `qlseg evaluate`.

Runs on the GPUs that accelerate is told of, in one process, or in several CPU processes under torchrun. Every picture
is counted once, and the result is the same for any number of processes with as many threads each. Memory does not grow
with the data set.
"""

import json
import platform
import re
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers
from accelerate import PartialState
from PIL import Image
from transformers.utils import logging

from ..data.datasets import StreamedSamples, open_dataset
from ..hub.card import add_result_to_card, inference_protocol
from ..hub.loading import load_network
from ..model.configuration_qlseg import __version__
from ..model.segmentation import segment
from ..utils.distributed import deaths_reported, failing_together, joined_processes
from ..utils.files import file_sha256, remove_partial, write_atomically
from ..utils.text import printable
from ..utils.visualization import draw_overlay, label_colors, save_picture
from .evaluator import Evaluation, evaluate_samples, remove_state

NUM_WORST = 20


@dataclass(frozen=True)
class Request:
    """What to measure and where to put it.

    Args:
        model: folder or Hub id.
        data, split, dataset_config, image_column, label_column, streaming: see `open_dataset`.
        scales, flip, window_batch_size: see `segment`.
        do_reduce_labels, ignore_index: label rules instead of the processor's.
        label_map: JSON file {"stored value": label}, instead of the processor's.
        max_samples: the first so many pictures only.
        skip_unreadable: name pictures that cannot be read instead of refusing them.
        output: JSON file for scores and protocol; what was counted until all is done lies beside it.
        card: also write them into README.md in the model's folder.
        worst: folder for overlays of the worst pictures, prediction and reference.
        dtype: of the network.
        resume: continue an interrupted run.
    """

    model: str
    data: str
    split: str = "validation"
    dataset_config: str | None = None
    image_column: str | None = None
    label_column: str | None = None
    streaming: bool = False
    scales: tuple[float, ...] = (1.0,)
    flip: bool = False
    do_reduce_labels: bool | None = None
    ignore_index: int | None = None
    label_map: Path | None = None
    max_samples: int | None = None
    skip_unreadable: bool = False
    output: Path | None = None
    card: bool = False
    worst: Path | None = None
    window_batch_size: int | None = None
    dtype: str = "float32"
    resume: bool = True


def measure(request: Request) -> None:
    """Evaluate in the processes that a launcher has started, or in this one; print the table and write the files.

    Raises:
        ValueError: something does not fit; nothing is written then.
        OtherProcessError: another process failed; that one raises, and says, why.
    """
    state = joined_processes()
    if not state.is_main_process:
        logging.disable_progress_bar()
    try:
        with deaths_reported():
            _evaluate(request, state)
    finally:
        with suppress(RuntimeError):  # those that have died do not come
            state.wait_for_everyone()  # a launcher stops the others when the first one leaves with an error
        state.destroy_process_group()


def _evaluate(args: Request, state: PartialState) -> None:
    with failing_together(state.num_processes):
        check_outputs(args)
        model, processor = load_network(args.model, label_rules(args), dtype=getattr(torch, args.dtype))
        model = model.to(state.device)
    for is_first in (True, False):  # one process per machine fills the cache, then the others read it
        with failing_together(state.num_processes):
            if state.is_local_main_process is is_first:
                samples = open_dataset(
                    args.data,
                    args.split,
                    config=args.dataset_config,
                    image_column=args.image_column,
                    label_column=args.label_column,
                    streaming=args.streaming,
                )
    for note in getattr(samples, "notes", ()) if state.is_main_process else ():
        print(f"warning: {printable(note)}", file=sys.stderr)
    place = {"rank": state.process_index, "world_size": state.num_processes}
    state_file = args.output and args.output.with_name(f"{args.output.name}.state")
    if state.is_main_process:
        for folder in {args.output and args.output.absolute().parent, args.worst} - {None}:
            remove_partial(folder)
    if state_file and not args.resume:
        remove_state(state_file, **place)
    evaluation = evaluate_samples(
        model,
        processor,
        samples,
        scales=args.scales,
        flip=args.flip,
        window_batch_size=args.window_batch_size,
        max_samples=args.max_samples,
        state_file=state_file,
        num_worst=NUM_WORST if args.worst else 0,
        skip_unreadable=args.skip_unreadable,
        **place,
    )
    with failing_together(state.num_processes):
        if args.worst:
            save_worst(args, model, processor, samples, evaluation, state)
    with failing_together(state.num_processes):
        if state.is_main_process:
            report(args, model, processor, samples, evaluation, state)
    if state_file:
        remove_state(state_file, **place)


def check_outputs(args: Request) -> None:
    """ValueError, before hours of work, if results could not be written."""
    if args.output and (args.output.is_dir() or not args.output.absolute().parent.is_dir()):
        raise ValueError(f"--output {args.output} must be a file in a folder that exists")
    if args.worst and args.worst.exists() and not args.worst.is_dir():
        raise ValueError(f"--worst {args.worst} is a file; give a folder")

    if args.card and not (Path(args.model) / "README.md").is_file():
        raise ValueError(f"--card writes into README.md in the model's folder, and {args.model} holds none")


def label_rules(args: Request) -> dict:
    """The processor's settings that the command line changes."""
    rules = {}
    if args.do_reduce_labels is not None:
        rules["do_reduce_labels"] = args.do_reduce_labels
    if args.ignore_index is not None:
        rules["ignore_index"] = args.ignore_index
    if args.label_map is not None:
        try:
            table = json.loads(args.label_map.read_text(encoding="utf-8-sig"))
            rules["label_map"] = {int(value): int(label) for value, label in table.items()}
        except (AttributeError, RecursionError, TypeError, ValueError) as error:
            raise ValueError(f'{args.label_map} must be JSON like {{"255": 1}}, stored value to label') from error
    return rules


def save_worst(args, model, processor, samples, evaluation: Evaluation, state: PartialState) -> None:
    """One picture per entry of `worst`: prediction on the left, reference on the right. Processes take turns."""
    colors = label_colors(model.config)
    wanted = {index: place for place, (_, index, _) in enumerate(evaluation.worst)}
    mine = {index: place for index, place in wanted.items() if place % state.num_processes == state.process_index}
    is_stream = isinstance(samples, StreamedSamples)
    for index, sample in enumerate(samples) if is_stream else ((index, samples[index]) for index in mine):
        if index > max(mine, default=-1) and is_stream:
            break
        if index not in mine:
            continue
        picture, stored = sample.read(**processor.settings().reading)
        predicted = segment(
            model,
            processor,
            picture,
            scales=args.scales,
            flip=args.flip,
            window_batch_size=args.window_batch_size,
        )[0]
        reference = processor.reduce_labels(torch.from_numpy(stored))
        left, right = (draw_overlay(picture, m, model.config.id2label, colors) for m in (predicted, reference))
        both = Image.new("RGB", (left.width + right.width, max(left.height, right.height)), "white")
        both.paste(left, (0, 0))
        both.paste(right, (left.width, 0))
        save_picture(both, args.worst / overlay_name(mine[index], sample.name))


def overlay_name(place: int, name: str) -> str:
    """The picture's name comes from the data set: letters, digits and a few signs of it, and not too many."""
    safe = re.sub(r"[^-.() \w]", "_", Path(name).stem)
    return f"{place + 1:02d}_{safe[:60]}.png"


def report(args, model, processor, samples, evaluation: Evaluation, state: PartialState) -> None:
    """Write the JSON and print the table."""
    protocol = protocol_of(args, model, processor, samples, state)
    result = evaluation.result | {"protocol": protocol}
    if args.worst:
        result["worst"] = [
            {"miou": miou, "index": index, "name": name, "overlay": overlay_name(place, name)}
            for place, (miou, index, name) in enumerate(evaluation.worst)
        ]
    if args.output:
        text = json.dumps(result, indent=2, allow_nan=False, ensure_ascii=False)
        write_atomically(args.output, (text + "\n").encode())
    if args.card and not result["warnings"]:
        add_result_to_card(Path(args.model) / "README.md", result)
    names = [printable(row["label"]) for row in result["per_label"]]
    width = max(map(len, names))
    print(f"{'label':{width}}  {'IoU':>6} {'Acc':>6} {'pixels':>12}")
    for name, row in zip(names, result["per_label"]):
        print(f"{name:{width}}  {percent(row['iou'])} {percent(row['accuracy'])} {row['pixels']:12d}")
    low, high = result["miou_interval"]
    print(f"\naAcc {percent(result['aacc'])}   mAcc {percent(result['macc'])}   mIoU {percent(result['miou'])} %")
    print(f"mIoU, 95 % interval over pictures: {percent(low)} to {percent(high)} %")
    print(f"{result['num_pictures']} pictures, {result['pictures_per_second']:.2f} per second")
    for warning in result["warnings"]:
        print(f"warning: {printable(warning)}" + ("; the card is left as it was" if args.card else ""))
    if skipped := result["unreadable"]:
        print(f"not counted, because they cannot be read: {len(skipped)} pictures, {', '.join(skipped)}")
    print()
    for name, value in protocol.items():
        print(f"{name}: {json.dumps(value)}")


def percent(fraction: float | None) -> str:
    return "     -" if fraction is None else f"{100 * fraction:6.2f}"


def protocol_of(args, model, processor, samples, state: PartialState) -> dict:
    """All that someone needs to repeat the measurement."""
    is_gpu = state.device.type == "cuda"
    return {
        "model": args.model,
        "weights_sha256": weights_of(args.model),
        "revision": getattr(model.config, "_commit_hash", None),
        "dataset": args.data,
        "dataset_config": args.dataset_config,
        "split": samples.split,
        "max_samples": args.max_samples,
        **inference_protocol(processor, args.scales, args.flip),
        "window_batch_size": args.window_batch_size,
        "dtype": args.dtype,
        "processes": state.num_processes,
        "hardware": torch.cuda.get_device_name(state.device) if is_gpu else f"CPU ({platform.machine()})",
        "threads": torch.get_num_threads(),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "qlseg_hf": __version__,
        },
    }


def weights_of(model: str) -> dict[str, str] | None:
    """sha256 of the weight files in a folder, by name; None for a Hub id, which has a revision."""
    if not Path(model).is_dir():
        return None
    return {path.name: file_sha256(path) for path in sorted(Path(model).glob("*.safetensors"))}


__all__ = ["Request", "measure"]
