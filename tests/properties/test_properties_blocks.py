"""Properties of what is computed in blocks: scores and deformable sampling are those of the plain formulas."""

import pytest
import torch
from hypothesis import strategies as st
from properties import SEEDS, SIZES, holds
from torch.nn import functional as F

from qlseg_hf.model import deformable_attention, scores

# ------------------------------------------------------------------------------------- scores and sampling in blocks


@holds(
    60,
    grid=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    size=SIZES,
    num_labels=st.integers(1, 9),
    batch=st.integers(1, 2),
    block=st.integers(1, 300),
    spread=st.sampled_from([0.0, 0.01, 1.0, 100.0]),
    seed=SEEDS,
)
def test_scores_in_blocks(grid, size, num_labels, batch, block, spread, seed):
    """Whatever the block, scores are the formula's, and a label map takes the best of them."""
    torch.manual_seed(seed)
    class_logits, mask_logits = (
        torch.randn(batch, num_labels, num_labels + 1),
        spread * torch.randn(batch, num_labels, *grid),
    )
    masks = F.interpolate(mask_logits, size=size, mode="bilinear", align_corners=False).sigmoid()
    expected = torch.einsum("bqk,bqhw->bkhw", class_logits.softmax(-1)[..., :-1], masks)
    resized = F.interpolate(mask_logits, size=size, mode="bilinear", align_corners=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scores, "CPU_BLOCK_BYTES", 4 * num_labels * block)
        found = scores.combine(class_logits, mask_logits, size)
        label_map = scores.label_map_from_scores(mask_logits[0], size)
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=0)
    assert label_map.shape == size and 0 <= label_map.min() and label_map.max() < num_labels
    best = resized[0].gather(0, label_map[None])[0]
    torch.testing.assert_close(best, resized[0].amax(dim=0), atol=1e-5 * max(spread, 1), rtol=0)


@holds(
    60,
    grid=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    batch=st.integers(1, 2),
    levels=st.integers(1, 3),
    heads=st.integers(1, 2),
    points=st.integers(1, 4),
    reach=st.sampled_from([0.0, 0.5, 3.0, 1e4]),
    seed=SEEDS,
)
def test_sampling_is_grid_sample(grid, batch, levels, heads, points, reach, seed):
    torch.manual_seed(seed)
    h, w = grid
    length = levels * h * w
    value = torch.randn(batch, length, heads, 3, requires_grad=True)
    offsets = (reach * torch.randn(batch, length, heads, levels, points, 2)).requires_grad_()
    weights = torch.rand(batch, length, heads, levels, points, requires_grad=True)
    found = deformable_attention.sample_levels(value, offsets, weights, grid)

    y, x = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
    own = torch.stack([x, y], dim=-1).reshape(-1, 2).repeat(levels, 1)[:, None, None, None].float()
    places = (own + offsets + 0.5) * 2 / torch.tensor([w, h]) - 1  # half-pixel centres, -1..1
    expected = 0
    for level in range(levels):
        maps = (
            value.unflatten(1, (levels, h, w))[:, level].permute(0, 3, 4, 1, 2).flatten(0, 1)
        )  # (B * heads, c, h, w)
        at = places[:, :, :, level].transpose(1, 2).flatten(0, 1)  # (B * heads, L * N, points, 2)
        part = F.grid_sample(maps, at, align_corners=False)  # (B * heads, c, L * N, points)
        share = weights[:, :, :, level].transpose(1, 2).flatten(0, 1)[:, None]
        expected = expected + (part * share).sum(dim=-1).unflatten(0, (batch, heads)).permute(0, 3, 1, 2).flatten(2)
    rounding = 1e-4 if reach < 100 else 0.1  # at 1e4 cells fp32 has steps of 1/1000, and grid_sample rounds twice
    torch.testing.assert_close(found, expected, atol=rounding, rtol=0)
    rows, shares = deformable_attention.corners(offsets, weights, grid, batch)
    gathered = deformable_attention.sum_gathered(deformable_attention.pad_levels(value, grid), rows, shares)
    torch.testing.assert_close(gathered, found, atol=1e-5, rtol=0)
    if reach < 100:
        # without offsets every place is a cell's centre, where bilinear sampling has a kink
        inputs = (value, weights, offsets) if reach else (value, weights)
        both = (torch.autograd.grad(x.square().sum(), inputs) for x in (found, expected))
        for mine, theirs in zip(*both):
            torch.testing.assert_close(mine, theirs, atol=2e-3, rtol=1e-3)
