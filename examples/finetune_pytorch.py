#!/usr/bin/env python3
"""Fine-tune in plain PyTorch: the loop is yours, the model is a torch.nn.Module that returns its loss.

    qlseg scenes scenes
    python examples/finetune_pytorch.py MODEL scenes OUTPUT [STEPS]

`qlseg train` adds to this what long runs need: several devices, resuming, a moving average, logs and checks.
"""

import json
import sys
from pathlib import Path

import torch
from torch.utils.data import DataLoader
from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation, set_seed

import qlseg_hf  # noqa: F401 (registers the model)
from qlseg_hf.data.augmentation import TrainingDataset, TrainingTransform
from qlseg_hf.data.datasets import open_dataset
from qlseg_hf.evaluation.evaluator import evaluate_samples
from qlseg_hf.training.optimization import learning_rate_factor, parameter_groups

source, data, output, *rest = sys.argv[1:]
steps, batch_size = int(rest[0]) if rest else 100, 8
set_seed(0)
device = "cuda" if torch.cuda.is_available() else "cpu"

# new labels: their queries are fresh, those of labels that the model knows already are kept
names = json.loads((Path(data) / "labels.json").read_text())
id2label = {int(label): name for label, name in names.items()}
model = AutoModelForSemanticSegmentation.from_pretrained(source, id2label=id2label, reuse_labels=True).to(device)
sizes = {"size": {"shortest_edge": 96}, "window_size": 96, "window_stride": 64}  # in training and prediction alike
processor = AutoImageProcessor.from_pretrained(source, do_reduce_labels=False, **sizes)

# crops that are scaled, flipped and normalised; a sample is asked for by (epoch, index)
samples = open_dataset(data, "train")
transform = TrainingTransform(processor, len(id2label), crop_size=96, scale_range=(0.8, 1.4), photometric=False)
epochs = range(1 + steps * batch_size // len(samples))
keys = [(epoch, index) for epoch in epochs for index in torch.randperm(len(samples)).tolist()]
batches = DataLoader(TrainingDataset(samples, transform), batch_size, sampler=keys[: steps * batch_size])

# what is new learns ten times as fast as the pretrained encoder
optimizer = torch.optim.AdamW(parameter_groups(model, learning_rate=1e-4, weight_decay=0.01))
schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: learning_rate_factor(step, steps, 10))
model.train()
for step, batch in enumerate(batches, 1):
    loss = model(batch["pixel_values"].to(device), labels=batch["labels"].to(device)).loss
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 35.0)
    optimizer.step()
    optimizer.zero_grad()
    schedule.step()
    print(f"step {step}: loss {loss.item():.3f}")

model.eval()
scores = evaluate_samples(model, processor, open_dataset(data, "validation")).result
print(f"mIoU {100 * scores['miou']:.1f} %")
model.save_pretrained(output)
processor.save_pretrained(output)
