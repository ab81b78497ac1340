"""Label names from files."""

import json
from pathlib import Path


def read_label_file(path: Path) -> tuple[list[str], list | None]:
    """Names and palette (or None) from JSON (a list, {id: name} or {"labels", "palette"}) or from lines of text.

    Raises:
        ValueError: the file cannot be read or holds something else.
    """
    try:
        text = path.read_text(encoding="utf-8")
        content = json.loads(text) if path.suffix == ".json" else [line for line in text.splitlines() if line.strip()]
    except (OSError, RecursionError, ValueError) as error:
        raise ValueError(f"label file {path} cannot be read: {error}") from error
    palette = None
    if isinstance(content, dict) and "labels" in content:
        content, palette = content["labels"], content.get("palette")
    elif isinstance(content, dict):
        try:
            ids = {int(key): name for key, name in content.items()}
        except ValueError as error:
            raise ValueError(f"label file {path}: the keys must be label numbers ({error})") from error
        if sorted(ids) != list(range(len(ids))):
            raise ValueError(f"label file {path}: the keys must be 0..{len(ids) - 1}")
        content = [ids[i] for i in range(len(ids))]
    if not isinstance(content, list) or not all(isinstance(name, str) for name in content):
        raise ValueError(f"label file {path} must hold names: a list, {{id: name}}, or one per line")
    return content, palette


__all__ = ["read_label_file"]
