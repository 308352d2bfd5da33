"""Where a step runs: device, precision, processes. The only file that knows Accelerate.

One process or many (torchrun), fp32 or mixed precision: the loop calls the same methods.
"""

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.state import AcceleratorState, GradientState, PartialState
from torch import Tensor, nn
from torch.distributed import distributed_c10d
from torch.distributed.rendezvous import rendezvous
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer

from globalvit.hardware import (
    Precision,
    PrecisionChoice,
    choose_device,
    choose_precision,
    computes,
    dtypes,
    float32_products,
)
from globalvit.models.ops import Kernels, check_kernels, kernels_for, set_kernels, settled_operations, unavailable
from globalvit.models.variants import ModelSpec
from globalvit.tasks.reduce import counting, exchange
from globalvit.tasks.task import Batch, Task
from globalvit.train.fields import TrainConfig
from globalvit.train.optim import gradient_norm
from globalvit.train.ranks import LostRankError, Notes, is_lost

Item = TypeVar("Item")
MOST_NAMES = 10
_ACCELERATE = {"fp32": "no", "tf32": "no", "bf16": "bf16", "fp16": "fp16"}


class TrainingStep(nn.Module):
    """What DDP wraps: its forward gives the losses, so that gradients synchronize whatever the task is."""

    def __init__(self, task: Task) -> None:
        super().__init__()
        self.task = task

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Losses of a batch by name."""
        return self.task.losses(batch)


class Engine:
    """Runs the passes of one process and talks to the others.

    Attributes:
        device: where this process computes.
        kernels: `torch`, `c` or `triton`, in use while the engine runs.
        precision: of the forward pass, never `auto`.
        precision_reason: why it was chosen.
        rank: number of this process, 0 … world − 1.
        world: number of processes.
    """

    def __init__(self, config: TrainConfig) -> None:
        kind = choose_device(config.device)
        # Without a GPU, Accelerate trains on one process only unless asked to use the CPU. A process alone waits
        # for nobody.
        limit = {"timeout": timedelta(seconds=config.dist_timeout)} if _world_size() > 1 else {}
        if _world_size() > 1 and "RANK" in os.environ and not dist.is_initialized():
            _join(kind, **limit)
        PartialState(cpu=kind == "cpu", **limit)
        self.precision: Precision
        self.precision, self.precision_reason = _agree_on_precision(config.precision, kind)
        self.kernels: Kernels
        self.kernels, self.torch_operations = _agree_on_kernels(config, kind, self.precision)
        self.accelerator = Accelerator(
            cpu=kind == "cpu",
            mixed_precision=_ACCELERATE[self.precision],
            kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True)],
        )
        self.device = self.accelerator.device
        self.rank = self.accelerator.process_index
        self.world = self.accelerator.num_processes
        assert self.world == _world_size(), "the launcher's processes are not all here"
        self.timeout = config.dist_timeout
        self.notes = Notes(self.rank, self.world)
        # Shared batch norms exist on GPUs only.
        self.has_shared_norms = config.sync_bn and self.world > 1 and self.device.type == "cuda"
        if self.device.type == "cuda":
            torch.backends.cudnn.benchmark = has_fixed_sizes(config)

    @property
    def is_main(self) -> bool:
        """Whether this process speaks and writes for all."""
        return self.rank == 0

    def place(self, *tasks: Task) -> None:
        """Move tasks to the device; modules may be replaced."""
        for task in tasks:
            task.to(self.device)
            if self.has_shared_norms:
                nn.SyncBatchNorm.convert_sync_batchnorm(task)

    def prepare(self, task: Task, optimizer: Optimizer) -> None:
        """Take the task to train and its optimizer, made from the parameters as `place` left them."""
        self.task = task
        self.parameters = [parameter for parameter in task.parameters() if parameter.requires_grad]
        self.model: nn.Module = self.accelerator.prepare_model(TrainingStep(task))
        self.optimizer = optimizer
        self.stepper = self.accelerator.prepare_optimizer(optimizer, device_placement=False)

    def backward(self, batch: Batch, share: float, *, is_last: bool) -> dict[str, Tensor]:
        """Add the gradients of `share` times the batch's loss.

        Args:
            batch: as the task's `losses` takes it, on the device.
            share: part of the optimizer step that this pass is.
            is_last: whether the optimizer step follows: gradients are summed over the processes only then.

        Returns:
            The losses by name, detached, each times `share`.
        """
        with (
            nullcontext() if is_last else self.accelerator.no_sync(self.model),
            float32_products(self.device.type, self.precision),
        ):
            with self.accelerator.autocast():
                losses = self.model(batch)
            self.accelerator.backward(losses["loss"] * share)
        return {name: loss.detach().float() * share for name, loss in losses.items()}

    def count(self, batches: Iterable[Batch]) -> list[Tensor]:
        """Return what all passes of a step, on all processes, count: see `tasks.reduce`.

        Args:
            batches: of this process's passes, as `backward` takes them, each made ready when it is asked for.
        """
        notes: list[list[Tensor]] = []
        for batch in batches:
            precision = float32_products(self.device.type, self.precision), self.accelerator.autocast()
            with counting() as noted, torch.no_grad(), _kept_statistics(self.task), precision[0], precision[1]:
                self.task.count(batch)
            notes.append(noted)
        return exchange(notes)

    def clip_gradients(self, limit: float | None) -> Tensor:
        """Return the gradients' norm, a scalar, and scale them down to `limit` where it is larger."""
        self.accelerator.unscale_gradients(self.stepper)
        norm = gradient_norm(self.parameters)
        if limit is not None:
            torch.nn.utils.clip_grads_with_norm_(self.parameters, limit, norm)
        return norm

    def step(self) -> None:
        """Update the parameters and clear the gradients; with fp16 an overflow leaves the parameters as they are."""
        self.stepper.step()
        self.stepper.zero_grad()
        self._average_buffers()

    def _average_buffers(self) -> None:
        """Give every process the mean of the batch norms' statistics, so that all evaluate and save the same model."""
        buffers = [buffer for buffer in self.task.buffers() if buffer.is_floating_point()]
        if self.world == 1 or not buffers:
            return
        flat = torch.cat([buffer.flatten() for buffer in buffers])
        dist.all_reduce(flat)
        means = (flat / self.world).split([buffer.numel() for buffer in buffers])
        for buffer, mean in zip(buffers, means, strict=True):
            buffer.copy_(mean.view_as(buffer))

    def forget_gradients(self) -> None:
        """Clear the gradients without an update."""
        self.stepper.zero_grad()

    @property
    def loss_scale(self) -> float | None:
        """The factor that keeps fp16 gradients from vanishing; None in other precisions."""
        scaler = self.accelerator.scaler
        return None if scaler is None else float(scaler.get_scale())

    def scaler_state(self) -> dict[str, Any]:
        """State of the loss scaling, plain values; empty where there is none."""
        scaler = self.accelerator.scaler
        return {} if scaler is None else scaler.state_dict()

    def load_scaler_state(self, state: dict[str, Any]) -> None:
        """Take back what `scaler_state` gave."""
        if self.accelerator.scaler is not None and state:
            self.accelerator.scaler.load_state_dict(state)

    def total(self, *values: Tensor | float) -> list[float]:
        """Sum each value over the processes, in double precision."""
        # Apple GPUs have no float64.
        device = "cpu" if self.device.type == "mps" else self.device
        sums = torch.stack([torch.as_tensor(value).to(device, torch.float64) for value in values])
        if self.world > 1:
            dist.all_reduce(sums)
        return sums.tolist()

    def gather(self, item: Item) -> list[Item]:
        """The item of every process, in rank order, to every process."""
        if self.world == 1:
            return [item]
        items: list[Item | None] = [None] * self.world
        dist.all_gather_object(items, item)
        return cast(list[Item], items)

    def from_main(self, item: Item) -> Item:
        """The item of rank 0."""
        return self.gather(item)[0]

    def together(self, work: Callable[[], Item]) -> Item:
        """Do work that needs no other process on every process; where it fails on one, all end.

        Raises:
            LostRankError: it failed on another process; the text says on which and why.
            Exception: what the work itself raises.
        """
        return self._attempt(work)[0]

    def on_main(self, work: Callable[[], Item]) -> Item:
        """Do work on rank 0 and return its result on every process; raises as `together` does."""
        return self._attempt(lambda: work() if self.is_main else cast(Item, None), is_shared=True)[1]

    def _attempt(self, work: Callable[[], Item], *, is_shared: bool = False) -> tuple[Item, Item]:
        """The results of work on this process and, if they are shared, on rank 0."""
        result: Any = None
        if self.world == 1:
            result = work()
            return result, result
        failure: Exception | None = None
        try:
            result = work()
        except Exception as error:
            failure = error
        shares = self.gather((failure and _one_line(failure), result if is_shared else None))
        if failure is not None:
            raise failure
        failed = [f"rank {rank} failed: {reason}" for rank, (reason, _) in enumerate(shares) if reason is not None]
        if failed:
            raise LostRankError("; ".join(failed))
        return result, cast(Any, shares[0][1])

    @contextmanager
    def noted(self) -> Iterator[None]:
        """Let the other processes know why this one ends early, and explain the loss of another one.

        Raises:
            LostRankError: another process is gone or did not answer in time; the text says what is known of it.
        """
        try:
            yield
        except Exception as error:
            if self.world == 1 or isinstance(error, LostRankError):
                raise
            if is_lost(error):
                raise LostRankError(self._loss(error)) from error
            with suppress(RuntimeError):
                self.notes.end(_one_line(error))
            raise

    def _loss(self, error: Exception) -> str:
        waited = f"no answer within {self.timeout:g} s (--dist-timeout)" if _is_late(error) else "connection lost"
        return (
            f"rank {self.rank} cannot go on without the other processes: {waited}; {self.notes.others()}; start the "
            f"run again with --resume"
        )

    def close(self) -> None:
        """Leave the process group; another engine can be made afterwards."""
        self.accelerator.free_memory()
        self.accelerator.end_training()
        _forget_accelerate()


@contextmanager
def _kept_statistics(task: Task) -> Iterator[None]:
    """Leave the statistics of batch norms as they were: what is only counted is not trained on."""
    norms = [module for module in task.modules() if isinstance(module, _BatchNorm) and module.training]
    kept = [(buffer, buffer.clone()) for norm in norms for buffer in norm.buffers()]
    try:
        yield
    finally:
        for buffer, value in kept:
            buffer.copy_(value)


@contextmanager
def start_engine(config: TrainConfig) -> Iterator[Engine]:
    """An engine that leaves its process group when it is done, also by an error.

    Raises:
        ValueError: the device or precision asked for is not available here.
        LostRankError: the other processes do not join in time.
    """
    _forget_accelerate()
    try:
        engine = Engine(config)
    except RuntimeError as error:
        if _world_size() == 1 or not is_lost(error):
            raise
        raise LostRankError(
            f"rank {os.environ.get('RANK')} of {_world_size()} found no group within {config.dist_timeout:g} s "
            f"(--dist-timeout): {_one_line(error)[:200]}; check that all processes started and reach "
            f"the address of rank 0"
        ) from error
    try:
        with set_kernels(engine.kernels, engine.torch_operations):
            yield engine
    finally:
        engine.close()


def _agree_on_precision(wish: PrecisionChoice, device: str) -> tuple[Precision, str]:
    """Resolve the precision on rank 0 for all processes; return it with the reason for the choice.

    Raises:
        ValueError: a device cannot compute in this precision, or another rank would have to emulate what rank 0 chose.
    """
    chosen = [choose_precision(wish, device)]
    if dist.is_initialized():
        dist.broadcast_object_list(chosen)
        if wish == "auto" and not computes(chosen[0].name, device):
            raise ValueError(
                f"precision=auto is {chosen[0].name} on rank 0, and rank {dist.get_rank()} would have to emulate it; "
                f"use --precision fp32"
            )
    return chosen[0].name, chosen[0].reason


def _agree_on_kernels(config: TrainConfig, device: str, precision: Precision) -> tuple[Kernels, tuple[str, ...]]:
    """Choose the kernels, and the operations that are left to PyTorch, on rank 0 for all processes.

    Raises:
        ValueError: a process cannot use them.
    """
    check_kernels(config.kernels)
    with set_kernels(config.kernels, config.torch_operations):
        # Every process resolves its own, so that all of them have compiled the kernels before they wait for each other.
        chosen: list[tuple[Kernels, tuple[str, ...]]] = [
            (kernels_for(device), settled_operations(device, dtypes()[precision]))
        ]
    if dist.is_initialized():
        dist.broadcast_object_list(chosen)
        kernels = chosen[0][0]
        reason = unavailable(kernels) if kernels != "torch" else None
        if reason is not None:
            raise ValueError(
                f"rank 0 uses kernels={kernels}, which rank {dist.get_rank()} cannot: {reason}; use --kernels torch"
            )
    return chosen[0]


def full_state(module: nn.Module) -> dict[str, Tensor]:
    """The module's state dict on the CPU."""
    return {name: value.detach().cpu() for name, value in module.state_dict().items()}


def load_full_state(module: nn.Module, state: dict[str, Tensor]) -> None:
    """Copy tensors into a module, wherever it is.

    Raises:
        ValueError: names, shapes or types differ.
    """
    own = module.state_dict()
    differing = sorted(own.keys() ^ state.keys())
    differing += [name for name in own.keys() & state.keys() if _form(own[name]) != _form(state[name])]
    if differing:
        raise ValueError(
            f"the checkpoint is of another model: {len(differing)} names differ, among them "
            f"{', '.join(differing[:MOST_NAMES])}; resume with the version of globalvit that wrote it"
        )
    with torch.no_grad():
        for name, value in own.items():
            value.copy_(state[name])


def optimizer_state(optimizer: Optimizer, names: dict[Tensor, str]) -> dict[str, Any]:
    """The optimizer's state by parameter name, and its groups, on the CPU.

    It does not depend on the number of processes.
    """
    state = {names[parameter]: _on_cpu(values) for parameter, values in optimizer.state.items()}
    groups = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
    return {"state": state, "groups": [_on_cpu(group) for group in groups]}


def load_optimizer_state(optimizer: Optimizer, names: dict[Tensor, str], saved: dict[str, Any]) -> None:
    """Take back what `optimizer_state` gave; parameters without an entry start afresh."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    _require_fitting(optimizer, parameters, names, saved)
    state = {
        index: {key: _placed(value, parameter) for key, value in saved["state"][names[parameter]].items()}
        for index, parameter in enumerate(parameters)
        if names[parameter] in saved["state"]
    }
    own = optimizer.state_dict()["param_groups"]
    groups = [{**group, "params": mine["params"]} for group, mine in zip(saved["groups"], own, strict=True)]
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def _require_fitting(
    optimizer: Optimizer, parameters: list[Tensor], names: dict[Tensor, str], saved: dict[str, Any]
) -> None:
    """Check a saved state before it is taken: an optimizer takes anything, and fails in a later step.

    Raises:
        ValueError: the state is not one of this optimizer's parameters and groups.
    """
    known = {names[parameter]: parameter for parameter in parameters}
    for name, values in saved["state"].items():
        sizes = [value.numel() for value in values.values() if isinstance(value, Tensor)]
        if name not in known or max(sizes, default=0) > max(known[name].numel(), 1):
            raise ValueError(f"expected the state of the model's parameters, got that of {name!r:.80}")
    own = [group.keys() - {"params"} for group in optimizer.param_groups]
    # A schedule, or the first step, may have added settings.
    if len(saved["groups"]) != len(own) or any(
        keys - set(group) for keys, group in zip(own, saved["groups"], strict=True)
    ):
        raise ValueError(f"expected {len(own)} groups with the settings of {type(optimizer).__name__}, got others")


def _form(tensor: Tensor) -> tuple[torch.Size, torch.dtype]:
    return tensor.shape, tensor.dtype


def _on_cpu(values: dict[str, Any]) -> dict[str, Any]:
    return {key: value.detach().cpu() if isinstance(value, Tensor) else value for key, value in values.items()}


def _placed(value: Any, parameter: nn.Parameter) -> Any:
    has_its_shape = isinstance(value, Tensor) and value.shape == parameter.shape
    return value.to(parameter.device) if has_its_shape else value


def has_fixed_sizes(config: TrainConfig) -> bool:
    """Whether all images have one size, so that searching for the fastest convolutions pays."""
    return ModelSpec(model=config.model).kind == "classify"


def _join(kind: str, timeout: timedelta) -> None:
    """Join the group of processes; after a restart by torchrun, under names that the processes before did not use.

    torchrun keeps one store over its restarts, so a process may read the address of one that is gone.
    """
    store, rank, world = next(rendezvous("env://", timeout=timeout))
    store = distributed_c10d.PrefixStore(f"restart {os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
    if kind == "cuda":
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    dist.init_process_group(
        "nccl" if kind == "cuda" else "gloo", store=store, rank=rank, world_size=world, timeout=timeout
    )


def _forget_accelerate() -> None:
    # Accelerate keeps one configuration for the life of a process; a second run may want another.
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or repr(error)


def _is_late(error: BaseException) -> bool:
    return "imed out" in str(error) or "imeout" in str(error)


def _world_size() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def local_processes() -> int:
    """Training processes on this machine, which share its memory."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def parameter_names(task: Task) -> dict[Tensor, str]:
    """Each parameter's name."""
    return {parameter: name for name, parameter in task.named_parameters()}
