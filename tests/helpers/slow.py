"""Slow implementations straight from the text, to compare with."""

import math

from torch.nn import functional as F

NAN = float("nan")


def slow_loss(class_logits, mask_logits, labels, config):
    """The text, picture by picture and label by label."""
    total, weights, masks, factors = 0.0, 0.0, [], config.label_weights or [1.0] * config.num_labels
    for b in range(labels.shape[0]):
        occurring = [k for k in range(config.num_labels) if (labels[b] == k).any()]
        for k in range(config.num_labels):
            target = k if k in occurring else config.num_labels
            weight = factors[k] if k in occurring else config.no_object_weight
            total += -weight * class_logits[b, k].log_softmax(-1)[target]
            weights += weight
        masks += [(b, k) for k in occurring]
    focal = dice = 0.0
    for b, k in masks:
        map_ = F.interpolate(mask_logits[b, k][None, None], size=labels.shape[1:], mode="bilinear")[0, 0]
        p, t = map_.sigmoid(), (labels[b] == k).float()
        p_true = p * t + (1 - p) * (1 - t)
        alpha = config.focal_alpha * t + (1 - config.focal_alpha) * (1 - t)
        focal += factors[k] * (-alpha * (1 - p_true) ** config.focal_gamma * p_true.log()).mean()
        dice += factors[k] * (1 - (2 * (p * t).sum() + 1) / (p.sum() + t.sum() + 1))
    count = max(len(masks), 1)
    return config.class_weight * total / weights, config.mask_weight * focal / count, config.dice_weight * dice / count


def slow_scores(pairs, num_labels: int) -> dict:
    """IoU and accuracy from sets of pixels, without any count matrix."""
    labels = [(int(p), int(r)) for pair in pairs for p, r in zip(pair[0].flat, pair[1].flat) if r != 255]
    iou, accuracy = [], []
    for label in range(num_labels):
        predicted = {i for i, (p, _) in enumerate(labels) if p == label}
        reference = {i for i, (_, r) in enumerate(labels) if r == label}
        hit, either = len(predicted & reference), len(predicted | reference)
        iou.append(hit / either if either else NAN)
        accuracy.append(hit / len(reference) if reference else NAN)
    return {
        "miou": mean(iou),
        "macc": mean(accuracy),
        "aacc": sum(p == r for p, r in labels) / len(labels) if labels else NAN,
        "iou": iou,
        "accuracy": accuracy,
    }


def mean(values: list[float]) -> float:
    values = [value for value in values if not math.isnan(value)]
    return sum(values) / len(values) if values else NAN
