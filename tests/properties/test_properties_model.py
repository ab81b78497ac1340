"""Properties of the network and of what runs it: any configuration, size, batch, dtype, scale; conversion, saving."""

import json
from copy import deepcopy
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import torch
from hypothesis import assume, example
from hypothesis import strategies as st
from networks import tiny_config, varied_model
from PIL import Image
from properties import SEEDS, holds
from transformers import pipeline

from qlseg_hf import QLSegConfig, QLSegForSemanticSegmentation, QLSegImageProcessor, QLSegViTConfig, segment
from qlseg_hf.cli.main import run
from qlseg_hf.model.image_io import resize_picture
from qlseg_hf.model.memory import SHORTEST_STRIP, MemoryPlan
from qlseg_hf.model.windows import window_layout

SIZES = st.one_of(
    st.tuples(st.integers(1, 50), st.integers(1, 50)), st.sampled_from([(1, 1), (1, 90), (90, 1), (16, 16)])
)


def divisors(number: int):
    return st.sampled_from([n for n in range(1, number + 1) if number % n == 0])


@st.composite
def configurations(draw, widths=(4, 8, 32), **fixed) -> QLSegConfig:
    """Any configuration that a model can be built of, small."""
    width, depth, decoder_width = (
        draw(st.sampled_from(widths)),
        draw(st.integers(1, 3)),
        draw(st.sampled_from([4, 12])),
    )
    patch = draw(st.sampled_from([4, 7, 16]))
    side = st.integers(1, 4).map(lambda n: n * patch)
    backbone = {
        "hidden_size": width,
        "num_hidden_layers": depth,
        "num_attention_heads": draw(divisors(width)),
        "intermediate_size": draw(st.integers(1, 9)),
        "image_size": draw(st.one_of(side, st.lists(side, min_size=2, max_size=2))),
        "patch_size": patch,
        "drop_path_rate": draw(st.sampled_from([0, 0.5])),
        "out_indices": sorted(draw(st.sets(st.integers(0, depth), min_size=1, max_size=3))),
    }
    values = {
        "num_labels": draw(st.sampled_from([1, 2, 3, 10, 21])),
        "hidden_size": decoder_width,
        "num_attention_heads": draw(divisors(decoder_width)),
        "intermediate_size": draw(st.integers(1, 9)),
        "num_pixel_encoder_layers": draw(st.integers(1, 2)),
        "num_pixel_encoder_heads": draw(divisors(width)),
        "num_pixel_encoder_points": draw(st.integers(1, 3)),
        "pixel_encoder_intermediate_size": draw(st.integers(1, 9)),
        "num_group_norm_groups": draw(divisors(width)),
        "num_decoder_blocks": draw(st.integers(1, 3)),
        "num_decoder_layers": draw(st.integers(1, 2)),
        "num_query_fusion_groups": draw(st.integers(1, 12)),
        "mask_threshold": draw(st.sampled_from([0, 0.4, 0.5, 0.9])),
    }
    return QLSegConfig(backbone_config=QLSegViTConfig(**backbone), **(values | fixed))


def forward(model, pixel_values, **kwargs):
    with torch.no_grad():
        return model(pixel_values, **kwargs)


def outputs_of(out) -> list[torch.Tensor]:
    return [out.class_queries_logits, out.masks_queries_logits, out.logits]


# ------------------------------------------------------------------------------------------------------- the network


@holds(15, config=configurations(), batch=st.integers(1, 3), size=SIZES, seed=SEEDS)
# one channel per group and one patch: alone it was refused, in a batch it was noise
@example(config=tiny_config(3), batch=1, size=(1, 1), seed=0)
@example(config=tiny_config(3), batch=3, size=(1, 1), seed=0)
def test_any_configuration_any_size_any_batch(config, batch, size, seed):
    """Shapes as documented, finite, and a batch is its pictures one by one, in any order."""
    model = varied_model(config, seed)
    patch, levels = config.backbone_config.patch_size, len(config.backbone_config.out_indices)
    pixel_values = torch.randn(batch, 3, *size)
    found = forward(model, pixel_values, output_hidden_states=True, output_attentions=True)
    grid = tuple(-(-side // patch) for side in size)
    labels = config.num_labels
    assert found.logits.shape == (batch, labels, *size)
    assert found.class_queries_logits.shape == (batch, labels, labels + 1)
    assert found.masks_queries_logits.shape == (batch, labels, *grid)
    assert len(found.hidden_states) == len(found.attentions) + 1 == config.backbone_config.num_hidden_layers + 1
    assert model.pixel_encoder.level_embeddings.shape[0] == levels
    assert all(x.isfinite().all() for x in outputs_of(found))
    assert found.logits.min() >= 0 and found.logits.max() <= labels  # sums of K products of probabilities
    order = torch.from_numpy(np.random.default_rng(seed).permutation(batch))
    shuffled = forward(model, pixel_values[order])
    for index, place in enumerate(order):
        alone = forward(model, pixel_values[place : place + 1])
        for mine, theirs, single in zip(outputs_of(shuffled), outputs_of(found), outputs_of(alone)):
            torch.testing.assert_close(mine[index], theirs[place], atol=2e-4, rtol=1e-3)
            torch.testing.assert_close(mine[index], single[0], atol=2e-4, rtol=1e-3)


@holds(
    15,
    config=configurations(mask_threshold=0),
    size=SIZES,
    dtype=st.sampled_from([torch.bfloat16, torch.float16, torch.float64]),
    seed=SEEDS,
)
def test_dtypes(config, size, dtype, seed):
    """Without autocast: same shapes, the dtype asked for, finite, near fp32. Threshold 0, for masks cut elsewhere."""
    model = varied_model(config, seed)
    pixel_values = torch.randn(1, 3, *size)
    labels = torch.randint(0, config.num_labels, (1, *size))
    expected, plain_loss = forward(model, pixel_values), forward(model, pixel_values, labels=labels).loss
    found = forward(model.to(dtype), pixel_values, labels=labels)
    assert found.loss.dtype == torch.float32 and found.loss.isfinite()
    coarse = torch.finfo(dtype).eps * 40 if dtype != torch.float64 else 1e-3
    torch.testing.assert_close(found.loss, plain_loss, atol=coarse, rtol=5 * coarse)
    for mine, theirs in zip(outputs_of(found), outputs_of(expected)):
        assert mine.dtype == dtype and mine.shape == theirs.shape and mine.isfinite().all()
    near = (found.logits.float() - expected.logits).abs() / config.num_labels
    assert near.mean() < coarse


@holds(
    15,
    config=configurations(),
    batch=st.integers(1, 2),
    size=SIZES,
    label_size=SIZES,
    dtype=st.sampled_from([torch.uint8, torch.int32, torch.int64]),
    ignored=st.sampled_from([0.0, 0.5, 1.0]),
    checkpointing=st.booleans(),
    seed=SEEDS,
)
def test_training_steps(config, batch, size, label_size, dtype, ignored, checkpointing, seed):
    """Any sizes of pictures and labels: a finite loss, and a finite gradient for every weight that is not frozen."""
    model = varied_model(config, seed).train()
    if checkpointing:
        model.gradient_checkpointing_enable()
    labels = torch.randint(0, config.num_labels, (batch, *label_size))
    labels[torch.rand(labels.shape) < ignored] = 255
    out = model(torch.randn(batch, 3, *size), labels=labels.to(dtype))
    assert out.logits is None and out.loss.isfinite()
    out.loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == (name.removeprefix("backbone.") not in model.unused_weights)
        if parameter.requires_grad:
            assert parameter.grad is not None and parameter.grad.isfinite().all(), name


# ------------------------------------------------------------------------------------------- pictures to label maps


@lru_cache
def small_model(num_labels: int) -> QLSegForSemanticSegmentation:
    return varied_model(tiny_config(num_labels, num_group_norm_groups=8))


@st.composite
def processors(draw, resizes=(False, True)) -> QLSegImageProcessor:
    side = st.integers(8, 40)
    window = draw(side)
    return QLSegImageProcessor(
        do_resize=draw(st.sampled_from(resizes)),
        size=draw(st.one_of(side, st.fixed_dictionaries({"height": side, "width": side}))),
        do_sliding_window=draw(st.booleans()),
        window_size=window,
        window_stride=draw(st.integers(max(1, window // 2), window)),
    )


PICTURES = st.lists(SIZES, min_size=1, max_size=3)
RUNS = st.lists(st.sampled_from([0.01, 0.5, 1, 1.0, 1.4]), min_size=1, max_size=2)


def smooth_picture(size, seed) -> np.ndarray:
    coarse = np.random.default_rng(seed).integers(0, 256, (-(-size[0] // 8), -(-size[1] // 8), 3), dtype=np.uint8)
    return resize_picture(coarse, size).permute(1, 2, 0).numpy().copy()


def few_windows(processor, sizes, scales) -> bool:
    runs = [run for size in sizes for run in window_layout(processor.settings(), size, scales, False)]
    return sum(len(places) for *_, places in runs) <= 40 and all(np.prod(size) < 3e4 for size, *_ in runs)


@holds(
    20,
    processor=processors(),
    sizes=PICTURES,
    scales=RUNS,
    flip=st.booleans(),
    num_labels=st.sampled_from([1, 2, 7]),
    chosen=st.one_of(st.none(), st.sets(st.integers(0, 6), min_size=1, max_size=7)),
    window_batch_size=st.integers(1, 9),
    seed=SEEDS,
)
def test_segment(processor, sizes, scales, flip, num_labels, chosen, window_batch_size, seed):
    """Labels are of the set and scores of the picture's size, and a batch is its pictures one by one in any order."""
    assume(few_windows(processor, sizes, scales))
    model = small_model(num_labels)
    labels = chosen and [i if i % 2 else f"LABEL_{i}" for i in chosen if i < num_labels] or None
    numbers = list(range(num_labels)) if labels is None else [i for i in chosen if i < num_labels]
    pictures = [smooth_picture(size, seed + i) for i, size in enumerate(sizes)]
    options = {"scales": scales, "flip": flip, "labels": labels}
    order = np.random.default_rng(seed).permutation(len(sizes))
    shuffled, scores = segment(
        model,
        processor,
        [pictures[i] for i in order],
        window_batch_size=window_batch_size,
        return_scores=True,
        **options,
    )
    for i, label_map, plane in zip(order, shuffled, scores, strict=True):
        assert (
            label_map.dtype == torch.int64 and label_map.shape == sizes[i] and plane.shape == (len(numbers), *sizes[i])
        )
        assert set(label_map.unique().tolist()) <= set(numbers) and plane.isfinite().all()
        (alone,), (single,) = segment(
            model, processor, pictures[i], window_batch_size=1, return_scores=True, **options
        )
        torch.testing.assert_close(plane, single, atol=1e-4, rtol=0)
        (plain,) = segment(model, processor, pictures[i], **options)  # the way without scores of all labels
        for found in (label_map, alone, plain):  # best labels, but for ties
            place = torch.tensor([numbers.index(label) for label in found.flatten()]).view(found.shape)
            best = single.gather(0, place[None])[0]
            torch.testing.assert_close(best, single.amax(dim=0), atol=2e-4, rtol=0)


@holds(20, processor=processors([False]), size=SIZES, num_labels=st.sampled_from([1, 2, 7]), seed=SEEDS)
def test_flips_commute(processor, size, num_labels, seed):
    """With `flip` a mirrored picture gives the mirrored scores: the same two passes in the other order."""
    assume(few_windows(processor, [size], [1]))
    model, picture = small_model(num_labels), smooth_picture(size, seed)
    (label_map,), (scores,) = segment(model, processor, picture, flip=True, return_scores=True)
    (mirrored,), (mirrored_scores,) = segment(model, processor, picture[:, ::-1], flip=True, return_scores=True)
    torch.testing.assert_close(mirrored_scores.flip(-1), scores, atol=1e-5, rtol=0)
    top = scores.topk(min(2, num_labels), dim=0).values
    is_clear = top[0] - top[-1] > 1e-4 if num_labels > 1 else torch.ones(size, dtype=torch.bool)
    assert torch.equal(mirrored.flip(-1)[is_clear], label_map[is_clear])


@holds(50, old=SIZES, new=SIZES, seed=SEEDS)
def test_resizing_commutes_with_flips(old, new, seed):
    """Within a grey level: shares of exactly half a unit are rounded to even."""
    picture = np.random.default_rng(seed).integers(0, 256, (*old, 3), dtype=np.uint8)
    found = resize_picture(picture[:, ::-1].copy(), new).flip(-1)
    assert (found.int() - resize_picture(picture, new).int()).abs().max() <= 1


@holds(
    10,
    processor=processors(),
    size=st.tuples(st.integers(1, 30), st.integers(SHORTEST_STRIP + 1, 300)),
    is_tall=st.booleans(),
    scales=RUNS,
    flip=st.booleans(),
    spare=st.floats(0, 1),
    seed=SEEDS,
)
def test_strips_are_the_whole(processor, size, is_tall, scales, flip, spare, seed):
    """Any limit from the least that is taken to the most that is needed gives the same scores."""
    size = size[::-1] if is_tall else size
    assume(few_windows(processor, [size], scales))
    model, picture = small_model(3), smooth_picture(size, seed)
    options = {"scales": scales, "flip": flip, "return_scores": True, "window_batch_size": 3}
    _, (expected,) = segment(model, processor, picture, **options)
    plan, layout = MemoryPlan(model.config, 3, None), window_layout(processor.settings(), size, scales, flip)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("qlseg_hf.model.memory.BLOCKS_BYTES", 0)
        patch.setattr(MemoryPlan, "forward_bytes", lambda *_: 0)
        least, most = (plan.needed(size, layout, length, 1) for length in (SHORTEST_STRIP, max(size)))
        limit = (least + spare * (most - least)) / 2**20 + 1e-6
        (label_map,), (found,) = segment(model, processor, picture, max_memory_mb=limit, **options)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    assert torch.equal(found.gather(0, label_map[None])[0], found.amax(dim=0))


@holds(
    10,
    sizes=PICTURES,
    batch_size=st.integers(1, 4),
    processor=processors(),
    modes=st.lists(st.sampled_from(["RGB", "L", "P"]), min_size=3, max_size=3),
    seed=SEEDS,
)
def test_pipeline(sizes, batch_size, processor, modes, seed):
    """`pipeline` on a list, in batches of any size, is `segment` on its pictures."""
    assume(few_windows(processor, sizes, [1]))
    model = small_model(7)
    pictures = [
        Image.fromarray(smooth_picture(size, seed + i)).convert(mode)
        for i, (size, mode) in enumerate(zip(sizes, modes))
    ]
    segmenter = pipeline("image-segmentation", model=model, image_processor=processor)
    for picture, parts in zip(pictures, segmenter(pictures, batch_size=batch_size), strict=True):
        (expected,) = segment(model, processor, picture)
        assert [part["label"] for part in parts] == [f"LABEL_{i}" for i in expected.unique()]
        masks = np.stack([np.asarray(part["mask"]) for part in parts])
        assert set(np.unique(masks)) <= {0, 255} and ((masks > 0).sum(axis=0) == 1).all()
        assert (
            np.array([int(part["label"][6:]) for part in parts])[masks.argmax(axis=0)] == expected.numpy()
        ).mean() > 0.99


@holds(15, sizes=PICTURES, targets=st.lists(SIZES, min_size=3, max_size=3), processor=processors(), seed=SEEDS)
def test_post_processing_gives_any_size(sizes, targets, processor, seed):
    """Processor, model, post-processing: label maps of the sizes asked for, labels of the set, and `segment`'s."""
    assume(few_windows(processor, sizes, [1]))
    model, pictures = small_model(7), [smooth_picture(size, seed + i) for i, size in enumerate(sizes)]
    features = processor(pictures)
    assume(len({pixels.shape for pixels in features["pixel_values"]}) == 1)
    outputs = forward(model, **processor(pictures, return_tensors="pt"))
    maps = processor.post_process_semantic_segmentation(outputs, targets[: len(sizes)])
    assert [tuple(label_map.shape) for label_map in maps] == targets[: len(sizes)]
    assert all(0 <= label_map.min() and label_map.max() < 7 for label_map in maps)
    own = processor.post_process_semantic_segmentation(outputs, sizes)
    for label_map, picture in zip(own, pictures):
        assert (label_map == segment(model, processor, picture)[0]).float().mean() > 0.98


# ------------------------------------------------------------------------------------------------ files and old names


def old_checkpoint(model: QLSegForSemanticSegmentation, processor: QLSegImageProcessor) -> dict:
    """What mmsegmentation would have saved of a network: its names of the weights and its configuration text."""
    weights, config, backbone = {}, model.config, model.backbone

    def put(name, module):
        weights.update({f"{name}.{key}": value for key, value in module.named_parameters()})

    def put_packed(name, attention):
        for part in ("weight", "bias"):
            parts = [getattr(getattr(attention, f"{x}_proj"), part) for x in "qkv"]
            weights[f"{name}.in_proj_{part}"] = torch.cat(parts)
        put(f"{name}.out_proj", attention.o_proj)

    positions = backbone.embeddings.position_embeddings
    weights["backbone.cls_token"] = torch.randn(1, 1, positions.shape[2])
    weights["backbone.pos_embed"] = torch.cat([weights["backbone.cls_token"], positions], dim=1)
    put("backbone.patch_embed.projection", backbone.embeddings.projection)
    for i, layer in enumerate(backbone.layers):
        put(f"backbone.layers.{i}.ln1", layer.layernorm_before)
        put(f"backbone.layers.{i}.ln2", layer.layernorm_after)
        put_packed(f"backbone.layers.{i}.attn.attn", layer.attention)
        put(f"backbone.layers.{i}.ffn.layers.0.0", layer.mlp.fc1)
        put(f"backbone.layers.{i}.ffn.layers.1", layer.mlp.fc2)
    for i, (projection, norm) in enumerate(zip(model.pixel_encoder.projections, model.pixel_encoder.norms)):
        put(f"decode_head.pd_input_proj.{i}.0", projection)
        put(f"decode_head.pd_input_proj.{i}.1", norm)
    weights["decode_head.transformer.level_embed"] = model.pixel_encoder.level_embeddings
    for i, layer in enumerate(model.pixel_encoder.layers):
        name = f"decode_head.transformer.encoder.layers.{i}"
        put(f"{name}.self_attn", layer.self_attn)
        for new, old in (("norm1", "norm1"), ("norm2", "norm2"), ("fc1", "linear1"), ("fc2", "linear2")):
            put(f"{name}.{old}", getattr(layer, new))
    decoder = model.decoder
    for s, (queries, projection, norm) in enumerate(zip(decoder.queries, decoder.projections, decoder.norms), 1):
        weights[f"decode_head.query_{s}.weight"] = queries
        put(f"decode_head.input_proj_{s}", projection)
        put(f"decode_head.proj_norm_{s}", norm)
    for t, block in enumerate(decoder.blocks):
        put(f"decode_head.QFM_{t + 1}.weights", block.query_fusion.weights)
        for s, branch in enumerate(block.branches, 1):
            for j, layer in enumerate(branch):
                name = f"decode_head.atm_{t}_decoder_{s}.layers.{j}"
                put_packed(f"{name}.self_attn", layer.self_attn)
                for new, old in (("q_proj", "q"), ("k_proj", "k"), ("v_proj", "v"), ("o_proj", "proj")):
                    put(f"{name}.multihead_attn.{old}", getattr(layer.cross_attn, new))
                for new, old in (
                    ("fc1", "linear1"),
                    ("fc2", "linear2"),
                    *[(f"norm{n}", f"norm{n}") for n in (1, 2, 3)],
                ):
                    put(f"{name}.{old}", getattr(layer, new))
    put("decode_head.class_embed", model.class_head)
    weights["decode_head.loss_decode.criterion.empty_weight"] = torch.ones(config.num_labels + 1)
    vit, numbers = config.backbone_config, [[255 * x for x in y] for y in (processor.image_mean, processor.image_std)]
    window = (processor.window_size,) * 2
    test_cfg = dict(mode="slide", crop_size=window, stride=(processor.window_stride,) * 2)
    text = {
        "model": {
            "backbone": {
                "img_size": (vit.image_size,) * 2,
                "embed_dims": vit.hidden_size,
                "num_layers": vit.num_hidden_layers,
                "num_heads": vit.num_attention_heads,
                "drop_path_rate": vit.drop_path_rate,
                "out_indices": [stage - 1 for stage in vit.out_indices],
                "norm_cfg": {"type": "LN", "eps": vit.layer_norm_eps},
            },
            "decode_head": {
                "num_classes": config.num_labels,
                "num_layers": config.num_decoder_layers,
                "num_heads": config.num_attention_heads,
                "use_stages": len(vit.out_indices),
                "embed_dims": config.hidden_size,
                "num_atm_layers": config.num_decoder_blocks,
                "attn_mask_thre": config.mask_threshold,
                "num_ps_layers": config.num_pixel_encoder_layers,
                "compress_c": config.num_query_fusion_groups,
            },
            "test_cfg": test_cfg if processor.do_sliding_window else {"mode": "whole"},
        },
        "train_pipeline": [{"type": "LoadAnnotations", "reduce_zero_label": processor.do_reduce_labels}],
        "test_pipeline": [
            {"type": "Resize", "min_size": processor.size.shortest_edge},
            {"type": "Normalize", "mean": numbers[0], "std": numbers[1]},
        ],
    }
    meta = {"config": "".join(f"{name} = {value!r}\n" for name, value in text.items())}
    meta |= {"CLASSES": tuple(config.id2label.values()), "PALETTE": config.palette}
    return {"meta": meta, "state_dict": {name: value.detach() for name, value in weights.items()}}


def loaded(folder, **kwargs) -> QLSegForSemanticSegmentation:
    """The model of a folder. A copy: products round by where their factors lie, and a file aligns them otherwise."""
    return deepcopy(QLSegForSemanticSegmentation.from_pretrained(folder, **kwargs))


def settings_of(model) -> dict:
    """The configuration, without what transformers writes about a file."""
    config = json.loads(model.config.to_json_string(use_diff=False))
    for part in (config, config["backbone_config"]):
        for name in ("_name_or_path", "architectures", "auto_map", "dtype", "transformers_version"):
            part.pop(name, None)
    return config


@holds(
    8,
    config=configurations(widths=(32, 64), num_pixel_encoder_heads=8, num_group_norm_groups=32),
    window=st.tuples(st.integers(1, 40), st.integers(1, 40)).map(sorted),
    short_side=st.integers(1, 99),
    names=st.lists(st.text(min_size=1, max_size=4), min_size=1, max_size=12, unique=True),
    switches=st.tuples(st.booleans(), st.booleans(), st.booleans()),
    prefix=st.sampled_from(["", "module."]),
    seed=SEEDS,
)
def test_conversion_round_trip(config, window, short_side, names, switches, prefix, seed):
    """Any network with the old names of its weights, converted: the same outputs bit for bit, the same settings."""
    slides, reduces, coloured = switches
    vit = config.backbone_config
    assume(isinstance(vit.image_size, int) and 0 not in vit.out_indices)
    palette = [[i, 2 * i, 255] for i in range(len(names))] if coloured else None
    values = config.to_dict() | {"id2label": dict(enumerate(names)), "label2id": None, "palette": palette}
    model = varied_model(QLSegConfig.from_dict(values), seed)
    processor = QLSegImageProcessor(
        size={"shortest_edge": short_side},
        do_sliding_window=slides,
        window_size=window[1],
        window_stride=window[0],
        do_reduce_labels=reduces,
        image_mean=[0.1, 0.2, 0.3],
        image_std=[0.4, 0.5, 0.6],
    )
    checkpoint = old_checkpoint(model, processor)
    checkpoint["state_dict"] = {prefix + name: value for name, value in checkpoint["state_dict"].items()}
    with TemporaryDirectory() as folder:
        file, place = Path(folder, "old.pth"), Path(folder, "new")
        torch.save(checkpoint, file)
        assert run(["convert", file, place]) == 0
        again = loaded(place)
        settings = QLSegImageProcessor.from_pretrained(place)
    assert settings_of(again) == settings_of(model)
    pixel_values = torch.randn(1, 3, 21, 34)
    for mine, theirs in zip(outputs_of(forward(again, pixel_values)), outputs_of(forward(model, pixel_values))):
        assert torch.equal(mine, theirs)
    wanted = json.loads(processor.to_json_string())
    if not slides:  # the text of whole-picture inference has no window
        wanted |= {"window_size": vit.image_size, "window_stride": vit.image_size}
    found = json.loads(settings.to_json_string())
    found.pop("auto_map", None)  # of the code beside the weights
    for name in ("image_mean", "image_std"):
        assert found.pop(name) == pytest.approx(wanted.pop(name), rel=1e-9)
    assert found == wanted


@example(tiny_config(2), torch.float32, QLSegImageProcessor(), 0)  # two labels of default names were read as 150
@holds(
    8,
    config=configurations(),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    processor=processors(),
    seed=SEEDS,
)
def test_saved_and_loaded(config, dtype, processor, seed):
    """Model and processor are the same after saving: every weight and output bit for bit, every setting."""
    model = varied_model(config, seed).to(dtype)
    with TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
        again = loaded(folder, dtype=dtype)
        assert QLSegImageProcessor.from_pretrained(folder).to_json_string() == processor.to_json_string()
    assert settings_of(again) == settings_of(model)
    weights = model.state_dict()
    assert weights.keys() == again.state_dict().keys()
    assert all(torch.equal(value, weights[name]) for name, value in again.state_dict().items())
    pixel_values = torch.randn(1, 3, 21, 34)
    for mine, theirs in zip(outputs_of(forward(again, pixel_values)), outputs_of(forward(model, pixel_values))):
        assert torch.equal(mine, theirs)


NAMES = st.lists(st.sampled_from(["road", " Road", "sky", "tree", "tree ", "sea", "é", "1"]), min_size=1, max_size=8)


@holds(15, config=configurations(), old=NAMES, new=NAMES, weighted=st.booleans(), seed=SEEDS)
@example(config=tiny_config(), old=["a", "b"], new=["c"], weighted=True, seed=0)  # kept two weights for one label
def test_labels_are_replaced(config, old, new, weighted, seed):
    """Whatever the names: labels of the same name keep their query, all others are fresh, and the network trains."""
    weights = {"label_weights": [2.0] * len(old), "palette": [[0, 0, 9]] * len(old)} if weighted else {}
    values = config.to_dict() | {"id2label": dict(enumerate(old)), "label2id": None} | weights
    model = varied_model(QLSegConfig.from_dict(values), seed)
    queries = model.decoder.queries.detach().clone()
    kept = model.resize_labels(dict(enumerate(new)))
    plain = [name.strip().casefold() for name in old]
    assert kept == [name for name in new if name.strip().casefold() in plain]
    for index, name in enumerate(new):
        rows = [i for i, other in enumerate(plain) if other == name.strip().casefold()]
        same = [torch.equal(model.decoder.queries[:, index], queries[:, row]) for row in rows]
        assert any(same) if rows else True
    assert list(model.config.id2label.values()) == new and model.config.num_labels == len(new)
    assert model.config.palette is None and model.config.label_weights is None
    out = model.train()(torch.randn(1, 3, 20, 30), labels=torch.randint(0, len(new), (1, 20, 30)))
    assert out.loss.isfinite() and out.masks_queries_logits.shape[1] == len(new)
