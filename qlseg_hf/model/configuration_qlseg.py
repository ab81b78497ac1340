# Copyright 2026 The QLSeg for transformers authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""Configuration of QLSeg: every number of the network.

Source: Xie et al., "Multi-query and multi-level enhanced network for semantic segmentation", Pattern Recognition 2024.
"""

import copy
import math
import os
from pathlib import Path
from typing import ClassVar

from huggingface_hub.dataclasses import strict
from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig
from transformers.backbone_utils import BackboneConfigMixin
from transformers.utils import TRANSFORMERS_DYNAMIC_MODULE_NAME

from .configuration_checks import (
    check_no_kernels,
    check_number_of_names,
    check_ranges,
    check_spelling,
    check_spelling_of,
    number_keys,
    raise_value_errors,
    structure_of,
)

__version__ = "0.1.0"

# Fields of `QLSegConfig` that are at least 1, and those that are finite and not negative
COUNTS = (
    "hidden_size",
    "num_attention_heads",
    "intermediate_size",
    "num_pixel_encoder_layers",
    "num_pixel_encoder_heads",
    "num_pixel_encoder_points",
    "pixel_encoder_intermediate_size",
    "num_group_norm_groups",
    "num_decoder_blocks",
    "num_decoder_layers",
    "num_query_fusion_groups",
)
FACTORS = (
    "position_temperature",
    "initializer_range",
    "class_weight",
    "mask_weight",
    "dice_weight",
    "no_object_weight",
    "focal_alpha",
    "focal_gamma",
)

KNOWN_BACKBONES = (
    "dinov2, dinov2_with_registers, dinov3_vit, beit and timm_backbone are, and load_vit_weights puts the weights of "
    "a vit into a qlseg_vit"
)

ONLY_LABEL2ID = "label2id alone names no labels; give id2label={0: 'road', ...}, from which label2id follows"

# How the Auto classes find ours in a model's folder
AUTO_MAPS = {
    "qlseg": {
        "AutoConfig": "configuration_qlseg.QLSegConfig",
        "AutoModelForSemanticSegmentation": "modeling_qlseg.QLSegForSemanticSegmentation",
    },
    "qlseg_vit": {
        "AutoConfig": "configuration_qlseg.QLSegViTConfig",
        "AutoBackbone": "modeling_qlseg.QLSegViTBackbone",
    },
}

# How `pipeline` finds our class in a model's folder, by names in the code that was saved there.
CUSTOM_PIPELINES = {
    "image-segmentation": {
        "impl": "segmentation.QLSegImageSegmentationPipeline",
        "pt": ["AutoModelForSemanticSegmentation"],
        "type": "image",
    }
}


def as_pair(size: int | list[int] | tuple[int, int]) -> tuple[int, int]:
    """(height, width) from one side of a square or from a pair."""
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def copy_code(folder: str | os.PathLike) -> None:
    """Copy this folder's modules into a saved folder, which then works without the package (`trust_remote_code`)."""
    for path in sorted(Path(__file__).parent.glob("*.py")):
        if path.name != "__init__.py":
            (Path(folder) / path.name).write_bytes(path.read_bytes())


class _StoredConfig(PreTrainedConfig):
    """Configuration files may be a stranger's. What is saved names the code that is saved with it."""

    def save_pretrained(self, save_directory: str | os.PathLike, *args, **kwargs):
        """As `PreTrainedConfig.save_pretrained`, and with the code; also how the model's folder gets its code."""
        os.makedirs(save_directory, exist_ok=True)
        copy_code(save_directory)
        self.auto_map = dict(AUTO_MAPS[self.model_type])
        super().save_pretrained(save_directory, *args, **kwargs)

    @classmethod
    def from_dict(cls, config_dict: dict, **kwargs):
        """As that of transformers; ValueError for a configuration of another kind, whose model would be random, and
        for a keyword that is nearly a field's name.
        """
        check_no_kernels(config_dict)
        if config_dict.get("model_type", cls.model_type) != cls.model_type:
            raise ValueError(f"the configuration is of a {config_dict['model_type']!r:.80}, not of a {cls.model_type}")
        if not kwargs.get("return_unused_kwargs"):
            check_spelling(cls, kwargs)
        return super().from_dict(config_dict, **kwargs)

    def structure(self) -> dict[str, str]:
        """See `structure_of`."""
        return structure_of(self)


@raise_value_errors
@strict
class QLSegViTConfig(BackboneConfigMixin, _StoredConfig):
    r"""Plain ViT encoder: pre-norm, exact GELU, biases everywhere, no final norm; ViT-L/16.

    Args:
        hidden_size, num_hidden_layers, num_attention_heads, intermediate_size: width, depth, heads, MLP width.
        image_size: side in pixels, or (height, width), that the position embeddings are stored for.
        patch_size: side of a patch in pixels.
        num_channels: channels of `pixel_values`.
        layer_norm_eps: epsilon of both layer norms of a layer.
        drop_path_rate: stochastic depth of the MLP branch in the last layer; it rises linearly from 0 in the first.
        initializer_range: standard deviation of fresh weights.
        use_class_token: a class token goes through the layers with the patches and is cut off the maps, as in the
            pretraining of most ViTs. False, as in the paper, drops it before the first layer.
        out_indices, out_features: which stages are returned, shallow to deep. As in every backbone of transformers,
            stage 0 ("stem") is the embedding and stage i the output of the i-th layer, so the paper's 0-based layers
            7, 15, 23 are stages 8, 16, 24.
    """

    model_type: ClassVar[str] = "qlseg_vit"

    hidden_size: int = 1024
    num_hidden_layers: int = 24
    num_attention_heads: int = 16
    intermediate_size: int = 4096
    image_size: int | list[int] | tuple[int, int] = 640
    patch_size: int = 16
    num_channels: int = 3
    layer_norm_eps: float | int = 1e-6
    drop_path_rate: float | int = 0.3
    initializer_range: float | int = 0.02
    use_class_token: bool = False
    _out_features: list[str] | None = None
    _out_indices: list[int] | None = None

    def __post_init__(self, **kwargs):
        self.stage_names = ["stem"] + [f"stage{i}" for i in range(1, self.num_hidden_layers + 1)]
        indices = kwargs.pop("out_indices", None)
        try:
            self.set_output_features_output_indices(out_indices=indices, out_features=kwargs.pop("out_features", None))
        except (IndexError, TypeError) as error:
            raise ValueError(f"out_indices {indices} must be stages 0..{self.num_hidden_layers}") from error
        super().__post_init__(**kwargs)

    def validate_architecture(self):
        """ValueError if a number is out of range or two do not go together; `@strict` calls it, as does saving."""
        super().validate_architecture()
        counts = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "patch_size")
        check_ranges(self, (*counts, "num_channels"), ("layer_norm_eps", "initializer_range"))
        if not self.out_indices:
            raise ValueError("out_indices is empty; at least one stage must be returned")
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} is not a multiple of num_attention_heads {self.num_attention_heads}"
            )
        if not 0 <= self.drop_path_rate < 1:
            raise ValueError(f"drop_path_rate {self.drop_path_rate} is outside [0, 1)")
        if not isinstance(self.image_size, int) and len(self.image_size) != 2:
            raise ValueError(f"image_size {self.image_size} must be one side or (height, width)")
        if any(side < self.patch_size or side % self.patch_size for side in as_pair(self.image_size)):
            raise ValueError(f"image_size {self.image_size} is not a multiple of patch_size {self.patch_size}")


@raise_value_errors
@strict
class QLSegConfig(_StoredConfig):
    r"""QLSeg: backbone, deformable pixel encoder, attention-to-mask decoder and loss. Defaults are vit-l-ade20k.

    Args:
        backbone_config: configuration of any `AutoBackbone` whose feature maps share one grid (DINOv2, DINOv3, BEiT,
            `TimmBackboneConfig`); `QLSegViTConfig` if not given. Its `out_indices` are the levels, shallow to deep.
            Images are padded to whole patches, so sizes and windows of the processor are best multiples of the patch
            (DINOv2: 14, for instance 518), with mean and deviation of the encoder's pretraining.
        hidden_size, num_attention_heads, intermediate_size: width C, heads and FFN width of the decoder.
        num_pixel_encoder_layers: layers P of multi-scale deformable attention.
        num_pixel_encoder_heads, num_pixel_encoder_points: heads, and sampling points per head and level.
        pixel_encoder_intermediate_size: FFN width of the pixel encoder; its model width is the backbone's.
        num_group_norm_groups: groups of the group norm after each level's 1 x 1 convolution.
        num_decoder_blocks, num_decoder_layers: blocks T, and layers per block and branch n.
        num_query_fusion_groups: runs G that the labels are cut into by query fusion.
        mask_threshold: tokens below this mask probability are hidden from a query in the next block.
        position_temperature: base of the sine position code.
        dropout: residuals, FFN and attention weights of the decoder.
        initializer_range: standard deviation of fresh linear layers.
        class_weight, mask_weight, dice_weight: weights of the three loss terms.
        no_object_weight: weight of "no object" in the classification term.
        focal_alpha, focal_gamma: constants of the focal loss.
        semantic_loss_ignore_index: label of pixels that are left out of classification and are background of every
            mask.
        mask_activation: what makes mask logits probabilities. "sigmoid", the paper's: each by itself, with a focal
            loss. "softmax": the masks of an image compete for its pixels, with a cross-entropy in place of the focal
            loss (weight `mask_weight`), a dice loss of the softmax (`dice_weight`), and half of both for each earlier
            block; ignored pixels count for none.
        use_label_classifier: add the logits of a linear layer on the deepest level to the mask logits of every block.
        num_detail_channels: width of the convolutions over the image that sharpen the mask logits, which are then on a
            grid of 4 pixels; 0, the paper's, leaves them on the patch grid.
        label_weights: factor of each label's terms in the loss; None for 1, as in the paper.
        palette: one RGB triple (0..255) per label, or None.
    """

    model_type: ClassVar[str] = "qlseg"
    sub_configs: ClassVar[dict] = {"backbone_config": AutoConfig}
    # so that Trainer's evaluation loop gets `logits` alone as predictions
    keys_to_ignore_at_inference: ClassVar[list[str]] = [
        "class_queries_logits",
        "masks_queries_logits",
        "hidden_states",
        "attentions",
        "window_offsets",
        "loss_terms",
    ]

    backbone_config: dict | PreTrainedConfig | None = None
    hidden_size: int = 512
    num_attention_heads: int = 16
    intermediate_size: int = 2048
    num_pixel_encoder_layers: int = 6
    num_pixel_encoder_heads: int = 8
    num_pixel_encoder_points: int = 4
    pixel_encoder_intermediate_size: int = 1024
    num_group_norm_groups: int = 32
    num_decoder_blocks: int = 3
    num_decoder_layers: int = 3
    num_query_fusion_groups: int = 10
    mask_threshold: float | int = 0.4
    position_temperature: float | int = 10000.0
    dropout: float | int = 0.1
    initializer_range: float | int = 0.02
    class_weight: float | int = 1.0
    mask_weight: float | int = 20.0
    dice_weight: float | int = 1.0
    no_object_weight: float | int = 0.1
    focal_alpha: float | int = 0.25
    focal_gamma: float | int = 2.0
    semantic_loss_ignore_index: int = 255
    mask_activation: str = "sigmoid"
    use_label_classifier: bool = False
    num_detail_channels: int = 0
    label_weights: list[float | int] | None = None
    palette: list[list[int]] | None = None

    def __post_init__(self, **kwargs):
        for of_the_code in ("custom_pipelines", "qlseg_hf_version"):  # what wrote the file; `to_dict` says what writes
            kwargs.pop(of_the_code, None)
        if self.backbone_config is None:
            self.backbone_config = QLSegViTConfig(out_indices=[8, 16, 24])
        elif isinstance(self.backbone_config, dict):
            values = dict(self.backbone_config)
            model_type = values.pop("model_type", "qlseg_vit")
            own = model_type == QLSegViTConfig.model_type
            if not own and model_type not in CONFIG_MAPPING:
                raise ValueError(f"model_type {model_type!r} of backbone_config is none; {KNOWN_BACKBONES}")
            self.backbone_config = QLSegViTConfig(**values) if own else AutoConfig.for_model(model_type, **values)
        check_spelling_of(self.backbone_config)
        num_labels = kwargs.get("num_labels")
        if num_labels is not None and (type(num_labels) is not int or num_labels < 1):
            raise ValueError(f"num_labels is {num_labels!r}; a number of at least one label is needed")
        if self.id2label is not None:
            check_number_of_names(self.id2label, num_labels)
        elif self.label2id:
            raise ValueError(ONLY_LABEL2ID)
        elif num_labels is None:
            kwargs["num_labels"] = 150
        super().__post_init__(**kwargs)
        self.align_labels()

    def __setattr__(self, name: str, value) -> None:
        """`id2label` is kept by number and in their order, whenever it is set; the names are read by their places.

        Raises:
            ValueError: `mask_activation` or `label_weights`, which count from now on, have a value that is none.
        """
        if name == "mask_activation" and value not in ("sigmoid", "softmax"):
            raise ValueError(f"mask_activation is {value!r}; sigmoid or softmax is wanted")
        if name == "label_weights" and any(not 0 <= weight < math.inf for weight in value or ()):
            raise ValueError(f"label_weights must be finite numbers, 0 or more; got {value[:8]}")
        super().__setattr__(name, number_keys(value) if name == "id2label" and value else value)
        if name == "id2label" and value:
            self.label2id = {label: number for number, label in self.id2label.items()}

    @classmethod
    def from_dict(cls, config_dict: dict, **kwargs):
        """As `PreTrainedConfig.from_dict`; a new `id2label` decides what `label2id` is.

        `label_weights` of a training with other names are not taken for those of the new labels. ValueError if
        `num_labels` is given too and is another number.
        """
        number = kwargs.get("num_labels")
        if names := kwargs.get("id2label"):
            check_number_of_names(names, number)
            kwargs.pop("label2id", None)
            if number_keys(names) != number_keys(config_dict.get("id2label") or {}):
                kwargs.setdefault("label_weights", None)
        elif kwargs.get("label2id"):
            raise ValueError(ONLY_LABEL2ID)
        elif number is not None and number != len(config_dict.get("id2label") or {}):
            config_dict = {key: value for key, value in config_dict.items() if key not in ("id2label", "label2id")}
        return super().from_dict(config_dict, **kwargs)

    def align_labels(self) -> None:
        """Make `label2id` follow `id2label`; drop palette and weights of another length (`id2label` was replaced).

        Raises:
            ValueError: the keys of `id2label` are not 0..K-1.
        """
        self.id2label = dict(self.id2label)  # set anew, because someone may have changed it in place
        if list(self.id2label) != list(range(len(self.id2label))):
            found = ", ".join(str(number) for number in [*self.id2label][:8])
            raise ValueError(f"id2label must have the keys 0..{len(self.id2label) - 1}, got {found}, ...")
        if self.palette is not None and len(self.palette) != self.num_labels:
            self.palette = None
        if self.label_weights is not None and len(self.label_weights) != self.num_labels:
            self.label_weights = None

    def structure(self) -> dict[str, str]:
        names = (*COUNTS, "use_label_classifier", "num_detail_channels")
        own = {name: value for name, value in structure_of(self).items() if name in names}
        return own | {f"backbone_config.{name}": value for name, value in structure_of(self.backbone_config).items()}

    def validate_architecture(self):
        """ValueError if a number is out of range or two do not go together; `@strict` calls it, as does saving."""
        super().validate_architecture()
        check_ranges(self, COUNTS, FACTORS)
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} is not a multiple of num_attention_heads {self.num_attention_heads}"
            )
        if self.position_temperature == 0:
            raise ValueError("position_temperature is 0; a positive number is wanted, such as 10000")
        if self.focal_alpha > 1:
            raise ValueError(f"focal_alpha {self.focal_alpha} is outside [0, 1]")
        if self.num_detail_channels < 0 or self.num_detail_channels % 8:
            raise ValueError(f"num_detail_channels is {self.num_detail_channels}; a multiple of 8, or 0, is wanted")
        for name in ("mask_threshold", "dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} {getattr(self, name)} is outside [0, 1)")

    def validate_labels(self):
        """ValueError if names or colours of the labels are none, or the ignored one is among them."""
        if self.num_labels < 1:
            raise ValueError(f"num_labels is {self.num_labels}; at least one label is needed")
        if any(len(colour) != 3 or not 0 <= min(colour) <= max(colour) <= 255 for colour in self.palette or ()):
            raise ValueError(f"palette must hold one RGB triple of 0..255 per label; got {self.palette[:4]}")
        if 0 <= self.semantic_loss_ignore_index < self.num_labels:
            raise ValueError(
                f"semantic_loss_ignore_index {self.semantic_loss_ignore_index} is one of the {self.num_labels} "
                "labels; choose a value outside 0..num_labels - 1, for instance -100, in the processor too"
            )

    @property
    def custom_pipelines(self) -> dict:
        """What `pipeline` asks for: our class, if this is the code of a model's folder, and nothing in the package.

        The package has put its class into the place of the stock one; named here, it would need `trust_remote_code`.
        A copy, because `pipeline` writes classes into it.
        """
        is_in_folder = __name__.startswith(f"{TRANSFORMERS_DYNAMIC_MODULE_NAME}.")
        return copy.deepcopy(CUSTOM_PIPELINES) if is_in_folder else {}

    def to_dict(self) -> dict:
        """All fields, and what a saved folder says of its code."""
        return super().to_dict() | {"custom_pipelines": CUSTOM_PIPELINES, "qlseg_hf_version": __version__}

    def to_diff_dict(self) -> dict:
        """What `config.json` holds; the labels always, of which transformers leaves out its own default of two."""
        return super().to_diff_dict() | {"id2label": self.id2label, "label2id": self.label2id}


__all__ = ["QLSegConfig", "QLSegViTConfig", "__version__", "as_pair", "copy_code"]
