"""Training on several devices: the ranks that torchrun started share the work of every step.

All ranks know the whole step: the same prompts and random numbers, and the gathered completions, scores and masks. So
advantages and weights are those of the whole batch. Each rank runs the model on its share of the rows, and its loss is
exactly its part of the batch's loss. Gradients are therefore summed over ranks, never averaged, and results do not
depend on how rows are shared. With "ddp" every rank holds all weights. With "fsdp" it holds a shard of each (FSDP2,
`fully_shard`), and a layer's weights are gathered while it runs. In one process every function here does nothing.
Leaves out what a step does.
"""

# n rows, R ranks
from __future__ import annotations

import contextlib
import os
import sys
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

BUCKET = 2**25
"""Gradient numbers per message."""

# Ranks


def started() -> tuple[int, int]:
    """This process's rank and the number of ranks, from torchrun's environment variables; (0, 1) without torchrun."""
    return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


def join(device: str) -> None:
    """Connect to the other ranks, if torchrun started any. On CUDA each rank uses the device of its local rank."""
    if started()[1] == 1 or dist.is_initialized():
        return
    if device.startswith("cuda"):
        local = int(os.environ.get("LOCAL_RANK", 0))
        if device != "cuda":
            raise ValueError(f"device is {device!r}, but torchrun gives each process its own; set device to cuda")
        if local >= torch.cuda.device_count():
            raise ValueError(
                f"local rank {local} has no CUDA device, because there are only {torch.cuda.device_count()}; lower "
                "--nproc-per-node"
            )
        torch.cuda.set_device(local)
    dist.init_process_group()


def leave(status: int) -> int:
    """End this process when all ranks are done. In one process, only return the status.

    If a rank ends with an error status, torchrun kills the others. Destructors do not run, because those of FSDP2 over
    gloo abort one process in twenty (torch 2.13).
    """
    if dist.is_initialized():
        dist.barrier()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    return status


def rank() -> int:
    """This process's rank. Rank 0 writes and prints."""
    return dist.get_rank() if dist.is_initialized() else 0


def size() -> int:
    """The number of ranks, R."""
    return dist.get_world_size() if dist.is_initialized() else 1


def now(execution: Mapping[str, Any]) -> dict[str, Any]:
    """The execution settings with the current number of ranks, because another number changes the last bits of sums."""
    others = {name: value for name, value in execution.items() if name != "ranks"}
    return others | ({"ranks": started()[1]} if started()[1] > 1 else {})


# Shares of rows, and messages between ranks


def share(n: int, of: int | None = None) -> slice:
    """A rank's share of n rows, by default this one's. The first n mod R ranks have one row more than the others."""
    each, more = divmod(n, size())
    of = rank() if of is None else of
    start = of * each + min(of, more)
    return slice(start, start + each + (of < more))


def pieces(n: int, cut: int | Callable[[slice], list[slice]], *, even: bool) -> list[slice]:
    """This rank's share of n rows, in pieces of at most `cut` rows; with `even` all ranks get equally many pieces.

    The additional pieces are empty. With FSDP all ranks must run the model equally often; otherwise they wait for each
    other forever. cut: a number, or a function that cuts a share.
    """
    every = [cut(share(n, of)) if callable(cut) else by_count(share(n, of), cut) for of in range(size())]
    mine, end = every[rank()], share(n).stop
    return mine + [slice(end, end)] * ((max(map(len, every)) - len(mine)) if even else 0)


def by_count(rows: slice, length: int) -> list[slice]:
    """These rows in pieces of at most `length`."""
    return [slice(start, min(start + length, rows.stop)) for start in range(rows.start, rows.stop, length)]


def gather(thing: Any) -> list[Any]:
    """The values of all ranks, by rank. Values must be picklable, with tensors on the CPU."""
    if size() == 1:
        return [thing]
    things = [None] * size()
    dist.all_gather_object(things, thing)
    return things


def rows(part: Tensor) -> Tensor:
    """The rows of all ranks, concatenated by rank."""
    return part if size() == 1 else torch.cat(gather(part.cpu())).to(part.device)


def from_first(function: Callable[[], Any]) -> Any:
    """What `compute` returns on rank 0, or the ValueError that it raises. Other ranks do not call it."""
    if size() == 1:
        return function()
    found: list[Any] = [None, None]
    if rank() == 0:
        try:
            found[0] = function()
        except ValueError as error:
            found[1] = error
    dist.broadcast_object_list(found)
    if found[1] is not None:
        raise found[1]
    return found[0]


def combined(numbers: Mapping[str, Tensor | float], largest: Collection[str] = ()) -> dict[str, float]:
    """The sum over ranks by name, or the maximum for names in `largest`. A rank without work may lack names."""
    parts = gather({name: float(number) for name, number in numbers.items()})
    found: dict[str, list[float]] = {}
    for part in parts:
        for name, number in part.items():
            found.setdefault(name, []).append(number)
    return {name: max(each) if name in largest else sum(each[1:], each[0]) for name, each in found.items()}


def agree(received: Sequence[int], save: bool) -> tuple[int, bool]:
    """A signal that any rank received (0: none), and whether to save: after a signal, or because rank 0 wants to.

    So all ranks stop after the same step and save together.
    """
    parts = gather((received[0] if received else 0, save))
    stop = max(signal for signal, _ in parts)
    return stop, bool(stop) or parts[0][1]


# Gradients


def sum_gradients(parameters: Sequence[Tensor]) -> None:
    """Sum gradients over ranks, in place. FSDP has already summed those of sharded parameters.

    A parameter without a gradient on any rank keeps none, as in one process.
    """
    whole_ones = [p for p in parameters if not is_sharded(p)]
    if size() == 1 or not whole_ones:
        return
    somewhere = torch.tensor([p.grad is not None for p in whole_ones], dtype=torch.int32, device=whole_ones[0].device)
    dist.all_reduce(somewhere, dist.ReduceOp.MAX)
    gradients = list[Tensor]()
    for parameter, has in zip(whole_ones, somewhere.tolist(), strict=True):
        if has:
            parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            gradients.append(parameter.grad)
    for bucket in _buckets(gradients):
        flat = torch.cat([gradient.reshape(-1) for gradient in bucket])
        dist.all_reduce(flat)
        for gradient, part in zip(bucket, flat.split([g.numel() for g in bucket]), strict=True):
            gradient.copy_(part.view_as(gradient))


def _buckets(gradients: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Groups of gradients of one dtype, with about `BUCKET` numbers each."""
    bucket = list[Tensor]()
    for gradient in gradients:
        full = sum(g.numel() for g in bucket) + gradient.numel() > BUCKET
        if bucket and (full or bucket[0].dtype != gradient.dtype):
            yield bucket
            bucket = []
        bucket.append(gradient)
    if bucket:
        yield bucket


def clip_gradients(parameters: Sequence[Tensor], max_norm: float) -> float:
    """Scale the gradients to a global norm of at most `max_norm`. Return the norm before."""
    if not any(map(is_sharded, parameters)):
        return float(nn.utils.clip_grad_norm_(parameters, max_norm))
    shards: list[Any] = [p.grad.to_local() for p in parameters if p.grad is not None]  # type: ignore[attr-defined]
    if not shards:
        return 0.0
    square = torch.stack([shard.float().square().sum() for shard in shards]).sum()
    dist.all_reduce(square)
    norm = square.sqrt()
    for shard in shards:
        shard.mul_((max_norm / (norm + 1e-6)).clamp(max=1.0))
    return float(norm)


# Weights


def spread(model: nn.Module | None) -> None:
    """Copy rank 0's weights to all ranks, bit for bit."""
    if size() > 1 and model is not None:
        for parameter in model.parameters():
            dist.broadcast(parameter.data, 0)


def shard(model: nn.Module, trunk: nn.Module | None = None) -> None:
    """Shard each parameter of a model over the ranks (FSDP2), in place.

    Transformer blocks are gathered one by one as they run. Other weights (embedding, output matrix) stay gathered until
    the backward pass ends. So the output matrix can be used directly after a call of the model or of its `trunk`.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    warnings.filterwarnings("ignore", message=".*returned a view tensor")  # no code changes it in place
    mesh = init_device_mesh(next(model.parameters()).device.type, (size(),))
    names = getattr(model, "_no_split_modules", None) or ()
    for module in [*(block for block in model.modules() if type(block).__name__ in names), model]:
        part: Any = fully_shard(module, mesh=mesh, reshard_after_forward=module is not model)
        part.set_gradient_divide_factor(1.0)  # a sum, not a mean
        part.set_force_sum_reduction_for_comms(True)  # gloo supports only sums
    if trunk is not None and trunk is not model:  # FSDP treats a call of the trunk as one of the model
        model.call_trunk = trunk.forward  # type: ignore[assignment]
        register_fsdp_forward_method(model, "call_trunk")
        trunk.forward = model.call_trunk  # type: ignore[assignment]


@contextlib.contextmanager
def gathered(model: nn.Module) -> Iterator[None]:
    """Gather all weights of a causal LM on every rank during the block. There, ranks may call it at different times."""
    shards: list[Any] = [module for module in model.modules() if hasattr(module, "set_reshard_after_forward")]
    for module in shards:
        module.set_reshard_after_forward(False, recurse=False)
    if shards:
        with torch.no_grad():  # keeps weights that are gathered as it runs
            model(input_ids=torch.zeros(1, 1, dtype=torch.long, device=next(model.parameters()).device))
    yield
    for module in shards:
        module.set_reshard_after_forward(module is not model, recurse=False)
        module.reshard()


def is_sharded(tensor: Tensor) -> bool:
    """Whether this rank holds only a part of it."""
    return hasattr(tensor, "full_tensor")


def whole(tensor: Tensor) -> Tensor:
    """The whole tensor; a plain one is returned unchanged. All ranks must call this."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor  # type: ignore[attr-defined,no-any-return]


def like(tensor: Tensor, parameter: Tensor) -> Tensor:
    """A copy of a whole tensor, on the parameter's device and sharded like it."""
    tensor = tensor.to(parameter.device).clone()
    if not is_sharded(parameter):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    there: Any = parameter
    return distribute_tensor(tensor, there.device_mesh, there.placements, src_data_rank=None)
