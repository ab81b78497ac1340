"""Recipes: one flat YAML file says what a training run does; unknown keys and values of a wrong type are refused."""

import difflib
import os
import re
import types
import typing
from collections import Counter
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path

import yaml

from ..hub.card import last_part, public_name

MOST_BYTES = 1 << 20  # of a recipe file
RECIPES = Path(__file__).parents[1] / "recipes"
OLD_NAMES = {"dataset": "data"}  # of keys, which are still read
SOURCES, PATHS = ("model", "backbone", "data"), ("label_names", "output_dir", "resume")  # Hub ids or paths; paths
ABSOLUTE = r"(~[^/\\]*|[A-Za-z]:|file:/*)?[/\\].*"

# what other trainers call a thing, without signs and in lower case: the key here, or what to do instead
SYNONYMS = {
    "learning_rate": "lr lr0 baselr initiallr maxlr learnrate",
    "head_lr_multiplier": "headlr headlrmult lrmult headlearningrate decoderlr",
    "layer_decay": "layerwisedecay llrd layerlrdecay lrlayerdecay",
    "weight_decay": "wd l2",
    "max_steps": "steps numsteps maxiters maxiter iters numiters iterations numiterations maxtrainsteps totalsteps "
    "numtrainsteps",
    "epochs": "epoch nepochs numepochs maxepoch maxepochs numtrainepochs totalepochs",
    "warmup_steps": "warmup warmupiters numwarmupsteps lrwarmupsteps",
    "poly_power": "lrpower polylrpower",
    "total_batch_size": "batchsize batch trainbatchsize globalbatchsize effectivebatchsize bs totalbatch",
    "per_device_batch_size": "perdevicetrainbatchsize perdevicebatch microbatchsize samplespergpu imgspergpu "
    "batchpergpu perdeviceevalbatchsize trainmicrobatchsizepergpu batchsizepergpu",
    "max_grad_norm": "gradclip gradientclipping gradnorm clipgrad clipgradnorm gradientclipval clipnorm",
    "ema_decay": "ema modelema emarate useema",
    "class_weights": "classweight labelweights weightsperclass",
    "freeze_backbone": "freeze freezeencoder frozenstages frozen",
    "lora": "lorarank lorar peft",
    "gradient_checkpointing": "checkpointing activationcheckpointing gradcheckpointing withcp",
    "compile": "torchcompile dynamo usecompile",
    "crop_size": "imgsz imgsize imagesize inputsize cropsize resolution patchcrop trainsize randomcrop",
    "scale_range": "scale scales randomscale ratiorange multiscale",
    "photometric": "colorjitter colourjitter photometricdistortion augment augmentation hsv",
    "model": "weights checkpoint pretrained pretrainedmodel modelname modelnameorpath loadfrom initfrom basemodel",
    "backbone": "encoder backbonename backboneweights vit",
    "data": "datadir dataroot datapath datasetname datasetpath traindata root",
    "dataset_config": "datasetconfigname configname subset",
    "train_split": "split trainset splittrain trainsplitname",
    "eval_split": "val valsplit validationsplit testsplit validation evalset",
    "image_column": "imagecolumnname imagekey",
    "label_column": "maskcolumn labelkey maskkey annotationcolumn segmentationcolumn",
    "label_names": "classes names numclasses nc numlabels id2label label2id labels classnames labelmapfile",
    "label_colors": "palette colors colormap",
    "do_reduce_labels": "reducelabels reducezerolabel doreducelabel reducelabel",
    "ignore_index": "ignorelabel ignorevalue void voidlabel ignoreid",
    "eval_steps": "evaliters evalinterval evaluationsteps valinterval evalevery valcheckinterval",
    "save_steps": "saveinterval saveperiod checkpointinterval checkpointsteps saveevery",
    "keep_checkpoints": "savetotallimit maxkeepckpts checkpointstotallimit savetopk",
    "output_dir": "savedir outdir output workdir project name rundir logdir resultsdir exp",
    "resume": "resumefrom resumefromcheckpoint autoresume",
    "push_to_hub": "pushhub upload",
    "hub_model_id": "repo repoid hubid hubrepo",
    "hub_private": "private hubprivaterepo",
    "hub_revision": "revision branch",
    "report_to": "logger logwith tracker wandb tensorboard trackers",
    "seed": "randomseed manualseed dataseed",
    "num_workers": "workers dataloadernumworkers nworkers workerspergpu numproc dataloaderworkers",
    "log_pictures": "logimages numpictures visualize",
}
ADVICE = {  # and what no key is: what to do, and its names
    "precision belongs to the launcher: accelerate launch --mixed_precision bf16 -m qlseg_hf.cli.train RECIPE": (
        "mixedprecision precision fp16 bf16 fp8 amp useamp half autocast dtype torchdtype tf32"
    ),
    "devices belong to the launcher: accelerate launch, or torchrun on several CPUs": (
        "device devices gpu gpus numgpus ngpus gpuids cuda cpu usecpu nocuda numprocesses nprocpernode worldsize "
        "localrank strategy distributed ddp fsdp deepspeed accelerator numnodes"
    ),
    "set warmup_steps, which is warm-up epochs x pictures / total_batch_size": "warmupepochs warmupratio",
    "accumulation follows: total_batch_size / (per_device_batch_size x processes)": (
        "gradientaccumulationsteps gradientaccumulation gradaccum gradaccumsteps gradaccumulation accumulate "
        "accumulation accumulationsteps accumulategradbatches accumsteps"
    ),
    "training goes on to max_steps, and the folder best holds the best model until then": (
        "patience earlystop earlystopping earlystoppingpatience"
    ),
    "the optimiser is AdamW with learning_rate and weight_decay": (
        "optimizer optimiser optim momentum beta1 beta2 betas adambeta1 adambeta2 adamepsilon eps"
    ),
    "the schedule is polynomial with warmup_steps, max_steps and poly_power": (
        "scheduler lrscheduler lrschedulertype schedule lrschedule lrpolicy cosine coslr lrf minlr gamma"
    ),
    "weights of the loss belong into config: {class_weight: 1, mask_weight: 20, dice_weight: 1}": (
        "loss losses lossweight lossweights maskweight diceweight ceweight dice box cls focalgamma focalalpha"
    ),
    "settings of the network belong into config: {name: value}": (
        "dropout droppath droppathrate hiddensize numlayers numhiddenlayers attnimplementation"
    ),
    "settings of the processor belong into processor: {name: value}": (
        "size resize windowsize stride windowstride imagemean imagestd mean std dorescale donormalize"
    ),
    "qlseg check RECIPE looks at the data alone": "checkdata checkonly dryrun",
}


class RecipeLoader(yaml.SafeLoader):
    """YAML without what a flat file does not need: code (as in SafeLoader), aliases, which can grow without bounds,
    and keys given twice, of which the first would vanish."""

    def compose_node(self, parent, index):
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases (*) are not read; write the value out")
        return super().compose_node(parent, index)

    def construct_mapping(self, node, deep=False):
        counts = Counter(key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode))
        if twice := [key for key, count in counts.items() if count > 1]:
            raise yaml.YAMLError(f"{twice[0]} is given twice")
        return super().construct_mapping(node, deep)


class RecipeDumper(yaml.SafeDumper):
    """Writes what `RecipeLoader` reads."""

    def ignore_aliases(self, data) -> bool:
        return True


def read_yaml(text: str):
    """Plain data; yaml.YAMLError, RecursionError or ValueError if that is not what the text holds."""
    loader = RecipeLoader(text)
    try:
        return loader.get_single_data()
    finally:
        loader.dispose()


@dataclass(kw_only=True)
class Recipe:
    """What `qlseg train` does. Durations are in optimiser steps, sizes in pixels, learning rates per step.

    Args:
        data: folder or Hub id of the data; see `open_dataset`.
        crop_size: side of the square training sample, pixels.
        total_batch_size: images per optimiser step over all processes.
        per_device_batch_size: images per forward pass; the accumulation steps follow.
        max_steps: optimiser steps; the learning rate reaches 0 there.
        epochs: passes over the training images, from which `max_steps` follow where they are not given.
        output_dir: folder of the run: models, checkpoints, logs, curves, overlays.
        model: QLSeg folder or Hub id to start from; excludes `backbone`. With neither, weights are random.
        backbone: pretrained encoder (folder or Hub id, timm's or transformers' naming) of the kind that
            `config.backbone_config` describes, under a fresh head.
        config: fields of `QLSegConfig` that differ from its defaults or from the model's.
        processor: settings of `QLSegImageProcessor` that differ from its defaults or from the model's.
        dataset_config: configuration of a Hub data set.
        train_split: name of the split to train on.
        eval_split: name of the split to evaluate on.
        image_column: column of the images in a table; guessed if not given.
        label_column: column of the label maps in a table; guessed if not given.
        streaming: read a table from front to back, without download.
        strict: refuse training images that cannot be read, instead of leaving them out and naming them.
        label_names: file, list, {label: name}, or the name of a label set of the package (ade20k, coco-stuff-171,
            pascal-context-59, pascal-context-60); the model's if not given.
        label_colors: {label: [red, green, blue]}, where label maps are stored as colours.
        do_reduce_labels: stored 0 is void and every other label is lowered by one; the model's if not given.
        ignore_index: label of pixels that do not count; the model's if not given.
        label_map: {stored value: label}, applied before the two above; the model's if not given.
        resize_box: [long side, short side] that an image is fitted into at ratio 1; [2048, `crop_size`] if not given.
        scale_range: lowest and highest ratio of the random resize.
        cat_max_ratio: a crop is drawn again while its most frequent label covers this share or more; 1 takes any.
        photometric: distort brightness, contrast, saturation and hue; needs OpenCV.
        warmup_steps: linear warm-up of the learning rate.
        learning_rate: of the encoder.
        head_lr_multiplier: times that rate for everything outside the encoder.
        layer_decay: factor on the rate from each encoder layer to the one before it; 1 in the paper.
        weight_decay: of all weights but the encoder's norms.
        poly_power: power of the learning rate's decay.
        max_grad_norm: L2 norm that gradients are clipped at.
        ema_decay: of the exponential moving average of the weights that is evaluated and saved; none if not given.
        class_weights: factor of each label in the loss, {label: factor} or a list of all; 1 if not given.
        freeze_backbone: train the head alone.
        lora: rank of LoRA adapters on the encoder's attention (needs peft); the head is trained whole. They are merged
            when the model is saved.
        gradient_checkpointing: less memory for more time.
        compile: torch.compile of encoder, pixel encoder and decoder.
        eval_steps: interval of evaluations.
        save_steps: interval of checkpoints.
        keep_checkpoints: newest ones kept for resuming.
        resume: auto (the newest checkpoint of `output_dir`, if any), none, or the path of a checkpoint.
        push_to_hub: upload the best model and the logs at the end.
        hub_model_id: repository to upload to.
        hub_private: make that repository private.
        hub_revision: branch to upload to; `main` if not given.
        report_to: tracker of accelerate: tensorboard, wandb, ...
        seed: of weights, samples and their order.
        num_workers: processes that load data, per training process; of a stream at most one.
        log_pictures: validation overlays logged at every evaluation.
    """

    data: str
    output_dir: str
    crop_size: int | None = None
    total_batch_size: int | None = None
    per_device_batch_size: int | None = None
    max_steps: int | None = None
    epochs: float | None = None
    model: str | None = None
    backbone: str | None = None
    config: dict = field(default_factory=dict)
    processor: dict = field(default_factory=dict)
    dataset_config: str | None = None
    train_split: str = "train"
    eval_split: str = "validation"
    image_column: str | None = None
    label_column: str | None = None
    streaming: bool = False
    strict: bool = False
    label_names: str | dict | list[str] | None = None
    label_colors: dict | None = None
    do_reduce_labels: bool | None = None
    ignore_index: int | None = None
    label_map: dict | None = None
    resize_box: list[int] | None = None
    scale_range: list[float] = field(default_factory=lambda: [0.5, 2.0])
    cat_max_ratio: float = 0.75
    photometric: bool = True
    warmup_steps: int | None = None
    learning_rate: float | None = None
    head_lr_multiplier: float = 10.0
    layer_decay: float = 1.0
    weight_decay: float = 0.01
    poly_power: float = 1.0
    max_grad_norm: float = 35.0
    ema_decay: float | None = None
    class_weights: list[float] | dict | None = None
    freeze_backbone: bool = False
    lora: int | None = None
    gradient_checkpointing: bool = False
    compile: bool = False
    eval_steps: int | None = None
    save_steps: int | None = None
    keep_checkpoints: int = 2
    resume: str = "auto"
    push_to_hub: bool = False
    hub_model_id: str | None = None
    hub_private: bool = False
    hub_revision: str | None = None
    report_to: str | None = None
    seed: int = 0
    num_workers: int = 4
    log_pictures: int = 4

    def __post_init__(self):
        if self.model and self.backbone:
            raise ValueError("model and backbone exclude each other: a model has its backbone; give one of them")
        if self.freeze_backbone and self.lora:
            raise ValueError("freeze_backbone and lora exclude each other; lora alone freezes the encoder's weights")
        if self.push_to_hub and not self.hub_model_id:
            raise ValueError("push_to_hub wants hub_model_id, for instance hub_model_id: me/my-model")
        if not self.push_to_hub and (self.hub_private or self.hub_revision):
            raise ValueError("hub_private and hub_revision want push_to_hub: true")
        positive = ("crop_size", "total_batch_size", "per_device_batch_size", "max_steps", "eval_steps", "save_steps")
        for name in (*positive, "keep_checkpoints"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.epochs is not None and self.epochs <= 0:
            raise ValueError(f"epochs is {self.epochs}; it must be more than 0")
        if self.ema_decay is not None and not 0 < self.ema_decay < 1:
            raise ValueError(f"ema_decay {self.ema_decay} must be between 0 and 1")
        for name in ("resize_box", "scale_range"):
            if getattr(self, name) is not None and len(getattr(self, name)) != 2:
                raise ValueError(f"{name} wants two numbers, got {getattr(self, name)}")

    def accumulation_steps(self, num_processes: int) -> int:
        """Forward passes per optimiser step on each process; ValueError if the total does not divide."""
        per_pass = self.per_device_batch_size * num_processes
        if self.total_batch_size % per_pass:
            raise ValueError(
                f"total_batch_size {self.total_batch_size} is not a multiple of per_device_batch_size "
                f"{self.per_device_batch_size} x {num_processes} processes; change one of them"
            )
        return self.total_batch_size // per_pass

    def published(self) -> "Recipe":
        """The recipe as it lies beside weights and in cards: of what lies on this machine the names, not the paths."""
        values = asdict(self)
        names = {"label_names": values.pop("label_names")} if isinstance(self.label_names, dict) else {}
        values = {key: without_paths(value) for key, value in values.items()} | names
        for key in SOURCES:
            values[key] = values[key] and public_name(getattr(self, key))
        for key in PATHS:
            values[key] = last_part(values[key]) if isinstance(values[key], str) else values[key]
        return Recipe(**values)

    def to_yaml(self) -> str:
        """Every key, in the order of the class."""
        return yaml.dump(asdict(self), Dumper=RecipeDumper, sort_keys=False)


def without_paths(value):
    """A value of a recipe, mappings and lists included, without the folders of this machine."""
    if isinstance(value, dict):
        return {key: without_paths(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [without_paths(entry) for entry in value]
    is_path = isinstance(value, str) and (
        re.fullmatch(ABSOLUTE, value) or (re.search(r"[/\\]", value) and os.path.exists(value))
    )
    return last_part(value) or value if is_path else value


def find_recipe(name: str | Path) -> Path:
    """The file of a recipe: a path, or the name of one that comes with the package.

    Raises:
        ValueError: there is none.
    """
    path, shipped = Path(name), RECIPES / f"{name}.yaml"
    if path.is_file():
        return path
    if Path(name).name == str(name) and shipped.is_file():
        return shipped
    names = ", ".join(sorted(path.stem for path in RECIPES.glob("*.yaml")))
    raise ValueError(f"there is no recipe {str(name)[:80]}; give a YAML file, or one of {names}")


def load_recipe(path: str | Path, overrides: list[str] | tuple[str, ...] = ()) -> Recipe:
    """Read a recipe and apply overrides.

    Args:
        path: see `find_recipe`; a YAML file with one mapping, in which only `config`, `processor`, `label_names`,
            `label_colors`, `label_map` and `class_weights` may hold mappings.
        overrides: `--key value` pairs (or `--key=value`), values in YAML.

    Raises:
        ValueError: not YAML or not flat, an unknown key (the nearest valid one is named), a value of a wrong type, or
            a key without a value.
    """
    path = find_recipe(path)
    try:
        if Path(path).stat().st_size > MOST_BYTES:
            raise ValueError(f"it is larger than {MOST_BYTES} bytes")
        values = read_yaml(Path(path).read_text(encoding="utf-8"))
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise ValueError(f"{path} is not a YAML file: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} must hold `key: value` lines, not {type(values).__name__}")
    overrides = [part for text in overrides for part in (text.split("=", 1) if text.startswith("--") else [text])]
    if len(overrides) % 2:
        raise ValueError(f"{overrides[-1]} has no value; overrides are written --key value")
    for key, text in zip(overrides[::2], overrides[1::2]):
        if not key.startswith("--"):
            raise ValueError(f"{key} is not an override; write --key value")
        try:
            plain = key[2:].replace("-", "_")  # a name that is none stays as it was written
            name = plain if plain in Recipe.__dataclass_fields__ else OLD_NAMES.get(plain, key[2:])
            values = renamed(values) | {name: read_yaml(text)}
        except (yaml.YAMLError, RecursionError, ValueError) as error:
            raise ValueError(f"{key} {text} is not YAML: {' '.join(str(error).split())}") from error
    try:
        return checked(values)
    except ValueError as error:
        raise ValueError(f"{path}{' with these overrides' if overrides else ''}: {error}") from error


def checked(values: dict) -> Recipe:
    """A recipe from what its file and the overrides hold; ValueError for an unknown key or a value of a wrong type."""
    known = {entry.name: entry for entry in fields(Recipe)}
    values = renamed(values)
    for key in values:
        if key not in known:
            raise ValueError(f"unknown key {str(key)[:80]}; {hint_for(str(key), list(known))}")
    required = [name for name, entry in known.items() if entry.default is MISSING and entry.default_factory is MISSING]
    if missing := [name for name in required if values.get(name) is None]:
        raise ValueError(f"the recipe lacks {', '.join(missing)}")
    hints = typing.get_type_hints(Recipe)
    return Recipe(**{key: typed(key, value, hints[key]) for key, value in values.items()})


def renamed(values: dict) -> dict:
    """Values by the present names of their keys; ValueError if one is given by its old name too."""
    for old, new in OLD_NAMES.items():
        if old in values:
            if new in values:
                raise ValueError(f"{old} is the old name of {new}; give {new} alone")
            values = {new if key == old else key: value for key, value in values.items()}
    return values


def hint_for(key: str, known: list[str]) -> str:
    """What to write instead of an unknown key: what it means elsewhere first, then what is spelt nearly alike."""
    plain = re.sub(r"[\W_]", "", key).lower()
    for name in known:
        if plain in (name.replace("_", ""), *SYNONYMS.get(name, "").split()):
            return f"did you mean {name}?"
    for advice, words in ADVICE.items():
        if plain in words.split():
            return advice
    if nearest := difflib.get_close_matches(key, known, n=1, cutoff=0.8):
        return f"did you mean {nearest[0]}?"
    return f"keys are {', '.join(known)}"


def typed(key: str, value, wanted):
    """`value` as the type `wanted`, or ValueError. An integer passes as a float, and so does 1e-5, a text to YAML."""
    options = typing.get_args(wanted) if isinstance(wanted, types.UnionType) else (wanted,)
    for option in options:
        origin = typing.get_origin(option)
        if option is type(None) and value is None:
            return None
        if option is float and isinstance(value, (int, float, str)) and not isinstance(value, bool):
            try:
                return float(value)
            except ValueError:
                continue
        if origin is list and isinstance(value, list):
            return [typed(key, entry, typing.get_args(option)[0]) for entry in value]
        if origin is None and option in (int, bool, str, dict) and type(value) is option:
            return value
    names = " or ".join("null" if o is type(None) else getattr(o, "__name__", str(o)) for o in options)
    raise ValueError(f"{key} wants {names}, got {value!r}")


__all__ = ["Recipe", "load_recipe"]
