# Copyright 2026 The QLSeg for transformers authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""The classes of the package: those of `model/`, and what a user of the Hub expects of saving.

A folder is written whole or not at all, a model's gets a card, and an upload is one commit. None of this is needed to
run a network, so none of it is copied beside the weights.
"""

import os
import re
import shutil
import tempfile
from pathlib import Path

from huggingface_hub import CommitInfo
from safetensors import SafetensorError
from transformers.utils import logging

from ..model import image_processing_qlseg, modeling_qlseg
from ..model.processor_settings import QLSegImageProcessorKwargs
from ..utils.files import write_into
from .card import plain_model_card
from .source import Source, read_source
from .upload import CARD, WEIGHTS, upload_folder

logger = logging.get_logger(__name__)

WITH_ADAPTER = "An adapter was loaded on top, and may have another one."
OLD_CARD = "README.before.md"  # of the model whose folder was written into
# What `qlseg train` writes beside a model: its step, and how it was computed; what its run has logged
TRAINING, RESULTS = "training.json", ("losses.jsonl", "evaluations.jsonl", "curves.png")
PUSH_KEYWORDS = ("repo_id", "commit_message", "commit_description", "private", "revision", "create_pr", "tags")


class _PushToHubMixin:
    """`push_to_hub` with the arguments of transformers.

    Differs in that a card is written only by a model, says what the model is, and never replaces one that the branch
    has; that weights of an earlier push do not stay beside new ones of another number of shards; and that `private` is
    refused, not ignored, for a public repository.
    """

    def push_to_hub(
        self,
        repo_id: str,
        *,
        commit_message: str | None = None,
        commit_description: str | None = None,
        private: bool | None = None,
        token: bool | str | None = None,
        revision: str | None = None,
        create_pr: bool = False,
        max_shard_size: int | str = "50GB",
        tags: list[str] | str | None = None,
    ) -> CommitInfo:
        """Save to a temporary folder and upload that; see `upload_folder` for arguments and errors."""
        tags = [tags] if isinstance(tags, str) else list(tags or [])
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place) / repo_id.split("/")[-1]
            self.save_pretrained(folder, max_shard_size=max_shard_size)  # which a processor ignores
            return upload_folder(
                folder,
                repo_id,
                commit_message=commit_message or f"Upload {type(self).__name__}",
                commit_description=commit_description,
                private=private,
                revision=revision,
                token=token,
                create_pr=create_pr,
                keep_card=True,
                tags=tags + (getattr(self, "model_tags", None) or []),
            )


class _WholeFolderMixin:
    """Models are saved whole or not at all."""

    def save_pretrained(
        self, save_directory: str | os.PathLike, is_main_process: bool = True, *args, **kwargs
    ) -> None:
        """As `PreTrainedModel.save_pretrained`, but a full disk or a kill leaves what was in the folder before.

        Weights of an earlier save in more or fewer shards are removed.

        Raises:
            OSError: the folder cannot be written.
        """
        if not is_main_process or kwargs.get("distributed_checkpoint"):  # many processes write into one folder
            super().save_pretrained(save_directory, is_main_process, *args, **kwargs)
            return
        folder = Path(save_directory)
        try:
            with write_into(folder) as beside:
                super().save_pretrained(beside, is_main_process, *args, **kwargs)
                self._save_card(beside, folder)
                written = {path.name for path in beside.iterdir()}
        except SafetensorError as error:
            raise OSError(f"{folder} cannot be written: {error}") from error
        if any(re.fullmatch(WEIGHTS, name) for name in written):
            for path in folder.iterdir():
                if re.fullmatch(WEIGHTS, path.name) and path.name not in written:
                    path.unlink()

    def _save_card(self, beside: Path, folder: Path) -> None:
        """Write the card that belongs into `folder` into `beside`; none for an encoder alone."""


class QLSegViTBackbone(_WholeFolderMixin, modeling_qlseg.QLSegViTBackbone):
    __doc__ = modeling_qlseg.QLSegViTBackbone.__doc__

    source: Source | None = None  # where the weights came from, for cards; None for random ones


class QLSegForSemanticSegmentation(_PushToHubMixin, _WholeFolderMixin, modeling_qlseg.QLSegForSemanticSegmentation):
    __doc__ = modeling_qlseg.QLSegForSemanticSegmentation.__doc__

    vit_backbone_class = QLSegViTBackbone
    source: Source | None = None
    _folders: frozenset[Path] = frozenset()  # that it was loaded from or saved in, so that their cards are its own

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, **kwargs):
        """As that of `model/`; what cards will say of the source is read now, from where the weights are read."""
        where = {key: kwargs[key] for key in modeling_qlseg.HUB_KEYWORDS if key in kwargs}
        loaded = super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        (loaded[0] if isinstance(loaded, tuple) else loaded)._remember_source(pretrained_model_name_or_path, where)
        return loaded

    def _remember_source(self, source: str | os.PathLike | None, where: dict) -> None:
        """Keep what cards will say of the source, as given to `from_pretrained`; None if weights were given."""
        if source is None:
            self.name_or_path = self.config.name_or_path = ""  # transformers makes a text of None
            return
        self.source = read_source(source, **where)
        self._folders = frozenset({Path(source, where.get("subfolder") or "").expanduser().resolve()})
        if getattr(self, "_hf_peft_config_loaded", False):
            self.source = Source(self.source.name, self.source.repo_id, unknown_because=WITH_ADAPTER)

    def save_pretrained(
        self,
        save_directory: str | os.PathLike,
        is_main_process: bool = True,
        state_dict: dict | None = None,
        push_to_hub: bool = False,
        **kwargs,
    ) -> None:
        """As `PreTrainedModel.save_pretrained`, and with a card (README.md) if the folder has none.

        In the folder of another model its card becomes `README.before.md`, and what `qlseg train` wrote is removed.
        A model is another one if this one was neither loaded from the folder nor saved in it before.

        `push_to_hub=True` calls `push_to_hub` with `repo_id` (the folder's name by default) and its other arguments.
        ValueError if the configuration has other labels or sizes than the weights, which could not be loaded.
        """
        self.check_structure()
        pushed = {key: kwargs.pop(key) for key in PUSH_KEYWORDS if key in kwargs} if push_to_hub else {}
        folder = Path(save_directory)
        is_trained = is_main_process and self._replaces_another(folder) and (folder / TRAINING).is_file()
        super().save_pretrained(save_directory, is_main_process, state_dict, **kwargs)
        for name in (TRAINING, "recipe.yaml", *RESULTS) if is_trained else ():
            (folder / name).unlink(missing_ok=True)
        self._folders |= {folder.resolve()}
        if is_main_process and push_to_hub:
            given = {key: kwargs[key] for key in ("token", "max_shard_size") if key in kwargs}
            name = Path(save_directory).resolve().name
            self.push_to_hub(pushed.pop("repo_id", name), **pushed, **given)

    def _replaces_another(self, folder: Path) -> bool:
        """Whether the folder holds the weights of another model; see `save_pretrained`."""
        names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
        return folder.resolve() not in self._folders and any(re.fullmatch(WEIGHTS, name) for name in names)

    def _save_card(self, beside: Path, folder: Path) -> None:
        has_card = (folder / CARD).exists()
        if has_card and (is_foreign := self._replaces_another(folder)):
            logger.warning(f"{folder / CARD} is of the model that was in this folder; it is kept as {OLD_CARD}")
            shutil.copyfile(folder / CARD, beside / OLD_CARD)
        if not has_card or is_foreign:
            (beside / CARD).write_text(plain_model_card(self, folder.resolve().name), encoding="utf-8")


class QLSegImageProcessor(_PushToHubMixin, image_processing_qlseg.QLSegImageProcessor):
    __doc__ = image_processing_qlseg.QLSegImageProcessor.__doc__
    valid_kwargs = QLSegImageProcessorKwargs  # transformers looks for it beside the class

    def save_pretrained(self, save_directory: str | os.PathLike, push_to_hub: bool = False, **kwargs) -> list[str]:
        """As that of transformers, but a full disk or a kill leaves what was in the folder before.

        Raises:
            ValueError: the settings do not go together, so that the file could not be loaded.
        """
        self.settings()
        folder = Path(save_directory)
        with write_into(folder) as beside:
            written = super().save_pretrained(beside)
        if push_to_hub:
            self.push_to_hub(kwargs.pop("repo_id", folder.resolve().name), **kwargs)
        return [str(folder / Path(path).name) for path in written]


__all__ = ["QLSegForSemanticSegmentation", "QLSegImageProcessor", "QLSegViTBackbone"]
