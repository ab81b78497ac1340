"""The loss of QLSeg as pure functions: logits of T blocks and a label map in, named scalar terms out.

Source: Xie et al. 2024; the mask terms are those of Mask2Former-style training without any matching, because query i
belongs to label i.
"""

import torch
from torch import distributed
from torch.nn import functional as F


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
    if labels.ndim != 3 or labels.shape[0] != pixel_values.shape[0]:
        raise ValueError(
            f"labels have shape {tuple(labels.shape)}; ({pixel_values.shape[0]}, height, width) is wanted, one label "
            "map per picture"
        )
    if labels.dtype.is_floating_point or labels.dtype == torch.bool:
        raise ValueError(f"labels are {labels.dtype}; integers are wanted")
    wrong = ((labels < 0) | (labels >= config.num_labels)) & (labels != config.semantic_loss_ignore_index)
    message = (
        f"labels must be 0..{config.num_labels - 1} or {config.semantic_loss_ignore_index} (ignored); check "
        "do_reduce_labels, label_map and num_labels"
    )
    if labels.device.type != "cpu":
        torch._assert_async(~wrong.any(), message)
    elif wrong.any():
        raise ValueError(f"{message}; found {labels[wrong].unique().tolist()[:8]}")


def segmentation_loss(
    class_logits: torch.Tensor, mask_logits: torch.Tensor, labels: torch.Tensor, config
) -> dict[str, torch.Tensor]:
    """Weighted loss terms of every block; the loss is their sum.

    Args:
        class_logits: (T, B, K, K + 1), last column "no object".
        mask_logits: (T, B, K, h, w), before the sigmoid.
        labels: (B, H, W) integers, 0..K-1 or the ignore index. Ignored pixels are background of every mask.
        config: weights of the terms and `semantic_loss_ignore_index`.

    Returns:
        `loss_ce`, `loss_mask`, `loss_dice` of the last block and `loss_ce_t`, ... of block t before it, fp32 scalars.
        Mask terms are sums over the labels that occur, divided by their number in the batch (averaged over processes,
        at least 1); a batch without any label has mask terms 0. One host synchronisation: the count of those labels.
    """
    num_blocks, batch, num_labels = class_logits.shape[:3]
    labels = labels.long()
    slots = torch.where(labels == config.semantic_loss_ignore_index, num_labels, labels).flatten(1)
    present = slots.new_zeros(batch, num_labels + 1, dtype=torch.bool)
    present = present.scatter_(1, slots, True)[:, :num_labels]  # (B, K)
    picture, label = present.nonzero(as_tuple=True)  # (M,) each; the one synchronisation

    class_targets = torch.where(present, torch.arange(num_labels, device=labels.device), num_labels)  # (B, K)
    class_weights = class_logits.new_ones(num_labels + 1, dtype=torch.float32)
    class_weights[-1] = config.no_object_weight
    targets = (labels[picture] == label[:, None, None]).float()  # (M, H, W)
    num_masks = mask_count(present)

    terms = {}
    for t in range(num_blocks):
        suffix = "" if t == num_blocks - 1 else f"_{t}"
        # fp32: products of probabilities and sums over pixels leave the range of half precision
        ce = F.cross_entropy(class_logits[t].float().flatten(0, 1), class_targets.flatten(), class_weights)
        logits = mask_logits[t][picture, label].float()  # (M, h, w)
        logits = F.interpolate(logits[:, None], size=labels.shape[-2:], mode="bilinear", align_corners=False)[:, 0]
        focal, dice = mask_losses(logits, targets, config.focal_alpha, config.focal_gamma)  # (M,) each
        terms["loss_ce" + suffix] = config.class_weight * ce
        terms["loss_mask" + suffix] = config.mask_weight * focal.sum() / num_masks
        terms["loss_dice" + suffix] = config.dice_weight * dice.sum() / num_masks
    return terms


def mask_count(present: torch.Tensor) -> torch.Tensor:
    """Number of masks in the batch, averaged over processes, at least 1. `present`: (B, K) bool. fp32 scalar."""
    count = present.sum().float()
    if distributed.is_available() and distributed.is_initialized():
        distributed.all_reduce(count)
        count = count / distributed.get_world_size()
    return count.clamp(min=1)


def mask_losses(logits: torch.Tensor, targets: torch.Tensor, alpha: float, gamma: float):
    """Focal loss averaged over pixels, and dice loss, per mask.

    Args:
        logits: (M, H, W) fp32, before the sigmoid.
        targets: (M, H, W) fp32, 0 or 1.
        alpha: weight of foreground in the focal loss; background has `1 - alpha`.
        gamma: exponent of the focal loss.

    Returns:
        two (M,) tensors: focal loss, and `1 - (2 sum(p t) + 1) / (sum p + sum t + 1)`.
    """
    probs = logits.sigmoid()
    bce = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    missed = torch.where(targets > 0, 1 - probs, probs)  # 1 - probability of the truth
    focal = torch.where(targets > 0, alpha, 1 - alpha) * missed**gamma * bce
    overlap = (probs * targets).sum(dim=(1, 2))
    dice = 1 - (2 * overlap + 1) / (probs.sum(dim=(1, 2)) + targets.sum(dim=(1, 2)) + 1)
    return focal.mean(dim=(1, 2)), dice


__all__ = ["check_labels", "mask_losses", "segmentation_loss"]
