"""The network as a transformers user meets it: sizes, dtypes, compilation, saving, label sets, Trainer."""

import copy
import json
import weakref

import pytest
import torch
from networks import labels_for, tiny_config
from transformers import (
    AutoBackbone,
    AutoConfig,
    AutoImageProcessor,
    AutoModelForSemanticSegmentation,
    Trainer,
    TrainingArguments,
)

from qlseg_hf import QLSegConfig, QLSegForSemanticSegmentation, QLSegImageProcessor, QLSegViTBackbone, QLSegViTConfig
from qlseg_hf.model.deformable_attention import sample_levels, softmax_of_few
from qlseg_hf.model.modeling_qlseg import token_mask

# ------------------------------------------------------------------------------------------------------ auto classes


def test_auto_classes(stored):
    model = AutoModelForSemanticSegmentation.from_pretrained(stored.folder)
    assert isinstance(model, QLSegForSemanticSegmentation)
    assert isinstance(AutoConfig.from_pretrained(stored.folder), QLSegConfig)
    assert isinstance(AutoImageProcessor.from_pretrained(stored.folder), QLSegImageProcessor)
    backbone = AutoBackbone.from_config(model.config.backbone_config)
    assert isinstance(backbone, QLSegViTBackbone)
    assert isinstance(AutoConfig.for_model("qlseg_vit"), QLSegViTConfig)


def test_backbone_alone(tmp_path, tiny_model):
    pixel_values = torch.randn(1, 3, 40, 50)
    tiny_model.backbone.save_pretrained(tmp_path)
    backbone = QLSegViTBackbone.from_pretrained(tmp_path, out_features=["stem", "stage2"])
    maps = backbone(pixel_values).feature_maps
    assert [tuple(m.shape) for m in maps] == [(1, 32, 3, 4)] * 2
    torch.testing.assert_close(maps[1], tiny_model.backbone(pixel_values).feature_maps[1], atol=0, rtol=0)
    assert backbone.channels == [32, 32]


# ------------------------------------------------------------------------------------------- parts against slow twins


def test_sampling_survives_bad_offsets():
    offsets = torch.full((1, 4, 1, 1, 1, 2), float("inf"))
    sampled = sample_levels(torch.ones(1, 4, 1, 2), offsets, torch.ones(1, 4, 1, 1, 1), (2, 2))
    assert sampled.shape == (1, 4, 2)  # no index outside the map, whatever the offset


def test_token_mask():
    logits = torch.tensor([[[0.0, -9.0, 9.0], [-9.0, -9.0, -9.0]]])
    assert token_mask(logits, 0.4).tolist() == [[[[0, float("-inf"), 0], [0, 0, 0]]]]


def test_softmax_of_few():
    """The definition written out is PyTorch's, in values and gradients, for half precision and huge scores too."""
    scores = (20 * torch.randn(3, 5, 12)).requires_grad_()
    expected = scores.softmax(dim=-1)
    found = softmax_of_few(scores)
    torch.testing.assert_close(found, expected)
    grads = (torch.autograd.grad(x.square().sum(), scores)[0] for x in (found, expected))
    torch.testing.assert_close(*grads)
    half = torch.tensor([[6e4, -6e4, 6e4]], dtype=torch.float16)
    assert softmax_of_few(half).tolist() == [[0.5, 0, 0.5]] and softmax_of_few(half).dtype == torch.float32


@torch.no_grad()
def test_eager_keeps_one_attention_at_a_time():
    """Unless they are asked for: those of a ViT-L at 640 px are 3.7 GiB."""
    backbone = QLSegViTConfig(
        hidden_size=32,
        num_hidden_layers=5,
        num_attention_heads=4,
        intermediate_size=64,
        image_size=32,
        out_indices=[5],
    )
    model = QLSegViTBackbone._from_config(backbone, attn_implementation="eager").eval()
    seen, num_alive = [], []

    def look(module, arguments, output):
        num_alive.append(sum(reference() is not None for reference in seen))
        seen.append(weakref.ref(output[1]))

    for layer in model.layers:
        layer.register_forward_hook(look)
    model(torch.randn(1, 3, 32, 48))
    assert num_alive == [0, 1, 1, 1, 1]
    assert len(model(torch.randn(1, 3, 32, 48), output_attentions=True).attentions) == 5


def test_eager_equals_sdpa(stored):
    pixel_values = stored.tensors["pixel_values"]
    eager, sdpa = (stored.model(attn_implementation=name).eval() for name in ("eager", "sdpa"))
    assert eager.config.backbone_config._attn_implementation == "eager"
    assert sdpa.config.backbone_config._attn_implementation == "sdpa"
    torch.testing.assert_close(eager(pixel_values).logits, sdpa(pixel_values).logits, atol=1e-5, rtol=0)


def test_flex_attention_goes_to_the_encoder_only(stored, monkeypatch):
    """flex (like flash) serves the encoder; the masked decoder falls back to sdpa."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    calls = []
    get_interface = ALL_ATTENTION_FUNCTIONS.get_interface

    def recorded(name, default):
        calls.append(name)
        return get_interface("sdpa", default)  # flex has no fast CPU kernel; what counts is who asks for it

    model = stored.model(attn_implementation="flex_attention").eval()
    monkeypatch.setattr(ALL_ATTENTION_FUNCTIONS, "get_interface", recorded)
    model(stored.tensors["pixel_values"])
    depth = stored.numbers["config"]["depth"]
    assert calls[:depth] == ["flex_attention"] * depth
    assert set(calls[depth:]) == {"sdpa"}


# ----------------------------------------------------------------------------------------- dtypes, memory, compilation


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_without_autocast(dtype):
    model = QLSegForSemanticSegmentation(tiny_config()).to(dtype).train()
    pixel_values = torch.randn(2, 3, 32, 48)  # fp32 pictures are cast where they enter
    loss = model(pixel_values, labels=labels_for(pixel_values)).loss
    loss.backward()
    assert loss.dtype == torch.float32 and loss.isfinite()
    assert all(p.grad is not None and p.grad.dtype == dtype and p.grad.isfinite().all() for p in model.parameters())
    assert model.eval()(pixel_values).logits.dtype == dtype


def test_every_parameter_gets_a_gradient(tiny_model):
    pixel_values = torch.randn(2, 3, 32, 48)
    tiny_model.train()(pixel_values, labels=labels_for(pixel_values)).loss.backward()
    without = [n for n, p in tiny_model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert without == [n for n in without if n.endswith("k_proj.bias")]  # a key bias cancels in the softmax


@pytest.mark.integration
@pytest.mark.parametrize("training, sizes", [(False, [(32, 48), (50, 70)]), (True, [(32, 48)])])
def test_compile_without_graph_breaks(training, sizes):
    """A second size makes the graph symbolic, hidden states are further outputs of it.

    `aot_eager` traces like inductor and skips the C++ compiler.
    """
    torch._dynamo.reset()
    model = QLSegForSemanticSegmentation(tiny_config(num_decoder_layers=1)).train(training)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    for size in sizes:
        pixel_values, wanted = torch.randn(2, 3, *size), {"output_hidden_states": True} if size == (50, 70) else {}
        with torch.set_grad_enabled(training):
            found = compiled(pixel_values, **wanted)
            assert found.logits.shape == (2, 20, *size) and len(found.hidden_states or ()) == 3 * len(wanted)
            if not training:
                torch.testing.assert_close(found.logits, model(pixel_values).logits, atol=1e-5, rtol=0)


@pytest.mark.slow
@torch.no_grad()
def test_compile_with_inductor(tiny_model):
    torch._dynamo.reset()
    compiled = torch.compile(tiny_model, fullgraph=True)
    for size in ((32, 48), (50, 70), (64, 33)):
        pixel_values = torch.randn(2, 3, *size)
        torch.testing.assert_close(compiled(pixel_values).logits, tiny_model(pixel_values).logits, atol=1e-5, rtol=0)


class CountSynchronisations(torch.utils._python_dispatch.TorchDispatchMode):
    """Counts operators that bring a value or a shape to the host."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func.name() in (
            "aten::_local_scalar_dense",
            "aten::nonzero",
            "aten::masked_select",
            "aten::item",
        )
        return func(*args, **(kwargs or {}))


def test_synchronisations(tiny_model, monkeypatch):
    pixel_values = torch.randn(2, 3, 32, 48)
    with torch.no_grad(), CountSynchronisations() as mode:
        tiny_model(pixel_values)
    assert mode.count == 0
    labels = labels_for(pixel_values)
    # on a CPU the label check looks at the labels; elsewhere it is an assertion on the device
    monkeypatch.setattr("qlseg_hf.model.modeling_qlseg.check_labels", lambda *_: None)
    with torch.no_grad(), CountSynchronisations() as mode:
        tiny_model.train()(pixel_values, labels=labels)
    assert mode.count == 1


@pytest.mark.gpu
def test_no_synchronisation_on_a_gpu(tiny_model):
    tiny_model.cuda()
    pixel_values = torch.randn(2, 3, 32, 48, device="cuda")
    tiny_model(pixel_values)
    torch.cuda.set_sync_debug_mode("error")
    try:
        tiny_model(pixel_values)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_hidden_states_and_attentions(tiny_model):
    output = tiny_model(torch.randn(2, 3, 32, 48), output_hidden_states=True, output_attentions=True)
    assert [tuple(state.shape) for state in output.hidden_states] == [(2, 6, 32)] * 3
    assert [tuple(weights.shape) for weights in output.attentions] == [(2, 4, 6, 6)] * 2
    torch.testing.assert_close(output.attentions[0].sum(-1), torch.ones(2, 4, 6))
    plain = tiny_model(torch.randn(2, 3, 32, 48))
    assert plain.hidden_states is None and plain.attentions is None
    assert isinstance(tiny_model(torch.randn(2, 3, 32, 48), return_dict=False), tuple)


def test_hidden_states_by_number(tiny_model):
    """As in transformers 5.23: those that were asked for, None in place of the others."""
    pixel_values = torch.randn(2, 3, 32, 48)
    states = tiny_model(pixel_values, output_hidden_states=True).hidden_states
    for chosen, kept in (([0, -1], {0, 2}), ([1], {1}), (1, {1}), (-3, {0}), ([2, 7, -4], {2})):
        found = tiny_model(pixel_values, output_hidden_states=chosen).hidden_states
        assert [i for i, state in enumerate(found) if state is not None] == sorted(kept)
        assert all(torch.equal(found[i], states[i]) for i in kept)
    assert tiny_model(pixel_values, output_hidden_states=[]).hidden_states is None


def test_a_frozen_encoder_computes_as_in_evaluation(tiny_model):
    """Drop path of an encoder that is not trained is noise on maps, which `freeze_backbone` trained on."""
    pixel_values = torch.randn(4, 3, 32, 48)
    expected = tiny_model.backbone(pixel_values).feature_maps[-1]
    tiny_model.backbone.requires_grad_(False)
    tiny_model.train()
    torch.manual_seed(0)
    assert all(torch.equal(tiny_model.backbone(pixel_values).feature_maps[-1], expected) for _ in range(4))
    assert tiny_model.decoder.training and tiny_model.training
    tiny_model.backbone.layers[0].layernorm_before.weight.requires_grad_(True)
    tiny_model.train()
    assert not all(torch.equal(tiny_model.backbone(pixel_values).feature_maps[-1], expected) for _ in range(4))
    assert not any(module.training for module in tiny_model.eval().modules())


def test_dropout_and_drop_path_act_in_training(tiny_model):
    pixel_values = torch.randn(1, 3, 32, 48)
    assert torch.equal(tiny_model(pixel_values).logits, tiny_model(pixel_values).logits)
    tiny_model.train()
    assert not torch.equal(tiny_model(pixel_values).logits, tiny_model(pixel_values).logits)
    rates = [layer.drop_path for layer in QLSegViTBackbone(QLSegViTConfig(num_hidden_layers=3, hidden_size=32)).layers]
    assert rates == pytest.approx([0, 0.15, 0.3])


# ----------------------------------------------------------------------------------------------- loading and saving


def test_dtype_and_device_map(stored, tmp_path):
    assert stored.model(dtype=torch.bfloat16).dtype == torch.bfloat16
    pixel_values, plain = stored.tensors["pixel_values"], stored.model().eval()
    spread = {"backbone.embeddings": "disk", "pixel_encoder": "disk", "decoder": "disk", "class_head": "cpu"}
    spread |= {f"backbone.layers.{i}": "disk" if i % 2 else "cpu" for i in range(stored.numbers["config"]["depth"])}
    for device_map in ("auto", spread):
        model = stored.model(device_map=device_map, offload_folder=tmp_path).eval()
        torch.testing.assert_close(model(pixel_values).logits, plain(pixel_values).logits, atol=1e-6, rtol=0)


def test_bf16_label_maps(stored):
    from qlseg_hf import segment

    pictures = [stored.picture(name) for name in ("wide", "tall", "large")]
    full = segment(stored.model(), stored.processor, pictures)
    half = segment(stored.model(dtype=torch.bfloat16), stored.processor, pictures)
    for found, expected in zip(half, full):
        assert (found == expected).float().mean() >= 0.99


def test_num_labels_and_mismatched_sizes(stored):
    model = stored.model(id2label={0: "road", 1: "car"}, ignore_mismatched_sizes=True)
    assert model.config.num_labels == 2 and model.config.label2id == {"road": 0, "car": 1}
    assert model.decoder.queries.shape[1] == 2
    assert stored.model(num_labels=3, ignore_mismatched_sizes=True).class_head.out_features == 4
    with pytest.raises(RuntimeError, match="mismatch"):
        stored.model(num_labels=3)


def test_reuse_labels(stored, caplog, tmp_path):
    old = stored.model()
    model = stored.model(id2label={0: "class 3", 1: "new", 2: " Class 1"}, reuse_labels=True)
    assert model.config.id2label == {0: "class 3", 1: "new", 2: " Class 1"} and model.config.num_labels == 3
    for new, was in ((0, 3), (2, 1)):
        assert torch.equal(model.decoder.queries[:, new], old.decoder.queries[:, was])
        assert torch.equal(model.class_head.weight[new], old.class_head.weight[was])
        assert torch.equal(model.class_head.bias[new], old.class_head.bias[was])
    assert torch.equal(model.class_head.weight[-1], old.class_head.weight[-1])  # "no object"
    assert not torch.isin(model.decoder.queries[:, 1], old.decoder.queries).any()
    assert "kept 2 labels (['class 3', ' Class 1']); newly initialised 1 (['new'])" in caplog.text
    model.save_pretrained(tmp_path)
    again = AutoModelForSemanticSegmentation.from_pretrained(tmp_path)
    pixel_values = stored.tensors["pixel_values"]
    assert torch.equal(again(pixel_values).logits, model.eval()(pixel_values).logits)
    names = {0: "class 3", 1: "new"}
    auto = AutoModelForSemanticSegmentation.from_pretrained(stored.folder, id2label=names, reuse_labels=True)
    assert auto.config.id2label == names and torch.equal(auto.decoder.queries[:, 0], old.decoder.queries[:, 3])
    with pytest.raises(ValueError, match="give the new names as id2label"):
        stored.model(num_labels=3, reuse_labels=True)
    with pytest.raises(ValueError, match="num_labels differs"):
        stored.model(num_labels=3, id2label={0: "class 3"}, reuse_labels=True)


def test_a_configuration_that_no_longer_fits_the_weights(tiny_model, tmp_path):
    """Changed by hand, or by `resize_labels` of another network that shares it; it was saved, and not loadable."""
    pixel_values = torch.zeros(1, 3, 32, 48)
    other = QLSegForSemanticSegmentation(tiny_model.config).eval()
    assert other.resize_labels({0: "label_0", 1: "a", 2: "LABEL_3"}) == ["label_0", "LABEL_3"]
    assert other(pixel_values).logits.shape[1] == 3
    for call, given in (
        (tiny_model, pixel_values),
        (tiny_model.save_pretrained, tmp_path),
        (tiny_model.resize_labels, {}),
    ):
        with pytest.raises(ValueError, match="the configuration has 3 labels and the weights are for 20; give the"):
            call(given)
    assert not any(tmp_path.iterdir())
    tiny_model.config.id2label = dict(enumerate("abcdefghijklmnopqrst"))
    assert tiny_model(pixel_values).logits.shape[1] == 20


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num_decoder_blocks", 1),  # the folder of which was loaded as another network, after a warning
        ("num_attention_heads", 2),  # and without one
        ("hidden_size", 32),
        ("use_label_classifier", True),
        ("backbone_config.num_hidden_layers", 1),
        ("backbone_config.layer_norm_eps", 0.1),
    ],
)
def test_sizes_of_the_configuration_that_were_changed(tiny_model, tmp_path, name, value):
    config = tiny_model.config
    place, name = (config.backbone_config, name.split(".")[1]) if "." in name else (config, name)
    was = getattr(place, name)
    setattr(place, name, value)
    message = (
        rf"changed after the network was built \((backbone_config\.)?{name} is {json.dumps(value)}\), which changes"
    )
    with pytest.raises(ValueError, match=message):
        tiny_model.save_pretrained(tmp_path)
    assert not any(tmp_path.iterdir())
    setattr(place, name, was)
    config.dropout = config.backbone_config.drop_path_rate = 0.5  # of the next training
    tiny_model.save_pretrained(tmp_path)
    loaded = QLSegForSemanticSegmentation.from_pretrained(tmp_path)
    assert loaded.structure == tiny_model.structure and loaded.backbone.structure == tiny_model.backbone.structure
    loaded.backbone.config.hidden_size = 64
    with pytest.raises(ValueError, match="hidden_size is 64"):
        loaded.backbone.save_pretrained(tmp_path / "encoder")


def test_labels_that_cannot_be(tiny_model):
    for names in ({0: "a", 2: "b"}, {}, dict.fromkeys(range(300), "a"), {0: 3}):
        with pytest.raises(ValueError, match="keys 0..1|at least one label|is one of the 300|must hold names"):
            tiny_model.resize_labels(names)
    assert tiny_model.config.num_labels == 20 and tiny_model(torch.zeros(1, 3, 32, 48)).logits.shape[1] == 20


def test_labels_of_a_model_on_disk(network, tmp_path):
    """New names stood before the weights of the old ones, which came back from the disk."""
    names = {number: f"LABEL_{19 - number}" for number in range(20)}
    parts = {"backbone": "cpu", "pixel_encoder": "cpu", "decoder": "disk", "class_head": "disk"}
    place = {"device_map": parts, "offload_folder": tmp_path}
    with pytest.raises(ValueError, match="weights are offloaded, by device_map; change the labels"):
        QLSegForSemanticSegmentation.from_pretrained(network, id2label=names, reuse_labels=True, **place)


def test_reused_labels_that_share_a_name(tiny_model):
    """Each is kept for one of them, not the last for all."""
    tiny_model.resize_labels({0: "car", 1: "sky", 2: "Car", 3: "car "})
    before = tiny_model.decoder.queries.clone()
    assert len(tiny_model.resize_labels(dict(enumerate(["CAR", "car", "sky", "car", "car"])))) == 5
    assert torch.equal(tiny_model.decoder.queries, before[:, [0, 2, 1, 3, 3]])


@pytest.mark.parametrize(("name", "value"), [("mask_threshold", 0.9), ("position_temperature", 3.0)])
def test_numbers_of_the_configuration_count_when_they_are_changed(tiny_model, tmp_path, name, value):
    """They were those of before until the model was saved and loaded."""
    setattr(tiny_model.config, name, value)
    tiny_model.save_pretrained(tmp_path)
    again = QLSegForSemanticSegmentation.from_pretrained(tmp_path)
    pixel_values = torch.randn(1, 3, 64, 96)
    assert torch.equal(tiny_model(pixel_values).logits, again(pixel_values).logits)
    setattr(tiny_model.config, name, getattr(tiny_config(), name))
    assert not torch.equal(tiny_model(pixel_values).logits, again(pixel_values).logits)


def test_other_labels_in_the_same_parameters(tiny_model):
    """New ones were trainable in a network whose rest was frozen, and unknown to the optimizer that there was."""
    model = tiny_model.train()
    before = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    model.decoder.queries.requires_grad_(False)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    model.resize_labels({0: "LABEL_3", 1: "new", 2: "newer"})
    assert model.class_head.out_features == 4
    assert [name for name, x in model.named_parameters() if x.requires_grad] == sorted(
        set(before) - {"decoder.queries"}, key=before.index
    )
    pixel_values = torch.randn(1, 3, 32, 48)
    model(pixel_values, labels=torch.ones(1, 32, 48, dtype=torch.long)).loss.backward()
    old = copy.deepcopy(model.state_dict())
    optimizer.step()
    assert not torch.equal(old["class_head.weight"], model.class_head.weight)
    assert torch.equal(old["decoder.queries"], model.decoder.queries)


def test_same_labels_in_another_order_are_the_same_network(stored):
    """Reordering labels permutes classes; query fusion alone depends on the order, within its runs."""
    names = stored.model().config.id2label
    model = stored.model(id2label=dict(names), reuse_labels=True).eval()
    pixel_values = stored.tensors["pixel_values"]
    assert torch.equal(model(pixel_values).logits, stored.model().eval()(pixel_values).logits)


# --------------------------------------------------------------------------------------------------- wrong input


def test_wrong_input(tiny_model):
    pixel_values = torch.randn(2, 3, 32, 48)
    labels = labels_for(pixel_values)
    for wrong in (
        torch.randn(2, 4, 32, 48),
        torch.randn(3, 32, 48),
        torch.randn(2, 3, 0, 48),
        torch.randn(0, 3, 32, 48),
    ):
        with pytest.raises(ValueError, match=r"\(B, 3, H, W\) is wanted"):
            tiny_model(wrong)
    for dtype in (torch.uint8, torch.int64, torch.bool):  # numbers of 0..255 gave labels, all of them wrong
        for network in (tiny_model, tiny_model.backbone):
            with pytest.raises(ValueError, match=f"pixel_values are {dtype}, so they have not been normalised; give"):
                network(torch.ones(2, 3, 32, 48, dtype=dtype))
    with pytest.raises(TypeError, match="pixel_values is a list; a tensor is wanted, .* return_tensors='pt'"):
        tiny_model(list(pixel_values))
    with pytest.raises(ValueError, match="one label map per picture"):
        tiny_model(pixel_values, labels=labels[:1])
    with pytest.raises(ValueError, match="integers are wanted"):
        tiny_model(pixel_values, labels=labels.float())
    for value in (20, -1, 254):
        bad = labels.clone()
        bad[0, 0, 0] = value
        with pytest.raises(ValueError, match=rf"labels must be 0..19 or 255.*found \[{value}\]"):
            tiny_model(pixel_values, labels=bad)
    for network in (tiny_model, tiny_model.backbone):  # what is misspelt would change nothing
        with pytest.raises(TypeError, match=r"forward\(\) got unknown keywords \['lables'\]"):
            network(pixel_values, lables=labels)


def test_labels_of_another_size_than_the_picture(tiny_model):
    pixel_values = torch.randn(2, 3, 32, 48)
    small = tiny_model(pixel_values, labels=labels_for(pixel_values)).loss
    double = torch.nn.functional.interpolate(labels_for(pixel_values)[:, None].float(), scale_factor=2)[:, 0].long()
    assert tiny_model(pixel_values, labels=double).loss.item() == pytest.approx(small.item(), rel=0.05)


# ------------------------------------------------------------------------------------------------------- Trainer


class Stripes(torch.utils.data.Dataset):
    def __len__(self):
        return 8

    def __getitem__(self, index):
        pixel_values = torch.randn(3, 32, 48, generator=torch.Generator().manual_seed(index))
        return {"pixel_values": pixel_values, "labels": labels_for(pixel_values[None])[0]}


def test_stock_trainer(tmp_path, tiny_model):
    """Trainer trains it with plain `labels`, and its evaluation loop gets `logits` as predictions."""
    seen = {}

    def metrics(prediction):
        seen["shape"] = prediction.predictions.shape
        return {"accuracy": (prediction.predictions == prediction.label_ids).mean()}

    arguments = TrainingArguments(
        tmp_path,
        max_steps=2,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        per_device_eval_batch_size=3,
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
    )
    trainer = Trainer(
        tiny_model,
        arguments,
        train_dataset=Stripes(),
        eval_dataset=Stripes(),
        compute_metrics=metrics,
        preprocess_logits_for_metrics=lambda logits, labels: logits.argmax(dim=1),
    )
    assert not trainer.model_accepts_loss_kwargs  # or the loss would not be divided by the accumulation steps
    trainer.train()
    result = trainer.evaluate()
    assert seen["shape"] == (8, 32, 48)
    assert torch.tensor(result["eval_loss"]).isfinite() and 0 <= result["eval_accuracy"] <= 1
