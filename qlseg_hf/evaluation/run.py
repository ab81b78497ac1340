# Copyright 2026 The QLSeg for transformers authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""Measuring a model on a data set by the paper's protocol: the work behind `qlseg evaluate`.

Runs on the GPUs that accelerate is told of, in one process, or in several CPU processes under torchrun. Every picture
is counted once, and the result is the same for any number of processes with as many threads each. Memory does not grow
with the data set.
"""

import json
import platform
import sys
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import transformers
from accelerate import PartialState
from transformers.utils import logging

from ..data.datasets import Samples, listed, open_dataset
from ..export.loading import is_file, load_network_or_file
from ..export.runtime import ExportedQLSeg
from ..hub.loading import read_val_fraction
from ..hub.results import add_result_to_card, inference_protocol
from ..model.configuration_qlseg import QLSegConfig, __version__
from ..model.image_processing_qlseg import QLSegImageProcessor
from ..utils.devices import fastest_dtype, place_for_inference
from ..utils.distributed import fail_together, join_processes, report_deaths
from ..utils.files import remove_partial, write_atomically
from ..utils.hashing import file_sha256
from ..utils.text import printable
from .evaluator import Evaluation, evaluate_samples, ignored_label_warnings, never_predicted_warnings
from .examples import Examples, draw_examples
from .metrics import LABEL_SCORES
from .report import label_csv, to_json, write_evaluation_report
from .state import remove_state

NUM_EXAMPLES = 10  # of the worst pictures, and of the best
READING = ("image_column", "label_column", "streaming", "layout", "val_fraction", "label_colors")


@dataclass(frozen=True)
class Request:
    """What to measure and where to put it: the options of `qlseg evaluate`, as its help describes them, and more.

    Args:
        data_val_fraction: where neither `val_fraction` nor the model's recipe, beside it or in the exported file, says
            what was held out.
        label_mapping: {stored value: label}, or a JSON file of it, instead of the processor's; where neither says one,
            that of the layout.
        label_names: of the data, in order, if they are known; they have to be the model's.
    """

    model: str
    data: str
    split: str = "validation"
    dataset_config: str | None = None
    image_column: str | None = None
    label_column: str | None = None
    streaming: bool = False
    layout: str | None = None
    val_fraction: float | None = None
    data_val_fraction: float = 0.2
    label_colors: dict | None = None
    scales: tuple[float, ...] = (1.0,)
    flip: bool = False
    do_reduce_labels: bool | None = None
    ignore_index: int | None = None
    label_mapping: Path | dict | None = None
    label_names: list[str] | None = None
    skip_unreadable: bool = False
    output: Path | None = None
    card: bool = False
    report: Path | None = None
    window_batch_size: int | None = None
    dtype: str = "float32"


def measure(request: Request) -> None:
    """Evaluate in the processes that a launcher has started, or in this one; print the table and write the files.

    Raises:
        ValueError: something does not fit; nothing is written then.
        OtherProcessError: another process failed; that one raises, and says, why.
    """
    state = join_processes()
    if not state.is_main_process:
        logging.disable_progress_bar()
    try:
        with report_deaths():
            _evaluate(request, state)
    finally:
        with suppress(RuntimeError):  # those that have died do not come
            state.wait_for_everyone()  # a launcher stops the others when the first one leaves with an error
        state.destroy_process_group()


def _evaluate(args: Request, state: PartialState) -> None:
    if args.dtype == "auto":
        is_exported = is_file(args.model)  # whose labels were compared in fp32
        fastest = "float32" if is_exported else fastest_dtype(state.device, state.num_processes)
        args = replace(args, dtype=fastest)
    with fail_together(state.num_processes):
        check_outputs(args)
        model, processor = load_network_or_file(args.model, label_rules(args), dtype=getattr(torch, args.dtype))
        if not isinstance(model, ExportedQLSeg):  # which stays on the CPU
            model = place_for_inference(model, state.device)
        args = replace(args, val_fraction=held_out_share(args, model.config))
    for is_first in (True, False):  # one process per machine fills the cache, then the others read it
        with fail_together(state.num_processes):
            if state.is_local_main_process is is_first:
                reading = {name: getattr(args, name) for name in READING}
                samples = open_dataset(args.data, args.split, config=args.dataset_config, **reading)
    with fail_together(state.num_processes):
        processor, notes = apply_layout(args, model, processor, samples)
    for note in [*samples.notes, *notes] if state.is_main_process else ():
        print(f"warning: {printable(note)}", file=sys.stderr)
    state_file = args.output and args.output.with_name(f"{args.output.name}.state")
    page = args.report and report_path(args.report)
    if state.is_main_process:
        for folder in {path.absolute().parent for path in (args.output, page) if path}:
            remove_partial(folder)
    evaluation = evaluate_samples(
        model,
        processor,
        samples,
        state_file=state_file,
        num_examples=NUM_EXAMPLES,
        skip_unreadable=args.skip_unreadable,
        scales=args.scales,
        flip=args.flip,
        window_batch_size=args.window_batch_size,
    )
    examples = draw_examples(model, processor, samples, evaluation) if page else None
    with fail_together(state.num_processes):
        if state.is_main_process:
            protocol = protocol_of(args, model, processor, samples, state)
            if page:
                write_pages(args, page, evaluation, examples, protocol)
            publish(args, evaluation, protocol)
    if state_file:
        remove_state(state_file)


def held_out_share(args: Request, config: QLSegConfig) -> float:
    """Which share of the training images is evaluated on where there is no split for that.

    A larger one than was held out would hold images that the model was trained on; if nothing was, there is none.
    """
    if args.val_fraction is not None:
        return args.val_fraction
    own = read_val_fraction(args.model, config)
    return args.data_val_fraction if own is None else own


def report_path(report: Path) -> Path:
    """The page: `report` itself if it is named like one, else a file in it."""
    return report if report.suffix.lower() in (".html", ".htm") and not report.is_dir() else report / "report.html"


def check_outputs(args: Request) -> None:
    """ValueError, before hours of work, if results could not be written."""
    if args.output and (args.output.is_dir() or not args.output.absolute().parent.is_dir()):
        raise ValueError(f"--output {args.output} must be a file in a folder that exists")
    if args.report and report_path(args.report) == args.report and not args.report.absolute().parent.is_dir():
        raise ValueError(f"--report {args.report} must be a file in a folder that exists, or a folder")
    if args.report and report_path(args.report) != args.report and args.report.exists() and not args.report.is_dir():
        raise ValueError(f"--report {args.report} is a file; give a folder, or a file that ends with .html")
    if args.card and not (Path(args.model) / "README.md").is_file():
        raise ValueError(f"--card writes into README.md in the model's folder, and {args.model} holds none")


def label_rules(args: Request) -> dict:
    """The processor's settings that the command line changes."""
    rules = {}
    if args.do_reduce_labels is not None:
        rules["do_reduce_labels"] = args.do_reduce_labels
    if args.ignore_index is not None:
        rules["ignore_index"] = args.ignore_index
    if isinstance(args.label_mapping, dict):
        rules["label_mapping"] = args.label_mapping
    elif args.label_mapping is not None:
        try:
            table = json.loads(args.label_mapping.read_text(encoding="utf-8-sig"))
            rules["label_mapping"] = {int(value): int(label) for value, label in table.items()}
        except (AttributeError, RecursionError, TypeError, ValueError) as error:
            raise ValueError(f'{args.label_mapping} must be JSON like {{"255": 1}}, stored value to label') from error
    return rules


def apply_layout(args: Request, model, processor, samples: Samples) -> tuple[QLSegImageProcessor, list[str]]:
    """The processor, with the label rules of the data's layout where nobody else says any, and sentences to be read.

    Raises:
        ValueError: the data have the model's labels in another order.
    """
    layout = samples.layout
    own = args.label_names or getattr(layout, "label_names", None)
    names = list(model.config.id2label.values())
    plain, wanted = ([name.strip().casefold() for name in found] for found in (own or names, names))
    if sorted(plain) == sorted(wanted) and plain != wanted:
        number = next(i for i, (theirs, mine) in enumerate(zip(plain, wanted)) if theirs != mine)
        raise ValueError(
            f"the data call label {number} {own[number]!r}, and the model {names[number]!r}: its labels stand in "
            "another order; set label_mapping so that stored values become the model's labels"
        )
    notes = []
    if plain != wanted:
        notes.append(
            f"the data call their labels {listed(list(own))}, and the model {listed(names)}; the scores mean "
            "something only if these are the same"
        )
    is_said = args.label_mapping is not None or processor.label_mapping is not None  # {}: values are labels
    if layout is None or not layout.label_mapping or is_said:
        return processor, notes
    settings = processor.to_dict() | {"label_mapping": layout.label_mapping}
    if layout.ignore_index is not None and args.ignore_index is None:
        settings["ignore_index"] = layout.ignore_index
    notes.append(f"stored values become labels as {layout.name} has them; nobody else says how")
    return type(processor).from_dict(settings | {"do_reduce_labels": bool(args.do_reduce_labels)}), notes


def write_pages(args: Request, page: Path, evaluation: Evaluation, examples: Examples | None, protocol: dict) -> None:
    """The HTML file; in a folder that was asked for also the table of labels."""
    result, title = evaluation.result, f"{args.model} on {args.data}, {protocol['split']}"
    page.parent.mkdir(parents=True, exist_ok=True)
    write_evaluation_report(page, result, examples=examples, protocol=protocol, title=title)
    if page != args.report:
        write_atomically(page.with_name("per_label.csv"), label_csv([(None, result)]))


def publish(args: Request, evaluation: Evaluation, protocol: dict) -> None:
    """Write the JSON and the card, and print the table."""
    result = evaluation.result | {
        kind: [{"miou": miou, "index": index, "name": name} for miou, index, name in getattr(evaluation, kind)]
        for kind in ("worst", "best")
    }
    result["protocol"] = protocol
    if args.output:
        write_atomically(args.output, to_json(result))
    known = never_predicted_warnings(result["never_predicted"])
    known += ignored_label_warnings([row["label"] for row in result["per_label"]], protocol["ignore_index"])
    is_doubtful = not set(result["warnings"]) <= set(known)
    if args.card and not is_doubtful:
        add_result_to_card(Path(args.model) / "README.md", result)
    print_table(result)
    for warning in result["warnings"]:
        print(f"warning: {printable(warning)}")
    if args.card and is_doubtful:
        print("the card is left as it was, because of the warnings")
    if skipped := result["unreadable"]:
        listed = ", ".join(map(printable, skipped))
        print(f"not counted, because they cannot be read: {len(skipped)} pictures, {listed}")
    print()
    for name, value in protocol.items():
        print(f"{name}: {json.dumps(value)}")


def print_table(result: dict) -> None:
    """Scores of every label, then those of the whole data set."""
    names = [printable(row["label"]) for row in result["per_label"]]
    width = max(map(len, names))
    titles = " ".join(f"{title:>6}" for _, title in LABEL_SCORES.values())
    print(f"{'label':{width}}  {titles} {'pixels':>12}")
    for name, row in zip(names, result["per_label"]):
        scores = " ".join(percent(row[column]) for column in LABEL_SCORES)
        print(f"{name:{width}}  {scores} {row['pixels']:12d}")
    low, high = result["miou_interval"]
    print(f"\naAcc {percent(result['aacc'])}   mAcc {percent(result['macc'])}   mIoU {percent(result['miou'])} %")
    print(f"mIoU, 95 % interval over pictures: {percent(low)} to {percent(high)} %")
    print(f"boundary IoU {percent(result['boundary_iou'])}   boundary F1 {percent(result['boundary_f1'])} %")
    print(f"{result['num_pictures']} pictures, {result['pictures_per_second']:.2f} per second")


def percent(fraction: float | None) -> str:
    return "     -" if fraction is None else f"{100 * fraction:6.2f}"


def protocol_of(args, model, processor, samples, state: PartialState) -> dict:
    """All that someone needs to repeat the measurement."""
    is_gpu = model.device.type == "cuda"
    return {
        "model": args.model,
        "weights_sha256": weights_of(args.model, model),
        "revision": getattr(model.config, "_commit_hash", None),
        "dataset": args.data,
        "dataset_config": args.dataset_config,
        "split": samples.split,
        **inference_protocol(processor, args.scales, args.flip),
        "window_batch_size": args.window_batch_size,
        "dtype": args.dtype,
        "processes": state.num_processes,
        "hardware": torch.cuda.get_device_name(model.device) if is_gpu else f"CPU ({platform.machine()})",
        "threads": torch.get_num_threads(),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "qlseg_hf": __version__,
        },
    }


def weights_of(source: str, model) -> dict[str, str] | None:
    """sha256 of the weight files in a folder, or of an exported network, by name; None for a Hub id, which has a
    revision."""
    files = model.files if isinstance(model, ExportedQLSeg) else sorted(Path(source).glob("*.safetensors"))
    return {path.name: file_sha256(path) for path in files} if Path(source).exists() else None


__all__ = ["Request", "measure"]
