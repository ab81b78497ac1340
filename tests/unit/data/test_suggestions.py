"""What is suggested by counts and sizes."""

import numpy as np

from qlseg_hf.data.check.suggestions import rare_labels, suggest_crop_size, suggest_label_weights


def test_class_weights():
    assert suggest_label_weights({"a": 400, "b": 100, "c": 25}) == {"a": 0.5, "b": 1.0, "c": 2.0}
    assert suggest_label_weights({"a": 10**9, "b": 10**5, "c": 1, "none": 0}) == {
        "a": 0.1,
        "b": 1.0,
        "c": 10.0,
        "none": 1,
    }
    assert suggest_label_weights({"a": 0}) == {"a": 1.0}


def test_crop_size():
    assert suggest_crop_size([(360, 480)] * 5) == 352
    assert suggest_crop_size([(360, 480)] * 5, patch_size=14) == 350
    assert suggest_crop_size([(2048, 1024)]) == 512
    assert suggest_crop_size([(40, 50)]) == 32 and suggest_crop_size([(10, 50)]) == 16
    assert suggest_crop_size([(360, 480)], most=224) == 224 and suggest_crop_size([(360, 480)], 14, most=230) == 224
    assert suggest_crop_size([(100, 900), (900, 200), (300, 300)]) == 192
    assert suggest_crop_size([]) == 512


def test_rare_labels():
    pixels = np.array([10**7, 10**6, 50, 0])
    found = rare_labels(["a", "b", "c", "d"], pixels, [100, 4, 50, 0], 100)
    assert found == {"b": "in 4 of 100 training images", "c": "0.00045 % of the pixels"}
    assert rare_labels(["a", "b"], np.array([9, 9]), [4, 2], 4) == {}  # of four images none is few
