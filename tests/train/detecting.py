"""Trains a tiny detector of each kind for 10 steps on four images: python detecting.py FILE, alone or under torchrun.

Nothing depends on the process: every anchor and region is drawn, norms are frozen, drop path is off. FILE gets the
losses of every step; of several processes, each takes its images in passes of one.
"""

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from toy import TOYS, narrow

from globalvit.build import create_model
from globalvit.data.built_in.shapes import draw_scene
from globalvit.detectors.assign import Sampler
from globalvit.models.variants import VARIANTS
from globalvit.tasks.reduce import counted
from globalvit.train.engine import start_engine
from globalvit.train.fields import TrainConfig
from globalvit.train.optim import create_optimizer

IMAGES, STEPS = 4, 10
HEADS = ("mask_rcnn", "cascade_mask_rcnn", "retinanet")
EVERYTHING = Sampler(number=10**6, positive_fraction=1.0)
CONFIG = TrainConfig(device="cpu", precision="fp32", opt="sgd", lr=0.001, weight_decay=0.0)


def build(head):
    torch.manual_seed(1)
    task = create_model(f"gcvit_xxtiny_{head}", num_classes=3, image_size=64, window="ratio", drop_path=0.0)
    task.has_frozen_norms = True
    if head != "retinanet":
        task.rpn.how = replace(task.rpn.how, sampler=EVERYTHING)
        learning = task.roi.learning
        several = isinstance(learning, list)
        changed = [replace(one, sampler=EVERYTHING) for one in (learning if several else [learning])]
        task.roi.learning = changed if several else changed[0]
    return task.train()


def batch_of(indices):
    scenes = [draw_scene("train", index, side=64) for index in indices]
    instances = [scene.instances for scene in scenes]
    return {
        "images": [torch.from_numpy(np.array(one.image)).permute(2, 0, 1).float() / 127.5 - 1 for one in scenes],
        "boxes": [torch.from_numpy(one.boxes) for one in instances],
        "labels": [torch.from_numpy(one.labels) for one in instances],
        "masks": [torch.from_numpy(np.stack([mask.bitmap() for mask in one.masks])) for one in instances],
    }


def train(engine, head):
    task = build(head)
    engine.place(task)
    optimizer = create_optimizer(task, CONFIG)
    engine.prepare(task, optimizer)
    indices = range(engine.rank, IMAGES, engine.world)
    # One process takes all images at once; each of several takes its own one by one.
    batches = [batch_of(indices)] if engine.world == 1 else [batch_of([index]) for index in indices]
    steps = []
    for _ in range(STEPS):
        parts, sums = engine.count(batches), 0
        for number, batch in enumerate(batches):
            with counted(parts):
                losses = engine.backward(batch, 1.0, is_last=number == len(batches) - 1)
            sums = torch.stack(list(losses.values())) + sums
        engine.step()
        steps.append([value / engine.world for value in engine.total(*sums)])
    return steps


def main():
    VARIANTS["gcvit_xxtiny"] = TOYS["gcvit_xxtiny"]
    for change in narrow():
        setattr(*change)
    with start_engine(CONFIG) as engine:
        losses = {head: train(engine, head) for head in HEADS}
        if engine.is_main:
            Path(sys.argv[1]).write_text(json.dumps(losses))
    return 0


if __name__ == "__main__":
    sys.exit(main())
