"""Several processes that train one model, as ``torchrun --nproc-per-node N -m gamengen train ...`` starts them.

Every process draws the whole batch from the same seed and computes its own share of it; gradients are averaged. So
any number of processes trains the same model on the same batches, a run may go on with another number, and alone
there is nothing to it. The processes find each other through accelerate, on GPUs by NCCL and on CPUs by gloo.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
from torch import distributed, nn

from agents.errors import OptionError

LONGEST_WAIT = timedelta(days=1)


def started_by_torchrun() -> bool:
    """Whether this is one of several processes that torchrun started."""
    size = os.environ.get("WORLD_SIZE", "1")
    return size.isdigit() and int(size) > 1


def join(device: torch.device) -> torch.device:
    """Meet the other processes, where there are any; returns this one's own device of the kind of ``device``.

    Raises:
        OptionError: torchrun started several processes and accelerate is not installed, or one device is named for all.
    """
    if not started_by_torchrun():
        return device
    if device.index is not None:
        raise OptionError("each process takes a GPU of its own", f"--device {device}", "give --device cuda")
    try:
        from accelerate import PartialState
    except ModuleNotFoundError:
        remedy = "python -m pip install -c constraints.txt '.[distributed]'"
        raise OptionError("several processes need accelerate", "torchrun", remedy) from None
    # The others wait while the first encodes a recording.
    try:
        state = PartialState(cpu=device.type == "cpu", timeout=LONGEST_WAIT)
    except ValueError as error:
        raise OptionError(f"the processes cannot meet ({error})", "WORLD_SIZE", "start them with torchrun") from error
    atexit.register(_leave)  # or its threads may outlive what they need, and end the process by a signal
    return torch.device(device.type, state.local_process_index) if device.type == "cuda" else device


def _leave() -> None:
    if distributed.is_initialized():
        distributed.destroy_process_group()


def count() -> int:
    """How many processes train together."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def rank() -> int:
    """Which of them this process is, from 0."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def is_first() -> bool:
    """Whether this process writes what all have made."""
    return rank() == 0


def meet() -> None:
    """Wait for the other processes."""
    if count() > 1:
        distributed.barrier()


@contextmanager
def first_goes_first() -> Iterator[None]:
    """Run the block in the first process, then in the others, which find what it wrote."""
    if not is_first():
        meet()
    yield
    if is_first():
        meet()


def share(whole: torch.Tensor) -> torch.Tensor:
    """This process's part of a batch (B, ...), (B / count, ...)."""
    if count() == 1:
        return whole
    return whole.chunk(count())[rank()]


def check_batch(batch: int) -> None:
    """Raise OptionError unless every process gets as large a share of ``batch``."""
    if batch % count():
        remedy = f"use a divisor of {batch}"
        raise OptionError(f"{count()} processes cannot share a batch of {batch} evenly", "--nproc-per-node", remedy)


def even(number: int) -> int:
    """``number``, or the next that all processes can share evenly."""
    return -(-number // count()) * count()


def spread(compute: Callable[..., torch.Tensor], *parts: torch.Tensor) -> torch.Tensor:
    """``compute(*parts)`` (B, ...) of whole batches, each process computing its share where they can be shared."""
    if count() == 1 or len(parts[0]) % count():
        return compute(*parts)
    return gather(compute(*(share(part) for part in parts)))


def gather(part: torch.Tensor) -> torch.Tensor:
    """The batch (B, ...) of which each process has a share."""
    if count() == 1:
        return part
    gathered = [torch.empty_like(part, memory_format=torch.contiguous_format) for _ in range(count())]
    distributed.all_gather(gathered, part.contiguous())
    return torch.cat(gathered)


def average_gradients(model: nn.Module) -> None:
    """The mean over all processes, in place of each parameter's gradient."""
    if count() > 1:
        gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        distributed.all_reduce(flat)
        flat /= count()
        for gradient, mean in zip(gradients, flat.split([len(g.flatten()) for g in gradients]), strict=True):
            gradient.copy_(mean.view_as(gradient))


def agree(model: nn.Module) -> None:
    """Give every process the weights of the first."""
    if count() > 1:
        for value in model.state_dict().values():
            distributed.broadcast(value, src=0)


def average(value: float, device: torch.device) -> float:
    """The mean of ``value`` over all processes: the same number for all, so that all take the same turns."""
    if count() == 1:
        return value
    total = torch.tensor(value, dtype=torch.float64, device=device)
    distributed.all_reduce(total)
    return float(total) / count()
