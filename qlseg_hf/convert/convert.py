"""A checkpoint of the published implementation to a folder for `from_pretrained`.

Every key of the file is used or dropped with a reason; anything missing, unexpected, misshapen or not finite is named,
and then nothing is written.
"""

import math
import os
import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from huggingface_hub.errors import StrictDataclassError
from tqdm import tqdm

from ..data.labels import read_label_file
from ..hub.card import converted_model_card
from ..hub.saving import QLSegForSemanticSegmentation, QLSegImageProcessor
from ..hub.upload import prepare_repo, upload_folder
from ..model.configuration_qlseg import QLSegConfig, QLSegViTConfig
from ..releases import RELEASES
from ..utils.files import file_sha256, partial_folder
from ..utils.text import first_line
from .config_text import numbers_from_text
from .key_table import DROPPED_KEYS, key_family, new_names, old_name
from .reader import ConversionError, read_checkpoint


@dataclass
class Conversion:
    """A converted checkpoint, before it is written."""

    config: QLSegConfig
    processor: QLSegImageProcessor
    state_dict: dict[str, torch.Tensor]
    used: dict[str, list[str]]  # source key -> our keys
    dropped: dict[str, str]  # source key -> reason
    notes: list[str] = field(default_factory=list)


# ---------------------------------------------------------------------- three sources of numbers, which must agree


def numbers_from_shapes(state_dict: dict[str, torch.Tensor]) -> dict:
    """What the shapes give. Raises ConversionError if the keys that say it are missing."""

    def shape(key: str) -> torch.Size:
        if key not in state_dict:
            raise ConversionError(f"the checkpoint has no key {key}, so it is no QLSeg network (or a stripped one)")
        return state_dict[key].shape

    def count(pattern: str, start: int = 0) -> int:
        """How many indices follow each other from `start`; a stray one is named later, as an unexpected key."""
        indices = {int(match[1]) for key in state_dict if (match := re.match(pattern, key))}
        return next(n for n in range(len(indices) + 1) if start + n not in indices)

    patch = shape("backbone.patch_embed.projection.weight")
    tokens = shape("backbone.pos_embed")[1] - 1
    queries = shape("decode_head.query_1.weight")
    if len(patch) != 4 or len(queries) != 2:
        raise ConversionError("backbone.patch_embed.projection.weight or decode_head.query_1.weight is misshapen")
    levels = count(r"decode_head\.(?:query|input_proj|proj_norm|atm_0_decoder)_(\d+)\.", start=1)
    side = math.isqrt(tokens)
    if side * side != tokens:
        raise ConversionError(
            f"backbone.pos_embed has {tokens} positions beside the class token, which is no square grid"
        )
    return {
        "width": patch[0],
        "num_channels": patch[1],
        "patch_size": patch[2],
        "num_layers": count(r"backbone\.layers\.(\d+)\."),
        "mlp_width": shape("backbone.layers.0.ffn.layers.0.0.weight")[0],
        "image_size": side * patch[2],
        "num_labels": queries[0],
        "decoder_width": queries[1],
        "num_levels": levels,
        "num_blocks": count(r"decode_head\.atm_(\d+)_decoder_"),
        "num_decoder_layers": count(r"decode_head\.atm_0_decoder_1\.layers\.(\d+)\."),
        "decoder_mlp_width": shape("decode_head.atm_0_decoder_1.layers.0.linear1.weight")[0],
        "num_pixel_layers": count(r"decode_head\.transformer\.encoder\.layers\.(\d+)\."),
        "pixel_mlp_width": shape("decode_head.transformer.encoder.layers.0.linear1.weight")[0],
        "num_samples": shape("decode_head.transformer.encoder.layers.0.self_attn.attention_weights.weight")[0],
        "num_runs": shape("decode_head.QFM_1.weights.weight")[1] // max(levels, 1),
    }


def numbers_from_variant(name: str) -> dict:
    """What a released variant gives."""
    if name not in RELEASES:
        raise ConversionError(f"unknown variant {name!r}; choose one of {', '.join(RELEASES)}")
    config = QLSegConfig.for_release(name)
    backbone = config.backbone_config
    processing = QLSegImageProcessor.for_release(name)
    return {
        "width": backbone.hidden_size,
        "num_channels": backbone.num_channels,
        "patch_size": backbone.patch_size,
        "num_layers": backbone.num_hidden_layers,
        "num_heads": backbone.num_attention_heads,
        "image_size": backbone.image_size,
        "drop_path": backbone.drop_path_rate,
        "norm_eps": backbone.layer_norm_eps,
        "layers": [stage - 1 for stage in backbone.out_indices],
        "num_labels": config.num_labels,
        "num_levels": len(backbone.out_indices),
        "decoder_width": config.hidden_size,
        "decoder_heads": config.num_attention_heads,
        "num_blocks": config.num_decoder_blocks,
        "num_decoder_layers": config.num_decoder_layers,
        "num_pixel_layers": config.num_pixel_encoder_layers,
        "num_groups": config.num_query_fusion_groups,
        "threshold": config.mask_threshold,
        "mean": [255 * m for m in processing.image_mean],
        "std": [255 * s for s in processing.image_std],
        "reduce_labels": processing.do_reduce_labels,
        "slides": True,
        "window": processing.window_size,
        "stride": processing.window_stride,
        "short_side": processing.size.shortest_edge,
    }


def agreed_numbers(shapes: dict, text: dict | None, variant: str | None) -> dict:
    """One value per number. The file's text comes before the variant; whatever two sources state must agree."""
    if text is None and variant is None:
        raise ConversionError(
            "the checkpoint holds no configuration text of mmsegmentation (meta.config or meta.cfg), and shapes do "
            f"not give heads, levels and threshold; say --variant with one of {', '.join(RELEASES)}"
        )
    sources = {
        "shapes": shapes,
        "text": text or {},
        f"variant {variant}": numbers_from_variant(variant) if variant else {},
    }
    numbers, origin = {}, {}
    for source, values in sources.items():
        for key, value in values.items():
            if key in numbers and not same(numbers[key], value):
                raise ConversionError(
                    f"{key.replace('_', ' ')} is {numbers[key]} by the {origin[key]} but {value} by the {source}"
                )
            numbers.setdefault(key, value)
            origin.setdefault(key, source)
    needed = ("num_heads", "layers", "decoder_heads", "threshold", "num_groups", "mean", "std", "short_side")
    if unknown := [key.replace("_", " ") for key in needed if key not in numbers]:
        raise ConversionError(
            f"the configuration text does not state {', '.join(unknown)}; say --variant to fill them in"
        )
    run = -(-numbers["num_labels"] // numbers["num_groups"])
    if -(-numbers["num_labels"] // run) != numbers["num_runs"]:
        raise ConversionError(
            f"query fusion has {numbers['num_runs']} runs of labels by the shapes, which {numbers['num_labels']} "
            f"labels in {numbers['num_groups']} groups do not give"
        )
    if len(numbers["layers"]) != numbers["num_levels"]:
        raise ConversionError(
            f"layers {numbers['layers']} are returned, but the shapes have {numbers['num_levels']} levels"
        )
    return numbers


def same(a, b) -> bool:
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b))
    return math.isclose(a, b, rel_tol=1e-6)


# ------------------------------------------------------------------------------------------------------ conversion


def convert(
    state_dict: dict[str, torch.Tensor], meta: dict, variant: str | None = None, labels_file: Path | None = None
) -> Conversion:
    """Configuration, processor and renamed weights of a checkpoint.

    Args:
        state_dict: of the published implementation, without a prefix.
        meta: of mmcv (`config`, `CLASSES`, `PALETTE`), of mmengine (`cfg`, `dataset_meta`), or empty.
        variant: one of the released names, needed if there is no configuration text.
        labels_file: label names that take the place of those in the file.

    Raises:
        ConversionError: sources contradict each other, or keys are missing, unexpected, misshapen or not finite.
    """
    text = next((meta[key] for key in ("config", "cfg") if isinstance(meta.get(key), str)), None)
    try:
        shapes = numbers_from_shapes(state_dict)
        numbers = agreed_numbers(shapes, numbers_from_text(text) if text is not None else None, variant)
    except (ArithmeticError, AttributeError, LookupError, TypeError) as error:
        raise ConversionError(f"shapes or configuration text are not QLSeg's: {first_line(error)}") from error
    notes = []
    names, palette = stored_labels(meta)
    if labels_file is not None:
        names, palette = read_label_file(labels_file)
    elif names is not None:
        if not isinstance(names, (list, tuple)) or not all(isinstance(name, str) for name in names):
            raise ConversionError("the classes in the checkpoint are no label names; give them with --labels")
        names = list(names)
    elif variant is not None:
        config = QLSegConfig.for_release(variant)
        names, palette = list(config.id2label.values()), config.palette
    else:
        names, palette = [f"LABEL_{i}" for i in range(numbers["num_labels"])], None
        notes.append("The file names no labels and --labels was not given: they are called LABEL_0, LABEL_1, ...")
    if len(names) != numbers["num_labels"]:
        raise ConversionError(f"{len(names)} label names for a network of {numbers['num_labels']} labels")
    try:
        config, processor = make_config(numbers, names, palette), make_processor(numbers)
    except (ArithmeticError, LookupError, StrictDataclassError, TypeError) as error:
        raise ConversionError(f"the numbers of the configuration text make no network: {first_line(error)}") from error
    weights, used, dropped = rename(state_dict, config)
    if "short_side" in numbers and "window" in numbers and numbers["short_side"] < numbers["window"]:
        notes.append("The short side is below the window, so windows are smaller than the network was trained for.")
    return Conversion(config, processor, weights, used, dropped, notes)


def stored_labels(meta: dict) -> tuple:
    """Label names and palette as mmcv or mmengine store them, unchecked; None for what there is not."""
    dataset = meta.get("dataset_meta")
    for part in (meta, dataset if isinstance(dataset, dict) else {}):
        for classes, palette in (("CLASSES", "PALETTE"), ("classes", "palette")):
            if (names := part.get(classes)) is not None and names not in ((), []):
                return names, part.get(palette)
    return None, None


def make_config(numbers: dict, names: list[str], palette) -> QLSegConfig:
    heads = QLSegConfig().num_pixel_encoder_heads  # no source states it; 8 in every release
    points, rest = divmod(numbers["num_samples"], heads * numbers["num_levels"])
    if rest:
        raise ConversionError(f"{numbers['num_samples']} attention weights are not {heads} heads x levels x points")
    if palette is not None:
        try:
            palette = np.asarray(palette)
        except ValueError:  # rows of different lengths
            palette = np.zeros(0)
        is_whole = palette.dtype.kind in "iu" and palette.shape == (len(names), 3)
        if not is_whole or palette.min() < 0 or palette.max() > 255:
            raise ConversionError(f"the palette must hold {len(names)} RGB triples of 0..255")
        palette = palette.tolist()
    backbone = QLSegViTConfig(  # type: ignore[call-arg]  # out_indices is a property of the library's mixin
        hidden_size=numbers["width"],
        num_hidden_layers=numbers["num_layers"],
        num_attention_heads=numbers["num_heads"],
        intermediate_size=numbers["mlp_width"],
        image_size=numbers["image_size"],
        patch_size=numbers["patch_size"],
        num_channels=numbers["num_channels"],
        layer_norm_eps=numbers.get("norm_eps", 1e-6),
        drop_path_rate=numbers.get("drop_path", 0.0),
        out_indices=[layer + 1 for layer in numbers["layers"]],
    )
    return QLSegConfig(
        backbone_config=backbone,
        hidden_size=numbers["decoder_width"],
        num_attention_heads=numbers["decoder_heads"],
        intermediate_size=numbers["decoder_mlp_width"],
        num_pixel_encoder_layers=numbers["num_pixel_layers"],
        num_pixel_encoder_heads=heads,
        num_pixel_encoder_points=points,
        pixel_encoder_intermediate_size=numbers["pixel_mlp_width"],
        num_decoder_blocks=numbers["num_blocks"],
        num_decoder_layers=numbers["num_decoder_layers"],
        num_query_fusion_groups=numbers["num_groups"],
        mask_threshold=numbers["threshold"],
        id2label=dict(enumerate(names)),
        palette=palette,
    )


def make_processor(numbers: dict) -> QLSegImageProcessor:
    return QLSegImageProcessor(
        size={"shortest_edge": numbers["short_side"]},
        do_sliding_window=numbers.get("slides", True),
        window_size=numbers.get("window", numbers["image_size"]),
        window_stride=numbers.get("stride", numbers["image_size"]),
        image_mean=[round(m / 255, 12) for m in numbers["mean"]],
        image_std=[round(s / 255, 12) for s in numbers["std"]],
        do_reduce_labels=numbers.get("reduce_labels", False),
    )


def rename(state_dict: dict[str, torch.Tensor], config: QLSegConfig):
    """Our weights, {source key: our keys}, {dropped key: reason}. Every key is accounted for, or this raises."""
    with torch.device("meta"):
        wanted = {key: value.shape for key, value in QLSegForSemanticSegmentation(config).state_dict().items()}
    parts, used, dropped, problems = {}, {}, {}, []
    for key, value in tqdm(state_dict.items(), desc="reading weights", unit="key", leave=False):
        reason = next((reason for pattern, reason in DROPPED_KEYS.items() if re.fullmatch(pattern, key)), None)
        if reason:
            dropped[key] = reason
            continue
        names = new_names(key)
        if not names:
            problems.append(f"unexpected key {key}")
            continue
        if not torch.isfinite(value).all():
            problems.append(f"{key} holds values that are not finite")
        if key == "backbone.pos_embed":
            value = value[:, 1:]
        if value.shape[0] % len(names):
            problems.append(f"{key} has shape {tuple(value.shape)}, whose rows are not q, k and v")
            continue
        used[key] = names
        for name, part in zip(names, value.chunk(len(names))):
            shape = wanted.get(name, wanted.get(name.split("[")[0], [None])[1:])
            if not shape:
                problems.append(f"unexpected key {key}: this network has no {name}")
            elif tuple(part.shape) != tuple(shape):
                problems.append(f"{key} has shape {tuple(part.shape)} instead of {tuple(shape)}")
            else:
                parts[name] = part
    stacked = {name for name in wanted if f"{name}[0]" in parts}
    for name in wanted:
        members = [f"{name}[{i}]" for i in range(wanted[name][0])] if name in stacked else [name]
        problems += [f"missing key {old_name(member)}" for member in members if member not in parts]
    if problems:
        more = f" (and {len(problems) - 6} more)" if len(problems) > 6 else ""
        raise ConversionError(f"the checkpoint does not fit: {'; '.join(problems[:6])}{more}")
    weights = {
        name: torch.stack([parts[f"{name}[{i}]"] for i in range(wanted[name][0])])
        if name in stacked
        else parts[name].clone(memory_format=torch.contiguous_format)
        for name in wanted
    }
    return weights, used, dropped


# ---------------------------------------------------------------------------------------------- writing the folder


def save(conversion: Conversion, folder: Path, source: Path, dtype: torch.dtype | None) -> None:
    """Write model, processor and card beside `folder`, then move them into place in one step."""
    with torch.device("meta"):
        model = QLSegForSemanticSegmentation(conversion.config)
    model.load_state_dict(conversion.state_dict, assign=True)
    if dtype is not None:
        model.to(dtype)
    try:
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise ConversionError(f"{folder} exists and is not an empty folder; choose another or remove it")
        with partial_folder(folder.name, folder.parent) as beside:
            model.save_pretrained(beside)
            conversion.processor.save_pretrained(beside)
            families = Counter(
                (key_family(old), ", ".join(map(key_family, new))) for old, new in conversion.used.items()
            )
            card = converted_model_card(
                model,
                conversion.processor,
                name=folder.resolve().name,
                source_name=source.name,
                source_sha256=file_sha256(source),
                key_families=[(count, old, new) for (old, new), count in families.items()],
                used=conversion.used,
                dropped=conversion.dropped,
                notes=conversion.notes,
            )
            (beside / "README.md").write_text(card, encoding="utf-8")
            os.replace(beside, folder)
    except OSError as error:
        raise ConversionError(f"{folder} cannot be written: {first_line(error)}") from error


def convert_file(
    path: Path,
    folder: Path,
    *,
    variant: str | None = None,
    labels: Path | None = None,
    ema: bool = False,
    dtype: str | None = None,
    push_to_hub: str | None = None,
    private: bool = False,
    revision: str | None = None,
) -> None:
    """Convert a file, write the folder, say what was done, and upload it if that is asked for.

    Args:
        path: `.pth` or `.safetensors` file of the published implementation.
        folder: to make; it must not exist, or be empty.
        variant: released network, if the file does not say.
        labels: file of label names, instead of the checkpoint's.
        ema: take the moving average of the weights instead of them.
        dtype: of the weights, a name such as "bfloat16"; as stored if not given.
        push_to_hub: id of the model repository to upload to.
        private: make that repository private.
        revision: branch to upload to.

    Raises:
        ConversionError: a sentence on what is wrong with the checkpoint or the arguments; nothing is written then.
    """
    checkpoint = read_checkpoint(path, ema)
    try:
        conversion = convert(checkpoint.state_dict, checkpoint.meta, variant, labels)
    except ValueError as error:
        raise ConversionError(f"{path}: {error}") from error
    # the file's own keys
    conversion.used = {checkpoint.keys[name]: ours for name, ours in conversion.used.items()}
    conversion.dropped = {checkpoint.keys[name]: why for name, why in conversion.dropped.items()} | checkpoint.dropped
    conversion.notes = checkpoint.notes + conversion.notes
    place = {"private": private or None, "revision": revision}
    if push_to_hub:
        push_to_hub = prepare_repo(push_to_hub, **place)  # before there is a folder, if it is refused
    elif any(place.values()):
        raise ConversionError("--private and --revision belong to --push_to_hub ID; give that too")
    save(conversion, folder, path, getattr(torch, dtype) if dtype else None)
    parameters = sum(value.numel() for value in conversion.state_dict.values())
    print(f"{folder}: {parameters / 1e6:.1f} M parameters, {len(conversion.used)} keys used")
    for reason in dict.fromkeys(conversion.dropped.values()):
        keys = [key for key, why in conversion.dropped.items() if why == reason]
        print(f"dropped {', '.join(keys) if len(keys) < 4 else f'{len(keys)} keys ({keys[0]}, ...)'}: {reason}")
    for note in conversion.notes:
        print(note)
    if push_to_hub:
        branch = f" --revision {revision}" if revision else ""
        print(f"uploading; to repeat that alone: hf upload {push_to_hub} {folder}{branch}")
        print(upload_folder(folder, push_to_hub, commit_message="Upload converted QLSeg", **place))


__all__ = ["Conversion", "convert", "convert_file", "save"]
