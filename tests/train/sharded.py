"""Under torchrun: a sharded model (FSDP2, on gloo) trains, averages and saves as a whole one does.

The command line refuses sharding without GPUs; what shards and gathers is the same code here.
"""

import sys
import tempfile
from pathlib import Path

import torch
from torch.distributed.tensor import DTensor
from toy import TOYS

from globalvit.build import create_model
from globalvit.models.variants import VARIANTS
from globalvit.train.engine import full_state, start_engine
from globalvit.train.fields import TrainConfig
from globalvit.train.optim import create_ema, create_optimizer
from globalvit.train.state import State, read_snapshot, restore, take_snapshot, write_checkpoint

# Adam would blow rounding up where a gradient is zero but for rounding, as the keys' biases have it.
OPTIMIZERS = {"sgd": (0.05, 1e-5), "adamw": (1e-3, 1e-3)}


def settings(opt):
    lr, _ = OPTIMIZERS[opt]
    return TrainConfig(device="cpu", opt=opt, lr=lr, model_ema=True, model_ema_decay=0.5, clip_grad=0.5, drop_path=0.0)


def build(engine, config, sharded):
    engine.is_sharded = sharded
    torch.manual_seed(1)
    task = create_model("gcvit_xxtiny", num_classes=3, image_size=32, drop_path=0.0)
    ema = create_ema(task, config)
    engine.place(task, ema.module)
    optimizer = create_optimizer(task, config)
    return task, ema, optimizer


def advance(engine, task, ema, optimizer, steps):
    engine.prepare(task, optimizer)
    norms = []
    for step in steps:
        generator = torch.Generator().manual_seed(10 * step + engine.rank)
        for number in range(2):
            images = torch.randn(2, 3, 32, 32, generator=generator)
            batch = {"images": images, "labels": torch.tensor([0, 1])}
            engine.backward(batch, 0.5, is_last=number == 1)
        norms.append(float(engine.clip_gradients(0.5)))
        engine.step()
        ema.update(task, step=step + 5)
    return norms


def assert_close(one, other, bound):
    for name, value in one.items():
        worst = float((other[name] - value).abs().max())
        assert worst <= bound, f"{name} differs by {worst}"


def check(engine, opt):
    config, (_, bound) = settings(opt), OPTIMIZERS[opt]
    whole, whole_ema, optimizer = build(engine, config, sharded=False)
    norms = advance(engine, whole, whole_ema, optimizer, range(4))
    task, ema, optimizer = build(engine, config, sharded=True)
    assert all(isinstance(parameter, DTensor) for parameter in task.parameters())
    mine = sum(parameter.to_local().numel() for parameter in task.parameters())
    assert mine < 0.7 * sum(parameter.numel() for parameter in whole.parameters())
    sharded_norms = advance(engine, task, ema, optimizer, range(2))
    folder = Path(engine.from_main(tempfile.mkdtemp()))
    snapshot = take_snapshot(task, ema.module, optimizer)
    if engine.is_main:
        write_checkpoint(folder, whole, snapshot, State(step=2), config)
    engine.gather(None)
    again, again_ema, again_optimizer = build(engine, config, sharded=True)
    restore(folder, read_snapshot(folder, has_ema=True), again, again_ema.module, again_optimizer)
    sharded_norms += advance(engine, again, again_ema, again_optimizer, range(2, 4))
    assert max(abs(other / one - 1) for one, other in zip(norms, sharded_norms, strict=True)) <= 1e-3, opt
    assert_close(full_state(whole), full_state(again), bound)
    assert_close(full_state(whole_ema.module), full_state(again_ema.module), bound)


def main():
    VARIANTS["gcvit_xxtiny"] = TOYS["gcvit_xxtiny"]
    with start_engine(settings("sgd")) as engine:
        assert engine.world == 2
        for opt in OPTIMIZERS:
            check(engine, opt)
    return 0


if __name__ == "__main__":
    sys.exit(main())
