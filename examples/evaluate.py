#!/usr/bin/env python3
"""Measure mIoU, mAcc and aAcc of a model on a data set, by the paper's protocol.

    accelerate launch examples/evaluate.py --model M --dataset D --split S [--scales 0.5 0.75 1 1.25 1.5 1.75 --flip]

M is a folder or a Hub id; D a folder (ADE20K, COCO-Stuff-10K or PASCAL-Context as mmsegmentation lays them out, or of
`datasets`) or a Hub id. Label rules are the processor's unless given. Runs on the GPUs that accelerate is told of, on
one process with plain `python`, and on several CPU processes with

    torchrun --nproc-per-node 2 examples/evaluate.py ...

(without MPI, `accelerate launch --cpu --num_processes 2` starts one process only). Every picture is counted once, and
the result is the same for any number of processes with as many threads each. With --output FILE.json,
FILE.json.state.* hold what was counted until all is done; the same command continues from there. Memory does not grow
with the data set.
"""

import argparse
import json
import platform
import re
import sys
from contextlib import suppress
from pathlib import Path

import torch
import transformers
from accelerate import PartialState
from PIL import Image
from transformers.utils import logging

import qlseg_hf
from qlseg_hf import segment
from qlseg_hf.command_line import exit_status, load_network
from qlseg_hf.data import StreamedSamples, open_dataset
from qlseg_hf.evaluation import Evaluation, evaluate_samples, remove_state
from qlseg_hf.files import file_sha256, remove_partial, write_atomically
from qlseg_hf.launching import joined_processes
from qlseg_hf.model_card import add_result_to_card, inference_protocol, printable
from qlseg_hf.processes import OtherProcessError, deaths_reported, failing_together
from qlseg_hf.visualization import draw_overlay, label_colors, save_picture

NUM_WORST = 20


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    truth = {"choices": ["true", "false"], "metavar": "true|false"}
    parser.add_argument("--model", required=True, help="folder or Hub id of a QLSeg model")
    parser.add_argument("--dataset", required=True, help="folder or Hub id of a data set")
    parser.add_argument("--split", required=True)
    parser.add_argument("--dataset_config", help="configuration of a Hub data set")
    parser.add_argument("--image_column", help="guessed if not given, as is --label_column")
    parser.add_argument("--label_column")
    parser.add_argument("--streaming", action="store_true", help="read the data set without downloading it")
    parser.add_argument(
        "--scales", type=float, nargs="+", default=[1.0], help="factors on the short side (default: 1)"
    )
    parser.add_argument("--flip", action="store_true", help="also average over the mirrored picture")
    parser.add_argument("--do_reduce_labels", **truth, help="label 0 is void and the others are lowered by one")
    parser.add_argument("--ignore_index", type=int, help="label of pixels that do not count")
    parser.add_argument("--label_map", type=Path, metavar="FILE.json", help='{"stored value": label}')
    parser.add_argument("--max_samples", type=int, help="the first so many pictures only")
    parser.add_argument(
        "--skip_unreadable", action="store_true", help="name pictures that cannot be read instead of refusing them"
    )
    parser.add_argument("--output", type=Path, metavar="FILE.json", help="scores and protocol")
    parser.add_argument("--card", action="store_true", help="also write them into README.md in the model's folder")
    parser.add_argument(
        "--worst", type=Path, metavar="DIR", help=f"overlays of the {NUM_WORST} worst pictures: prediction, reference"
    )
    parser.add_argument("--window_batch_size", type=int, help="windows per forward pass")
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="float32")
    parser.add_argument("--resume", default="true", **truth, help="continue an interrupted run (default: true)")
    return parser.parse_args()


def evaluate(args: argparse.Namespace, state: PartialState) -> None:
    with failing_together(state.num_processes):
        check_outputs(args)
        model, processor = load_network(args.model, label_rules(args), dtype=getattr(torch, args.dtype))
        model = model.to(state.device)
    for is_first in (True, False):  # one process per machine fills the cache, then the others read it
        with failing_together(state.num_processes):
            if state.is_local_main_process is is_first:
                samples = open_dataset(
                    args.dataset,
                    args.split,
                    config=args.dataset_config,
                    image_column=args.image_column,
                    label_column=args.label_column,
                    streaming=args.streaming,
                )
    place = {"rank": state.process_index, "world_size": state.num_processes}
    state_file = args.output and args.output.with_name(f"{args.output.name}.state")
    if state.is_main_process:
        for folder in {args.output and args.output.absolute().parent, args.worst} - {None}:
            remove_partial(folder)
    if state_file and args.resume == "false":
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


def check_outputs(args: argparse.Namespace) -> None:
    """ValueError, before hours of work, if results could not be written."""
    if args.output and (args.output.is_dir() or not args.output.absolute().parent.is_dir()):
        raise ValueError(f"--output {args.output} must be a file in a folder that exists")
    if args.worst and args.worst.exists() and not args.worst.is_dir():
        raise ValueError(f"--worst {args.worst} is a file; give a folder")

    if args.card and not (Path(args.model) / "README.md").is_file():
        raise ValueError(f"--card writes into README.md in the model's folder, and {args.model} holds none")


def label_rules(args: argparse.Namespace) -> dict:
    """The processor's settings that the command line changes."""
    rules = {}
    if args.do_reduce_labels is not None:
        rules["do_reduce_labels"] = args.do_reduce_labels == "true"
    if args.ignore_index is not None:
        rules["ignore_index"] = args.ignore_index
    if args.label_map is not None:
        try:
            table = json.loads(args.label_map.read_text(encoding="utf-8"))
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
        picture, stored = sample.read()
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
    if args.card:
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
        "dataset": args.dataset,
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
            "qlseg_hf": qlseg_hf.__version__,
        },
    }


def weights_of(model: str) -> dict[str, str] | None:
    """sha256 of the weight files in a folder, by name; None for a Hub id, which has a revision."""
    if not Path(model).is_dir():
        return None
    return {path.name: file_sha256(path) for path in sorted(Path(model).glob("*.safetensors"))}


def main() -> int:
    arguments = parse_arguments()
    try:
        state = joined_processes()
    except OtherProcessError:
        return 1
    except ValueError as error:
        sys.exit(f"evaluate.py: {error}")
    if not state.is_main_process:
        logging.disable_progress_bar()

    def run() -> None:
        with deaths_reported():
            evaluate(arguments, state)

    try:
        status = exit_status("evaluate.py", run)
    except OtherProcessError:  # that process prints the sentence
        status = 1
    with suppress(RuntimeError):  # those that have died do not come
        state.wait_for_everyone()  # a launcher stops the others when the first one leaves with an error
    state.destroy_process_group()
    return status


if __name__ == "__main__":
    sys.exit(main())
