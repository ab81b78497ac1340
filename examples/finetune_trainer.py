#!/usr/bin/env python3
"""Fine-tune with the stock Trainer of transformers.

qlseg scenes scenes
python examples/finetune_trainer.py MODEL scenes OUTPUT [STEPS]
"""

import json
import sys
from pathlib import Path

from torch.utils.data import Dataset
from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation, Trainer, TrainingArguments, set_seed

import qlseg_hf  # noqa: F401 (registers the model)
from qlseg_hf.data.datasets import open_dataset

source, data, output, *rest = sys.argv[1:]
set_seed(0)  # the queries of new labels are fresh
names = json.loads((Path(data) / "labels.json").read_text())
id2label = {int(label): name for label, name in names.items()}
model = AutoModelForSemanticSegmentation.from_pretrained(source, id2label=id2label, reuse_labels=True)
# label rules do not depend on each other: stored values, an offset by one, and the label that does not count
rules = {"do_reduce_labels": False, "ignore_index": 255, "label_mapping": None}
# one size for all, so that they can be batched; it is saved, so that predictions see what training saw
size = {"size": {"height": 96, "width": 96}, "do_sliding_window": False}
processor = AutoImageProcessor.from_pretrained(source, **rules, **size)


class Pictures(Dataset):
    """Pictures and label maps of one split."""

    def __init__(self, split: str):
        self.samples = open_dataset(data, split)

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> dict:
        picture, labels = self.samples[index].read()  # (H, W, 3) uint8 and (H, W) integers as stored
        features = processor(picture, segmentation_maps=labels)
        return {"pixel_values": features["pixel_values"][0], "labels": features["labels"][0]}


arguments = TrainingArguments(
    f"{output}/checkpoints",
    max_steps=int(rest[0]) if rest else 100,
    per_device_train_batch_size=8,
    learning_rate=1e-3,
    remove_unused_columns=False,  # the data set gives just what the model takes
    prediction_loss_only=True,  # `qlseg evaluate OUTPUT --data scenes` measures mIoU
    report_to="none",
)
trainer = Trainer(model, arguments, train_dataset=Pictures("train"), eval_dataset=Pictures("validation"))
trainer.train()
print(trainer.evaluate())
trainer.save_model(output)
processor.save_pretrained(output)
