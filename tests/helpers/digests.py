"""What processor and pipeline make of an image, as a hash; as a script, in a process with or without torchvision.

python tests/helpers/digests.py with|without MODEL IMAGE
"""

import hashlib
import importlib.util
import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[2]))
    if sys.argv[1] == "with":
        import matching_torchvision  # noqa: F401
    else:
        find_spec = importlib.util.find_spec
        importlib.util.find_spec = lambda name, *args: None if name == "torchvision" else find_spec(name, *args)

from transformers import AutoImageProcessor, pipeline  # noqa: E402
from transformers.utils import is_torchvision_available  # noqa: E402

from qlseg_hf import QLSegImageProcessor  # noqa: E402


def digest(folder: str, image: str) -> str:
    processor = AutoImageProcessor.from_pretrained(folder)
    assert type(processor) is QLSegImageProcessor, type(processor)
    found = hashlib.sha256(processor(image, return_tensors="pt")["pixel_values"].numpy().tobytes())
    for part in pipeline("image-segmentation", model=folder)(image):
        found.update(part["label"].encode() + part["mask"].tobytes())
    return found.hexdigest()


if __name__ == "__main__":
    assert is_torchvision_available() == (sys.argv[1] == "with")
    print(digest(*sys.argv[2:]))
