# Copyright 2026 The QLSeg for transformers authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""What setup.cfg asks for can be installed together."""

import pytest
import versions


def test_a_package_has_one_floor(tmp_path, monkeypatch):
    floors, extras = versions.requirements()
    assert floors["torch"] and "coco" in extras
    text = (versions.ROOT / "setup.cfg").read_text()
    (tmp_path / "setup.cfg").write_text(text.replace("accelerate >= ", "pillow >= 11.4\n    accelerate >= ", 1))
    monkeypatch.setattr(versions, "ROOT", tmp_path)
    with pytest.raises(ValueError, match=r"setup.cfg asks for pillow 11.3 and 11.4"):
        versions.requirements()
