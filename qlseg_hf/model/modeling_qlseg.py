# Copyright 2026 The QLSeg for transformers authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""QLSeg in the order the data meets it: plain ViT, deformable pixel encoder, attention-to-mask decoder, scores.

Source: Xie et al., "Multi-query and multi-level enhanced network for semantic segmentation", Pattern Recognition 2024.
Letters: B batch, L levels (= decoder branches), T decoder blocks, K labels (= queries; query i belongs to label i),
D encoder width, C decoder width, h x w patch grid, N = h * w tokens, H x W pixels.

One file, long as it is, because a model of transformers is read from top to bottom in one. What fresh heads add to the
published network lies in fresh_heads.py.

The pipeline is imported though nothing here uses it: of a model's folder transformers fetches this module and what it
imports, and a model that is saved again takes its code from there.
"""

import copy
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.backbone_utils import BackboneMixin
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BackboneOutput
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.processing_utils import Unpack
from transformers.utils import ModelOutput, TransformersKwargs, can_return_tuple, logging

from .backbones import build_backbone, check_maps, pad_to_patches, patch_size_of, unused_weights
from .configuration_checks import number_keys
from .configuration_qlseg import QLSegConfig, QLSegViTConfig, as_pair
from .deformable_attention import Grid, position_code, sample_levels, softmax_of_few
from .fresh_heads import QLSegDetail, QLSegGroupNorm, QLSegLabelClassifier, compete, without_padding
from .loss_qlseg import check_labels, segmentation_loss, sum_terms
from .scores import combine
from .segmentation import QLSegImageSegmentationPipeline  # noqa: F401 (see the module's docstring)

logger = logging.get_logger(__name__)

HUB_KEYWORDS = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder")
FORWARD_KEYWORDS = frozenset(TransformersKwargs.__annotations__)


@dataclass
class QLSegOutput(ModelOutput):
    """Output of `QLSegForSemanticSegmentation`.

    Attributes:
        loss: scalar, if `labels` were given.
        logits: (B, K, H, W) semantic scores at the size of `pixel_values`: for every label the sum over queries of
            class probability times mask probability. They are not log-probabilities and do not sum to 1. None in
            training mode with labels.
        class_queries_logits: (B, K, K + 1) of the last block, before softmax; the last column is "no object".
        masks_queries_logits: (B, K, h, w) of the last block, before sigmoid, on the patch grid; with
            `num_detail_channels` on a grid of 4 pixels.
        hidden_states: of the backbone, if requested.
        attentions: (B, heads, N, N) of each backbone layer, if requested.
        window_offsets: as given to `forward`, so that the image processor can put windows together again.
        loss_terms: (3,) what classification, mask and dice add to `loss`, over all blocks, for logs: without gradient.
    """

    loss: torch.FloatTensor | None = None
    logits: torch.FloatTensor | None = None
    class_queries_logits: torch.FloatTensor | None = None
    masks_queries_logits: torch.FloatTensor | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None
    window_offsets: torch.LongTensor | None = None
    loss_terms: torch.FloatTensor | None = None


def eager_attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention written out. query (B, heads, Q, c), key and value (B, heads, N, c); the mask is added to the scores.

    Returns (B, Q, heads, c) and the weights (B, heads, Q, N), as transformers' attention interface wants them.
    """
    scores = (query @ key.transpose(-2, -1)) * scaling  # (B, heads, Q, N)
    if attention_mask is not None:
        scores = scores + attention_mask
    # softmax in fp32: sums over thousands of tokens drift in half precision
    weights = F.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
    weights = F.dropout(weights, p=dropout, training=module.training)
    return (weights @ value).transpose(1, 2), weights


class QLSegAttention(nn.Module):
    """Multi-head attention with biases, through transformers' attention interface."""

    is_causal = False

    def __init__(self, config: QLSegConfig | QLSegViTConfig, dropout: float = 0.0):
        super().__init__()
        self.config = config
        self.num_heads = config.num_attention_heads
        self.scaling = (config.hidden_size // config.num_attention_heads) ** -0.5
        self.attention_dropout = dropout
        self.q_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.k_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.v_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.o_proj = nn.Linear(config.hidden_size, config.hidden_size)

    def split_heads(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return hidden_states.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # (B, heads, N, c)

    def attend(self, query, key, value, mask=None, output_attentions=False):
        """query (B, Q, C), key and value (B, N, C), mask (B, 1, Q, N), 0 or -inf. Returns (B, Q, C), weights."""
        implementation = self.config._attn_implementation
        if self.config.model_type == QLSegConfig.model_type and implementation != "eager":
            implementation = "sdpa"  # the decoder's masks are nothing for flash and flex
        if output_attentions:
            implementation = "eager"  # the only one that returns its weights
        interface: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(implementation, eager_attention_forward)
        out, weights = interface(
            self,
            self.split_heads(query),
            self.split_heads(key),
            self.split_heads(value),
            mask,
            scaling=self.scaling,
            dropout=self.attention_dropout if self.training else 0.0,
        )
        return self.o_proj(out.flatten(2)), weights

    def forward(
        self, hidden_states: torch.Tensor, **kwargs: Unpack[TransformersKwargs]
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """(B, N, C) -> (B, N, C), and the weights if `output_attentions` asks for them."""
        query, key, value = self.q_proj(hidden_states), self.k_proj(hidden_states), self.v_proj(hidden_states)
        return self.attend(query, key, value, output_attentions=bool(kwargs.get("output_attentions")))


# ---------------------------------------------------------------------------------------------- encoder: plain ViT


class QLSegViTEmbeddings(nn.Module):
    """Patches plus position embeddings, behind a class token (with its position in it) if there is one."""

    def __init__(self, config: QLSegViTConfig):
        super().__init__()
        self.patch_size = config.patch_size
        self.num_channels = config.num_channels
        self.grid = tuple(side // config.patch_size for side in as_pair(config.image_size))
        self.projection = nn.Conv2d(config.num_channels, config.hidden_size, config.patch_size, config.patch_size)
        self.position_embeddings = nn.Parameter(torch.zeros(1, self.grid[0] * self.grid[1], config.hidden_size))
        self.class_token = nn.Parameter(torch.zeros(1, 1, config.hidden_size)) if config.use_class_token else None

    def forward(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, Grid]:
        pixel_values = pad_to_patches(pixel_values, as_pair(self.patch_size), self.num_channels)
        grid = (pixel_values.shape[-2] // self.patch_size, pixel_values.shape[-1] // self.patch_size)
        patches = self.projection(pixel_values.to(self.projection.weight.dtype))  # (B, D, h, w)
        positions = resize_positions(self.position_embeddings, self.grid, grid)
        tokens = torch.add(positions, patches.flatten(2).transpose(1, 2))  # (B, N, D), D innermost in memory
        if self.class_token is not None:
            tokens = torch.cat([self.class_token.expand(tokens.shape[0], -1, -1), tokens], dim=1)  # (B, 1 + N, D)
        return tokens, grid


def resize_positions(positions: torch.Tensor, old: Grid, new: Grid) -> torch.Tensor:
    """(1, N, D) position embeddings of grid `old` on grid `new`: bicubic, half-pixel centres, no antialias."""
    if not torch.compiler.is_exporting() and old == new:  # an exported graph is for every grid
        return positions
    maps = positions.transpose(1, 2).unflatten(2, old)  # (1, D, h, w)
    # in fp32: bicubic resampling drifts in half precision
    maps = F.interpolate(maps.float(), size=new, mode="bicubic", align_corners=False).to(positions.dtype)
    return maps.flatten(2).transpose(1, 2)


class QLSegViTMLP(nn.Module):
    def __init__(self, config: QLSegViTConfig):
        super().__init__()
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.fc2(F.gelu(self.fc1(hidden_states)))


class QLSegViTLayer(GradientCheckpointingLayer):
    """Pre-norm layer. Stochastic depth acts on the MLP branch only, as in the published network."""

    def __init__(self, config: QLSegViTConfig, drop_path: float):
        super().__init__()
        self.layernorm_before = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.attention = QLSegAttention(config)
        self.layernorm_after = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = QLSegViTMLP(config)
        self.drop_path = drop_path

    def forward(
        self, hidden_states: torch.Tensor, **kwargs: Unpack[TransformersKwargs]
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        attended, weights = self.attention(self.layernorm_before(hidden_states), **kwargs)
        hidden_states = hidden_states + attended
        residual = self.mlp(self.layernorm_after(hidden_states))
        return hidden_states + drop_path(residual, self.drop_path, self.training), weights


def drop_path(hidden_states: torch.Tensor, rate: float, training: bool) -> torch.Tensor:
    """Zero whole samples of a residual branch with probability `rate`; the kept ones are divided by `1 - rate`."""
    if not training or rate == 0.0:
        return hidden_states
    keep = hidden_states.new_empty(len(hidden_states), *(1,) * (hidden_states.ndim - 1)).bernoulli_(1 - rate)
    return hidden_states * keep / (1 - rate)


def _check_keywords(model: nn.Module, kwargs: dict) -> None:
    """TypeError for a keyword of `forward` that transformers does not define: it would change nothing."""
    if unknown := sorted(set(kwargs) - FORWARD_KEYWORDS):
        raise TypeError(f"{type(model).__name__}.forward() got unknown keywords {unknown}; see its arguments")


def _asked_outputs(config: QLSegConfig | QLSegViTConfig, kwargs: dict) -> dict:
    """Which hidden states and attentions a call asks for; where it does not say, the configuration does."""
    names = ("output_hidden_states", "output_attentions")
    return {name: getattr(config, name) if kwargs.get(name) is None else kwargs[name] for name in names}


class QLSegPreTrainedModel(PreTrainedModel):
    """What encoder and whole network share: fresh weights by the paper, and what transformers may do with them."""

    config: QLSegConfig
    base_model_prefix = "model"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = False  # the loss is a mean over the batch; Trainer divides it by the accumulation steps
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _no_split_modules = ["QLSegViTEmbeddings", "QLSegViTLayer", "QLSegPixelEncoderLayer", "QLSegDecoderLayer"]

    def save_pretrained(
        self, save_directory: str | os.PathLike, is_main_process: bool = True, state_dict: dict | None = None, **kwargs
    ) -> None:
        """As that of transformers; ValueError if the configuration is no longer that of the network.

        Warns of weights that have other names than in a network that is loaded, as below adapters of peft.
        """
        self.check_structure()
        lost = sorted(self.weight_names - {name for name, _ in self.named_parameters()})
        if lost and state_dict is None and not self._hf_peft_config_loaded:
            logger.warning(
                f"{len(lost)} weights are saved under other names, as adapters of peft give them, and from_pretrained "
                f"will not find them ({lost[0]}, ...): save what merge_and_unload gives, or the adapted model"
            )
        super().save_pretrained(save_directory, is_main_process, state_dict, **kwargs)

    def _remember_build(self) -> None:
        """What `save_pretrained` compares with: the sizes and the names of weights that the network is built with."""
        self.structure = self.config.structure()
        self.weight_names = {name for name, _ in self.named_parameters()}

    def check_structure(self) -> None:
        """ValueError if the configuration has other sizes than the network was built with."""
        now = self.config.structure()
        if changed := sorted(f"{name} is {value}" for name, value in now.items() - self.structure.items()):
            raise ValueError(
                f"the configuration was changed after the network was built ({', '.join(changed[:4])}), which changes "
                "no weights; set it back, or build another network by it"
            )

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        """Linear: normal, sigma 0.02. Packed projections and 1 x 1 convolutions: Xavier. Queries, levels: sigma 1."""
        std = self.config.initializer_range
        if isinstance(module, QLSegViTEmbeddings):
            init.trunc_normal_(module.position_embeddings, std=std)
            if module.class_token is not None:
                init.trunc_normal_(module.class_token, std=std)
            init.trunc_normal_(module.projection.weight, std=std)
            init.zeros_(module.projection.bias)
        elif isinstance(module, nn.Conv2d):
            if module.kernel_size == (1, 1):
                if hasattr(module, "_starts_at_zero"):
                    init.zeros_(module.weight)
                else:
                    init.xavier_uniform_(module.weight)
                init.zeros_(module.bias)
        elif isinstance(module, nn.Linear):
            if not hasattr(module, "_is_packed_projection"):
                init.trunc_normal_(module.weight, std=std)
            else:  # q, k and v were one (3C, C) matrix: Xavier's bound is that of its fan-in plus fan-out
                bound = math.sqrt(6 / (4 * module.in_features))
                init.uniform_(module.weight, -bound, bound)
            init.zeros_(module.bias)
        elif isinstance(module, (nn.LayerNorm, nn.GroupNorm)):
            init.ones_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, QLSegPixelEncoder):
            init.normal_(module.level_embeddings)
        elif isinstance(module, QLSegDecoder):
            init.normal_(module.queries)
        elif isinstance(module, QLSegDetail):
            for convolution in (module.stem[0], module.stem[3], module.mix[2]):
                init.kaiming_uniform_(convolution.weight, a=math.sqrt(5))
                init.zeros_(convolution.bias)


class QLSegViTBackbone(BackboneMixin, QLSegPreTrainedModel):
    """Plain ViT as an `AutoBackbone`: (B, 3, H, W) to one (B, D, h, w) map per stage in `out_features`."""

    config: QLSegViTConfig

    def __init__(self, config: QLSegViTConfig):
        super().__init__(config)
        self.num_features = [config.hidden_size] * (config.num_hidden_layers + 1)
        self.embeddings = QLSegViTEmbeddings(config)
        rates = [
            config.drop_path_rate * i / max(config.num_hidden_layers - 1, 1) for i in range(config.num_hidden_layers)
        ]
        self.layers = nn.ModuleList(QLSegViTLayer(config, rate) for rate in rates)
        self.post_init()
        self._remember_build()

    def get_input_embeddings(self) -> nn.Module:
        return self.embeddings.projection

    @can_return_tuple
    def forward(self, pixel_values: torch.Tensor, **kwargs: Unpack[TransformersKwargs]) -> BackboneOutput:
        """
        Args:
            pixel_values: (B, 3, H, W), normalised; any H and W, padded with zeros at the bottom and right to whole
                patches.
            kwargs: `output_hidden_states=True` also returns the embedding and every layer's output, (B, N, D) each,
                with a class token (B, 1 + N, D) (numbers return those alone, with None in place of the others);
                `output_attentions=True` the weights, (B, heads, N, N) per layer, computed by the eager implementation;
                `return_dict=False` a tuple.

        Raises:
            ValueError: `pixel_values` has another number of dimensions or channels, or whole numbers.
            TypeError: a keyword is not one of transformers'.
        """
        _check_keywords(self, kwargs)
        asked = _asked_outputs(self.config, kwargs)
        hidden_states, grid = self.embeddings(pixel_values)  # (B, N, D)
        # only what is returned is kept: 24 layers of a ViT-L at 640 px are 150 MiB, their eager attentions 3.7 GiB
        chosen = _chosen_states(asked["output_hidden_states"], len(self.stage_names))
        kept = [i in chosen or stage in self.out_features for i, stage in enumerate(self.stage_names)]
        states, attentions = [hidden_states if kept[0] else None], []
        for layer, is_kept in zip(self.layers, kept[1:]):
            hidden_states, weights = layer(hidden_states, output_attentions=asked["output_attentions"])
            states.append(hidden_states if is_kept else None)
            attentions.append(weights if asked["output_attentions"] else None)
        num_prefix_tokens = int(self.config.use_class_token)
        maps = tuple(
            state[:, num_prefix_tokens:].transpose(1, 2).unflatten(2, grid)  # (B, D, h, w)
            for stage, state in zip(self.stage_names, states)
            if stage in self.out_features
        )
        return BackboneOutput(
            feature_maps=maps,
            hidden_states=tuple(x if i in chosen else None for i, x in enumerate(states)) if chosen else None,
            attentions=tuple(attentions) if asked["output_attentions"] else None,
        )


def _chosen_states(output_hidden_states: bool | int | list[int], num_states: int) -> set[int]:
    """Numbers of the hidden states to return; negative ones count from the end, what is out of range chooses none."""
    if isinstance(output_hidden_states, bool):
        return set(range(num_states)) if output_hidden_states else set()
    numbers = [output_hidden_states] if isinstance(output_hidden_states, int) else output_hidden_states
    return {number % num_states for number in numbers if -num_states <= number < num_states}


# ------------------------------------------------------------------- pixel encoder: deformable attention, L levels


class QLSegDeformableAttention(nn.Module):
    def __init__(self, config: QLSegConfig, width: int, num_levels: int):
        super().__init__()
        self.shape = (config.num_pixel_encoder_heads, num_levels, config.num_pixel_encoder_points)
        samples = math.prod(self.shape)
        self.sampling_offsets = nn.Linear(width, samples * 2)
        self.attention_weights = nn.Linear(width, samples)
        self.value_proj = nn.Linear(width, width)
        self.output_proj = nn.Linear(width, width)

    def forward(self, hidden_states: torch.Tensor, position: torch.Tensor, grid: Grid) -> torch.Tensor:
        query = hidden_states + position
        offsets = self.sampling_offsets(query).unflatten(-1, (*self.shape, 2))
        weights = self.attention_weights(query).unflatten(-1, (self.shape[0], -1))
        del query  # as large as `hidden_states`, and not needed while sampling
        weights = softmax_of_few(weights).unflatten(-1, self.shape[1:])
        # (B, L * N, heads, c), without position code
        value = self.value_proj(hidden_states).unflatten(-1, (self.shape[0], -1))
        return self.output_proj(sample_levels(value, offsets, weights, grid))


class QLSegPixelEncoderLayer(GradientCheckpointingLayer):
    """Post-norm layer. `alpha=2` is real: the published attention adds its residual and the layer adds it again."""

    def __init__(self, config: QLSegConfig, width: int, num_levels: int):
        super().__init__()
        self.self_attn = QLSegDeformableAttention(config, width, num_levels)
        self.norm1 = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, config.pixel_encoder_intermediate_size)
        self.fc2 = nn.Linear(config.pixel_encoder_intermediate_size, width)
        self.norm2 = nn.LayerNorm(width)

    def forward(self, hidden_states: torch.Tensor, position: torch.Tensor, grid: Grid) -> torch.Tensor:
        attended = self.self_attn(hidden_states, position, grid)
        hidden_states = self.norm1(torch.add(attended, hidden_states, alpha=2))
        return self.norm2(hidden_states + self.fc2(F.relu(self.fc1(hidden_states), inplace=True)))


class QLSegPixelEncoder(nn.Module):
    """L feature maps (B, D, h, w), shallow to deep, to L token sequences (B, N, D) that have exchanged information."""

    def __init__(self, config: QLSegConfig, width: int, num_levels: int):
        super().__init__()
        if width % config.num_group_norm_groups or width % config.num_pixel_encoder_heads or width % 4:
            raise ValueError(
                f"backbone width {width} must be a multiple of 4, of num_group_norm_groups "
                f"{config.num_group_norm_groups} and of num_pixel_encoder_heads {config.num_pixel_encoder_heads}"
            )
        self.config = config
        self.projections = nn.ModuleList(nn.Conv2d(width, width, 1) for _ in range(num_levels))
        self.norms = nn.ModuleList(QLSegGroupNorm(config.num_group_norm_groups, width) for _ in range(num_levels))
        self.level_embeddings = nn.Parameter(torch.zeros(num_levels, width))
        self.layers = nn.ModuleList(
            QLSegPixelEncoderLayer(config, width, num_levels) for _ in range(config.num_pixel_encoder_layers)
        )

    def forward(self, maps: tuple[torch.Tensor, ...], grid: Grid) -> tuple[torch.Tensor, ...]:
        levels = [norm(project(x)) for x, project, norm in zip(maps, self.projections, self.norms)]
        hidden_states = torch.cat([level.flatten(2).transpose(1, 2) for level in levels], dim=1)  # (B, L * N, D)
        code = position_code(
            grid, hidden_states.shape[-1], self.config.position_temperature, hidden_states.device
        )  # (N, D)
        position = (code.to(hidden_states.dtype) + self.level_embeddings[:, None]).flatten(0, 1)  # (L * N, D)
        for layer in self.layers:
            hidden_states = layer(hidden_states, position, grid)
        return hidden_states.unflatten(1, (len(maps), -1)).unbind(1)


# -------------------------------------------------------------- decoder: attention to mask, L query sets, T blocks


class QLSegDecoderLayer(GradientCheckpointingLayer):
    """Self-attention, masked cross-attention and FFN, post-norm. Returns queries and mask scores (last of a block)."""

    def __init__(self, config: QLSegConfig, is_last: bool):
        super().__init__()
        self.is_last = is_last
        self.self_attn = QLSegAttention(config, config.dropout)
        for projection in (self.self_attn.q_proj, self.self_attn.k_proj, self.self_attn.v_proj):
            projection._is_packed_projection = True
        self.cross_attn = QLSegAttention(config, config.dropout)
        self.norm1 = nn.LayerNorm(config.hidden_size)
        self.norm2 = nn.LayerNorm(config.hidden_size)
        self.norm3 = nn.LayerNorm(config.hidden_size)
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self, hidden_states: torch.Tensor, encoder_hidden_states: torch.Tensor, mask: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        hidden_states = self.norm1(hidden_states + self.dropout(self.self_attn(hidden_states)[0]))
        attn = self.cross_attn
        query = attn.q_proj(hidden_states)
        key, value = attn.k_proj(encoder_hidden_states), attn.v_proj(encoder_hidden_states)
        # The mean of the heads' scores is one product over the full width, because the heads share one scale.
        scores = (query * (attn.scaling / attn.num_heads)) @ key.transpose(1, 2) if self.is_last else None  # (B, K, N)
        hidden_states = self.norm2(hidden_states + self.dropout(attn.attend(query, key, value, mask)[0]))
        hidden = self.dropout(F.relu(self.fc1(hidden_states), inplace=True))
        return self.norm3(hidden_states + self.dropout(self.fc2(hidden))), scores


class QLSegQueryFusion(nn.Module):
    """Weights the branches per channel, from the maximum of the queries over runs of consecutive labels."""

    def __init__(self, config: QLSegConfig, num_levels: int):
        super().__init__()
        self.weights = nn.Linear(num_levels * self._cut_runs(config), num_levels)

    def _cut_runs(self, config: QLSegConfig) -> int:
        """Set how long the runs are; returns how many."""
        self.run = -(-config.num_labels // config.num_query_fusion_groups)
        num_runs = -(-config.num_labels // self.run)
        self.num_missing = num_runs * self.run - config.num_labels
        return num_runs

    @torch.no_grad()
    def resize(self, config: QLSegConfig) -> None:
        """Runs for another number of labels, in place; weights are fresh if the number of runs is another."""
        num_levels = self.weights.out_features
        width = num_levels * self._cut_runs(config)
        if width != self.weights.in_features:
            weight = self.weights.weight.new_empty(num_levels, width)
            nn.init.trunc_normal_(weight, std=config.initializer_range)
            _replace_linear(self.weights, weight, self.weights.bias.new_zeros(num_levels))

    def forward(self, queries: list[torch.Tensor]) -> torch.Tensor:
        stacked = torch.stack(queries, dim=1)  # (B, L, K, C)
        runs = F.pad(stacked, (0, 0, 0, self.num_missing), value=float("-inf"))
        maxima = runs.unflatten(2, (-1, self.run)).amax(dim=3).flatten(1, 2)  # (B, L * runs, C)
        share = self.weights(maxima.transpose(1, 2)).softmax(dim=-1)  # (B, C, L)
        return (share.transpose(1, 2)[:, :, None] * stacked).sum(dim=1)  # (B, K, C)


class QLSegDecoderBlock(nn.Module):
    """n layers per branch, the mask logits that the branches add up to, and the fusion of their queries."""

    def __init__(self, config: QLSegConfig, num_levels: int):
        super().__init__()
        self.branches = nn.ModuleList(
            nn.ModuleList(
                QLSegDecoderLayer(config, j == config.num_decoder_layers - 1) for j in range(config.num_decoder_layers)
            )
            for _ in range(num_levels)
        )
        self.query_fusion = QLSegQueryFusion(config, num_levels)

    def forward(self, queries: list[torch.Tensor], levels: list[torch.Tensor], mask: torch.Tensor | None):
        out, mask_logits = [], None
        for layers, hidden_states, level in zip(self.branches, queries, levels):
            for layer in layers:
                hidden_states, scores = layer(hidden_states, level, mask)
            mask_logits = scores if mask_logits is None else mask_logits + scores
            out.append(hidden_states)
        return out, self.query_fusion(out), mask_logits  # L x (B, K, C), (B, K, C), (B, K, N)


class QLSegDecoder(nn.Module):
    """L token sequences, shallow to deep, to fused queries and mask logits of T blocks. Branch 0 is deepest."""

    def __init__(self, config: QLSegConfig, width: int, num_levels: int):
        super().__init__()
        self.config = config
        self.queries = nn.Parameter(torch.zeros(num_levels, config.num_labels, config.hidden_size))
        self.projections = nn.ModuleList(nn.Linear(width, config.hidden_size) for _ in range(num_levels))
        self.norms = nn.ModuleList(nn.LayerNorm(config.hidden_size) for _ in range(num_levels))
        self.blocks = nn.ModuleList(QLSegDecoderBlock(config, num_levels) for _ in range(config.num_decoder_blocks))

    def forward(self, levels: tuple[torch.Tensor, ...], grid: Grid) -> tuple[torch.Tensor, torch.Tensor]:
        """L x (B, N, D), shallow to deep -> fused queries (T, B, K, C) and mask logits (T, B, K, h, w)."""
        deep_to_shallow = zip(reversed(levels), self.projections, self.norms)
        projected = [norm(project(level)) for level, project, norm in deep_to_shallow]  # L x (B, N, C)
        queries = [branch.expand(levels[0].shape[0], -1, -1) for branch in self.queries]  # L x (B, K, C)
        fused, mask_logits, mask = [], [], None
        for block in self.blocks:
            queries, fused_queries, scores = block(queries, projected, mask)
            mask = token_mask(scores, self.config.mask_threshold)
            fused.append(fused_queries)
            mask_logits.append(scores.unflatten(-1, grid))
        return torch.stack(fused), torch.stack(mask_logits)


@torch.no_grad()
def token_mask(mask_logits: torch.Tensor, threshold: float) -> torch.Tensor:
    """(B, K, N) mask logits -> (B, 1, K, N) to add to attention scores, for all layers of a block.

    0 for tokens with a mask probability of at least `threshold`, -inf for others. A query that would see nothing sees
    everything.
    """
    visible = mask_logits.float().sigmoid() >= threshold
    visible |= ~visible.any(dim=-1, keepdim=True)
    return torch.zeros_like(mask_logits).masked_fill(~visible, float("-inf"))[:, None]


# --------------------------------------------------------------------------------------------- the whole network


class QLSegForSemanticSegmentation(QLSegPreTrainedModel):
    """QLSeg with its loss: any height and width, any number of labels, any plain backbone.

    `from_pretrained(..., id2label=..., reuse_labels=True)` keeps what was learnt for labels of the same name when the
    label set changes; see `resize_labels`.
    """

    vit_backbone_class = QLSegViTBackbone  # the package has a subclass of it

    def __init__(self, config: QLSegConfig):
        super().__init__(config)
        config.align_labels()  # `from_pretrained(id2label=...)` sets that field alone
        config.validate_architecture()  # and it sets any number without a look at it
        config.validate_labels()
        self.num_labels = config.num_labels  # that the weights are for, whatever becomes of the configuration
        # Classes that come from a model's folder are in no registry, and each Auto class imports its own copy of them:
        # what is ours is told by `model_type`, here and wherever a class would do.
        is_ours = config.backbone_config.model_type == QLSegViTConfig.model_type
        make_backbone = self.vit_backbone_class._from_config if is_ours else build_backbone
        self.backbone = make_backbone(config.backbone_config)
        self.patch_size = patch_size_of(self.backbone)
        widths = self.backbone.channels
        self.pixel_encoder = QLSegPixelEncoder(config, widths[0], len(widths))
        self.decoder = QLSegDecoder(config, widths[0], len(widths))
        self.class_head = nn.Linear(config.hidden_size, config.num_labels + 1)
        self.label_classifier = QLSegLabelClassifier(config, widths[0]) if config.use_label_classifier else None
        self.detail = QLSegDetail(config, widths[0]) if config.num_detail_channels else None
        self.post_init()
        self._remember_build()

    def check_structure(self) -> None:
        self.check_num_labels()
        super().check_structure()

    def check_num_labels(self) -> None:
        """ValueError if the configuration's labels were changed to others than the weights are for."""
        if self.config.num_labels != self.num_labels:
            raise ValueError(
                f"the configuration has {self.config.num_labels} labels and the weights are for {self.num_labels}; "
                "give the network a configuration of its own with its labels, and change them by resize_labels"
            )

    def get_input_embeddings(self) -> nn.Module:
        """The patch projection, whatever the backbone; torchao's loader and reentrant checkpointing ask for it."""
        return next(module for module in self.backbone.modules() if isinstance(module, nn.Conv2d))

    @cached_property
    def unused_weights(self) -> list[str]:
        """Names (below `backbone`) of parameters that no feature map depends on; found when they are asked for."""
        return unused_weights(self.backbone)

    def freeze_unused_weights(self) -> None:
        """Freeze `unused_weights`, so that every weight that is trained has a gradient.

        `train()` does it, and DistributedDataParallel makes it happen before it counts on gradients.
        """
        parameters = dict(self.backbone.named_parameters())
        for name in self.unused_weights:
            if name in parameters:  # FSDP and adapters rename some
                parameters[name].requires_grad_(False)

    def train(self, mode: bool = True):
        """As `nn.Module.train`. Training begins here, so what no gradient can reach is frozen.

        An encoder of which no weight is trained stays in eval mode: its drop path and dropout would be noise on maps
        that cannot get used to it.
        """
        if mode:
            self.freeze_unused_weights()
        super().train(mode)
        if not any(parameter.requires_grad for parameter in self.backbone.parameters()):
            self.backbone.eval()
        return self

    @property
    def _ddp_params_and_buffers_to_ignore(self) -> list[str]:
        """DistributedDataParallel asks for this first of all; nothing is to be ignored, but see `train`."""
        self.freeze_unused_weights()
        return []

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor,
        labels: torch.Tensor | None = None,
        window_offsets: torch.Tensor | None = None,
        loss_normalizers: torch.Tensor | None = None,
        output_logits: bool | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> QLSegOutput:
        """
        Args:
            pixel_values: (B, 3, H, W), normalised; any H and W.
            labels: (B, H', W') integers, 0..K-1 or `config.semantic_loss_ignore_index`; H' x W' may differ from H x W,
                mask logits are upsampled to it.
            window_offsets: (B, 5) integers of `QLSegImageProcessor`, handed through to the output.
            loss_normalizers: (2,) if `labels` are part of a larger batch; see `segmentation_loss`.
            output_logits: False leaves `logits` out, which are by far the largest output and follow from the others;
                if not given, they are left out in training mode with labels.
            kwargs: `output_hidden_states`, `output_attentions` also return those of the backbone; `return_dict=False`
                gives a tuple. What else transformers defines has no effect.

        Raises:
            TypeError: a keyword is not one of transformers', or `pixel_values` is no tensor.
            ValueError: `pixel_values`, `labels` or the backbone's maps have the wrong shape, `pixel_values` are whole
                numbers, or (on a CPU) a label is outside the range; on a GPU that is an assertion of the device, which
                costs no synchronisation. The configuration has another number of labels than the weights.
        """
        _check_keywords(self, kwargs)
        self.check_num_labels()
        if labels is not None:
            check_labels(labels, pixel_values, self.config)
        padded = pad_to_patches(pixel_values, self.patch_size, self.backbone.config.num_channels)
        padded = padded.to(self.backbone.dtype)
        features = self.backbone(padded, return_dict=True, **_asked_outputs(self.config, kwargs))
        grid = tuple(features.feature_maps[0].shape[-2:])
        if not torch.compiler.is_compiling():  # where sides are symbols, which compare as one or stop an export
            sides = zip(padded.shape[-2:], self.patch_size)
            check_maps(self.backbone, features.feature_maps, tuple(side // patch for side, patch in sides))
        levels = self.pixel_encoder(features.feature_maps, grid)  # L x (B, N, D)
        queries, mask_logits = self.decoder(levels, grid)  # (T, B, K, C), (T, B, K, h, w)
        if labels is None:  # only the last block is the result
            queries, mask_logits = queries[-1:], mask_logits[-1:]
        class_logits = self.class_head(queries)  # (T, B, K, K + 1)
        mask_logits = self._refine_masks(mask_logits, padded, features.feature_maps[-1], pixel_values.shape[-2:])
        loss = logits = loss_terms = None
        if labels is not None:
            terms = segmentation_loss(class_logits, mask_logits, labels, self.config, loss_normalizers)
            loss, loss_terms = sum(terms.values()), sum_terms(terms)
        if self.config.mask_activation == "softmax":
            mask_logits = compete(mask_logits)
        if output_logits is None:
            output_logits = labels is None or not self.training
        if output_logits:
            logits = combine(class_logits[-1], mask_logits[-1], size=pixel_values.shape[-2:])  # (B, K, H, W)
        return QLSegOutput(
            loss=loss,
            logits=logits,
            class_queries_logits=class_logits[-1],
            masks_queries_logits=mask_logits[-1],
            hidden_states=features.hidden_states,
            attentions=features.attentions,
            window_offsets=window_offsets,
            loss_terms=loss_terms,
        )

    def _refine_masks(
        self, mask_logits: torch.Tensor, padded: torch.Tensor, last_map: torch.Tensor, size: tuple[int, int]
    ) -> torch.Tensor:
        """What fresh heads add to mask logits (T, B, K, h, w): label classifier, details, and the padding cut off.

        `padded`: (B, 3, H, W) padded pixels. `last_map`: (B, D, h, w) of the encoder. `size`: before padding.
        """
        if self.label_classifier is not None:
            mask_logits = mask_logits + self.label_classifier(last_map)
        if self.detail is not None:
            mask_logits = self.detail(padded, last_map, mask_logits)
        if self.config.mask_activation == "softmax":
            finer = 1 if self.detail is not None else 4
            mask_logits = without_padding(mask_logits, padded.shape[-2:], size, finer)
        return mask_logits

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, reuse_labels: bool = False, **kwargs):
        """As `PreTrainedModel.from_pretrained`, and with `reuse_labels=True` as `resize_labels` to `id2label`.

        Raises:
            ValueError: `reuse_labels` without `id2label`.
        """
        if not reuse_labels:
            return super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        id2label, _ = kwargs.pop("id2label", None), kwargs.pop("label2id", None)
        if id2label is None and isinstance(kwargs.get("config"), PreTrainedConfig):
            # the Auto class has put the new names into the configuration; the old ones are in the folder
            id2label = kwargs["config"].id2label
            where = {key: kwargs[key] for key in HUB_KEYWORDS if key in kwargs}
            kwargs["config"] = cls.config_class.from_pretrained(pretrained_model_name_or_path, **where)
        if not id2label:
            raise ValueError("reuse_labels=True finds labels by name: give the new names as id2label={0: 'road', ...}")
        if kwargs.pop("num_labels", len(id2label)) != len(id2label):
            raise ValueError(f"num_labels differs from the {len(id2label)} names of id2label; leave num_labels out")
        loaded = super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        model.resize_labels(id2label)
        return loaded

    @torch.no_grad()
    def resize_labels(self, id2label: dict[int, str]) -> list[str]:
        """Change the label set in place. Queries and classifier rows of labels with the same name are kept.

        Names are compared without case and surrounding space; labels that share one are taken in their order, and the
        last of them for any more. "No object" is kept; everything of a new label is fresh, and so are query-fusion
        layers whose number of runs changes. The log says which labels were kept.

        Parameters stay the same objects: frozen ones stay frozen, with what is new in them, and an optimizer that has
        made no step takes them as they become. One that has made steps holds moments of the old labels: make it anew.

        Returns:
            the names that were kept, in the new order.

        Raises:
            ValueError: the keys of `id2label` are not 0..K-1, the ignored label would be among them, the
                configuration does not have the labels of the weights, or these are offloaded to disk.
        """
        self.check_num_labels()
        if getattr(self, "hf_device_map", None) and any(parameter.is_meta for parameter in self.parameters()):
            raise ValueError("weights are offloaded, by device_map; change the labels and save before they are")
        old: dict[str, list[int]] = {}
        for index, name in self.config.id2label.items():
            old.setdefault(name.strip().casefold(), []).append(index)
        config = copy.deepcopy(self.config)
        config.id2label, config.palette, config.label_weights = number_keys(id2label), None, None
        config.align_labels()
        config.validate_labels()
        pairs = []
        for new, name in config.id2label.items():
            if same := old.get(name.strip().casefold()):
                pairs.append((new, same.pop(0) if len(same) > 1 else same[0]))
        queries = self.decoder.queries.new_empty(self.decoder.queries.shape[0], config.num_labels, config.hidden_size)
        nn.init.normal_(queries)
        weight = self.class_head.weight.new_empty(config.num_labels + 1, config.hidden_size)
        nn.init.trunc_normal_(weight, std=config.initializer_range)
        bias = weight.new_zeros(config.num_labels + 1)
        new_rows = torch.tensor([new for new, _ in pairs] + [config.num_labels], device=queries.device)
        old_rows = torch.tensor([was for _, was in pairs] + [self.config.num_labels], device=queries.device)
        # A kept row of (K + 1, C) scores its label; which columns it competes with changes with the label set.
        weight[new_rows], bias[new_rows] = self.class_head.weight[old_rows], self.class_head.bias[old_rows]
        queries[:, new_rows[:-1]] = self.decoder.queries[:, old_rows[:-1]]
        _replace_values(self.decoder.queries, queries)
        _replace_linear(self.class_head, weight, bias)
        for part in (self.label_classifier, self.detail):
            if part is not None:
                self._resize_classifier(part.classifier, config.num_labels, pairs)
        for block in self.decoder.blocks:
            block.query_fusion.resize(config)
        self.config.id2label, self.num_labels = config.id2label, config.num_labels
        self.config.palette = self.config.label_weights = None
        kept = [config.id2label[new] for new, _ in pairs]
        fresh = [name for name in config.id2label.values() if name not in kept]
        logger.warning(f"reuse_labels: kept {len(kept)} labels ({kept}); newly initialised {len(fresh)} ({fresh})")
        return kept

    def _resize_classifier(self, old: nn.Linear | nn.Conv2d, num_labels: int, pairs: list[tuple[int, int]]) -> None:
        """Rows for other labels in `old`, in place. `pairs`: (new, old) of what is kept; the rest is 0."""
        weight, bias = old.weight.new_zeros(num_labels, *old.weight.shape[1:]), old.bias.new_zeros(num_labels)
        for new, was in pairs:
            weight[new], bias[new] = old.weight[was], old.bias[was]
        _replace_linear(old, weight, bias)


def _replace_values(parameter: nn.Parameter, values: torch.Tensor) -> None:
    """Other values, perhaps of another shape, in a parameter, which optimizers hold; its gradient is dropped."""
    parameter.data, parameter.grad = values, None


def _replace_linear(module: nn.Linear | nn.Conv2d, weight: torch.Tensor, bias: torch.Tensor) -> None:
    """Other weights in place, and the sizes that follow from them."""
    _replace_values(module.weight, weight)
    _replace_values(module.bias, bias)
    names = ("out_channels", "in_channels") if isinstance(module, nn.Conv2d) else ("out_features", "in_features")
    for name, size in zip(names, weight.shape):
        setattr(module, name, size)


__all__ = [
    "HUB_KEYWORDS",
    "QLSegForSemanticSegmentation",
    "QLSegOutput",
    "QLSegPreTrainedModel",
    "QLSegViTBackbone",
    "resize_positions",
    "token_mask",
]
