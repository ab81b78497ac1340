"""Model folders and data sets of attackers: their code is not run, nobody is asked, nothing is fetched."""

import io
import json
import shutil
from pathlib import Path

import pytest
from attacks import EVIL, TRAP, laughs
from networks import tiny_config
from PIL import Image
from transformers import AutoModelForSemanticSegmentation, pipeline

from qlseg_hf import QLSegForSemanticSegmentation, QLSegImageProcessor
from qlseg_hf.data.datasets import open_dataset
from qlseg_hf.hub.loading import load_network

one_network = pytest.mark.parametrize("stored", ["b"], indirect=True)


KERNEL = "evil/kernel"
CONFIGS = {
    "auto_map": {"auto_map": {key: "evil.Evil" for key in ("AutoConfig", "AutoModelForSemanticSegmentation")}},
    "auto_map elsewhere": {"auto_map": {"AutoModelForSemanticSegmentation": "evil/repo--evil.Evil"}},
    "auto_map of the backbone": {"backbone_config": {"auto_map": {"AutoBackbone": "evil.Evil"}}},
    "unknown model": {"model_type": "evil", "auto_map": {"AutoConfig": "evil.Evil"}},
    "unknown backbone": {"backbone_config": {"model_type": "evil", "auto_map": {"AutoConfig": "evil.Evil"}}},
    "custom_pipelines": {"custom_pipelines": {"image-segmentation": {"impl": "evil.Evil", "pt": ["AutoModel"]}}},
    "attn_implementation": {"attn_implementation": KERNEL},
    "_attn_implementation": {"_attn_implementation": KERNEL},
    "_attn_implementation_internal": {"_attn_implementation_internal": KERNEL},
    "attn_implementation of parts": {"attn_implementation": {"": KERNEL, "backbone_config": KERNEL}},
    "attention of the backbone": {"backbone_config": {"attn_implementation": KERNEL}},
    "_attention of the backbone": {"backbone_config": {"_attn_implementation": KERNEL}},
    "flash kernel": {"attn_implementation": "flash_attention_2|evil/kernel:function"},
    "timm of the Hub": {"backbone_config": {"model_type": "timm_backbone", "backbone": "hf-hub:evil/x"}},
    "timm of a folder": {"backbone_config": {"model_type": "timm_backbone", "backbone": "local-dir:evil"}},
    "language model": {"backbone_config": {"model_type": "bert"}},
    "itself": {"backbone_config": {"model_type": "qlseg"}},
    "backbone that is a list": {"backbone_config": [1]},
    "model type that is a list": {"backbone_config": {"model_type": ["dinov2"]}},
    "size that is text": {"hidden_size": "x"},
    "palette": {"palette": [[["a"]]]},
    "id2label": {"id2label": {"0": ["a"]}},
    "dtype": {"dtype": "__import__"},
    "quantised by what is not installed": {"quantization_config": {"quant_method": "awq"}},
    "quantised by code": {"quantization_config": {"quant_method": "evil.Evil"}},
    "misspelt key": {"mask_treshold": 0.9},
}
HARMLESS = {"auto_map", "auto_map elsewhere", "auto_map of the backbone", "custom_pipelines"}
HARMLESS |= {"_attn_implementation_internal", "quantised by code"}  # both are names that transformers does not know


@pytest.fixture
def kernels(monkeypatch):
    """transformers' way to a kernel of the Hub, open as if the package were installed; it must not be gone."""
    from transformers import modeling_utils

    def fetch(self, attention, *args, **kwargs):
        assert "/" not in str(attention), f"the kernel {attention} would be fetched and run"
        return original(self, attention, *args, **kwargs)

    original = modeling_utils.PreTrainedModel._check_and_adjust_attn_implementation
    monkeypatch.setattr(modeling_utils.PreTrainedModel, "_check_and_adjust_attn_implementation", fetch)


@one_network
@pytest.mark.parametrize("name", CONFIGS)
def test_model_folders(stored, name, tmp_path, monkeypatch, hub, kernels):
    """Our commands and the plain Auto classes: the folder's code is not run, nobody is asked, nothing is fetched."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("builtins.input", lambda question: pytest.fail(question))
    monkeypatch.setattr("signal.alarm", lambda seconds: pytest.fail("transformers asks for trust"))
    folder = shutil.copytree(stored.folder, tmp_path / "net")
    for file in (folder / "evil.py", *folder.glob("*.py")):
        file.write_text(EVIL)
    values = json.loads((folder / "config.json").read_text())
    change = CONFIGS[name]
    if "backbone_config" in change and isinstance(change["backbone_config"], dict):
        own = {} if "model_type" in change["backbone_config"] else values["backbone_config"]
        change = change | {"backbone_config": own | change["backbone_config"]}
    values.update(change)
    if name == "misspelt key":
        values.pop("mask_threshold", None)
    (folder / "config.json").write_text(json.dumps(values))
    settings = json.loads((folder / "preprocessor_config.json").read_text())
    settings["auto_map"] = {"AutoImageProcessor": "evil.Evil"}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    if name in HARMLESS:
        model, processor = load_network(folder)
        assert type(model) is QLSegForSemanticSegmentation and type(processor) is QLSegImageProcessor
        assert type(AutoModelForSemanticSegmentation.from_pretrained(folder)) is QLSegForSemanticSegmentation
        pipeline("image-segmentation", model=str(folder))
        assert model.config._attn_implementation == model.backbone.config._attn_implementation == "sdpa"
    else:
        with pytest.raises((ImportError, OSError, ValueError)) as refusal:
            load_network(folder)
        assert str(folder) in str(refusal.value)
    assert not Path(TRAP).exists() and not hub.requests


@pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation"])
def test_a_kernel_that_the_caller_names_is_the_callers(key):
    """Only files are refused: who calls `from_pretrained` may name whatever transformers takes."""
    from qlseg_hf import QLSegConfig

    assert QLSegConfig.from_dict(tiny_config().to_dict(), attn_implementation="kernels-community/x").hidden_size == 16
    with pytest.raises(ValueError, match="evil/kernel"):
        QLSegConfig.from_dict(tiny_config().to_dict() | {key: KERNEL})


@pytest.fixture
def folder(tmp_path):
    """PASCAL-Context's layout with one picture."""
    for name, kind in (("JPEGImages/a.jpg", "RGB"), ("SegmentationClassContext/a.png", "L")):
        (tmp_path / "data" / name).parent.mkdir(parents=True)
        Image.new(kind, (8, 6)).save(tmp_path / "data" / name)
    (tmp_path / "data" / "ImageSets" / "SegmentationContext").mkdir(parents=True)
    return tmp_path / "data"


@pytest.mark.parametrize(
    "name", ["../a", "..", ".", "/etc/passwd", "a/b", "..\\a", "C:\\a", "a\0b", "a/../../a", "//server/a", "~/../a"]
)
def test_split_files(folder, name):
    (folder / "ImageSets" / "SegmentationContext" / "val.txt").write_text(f"a\n{name}\n")
    with pytest.raises(ValueError, match="plain picture name|pictures are missing|holds zero bytes"):
        open_dataset(folder, "val")


@pytest.mark.parametrize("split", ["../val", "/etc/passwd", "..", "val/../val", "val\0"])
def test_names_of_splits(folder, split):
    (folder / "ImageSets" / "SegmentationContext" / "val.txt").write_text("a\n")
    with pytest.raises(ValueError, match="has no split"):
        open_dataset(folder, split)


def test_loading_scripts_are_not_run(tmp_path, monkeypatch):
    """`datasets` 3 ran a script called like its folder."""
    monkeypatch.chdir(tmp_path)
    place = tmp_path / "evil"
    place.mkdir()
    for name in ("evil.py", "__init__.py", "dataset.py", "conftest.py"):
        (place / name).write_text(EVIL)
    (place / "README.md").write_text("---\nconfigs:\n- config_name: default\n  data_files: evil.py\n---\n")
    with pytest.raises(Exception) as refusal:  # datasets has its own
        open_dataset(place, "train")
    assert not Path(TRAP).exists() and not isinstance(refusal.value, NameError)


def test_tables_are_no_code(tmp_path, monkeypatch):
    """Parquet whose metadata, types and column names are an attacker's."""
    import pyarrow
    import pyarrow.parquet

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    encoded = io.BytesIO()
    Image.new("L", (8, 6)).save(encoded, format="PNG")
    row = {"bytes": encoded.getvalue(), "path": f"../../{TRAP}"}
    for number, features in enumerate(
        (
            {"image": {"_type": "Image"}, "label": {"_type": f"__import__('os').system('touch {TRAP}')"}},
            {"image": {"_type": "os.system"}, "label": {"_type": "Image"}},
            {"image": {"dtype": "!!python/object/apply:os.system [x]", "_type": "Value"}},
            {"image": laughs(5)},
            "x",
        )
    ):
        table = pyarrow.table({"image": [row], "label": [row]})
        metadata = {"huggingface": json.dumps({"info": {"features": features}}), "pandas": "eval(1)"}
        (tmp_path / str(number)).mkdir()
        pyarrow.parquet.write_table(
            table.replace_schema_metadata(metadata), tmp_path / str(number) / "train-00000.parquet"
        )
        try:
            sample = open_dataset(tmp_path / str(number), "train")[0]
            assert "/" not in sample.name
        except Exception as error:  # of datasets: any but those of code that ran
            assert not isinstance(error, (NameError, AssertionError)), error
    assert not Path(TRAP).exists()
