"""The processor's settings: checked together, None as a value, names that are misspelt or old."""

import warnings

import numpy as np
import pytest
import torch
import transformers
from transformers import AutoImageProcessor

from qlseg_hf import QLSegImageProcessor

RAMP = np.arange(24 * 30 * 3, dtype=np.uint8).reshape(24, 30, 3)


@pytest.mark.parametrize(
    "settings, error, message",
    [
        ({"do_reduce_labels": True, "ignore_index": 0}, ValueError, "ignore_index cannot be 0"),
        ({"ignore_index": 10**30}, ValueError, "ignore_index and the labels of label_mapping must fit 32 bits"),
        ({"label_mapping": {1: 2**40}}, ValueError, "must fit 32 bits"),
        ({"size": {"longest_edge": 4}}, ValueError, "size must be"),
        ({"size": {"shortest_edge": 4, "longest_edge": 8}}, ValueError, "size must be"),  # the cap was ignored
        ({"label_mapping": {0: 1.5}}, ValueError, "label_mapping must be {stored value: label} of integers"),
        ({"windowsize": 3}, TypeError, "no setting .'windowsize'"),
    ],
)
def test_settings_are_checked(settings, error, message):
    with pytest.raises(error, match=message):
        QLSegImageProcessor(**settings)
    if error is ValueError:
        with pytest.raises(error, match=message):
            QLSegImageProcessor()(RAMP, **settings)


def test_the_old_name_of_label_mapping(tmp_path):
    """Wherever a setting can be given, with a warning; and without one in what an older version has saved."""
    labels, expected = torch.tensor([0, 7]), torch.tensor([0, 1])
    with pytest.warns(FutureWarning, match="is now called label_mapping"):
        processor = QLSegImageProcessor(label_map={7: 1})
    with pytest.warns(FutureWarning):
        assert processor.label_map == processor.label_mapping == {7: 1}
    assert "label_map" not in processor.to_dict() and torch.equal(processor.reduce_labels(labels), expected)
    with pytest.warns(FutureWarning):
        assert torch.equal(QLSegImageProcessor().reduce_labels(labels, label_map={7: 1}), expected)
    plain = QLSegImageProcessor()
    with pytest.warns(FutureWarning):
        plain.label_map = {7: 1}
    assert plain.settings() == processor.settings()
    with pytest.raises(TypeError, match="label_map is the old name of label_mapping"):
        QLSegImageProcessor(label_map={7: 1}, label_mapping={7: 1})
    plain.save_pretrained(tmp_path)
    path = tmp_path / "preprocessor_config.json"
    path.write_text(path.read_text().replace('"label_mapping"', '"label_map"'))
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        assert QLSegImageProcessor.from_pretrained(tmp_path).settings() == processor.settings()
    with pytest.warns(FutureWarning):
        assert QLSegImageProcessor.from_pretrained(tmp_path, label_map={7: 2}).label_mapping == {7: 2}


def test_none_is_kept_and_switches_off(tmp_path):
    """None is what transformers' own processors keep and take for off; it used to mean the default in `__init__`."""
    processor = QLSegImageProcessor(do_resize=None, do_sliding_window=None, do_normalize=None, do_rescale=None)
    processor.save_pretrained(tmp_path)
    for found in (processor, QLSegImageProcessor.from_pretrained(tmp_path)):
        assert found.do_resize is None and found.do_sliding_window is None
        assert np.array_equal(found(RAMP)["pixel_values"][0], np.moveaxis(RAMP, -1, 0))


@pytest.mark.parametrize(
    "name, switch",
    [
        ("size", "do_resize"),
        ("window_size", "do_sliding_window"),
        ("window_stride", "do_sliding_window"),
        ("rescale_factor", "do_rescale"),
        ("image_mean", "do_normalize"),
        ("image_std", "do_normalize"),
        ("ignore_index", "do_reduce_labels"),
    ],
)
def test_none_is_refused_where_a_value_is_needed(name, switch):
    for call in (
        lambda: QLSegImageProcessor(do_reduce_labels=True, **{name: None}),
        lambda: QLSegImageProcessor(do_reduce_labels=True)(RAMP, **{name: None}),
    ):
        with pytest.raises(ValueError, match=f"^{switch} needs {name}, which is None; give it or {switch}=False$"):
            call()
    assert QLSegImageProcessor(**{name: None, switch: False})(RAMP)["pixel_values"]


@pytest.mark.parametrize("stored", ["a"], indirect=True)
@pytest.mark.parametrize("keyword, near", [("do_reduce_label", "do_reduce_labels"), ("windows_size", "window_size")])
def test_misspelt_settings_are_refused(stored, keyword, near):
    """`from_pretrained` dropped them without a word."""
    processor = QLSegImageProcessor()
    for call in (
        lambda: AutoImageProcessor.from_pretrained(stored.folder, **{keyword: 3}),
        lambda: QLSegImageProcessor.from_pretrained(stored.folder, **{keyword: 3}),
        lambda: QLSegImageProcessor(**{keyword: 3}),
        lambda: processor(RAMP, **{keyword: 3}),
        lambda: processor.reduce_labels(torch.zeros(2, 2), **{keyword: 3}),
        lambda: setattr(processor, keyword, 3),
    ):
        with pytest.raises((TypeError, AttributeError), match=rf"no setting .'{keyword}'.; did you mean {near}\?"):
            call()
    with pytest.raises(TypeError, match="no setting .'resample'.; it has default_to_square, do_normalize"):
        AutoImageProcessor.from_pretrained(stored.folder, resample=2)


@pytest.mark.parametrize("stored", ["a"], indirect=True)
def test_keywords_of_transformers_are_taken(stored):
    keywords = {"trust_remote_code": False, "revision": "main", "local_files_only": True, "use_fast": False}
    keywords |= {"cache_dir": None, "force_download": False, "token": None, "subfolder": "", "code_revision": None}
    for cls in (AutoImageProcessor, QLSegImageProcessor):
        processor = cls.from_pretrained(stored.folder, window_stride=5, **keywords)
        assert processor.window_stride == 5
        assert processor.to_dict() == QLSegImageProcessor.from_pretrained(stored.folder, window_stride=5).to_dict()
    processor, unused = QLSegImageProcessor.from_pretrained(stored.folder, foo=False, return_unused_kwargs=True)
    assert unused["foo"] is False
    model_kwargs = {"use_safetensors": True}  # which pipeline gives the processor, too
    pipe = transformers.pipeline("image-segmentation", model=str(stored.folder), model_kwargs=model_kwargs)
    assert pipe.image_processor.to_dict() == processor.to_dict()
