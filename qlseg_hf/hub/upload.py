# Copyright 2026 The QLSeg for transformers authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""Uploads to the Hub: always one commit, so that an upload that fails leaves the repository as it was.

Large files go up before the commit. Those that the Hub already holds are not sent again, so that a repeated upload
goes on where it failed.
"""

import json
import re
from pathlib import Path

from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi, ModelCard
from transformers.utils import logging

logger = logging.get_logger(__name__)

CARD = "README.md"
# what `save_pretrained` writes; of two generations side by side, `from_pretrained` would take the unsharded one
WEIGHTS = r"model(-\d+-of-\d+)?\.safetensors|model\.safetensors\.index\.json"


def prepare_repo(
    repo_id: str,
    *,
    private: bool | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
    create_pr: bool = False,
) -> str:
    """Create a model repository, and its branch `revision`, if they do not exist; returns the full id.

    Raises:
        ValueError: `private`, but the repository exists and is public.
        HfHubHTTPError: no token, or one that may not write there.
    """
    api = HfApi(token=token)
    repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
    if private and not api.repo_info(repo_id).private:
        raise ValueError(f"{repo_id} exists and is public; make it private on the Hub first, or choose another id")
    if revision is not None and not create_pr and not revision.startswith("refs/"):
        api.create_branch(repo_id, branch=revision, exist_ok=True)
    return repo_id


def upload_folder(
    folder: str | Path,
    repo_id: str,
    *,
    commit_message: str,
    commit_description: str | None = None,
    private: bool | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
    create_pr: bool = False,
    keep_card: bool = False,
    tags: list[str] | None = None,
) -> CommitInfo:
    """Upload all of `folder` as one commit.

    Args:
        folder: its name in the snippet of its card is replaced by the repository's id.
        repo_id: model repository, in the token's namespace if none is given; made if it does not exist.
        private: whether it is made private.
        revision: branch, made if it does not exist; `main` by default.
        create_pr: open a pull request instead of changing the branch.
        keep_card: leave a card that the branch has as it is.
        tags: for the card.

    Returns:
        the commit; as text, its address.

    Weights that the branch has, and the folder does not, are deleted by the same commit if the folder has weights.

    Raises:
        ValueError: see `prepare_repo`; `tags` without a card; metadata of the card that the Hub refuses.
        HfHubHTTPError: the Hub refuses; its content is as it was.
    """
    repo_id = prepare_repo(repo_id, private=private, revision=revision, token=token, create_pr=create_pr)
    api, folder = HfApi(token=token), Path(folder).resolve()
    files = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    there = api.list_repo_files(repo_id, revision=revision)
    weights, old = ({name for name in names if re.fullmatch(WEIGHTS, name)} for names in (files, there))
    card = None
    if keep_card and CARD in there:
        if tags or CARD in files:
            kept = Path(api.hf_hub_download(repo_id, CARD, revision=revision)).read_text(encoding="utf-8")
            card = kept if tags else None
        if CARD in files:
            _warn_of_license(repo_id, kept, files[CARD].read_text(encoding="utf-8"))
    elif CARD in files:
        card = files[CARD].read_text(encoding="utf-8")  # its snippet then names the repository, not the folder
        card = card.replace(f"{model_argument(folder.name)})", f"{model_argument(repo_id, revision)})")
    if tags:
        if card is None:
            raise ValueError(f"tags belong in a card, and {repo_id} has none; push the model first")
        card = add_tags(card, tags)
    operations = [CommitOperationAdd(name, path) for name, path in files.items() if name != CARD]
    operations += [CommitOperationAdd(CARD, card.encode())] if card is not None else []
    operations += [CommitOperationDelete(name) for name in sorted(old - weights) if weights]
    return api.create_commit(
        repo_id,
        operations,
        commit_message=commit_message,
        commit_description=commit_description,
        revision=revision,
        create_pr=create_pr,
    )


def _warn_of_license(repo_id: str, kept: str, own: str) -> None:
    """Log it if the card that stays states another licence than the weights that are pushed are known to have."""
    found = [re.search(r"^license: *(.*)$", card.partition("\n---")[0], re.MULTILINE) for card in (kept, own)]
    stated, known = (match[1].strip() if match else "none" for match in found)
    if known not in ("unknown", stated):
        logger.warning(f"the card of {repo_id} is kept and says licence {stated}; that of these weights is {known}")


def model_argument(name: str, revision: str | None = None) -> str:
    """How the snippet of a card names its model."""
    branch = f", revision={json.dumps(revision)}" if revision not in (None, "main") else ""
    # JSON escapes an emoji as two characters, which Python and YAML do not put together again
    return f"model={json.dumps(name, ensure_ascii=not name.isprintable())}{branch}"


def add_tags(card: str, tags: list[str]) -> str:
    """The card with further tags in its metadata."""
    parsed = ModelCard(card)
    parsed.data.tags = list(dict.fromkeys([*(parsed.data.tags or []), *tags]))
    return str(parsed)


__all__ = ["prepare_repo", "upload_folder"]
