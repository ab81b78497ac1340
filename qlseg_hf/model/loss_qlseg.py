# Copyright 2026 The QLSeg for transformers authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""The loss of QLSeg as pure functions: logits of T blocks and a label map in, named scalar terms out.

Source: Xie et al. 2024; the mask terms are those of Mask2Former-style training without any matching, because query i
belongs to label i.
"""

import torch
from torch import distributed
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from .scores import bilinear, sources

# fp32 of the masks that are upsampled at once; a dozen tensors of that size live at a time
CPU_CHUNK_BYTES = 8 << 20
EARLIER_BLOCKS = 0.5  # factor of what blocks before the last one add to the loss of competing masks
ACCELERATOR_CHUNK_BYTES = 128 << 20


def check_labels(labels: torch.Tensor, pixel_values: torch.Tensor, config) -> None:
    """Refuse labels of a wrong shape, type or range.

    Args:
        labels: (B, H', W') integers.
        pixel_values: (B, channels, H, W).
        config: gives `num_labels` and `semantic_loss_ignore_index`.

    Raises:
        ValueError: wrong shape or type; on a CPU also a value outside the range. On other devices the range is
            asserted asynchronously (`torch._assert_async`), because looking at it would stop the host every step.
    """
    if labels.ndim != 3 or labels.shape[0] != pixel_values.shape[0] or 0 in labels.shape:
        raise ValueError(
            f"labels have shape {tuple(labels.shape)}; ({pixel_values.shape[0]}, height, width) is wanted, one label "
            "map per picture"
        )
    if labels.dtype.is_floating_point or labels.dtype.is_complex or labels.dtype == torch.bool:
        raise ValueError(f"labels are {labels.dtype}; integers are wanted")
    labels = labels.long()  # 8 bits hold neither 200 nor -100, and torch compares them all the same
    wrong = ((labels < 0) | (labels >= config.num_labels)) & (labels != config.semantic_loss_ignore_index)
    message = (
        f"labels must be 0..{config.num_labels - 1} or {config.semantic_loss_ignore_index} (ignored); check "
        "do_reduce_labels, label_mapping and num_labels, and that the processor's ignore_index is this "
        "semantic_loss_ignore_index"
    )
    if labels.device.type != "cpu":
        torch._assert_async(~wrong.any(), message)
    elif wrong.any():
        raise ValueError(f"{message}; found {labels[wrong].unique().tolist()[:8]}")


def segmentation_loss(
    class_logits: torch.Tensor,
    mask_logits: torch.Tensor,
    labels: torch.Tensor,
    config,
    normalizers: torch.Tensor | None = None,
) -> dict[str, torch.Tensor]:
    """Weighted loss terms of every block; the loss is their sum.

    Args:
        class_logits: (T, B, K, K + 1), last column "no object".
        mask_logits: (T, B, K, h, w), before the sigmoid.
        labels: (B, H, W) integers, 0..K-1 or the ignore index. Ignored pixels are background of every mask.
        config: weights of the terms and of the labels, and `semantic_loss_ignore_index`.
        normalizers: what the terms are divided by, if this batch is part of a larger one: `loss_normalizers` of the
            whole, divided by the number of parts. If not given, the batch is the whole.

    Returns:
        `loss_ce`, `loss_mask`, `loss_dice` of the last block and `loss_ce_t`, ... of block t before it, fp32 scalars.
        Mask terms are sums over the labels that occur, divided by their number in the batch (at least 1); a batch
        without any label has mask terms 0. What terms are divided by is averaged over processes, as gradients are, so
        that images count alike in all of them. One host synchronisation: the count of those labels.
        With `config.mask_activation` "softmax" `loss_mask` is the mean cross-entropy of the labelled pixels, and
        `loss_dice` the dice loss of the softmax; see `CompetingLosses`.
    """
    num_blocks, _, num_labels = class_logits.shape[:3]
    labels = labels.long()
    present = present_labels(labels, config)  # (B, K)
    picture, label = present.nonzero(as_tuple=True)  # (M,) each; the one synchronisation
    class_targets = torch.where(present, torch.arange(num_labels, device=labels.device), num_labels)  # (B, K)
    weights = _class_weights(config, labels.device)
    competes = config.mask_activation == "softmax"
    if normalizers is None:
        normalizers = _mean_over_processes(loss_normalizers(labels, config))
        normalizers[1].clamp_(min=1)
    tiny = torch.finfo(normalizers.dtype).tiny  # all weights may be 0: then so is the term
    class_sum, num_masks = normalizers[0].clamp(min=tiny), normalizers[1]

    terms = {}
    for t in range(num_blocks):
        suffix = "" if t == num_blocks - 1 else f"_{t}"
        # fp32: products of probabilities and sums over pixels leave the range of half precision
        ce = F.cross_entropy(class_logits[t].float().flatten(0, 1), class_targets.flatten(), weights, reduction="sum")
        terms["loss_ce" + suffix] = config.class_weight * ce / class_sum
        share = 1.0 if t == num_blocks - 1 or not competes else EARLIER_BLOCKS
        if competes:
            pixel, dice = CompetingLosses.apply(mask_logits[t].float(), labels, present, weights[:-1])
            terms["loss_mask" + suffix] = share * config.mask_weight * pixel / normalizers[2].clamp(min=tiny)
            terms["loss_dice" + suffix] = share * config.dice_weight * dice / num_masks
            continue
        logits = mask_logits[t][picture, label].float()  # (M, h, w)
        focal, dice = MaskLosses.apply(logits, labels, picture, label, config.focal_alpha, config.focal_gamma)  # (M,)
        terms["loss_mask" + suffix] = config.mask_weight * (focal * weights[label]).sum() / num_masks
        terms["loss_dice" + suffix] = config.dice_weight * (dice * weights[label]).sum() / num_masks
    return terms


def sum_terms(terms: dict[str, torch.Tensor]) -> torch.Tensor:
    """(3,) classification, mask and dice of `segmentation_loss`, over all blocks, without gradient."""
    kinds = ("loss_ce", "loss_mask", "loss_dice")
    return torch.stack([sum(v.detach() for name, v in terms.items() if name.startswith(kind)) for kind in kinds])


def present_labels(labels: torch.Tensor, config) -> torch.Tensor:
    """(B, H, W) int64 labels -> (B, K) bool: does the label occur in the image?"""
    num_labels = config.num_labels
    slots = torch.where(labels == config.semantic_loss_ignore_index, num_labels, labels).flatten(1)
    present = slots.new_zeros(len(labels), num_labels + 1, dtype=torch.bool)
    return present.scatter_(1, slots, True)[:, :num_labels]


def _class_weights(config, device: torch.device) -> torch.Tensor:
    """(K + 1,) fp32: `label_weights` (1 in the paper), then the weight of "no object"."""
    weights = torch.ones(config.num_labels + 1, dtype=torch.float32, device=device)
    weights[-1] = config.no_object_weight
    if config.label_weights is not None:
        weights[:-1].copy_(torch.tensor(config.label_weights, dtype=torch.float32), non_blocking=True)
    return weights


def loss_normalizers(labels: torch.Tensor, config) -> torch.Tensor:
    """Sum of the class weights of all queries, and number of masks, of (B, H, W) labels: (2,) fp32.

    With `config.mask_activation` "softmax" (3,): also the sum of the label weights of all labelled pixels. They add up
    over the parts of a batch, so that a loss does not depend on how a batch is cut over processes and
    accumulation steps. The mask count is not yet raised to 1.
    """
    labels = labels.long()
    present, weights = present_labels(labels, config), _class_weights(config, labels.device)
    sums = [torch.where(present, weights[:-1], weights[-1]).sum(), present.sum().float()]
    if config.mask_activation == "softmax":
        factors = F.pad(weights[:-1], (0, 1))  # of an ignored pixel 0
        sums.append(factors[torch.where(labels == config.semantic_loss_ignore_index, -1, labels)].sum())
    return torch.stack(sums)


def _mean_over_processes(sums: torch.Tensor) -> torch.Tensor:
    """The sums averaged over processes, which average their gradients: together they divide by those of all images."""
    if distributed.is_available() and distributed.is_initialized():
        distributed.all_reduce(sums)
        sums = sums / distributed.get_world_size()
    return sums


class MaskLosses(torch.autograd.Function):
    """Focal loss averaged over pixels, and dice loss, of each mask, with masks upsampled a few at a time.

    The gradient is worked out on the way and kept on the patch grid, so that memory does not grow with the number of
    masks times pixels: autograd would keep seven maps of the label map's size per mask and block.

    Args of `apply`:
        logits: (M, h, w) fp32, before the sigmoid; resized to the label map (bilinear, half-pixel centres).
        labels: (B, H, W) int64.
        picture, label: (M,) which image a mask belongs to, and the label whose pixels are its foreground.
        alpha: weight of foreground in the focal loss; background has `1 - alpha`.
        gamma: exponent of the focal loss.

    Returns:
        two (M,) fp32 tensors: focal loss, and `1 - (2 sum(p t) + 1) / (sum p + sum t + 1)`.
    """

    @staticmethod
    def forward(ctx, logits, labels, picture, label, alpha, gamma):
        grid, size, wants_gradient = tuple(logits.shape[1:]), tuple(labels.shape[1:]), ctx.needs_input_grad[0]
        chunk_bytes = CPU_CHUNK_BYTES if logits.device.type == "cpu" else ACCELERATOR_CHUNK_BYTES
        num_masks = max(1, chunk_bytes // (4 * size[0] * size[1]))
        focal, dice, to_focal, to_dice = (logits.new_zeros(shape) for shape in 2 * [len(logits)] + 2 * [logits.shape])
        with torch.autocast(logits.device.type, enabled=False):  # the products of `_upsample` have to be in fp32
            for start in range(0, len(logits), num_masks):
                chunk = slice(start, start + num_masks)
                is_foreground = labels[picture[chunk]] == label[chunk, None, None]  # (m, H, W)
                maps = _upsample(logits[chunk], size)
                focal[chunk], dice[chunk], gradients = mask_losses(maps, is_foreground, alpha, gamma, wants_gradient)
                if wants_gradient:
                    to_focal[chunk], to_dice[chunk] = (_upsample(g, grid, is_adjoint=True) for g in gradients)
        ctx.save_for_backward(to_focal, to_dice)
        return focal, dice

    @staticmethod
    @once_differentiable
    def backward(ctx, focal_grad, dice_grad):
        to_focal, to_dice = ctx.saved_tensors  # (M, h, w) each
        return focal_grad[:, None, None] * to_focal + dice_grad[:, None, None] * to_dice, None, None, None, None, None


class CompetingLosses(torch.autograd.Function):
    """Cross-entropy and dice loss of masks that share out the pixels by a softmax, an image at a time.

    As in `MaskLosses` the gradient is worked out on the way and kept on the masks' grid, so that memory grows with
    the labels times the pixels of one image, not of the batch.

    Args of `apply`:
        logits: (B, K, h, w) fp32; resized to the label map (bilinear, half-pixel centres), then softmax over K.
        labels: (B, H, W) int64; what is not 0..K-1 is ignored.
        present: (B, K) bool, the labels that occur in an image.
        weights: (K,) fp32, factor of a label's pixels and of its dice loss.

    Returns:
        two fp32 scalars: the sum over labelled pixels of weight times cross-entropy, and the sum over images and the
        labels present of weight times `1 - (2 sum(p t) + 1) / (sum p + sum t + 1)`, over labelled pixels.
    """

    @staticmethod
    def forward(ctx, logits, labels, present, weights):
        grid, size, wants_gradient = tuple(logits.shape[2:]), tuple(labels.shape[1:]), ctx.needs_input_grad[0]
        to_pixel, to_dice = torch.zeros_like(logits), torch.zeros_like(logits)
        sums = logits.new_zeros(2)
        with torch.autocast(logits.device.type, enabled=False):  # the products of `_upsample` have to be in fp32
            for i, maps in enumerate(logits):
                label = labels[i].flatten()  # (P,)
                is_labelled = (label >= 0) & (label < len(maps))
                losses, gradients = competing_losses(
                    _upsample(maps, size).flatten(1),
                    torch.where(is_labelled, label, 0),
                    is_labelled,
                    torch.where(present[i], weights, 0.0),
                    weights,
                    wants_gradient,
                )
                sums += losses
                if wants_gradient:
                    to_pixel[i], to_dice[i] = (
                        _upsample(g.unflatten(1, size), grid, is_adjoint=True) for g in gradients
                    )
        ctx.save_for_backward(to_pixel, to_dice)
        return sums[0], sums[1]

    @staticmethod
    @once_differentiable
    def backward(ctx, pixel_grad, dice_grad):
        to_pixel, to_dice = ctx.saved_tensors  # (B, K, h, w) each
        return pixel_grad * to_pixel + dice_grad * to_dice, None, None, None


def competing_losses(logits, label, is_labelled, dice_weights, weights, wants_gradient=False):
    """`CompetingLosses` of one image whose masks have the label map's size, and the gradients.

    Args:
        logits: (K, P) fp32.
        label: (P,) int64, 0..K-1.
        is_labelled: (P,) bool.
        dice_weights, weights: (K,) fp32, of a label's dice loss (0 for labels that do not occur), and of its pixels.
        wants_gradient: also return the gradients.

    Returns:
        (2,) the two sums, and None or the (K, P) gradient of each with respect to `logits`.
    """
    log_probs = logits.log_softmax(dim=0)
    truth = log_probs.gather(0, label[None])[0]  # (P,)
    factors = weights[label] * is_labelled
    probs = log_probs.exp()
    right = probs.gather(0, label[None])[0] * is_labelled
    overlap, count = (weights.new_zeros(len(weights)).index_add(0, label, x) for x in (right, is_labelled.float()))
    above, below = 2 * overlap + 1, probs @ is_labelled.float() + count + 1  # (K,)
    sums = torch.stack([-(factors * truth).sum(), (dice_weights * (1 - above / below)).sum()])
    if not wants_gradient:
        return sums, None
    to_pixel = (probs * factors).scatter_add_(0, label[None], -factors[None])
    # of a pixel's dice losses by its probabilities: `rise` of every label, less `fall` of the one that is right
    rise, fall = dice_weights * above / below**2, (dice_weights * 2 / below)[label] * right
    to_dice = probs * (rise[:, None] - (rise @ probs - fall)) * is_labelled
    return sums, (to_pixel, to_dice.scatter_add_(0, label[None], -fall[None]))


def _upsample(maps: torch.Tensor, size: tuple[int, int], is_adjoint: bool = False) -> torch.Tensor:
    """(m, h, w) fp32 maps resized bilinearly to `size`; adjoint: (m, *size) gradients brought back to (m, h, w).

    Both ways are products with the two weight matrices, so they are exact adjoints and the same in every run.
    """
    (h, w), (height, width) = maps.shape[1:] if not is_adjoint else size, size if not is_adjoint else maps.shape[1:]
    down, across = bilinear(h, height, (0, height), maps.device), bilinear(w, width, (0, width), maps.device)
    # label maps may be so small that they are made of some rows and columns only
    (top, bottom), (left, right) = sources((h, w), (height, width), (0, height), (0, width))
    if is_adjoint:
        gradients = torch.bmm(down.t().expand(len(maps), -1, -1), maps) @ across
        return F.pad(gradients, (left, w - right, top, h - bottom))
    return torch.bmm(down.expand(len(maps), -1, -1), maps[:, top:bottom, left:right] @ across.t())


def mask_losses(
    logits: torch.Tensor, is_foreground: torch.Tensor, alpha: float, gamma: float, wants_gradient: bool = False
) -> tuple[torch.Tensor, torch.Tensor, tuple[torch.Tensor, torch.Tensor] | None]:
    """Focal and dice loss of masks that have the label map's size, and their gradients.

    Args:
        logits: (m, H, W) fp32, before the sigmoid.
        is_foreground: (m, H, W) bool.
        alpha, gamma: see `MaskLosses`.
        wants_gradient: also return the gradients.

    Returns:
        two (m,) losses, and None or the (m, H, W) gradient of each with respect to `logits`.
    """
    margin = torch.where(is_foreground, logits, -logits)
    truth, missed = margin.sigmoid(), (-margin).sigmoid()  # probability of what is so, and of what is not
    cross_entropy = F.softplus(-margin)
    scale = torch.where(is_foreground, alpha, 1 - alpha) * missed**gamma
    focal = (scale * cross_entropy).mean(dim=(1, 2))
    overlap = truth.masked_fill(~is_foreground, 0).sum(dim=(1, 2))
    probs = torch.where(is_foreground, truth, missed).sum(dim=(1, 2))
    above, below = 2 * overlap + 1, probs + is_foreground.sum(dim=(1, 2)) + 1
    dice = 1 - above / below
    if not wants_gradient:
        return focal, dice, None
    to_focal = scale * (gamma * truth * cross_entropy + missed) / logits[0].numel()
    to_focal = torch.where(is_foreground, -to_focal, to_focal)
    above, below = above[:, None, None], below[:, None, None]
    to_dice = (above / below**2 - torch.where(is_foreground, 2 / below, 0.0)) * truth * missed
    return focal, dice, (to_focal, to_dice)


__all__ = [
    "CompetingLosses",
    "MaskLosses",
    "check_labels",
    "competing_losses",
    "loss_normalizers",
    "mask_losses",
    "present_labels",
    "segmentation_loss",
]
