"""What transformers' common tests are run with, and which of them do not apply; run.py has put them on `sys.path`."""

import functools
import importlib.util
import json
import os
import re
import sys
import tempfile
import types
import unittest
from pathlib import Path
from unittest import mock

import torch
import transformers
from huggingface_hub import ImageSegmentationOutputElement
from transformers import pipeline
from transformers.models.auto import modeling_auto
from transformers.testing_utils import compare_pipeline_output_to_hub_spec

from qlseg_hf import (
    QLSegConfig,
    QLSegForSemanticSegmentation,
    QLSegImageProcessor,
    QLSegOutput,
    QLSegViTBackbone,
    QLSegViTConfig,
)
from qlseg_hf.model.modeling_qlseg import QLSegViTLayer

PICTURE = Path(__file__).resolve().parents[1] / "fixtures" / "a" / "wide.png"
PIPELINE_MIXIN = Path(importlib.util.find_spec("tests.test_pipeline_mixin").origin)
SIDE, NUM_LABELS, BATCH = 32, 5, 3
# with the usual 0.02 an attention that is wrong by a tenth passes all of their comparisons of eager with sdpa
WEIGHTS = {"initializer_range": 0.2}
BACKBONE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
BACKBONE |= {"image_size": SIDE, "patch_size": 8, "out_indices": [1, 2]} | WEIGHTS
DECODER = {"hidden_size": 16, "num_attention_heads": 4, "intermediate_size": 32, "num_pixel_encoder_layers": 1}
DECODER |= {"pixel_encoder_intermediate_size": 32, "num_decoder_blocks": 2, "num_decoder_layers": 2} | WEIGHTS
transformers.set_seed(0)  # every run asks the same


def whole_config(encoder=QLSegViTConfig) -> QLSegConfig:
    return QLSegConfig(num_labels=NUM_LABELS, backbone_config=encoder(**BACKBONE), **DECODER)


# ------------------------------------------------------------- what the mixins import and the distribution leaves out


class ImageSegmentationPipelineTests:
    """Makes the pipeline that PipelineTesterMixin runs, and looks at each segment by the Hub's specification."""

    def get_test_pipeline(self, model, tokenizer=None, image_processor=None, dtype="float32"):
        segmenter = pipeline("image-segmentation", model=model, image_processor=image_processor, dtype=dtype)
        return segmenter, [str(PICTURE), str(PICTURE.with_name("tall.png"))]

    def run_pipeline_test(self, segmenter, examples):
        for segments in segmenter(examples, batch_size=2):
            assert segments, "a picture without a segment"
            for segment in segments:
                compare_pipeline_output_to_hub_spec(segment, ImageSegmentationOutputElement)


def stand_in(module: str, **attributes) -> None:
    sys.modules[module] = types.ModuleType(module)
    vars(sys.modules[module]).update(attributes)


COMMON_SETTINGS = {
    "architectures": ["Other"],
    "chunk_size_feed_forward": 5,
    "dtype": "float16",
    "id2label": {0: "label"},
    "label2id": {"label": 0},
    "output_attentions": True,
    "output_hidden_states": True,
    "problem_type": "regression",
    "return_dict": False,
}
stand_in("tests.exporters.test_export", ExportTesterMixin=type("ExportTesterMixin", (), {}))
stand_in("tests.generation.test_utils", GenerationTesterMixin=type("GenerationTesterMixin", (), {}))
stand_in("tests.utils.test_configuration_utils", config_common_kwargs=COMMON_SETTINGS)
for module, name in re.findall(r"from \.pipelines\.(\w+) import (\w+)", PIPELINE_MIXIN.read_text(encoding="utf-8")):
    stand_in(f"tests.pipelines.{module}", **{name: None})  # transformers 5.17 imports those of all tasks at once
SEGMENTATION = "tests.pipelines.test_pipelines_image_segmentation"
stand_in(SEGMENTATION, ImageSegmentationPipelineTests=ImageSegmentationPipelineTests)
stand_in("fetch_hub_objects_for_ci", url_to_local_path=lambda url: str(PICTURE))

# a tiny network where PipelineTesterMixin would find one of the Hub
NETWORKS = tempfile.TemporaryDirectory(prefix="qlseg-conformance-")
NETWORK = Path(NETWORKS.name) / "qlseg" / "QLSegForSemanticSegmentation"
QLSegForSemanticSegmentation(whole_config()).save_pretrained(NETWORK)
QLSegImageProcessor(size={"shortest_edge": SIDE}, window_size=SIDE, window_stride=SIDE // 2).save_pretrained(NETWORK)
(Path(NETWORKS.name) / "reports").mkdir()
SUMMARY = {"QLSegForSemanticSegmentation": {"tokenizer_classes": [], "processor_classes": ["QLSegImageProcessor"]}}
(Path(NETWORKS.name) / "reports" / "tiny_model_summary.json").write_text(json.dumps(SUMMARY))
FILE_WITH_YEAR = Path(NETWORKS.name) / "year.txt"
FILE_WITH_YEAR.write_text("# Copyright 2026")
os.environ["TRANSFORMERS_TINY_MODEL_PATH"] = NETWORKS.name

# they know by these tables of names which models take label maps, and which have no loss
modeling_auto.MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES["qlseg"] = "QLSegForSemanticSegmentation"
modeling_auto.MODEL_FOR_BACKBONE_MAPPING_NAMES["qlseg_vit"] = "QLSegViTBackbone"

from tests.test_backbone_common import BackboneTesterMixin  # noqa: E402
from tests.test_configuration_common import ConfigTester  # noqa: E402
from tests.test_modeling_common import ModelTesterMixin, floats_tensor  # noqa: E402

from tests import test_image_processing_common as image_processing  # noqa: E402
from tests import test_pipeline_mixin  # noqa: E402

test_pipeline_mixin.transformers_module.QLSegImageProcessor = QLSegImageProcessor  # they look for it there

# ------------------------------------------------------------------------------------------------------- the classes


class Inputs:
    """What the mixins call a model tester."""

    batch_size, num_hidden_layers, num_attention_heads, is_training = BATCH, 2, 4, True
    hidden_size = BACKBONE["hidden_size"]

    def __init__(self, get_config, num_special_tokens=0):
        self.get_config = get_config
        self.seq_length = (SIDE // BACKBONE["patch_size"]) ** 2 + num_special_tokens

    def prepare_config_and_inputs_for_common(self):
        return self.get_config(), {"pixel_values": floats_tensor([BATCH, 3, SIDE, SIDE])}


class ModelTest(ModelTesterMixin):
    def test_can_init_all_missing_weights(self):
        # they leave out models from before 2023, by the year in the head of a file
        with mock.patch("inspect.getfile", return_value=FILE_WITH_YEAR):
            super().test_can_init_all_missing_weights()

    def test_model_forward_default_config_values(self):
        with mock.patch.dict(modeling_auto.MODEL_MAPPING_NAMES, qlseg=self.all_model_classes[0].__name__):
            super().test_model_forward_default_config_values()

    def test_can_capture_specific_layers_hidden_states(self):
        # they ask by this attribute, which would install hooks that QLSeg does without
        with mock.patch.object(QLSegViTBackbone, "_can_record_outputs", {"hidden_states": QLSegViTLayer}):
            super().test_can_capture_specific_layers_hidden_states()


class WholeTest(ModelTest):
    all_model_classes = (QLSegForSemanticSegmentation,)
    _is_composite = True
    encoder, num_special_tokens = QLSegViTConfig, 0

    def setUp(self):
        self.model_tester = Inputs(lambda: whole_config(self.encoder), self.num_special_tokens)

    def test_sdpa_can_dispatch_non_composite_models(self):
        self._is_composite = False  # encoder and decoder are told alike
        super().test_sdpa_can_dispatch_non_composite_models()


class SegmentationTest(WholeTest, test_pipeline_mixin.PipelineTesterMixin, unittest.TestCase):
    pipeline_model_mapping = {"image-segmentation": QLSegForSemanticSegmentation}

    def test_config(self):
        ConfigTester(self, QLSegConfig, has_text_modality=False, **DECODER).run_common_tests()


class WithDinov2Test(WholeTest, unittest.TestCase):
    encoder, num_special_tokens = functools.partial(transformers.Dinov2Config, mlp_ratio=2), 1


class WithDinov2RegistersTest(WholeTest, unittest.TestCase):
    encoder, num_special_tokens = functools.partial(transformers.Dinov2WithRegistersConfig, mlp_ratio=2), 5


class WithDinov3Test(WholeTest, unittest.TestCase):
    encoder, num_special_tokens = transformers.DINOv3ViTConfig, 1


class WithBeitTest(WholeTest, unittest.TestCase):
    encoder, num_special_tokens = functools.partial(transformers.BeitConfig, use_relative_position_bias=True), 1


class BackboneAsModelTest(ModelTest, unittest.TestCase):
    all_model_classes = (QLSegViTBackbone,)

    def setUp(self):
        self.model_tester = Inputs(lambda: QLSegViTConfig(**BACKBONE))

    def test_config(self):
        ConfigTester(self, QLSegViTConfig, has_text_modality=False, **BACKBONE).run_common_tests()


class BackboneTest(BackboneTesterMixin, unittest.TestCase):
    all_model_classes = (QLSegViTBackbone,)
    config_class = QLSegViTConfig

    def setUp(self):
        self.model_tester = Inputs(lambda: QLSegViTConfig(**BACKBONE))


class WindowsTester(image_processing.ImageProcessingTester):
    """Every picture becomes one window."""

    batch_size, num_channels, min_resolution, max_resolution, num_labels = 7, 3, 30, 400, NUM_LABELS
    size = {"height": SIDE, "width": SIDE}
    do_sliding_window = True

    def __init__(self):
        self.settings = {"size": self.size, "window_size": SIDE, "window_stride": SIDE}
        self.settings |= {"image_mean": [0.4] * 3, "image_std": [0.3] * 3, "do_sliding_window": self.do_sliding_window}

    def prepare_image_processor_dict(self):
        return self.settings

    def prepare_post_process_semantic_segmentation_inputs(self):
        inputs, shape = super().prepare_post_process_semantic_segmentation_inputs()
        if self.do_sliding_window:
            offsets = torch.tensor([[i, 0, 0, SIDE, SIDE] for i in range(self.batch_size)])
            inputs["outputs"] = QLSegOutput(logits=inputs["outputs"].logits, window_offsets=offsets)
        return inputs, shape


class WholePicturesTester(WindowsTester):
    do_sliding_window = False


class WindowsTest(
    image_processing.PostProcessSemanticSegmentationTestMixin,
    image_processing.ImageProcessingTestMixin,
    unittest.TestCase,
):
    image_processing_classes = {"torchvision": QLSegImageProcessor, "pil": QLSegImageProcessor}  # as registered
    image_processor_tester_class = WindowsTester
    test_cast_dtype = True

    def setUp(self):
        self.image_processor_tester = self.image_processor_tester_class()

    @property
    def image_processor_dict(self):
        return self.image_processor_tester.settings


class WholePicturesTest(WindowsTest):
    image_processor_tester_class = WholePicturesTester


CASES = [SegmentationTest, WithDinov2Test, WithDinov2RegistersTest, WithDinov3Test, WithBeitTest]
CASES += [BackboneAsModelTest, BackboneTest, WindowsTest, WholePicturesTest]

# ------------------------------------------------------------------------------------------- which tests do not apply

made = []  # models and processors that the running test has made


def count(cls: type) -> None:
    init = cls.__init__

    @functools.wraps(init)
    def counted(self, *args, **kwargs):
        made.append(cls)
        init(self, *args, **kwargs)

    cls.__init__ = counted


for cls in (QLSegForSemanticSegmentation, QLSegViTBackbone, QLSegImageProcessor):
    count(cls)

# These make neither model nor processor and ask something all the same: configurations and signatures.
OF_CLASSES = [
    "test_config",
    "test_config_attn_implementation_setter",
    "test_config_save_pretrained",
    "test_model_main_input_name",
    "test_new_models_require_torchvision_backend",
    "test_num_layers_is_small",
    "test_post_process_test_mixin_inheritance",
]

TEXT = "tokens, their embeddings, generation: QLSeg reads pictures alone"
FEATURES = "models with get_text_features, get_image_features and the like: QLSeg has none"
OTHER_TASK = "pipelines of other tasks"
ROTARY = (
    "rotary positions and sliding windows in attention: QLSeg's encoder has neither; DINOv3 is tested in transformers"
)
EXPERTS = "mixtures of experts: QLSeg has none"
ONE_CLASS = (
    "networks with one class per picture, whose number of labels shapes one layer: in QLSeg it shapes the queries too"
)
PLAN = "plans of tensor parallelism: QLSeg declares none"
BASE = "networks made of a base model and a head: QLSeg is one model"
FP32 = (
    "modules kept in fp32 by name: QLSeg names none; what drifts in half precision is computed in fp32 where it stands"
)
RENAMED = "keys renamed while loading: QLSeg's are not, convert_checkpoints.py does that before"
NUMBERS = "numbers of hidden states by 5.17's rule, where the embedding has none; QLSeg counts as 5.23 does"
THAWED = "thaws every weight first; 5.23 leaves frozen what no feature map depends on, and the test passes"
HOOKS = "outputs gathered by hooks: QLSeg returns them without"
PARTS = "networks made of parts with configurations of their own: a backbone is one part"
LANGUAGE = "networks of a language model and a tower of another modality"
NO_LOSS = "losses: a backbone has none; it is trained in SegmentationTest"
ONE_TENSOR = "networks whose first output is one tensor: a backbone's is a tuple of maps; SegmentationTest passes it"
CHANNELS = "the setting do_convert_rgb: QLSeg's processor makes whatever comes 8-bit RGB"
NO_PACKAGE = "starts a Python without `import qlseg_hf`; test_same_with_and_without_torchvision does the same with it"
OLD = "processors of transformers 4: sizes as dict, means as list, unknown arguments dropped; QLSeg refuses those"
ONE_BACKEND = "compiles a processor written with torchvision: QLSeg's is one, the same with and without it"

NOT_APPLICABLE = {
    "test_causal_lm_loss_honors_shift_labels": TEXT,
    "test_encoder_decoder_loss_no_double_shift": TEXT,
    "test_generation_tester_mixin_inheritance": TEXT,
    "test_inputs_embeds*": TEXT,
    "test_model_base_model_prefix": TEXT,
    "test_model_get_set_embeddings": TEXT,
    "test_resize_embeddings_untied_with_deepspeed*": TEXT,
    "test_resize_position_vector_embeddings": TEXT,
    "test_resize_tokens_embeddings*": TEXT,
    "test_torch_compile_for_training": TEXT,
    "test_get_*_features_*": FEATURES,
    "test_model_rope_*": ROTARY,
    "test_sliding_window_mask": ROTARY,
    "test_vision_axial_rope": ROTARY,
    "test_eager_matches_batched_and_grouped_inference_*": EXPERTS,
    "test_moe_models_record_router_logits": EXPERTS,
    "test_output_router_logits_from_config": EXPERTS,
    "test_can_load_ignoring_mismatched_shapes": ONE_CLASS,
    "test_load_with_mismatched_shapes": ONE_CLASS,
    "test_problem_types": ONE_CLASS,
    "test_tied_head_has_a_tp_plan_entry": PLAN,
    "test_tp_plan_matches_params": PLAN,
    "test_torch_save_load": BASE,
    "test_keep_in_fp32_modules*": FP32,
    "SegmentationTest.test_can_load_from_already_mapped_keys": RENAMED,
    "BackboneAsModelTest.test_can_load_from_already_mapped_keys": RENAMED,
    "SegmentationTest.test_reverse_loading_mapping": RENAMED,
    "BackboneAsModelTest.test_reverse_loading_mapping": RENAMED,
    "SegmentationTest.test_capture_outputs_decorator": HOOKS,
    "BackboneAsModelTest.test_capture_outputs_decorator": HOOKS,
    "BackboneAsModelTest.test_attn_implementation_composite_models": PARTS,
    "BackboneAsModelTest.test_can_set_attention_dynamically_composite_model": PARTS,
    "BackboneAsModelTest.test_internal_model_config_and_subconfig_are_same": PARTS,
    "test_sdpa_can_dispatch_composite_models": LANGUAGE,
    "BackboneAsModelTest.test_training*": NO_LOSS,
    "BackboneAsModelTest.test_retain_grad_hidden_states_attentions": ONE_TENSOR,
    "test_call_numpy_4_channels": CHANNELS,
    "test_convert_to_rgb_mixed_input_batch_*": CHANNELS,
    "test_image_processor_from_dict_with_kwargs_has_attributes": CHANNELS,
    "test_pil_can_run_without_torchvision": NO_PACKAGE,
    "test_image_processor_preprocess_arguments": OLD,
    "test_override_instance_attributes_does_not_affect_other_instances": OLD,
    "test_can_compile_torchvision_backend": ONE_BACKEND,
} | {
    f"test_pipeline_{task.replace('-', '_')}*": OTHER_TASK
    for task in test_pipeline_mixin.pipeline_test_mapping
    if task != "image-segmentation"
}
if transformers.__version__ == "5.17.0":
    NOT_APPLICABLE |= {
        "BackboneAsModelTest.test_can_capture_specific_layers_hidden_states": NUMBERS,
        "SegmentationTest.test_can_capture_specific_layers_hidden_states": NUMBERS,
        "WithDinov2*.test_can_load_from_already_mapped_keys": RENAMED,
        "WithDinov2*.test_reverse_loading_mapping": RENAMED,
        "WithDino*.test_training_gradient_checkpointing*": THAWED,
    }
