# Copyright 2026 The QLSeg for transformers authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""Where weights came from, and what the card beside them said of their licence."""

import os
import re
from dataclasses import dataclass, field
from pathlib import Path

from huggingface_hub import hf_hub_download, metadata_load, try_to_load_from_cache
from huggingface_hub.errors import EntryNotFoundError, HFValidationError, HTTPError, LocalEntryNotFoundError
from huggingface_hub.utils import validate_repo_id
from yaml import YAMLError

from .upload import CARD

UNKNOWN = {"license": "unknown"}


def hub_id(source: str | None) -> str | None:
    """`source` if it is the id of a repository on the Hub: no file or folder here, and a valid id."""
    if not source or os.path.exists(os.path.expanduser(source)):
        return None
    try:
        validate_repo_id(source)
    except HFValidationError:
        return None
    return source


def public_name(source: str) -> str:
    """Id on the Hub, or name of a file or folder without the way to it."""
    return hub_id(source) or last_part(source)


def last_part(path: str) -> str:
    """Name of a file or folder without the way to it, written in any system's manner."""
    return re.split(r"[/\\]", os.path.abspath(os.path.expanduser(path)).rstrip("\\"))[-1]


@dataclass(frozen=True)
class Source:
    """Where weights came from and what its card said, as it was when they were loaded. Cards are written from this.

    Attributes:
        name: what may be published of it: Hub id (and folder in the repository), or name of a file or folder.
        repo_id: on the Hub.
        license: fields of a card; "unknown" if none was stated or could be read.
        unknown_because: sentence that says why it is unknown.
    """

    name: str
    repo_id: str | None = None
    license: dict[str, str | list[str]] = field(default_factory=UNKNOWN.copy)
    unknown_because: str = "Nobody has stated one for them."


def read_source(
    source: str | os.PathLike,
    *,
    subfolder: str | None = None,
    revision: str | None = None,
    cache_dir: str | os.PathLike | None = None,
    **where,
) -> Source:
    """What the card says that lies beside the weights of `source`.

    Args:
        source: file, folder or Hub id, as given to `from_pretrained`, from which the weights were just loaded.
        subfolder, revision, cache_dir: as given there. A repository whose weights lie in a folder may hold several
            models: the card is that of the folder.
        where: `force_download`, `local_files_only` and `token`, if given there.

    A card that cannot be read, from the Hub or at all, is not an error: the weights matter more, and what is written
    later says that the licence is unknown.
    """
    source, subfolder = str(source), subfolder or ""
    if (repo_id := hub_id(source)) is None:
        folder = Path(os.path.abspath(os.path.expanduser(source)), subfolder)
        found, name = read_license(folder / CARD) if (folder / CARD).is_file() else {}, folder.name
    else:
        name, file = "/".join(filter(None, (repo_id, subfolder))), "/".join(filter(None, (subfolder, CARD)))
        # the cache knows what belongs to the commit that was loaded; a second request might find another one
        path = try_to_load_from_cache(repo_id, file, cache_dir, revision)
        try:
            if path is None or where.get("force_download"):
                path = hf_hub_download(repo_id, file, revision=revision, cache_dir=cache_dir, **where)
            found = (
                read_license(Path(path)) if isinstance(path, str) else {}
            )  # else the cache knows that there is none
        except EntryNotFoundError as error:  # of either kind: there is none, or nobody could be asked
            found = None if isinstance(error, LocalEntryNotFoundError) else {}
        except (OSError, HTTPError):
            found = None
    if found is None:
        return Source(name, repo_id, unknown_because="Its card could not be read when they were loaded.")
    link = found.get("license_link")
    if link and "://" not in link:
        del found["license_link"]  # of a file that is not saved with the weights
        if repo_id:
            place = "/".join(filter(None, (subfolder, link)))
            found["license_link"] = f"https://huggingface.co/{repo_id}/blob/{revision or 'main'}/{place}"
    return Source(name, repo_id, found) if found.get("license") else Source(name, repo_id)


def read_license(path: Path) -> dict[str, str | list[str]] | None:
    """Licence fields of a card; none if its metadata state no licence, None if they cannot be read."""
    try:
        data = metadata_load(path) or {}
    except (OSError, ValueError, YAMLError):
        return None
    license = data.get("license")
    if not license or license == "unknown":
        return {}
    stated = {"license": [str(name) for name in license] if isinstance(license, list) else str(license)}
    return stated | {name: str(data[name]) for name in ("license_name", "license_link") if data.get(name)}


def source_of(model) -> Source | None:
    """Where the weights of a network came from; None if they were drawn at random.

    An encoder that was loaded into a network by `load_vit_weights` counts. Of several sources no licence is taken.
    """
    parts = [getattr(part, "source", None) for part in (model, model.backbone)]
    found = list(dict.fromkeys(part.name for part in parts if part))
    if len(found) < 2:
        return next(filter(None, parts), None)
    return Source(" and ".join(found), unknown_because="They have several sources.")


__all__ = ["UNKNOWN", "Source", "hub_id", "last_part", "public_name", "read_source", "source_of"]
