"""Several processes that train together, by Lightning's DDP: what is to be the same in all of them.

After every step of a search α, weights, optimizers and batch norms are the same in every process. DDP's own reducer is
left out of it: a search goes backwards twice in a step, each time for a part of the parameters, where the reducer waits
for all of them. Without a process group everything here leaves its arguments as they are.
"""

import random
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import numpy as np
import pytorch_lightning as pl
import torch
import torch.distributed as dist
from pytorch_lightning.strategies import DDPStrategy, ParallelStrategy
from pytorch_lightning.utilities.data import extract_batch_size
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.data import Dataset, DistributedSampler

from nni_fairdarts.errors import InputError, LostProcess
from nni_fairdarts.launched import launched_rank


def processes() -> int:
    """How many processes train together; 1 without a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


@contextmanager
def naming_the_lost() -> Iterator[None]:
    """Inside, what torch raises where another process has ended is a LostProcess."""
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, dist.DistError) or "gloo/transport" in str(error):  # gloo's have no kind of their own
            raise LostProcess(
                "another process of this training has ended, so this one stops too; why, its own output says, if it "
                "was not killed"
            ) from error
        raise


def wait_for_all() -> None:
    """Go on when every process is here. Raises LostProcess where one has ended."""
    if processes() > 1:
        with naming_the_lost():
            dist.barrier()


def same_in_all(module: nn.Module) -> None:
    """Give every process the first one's parameters and buffers of ``module``. Raises LostProcess as ``total`` does."""
    if processes() > 1:
        with naming_the_lost():
            for tensor in (*module.parameters(), *module.buffers()):
                dist.broadcast(tensor.detach(), 0)


def total(value: Tensor) -> Tensor:
    """The sum over the processes, the same in all of them. Raises LostProcess where one has ended."""
    return value if processes() == 1 else _added_up(value.clone())


def mean(value: Tensor) -> Tensor:
    """The mean over the processes, the same in all of them: NaN where it is NaN in one. Raises as ``total``."""
    return value if processes() == 1 else _added_up(value / processes())


def _added_up(value: Tensor) -> Tensor:
    with naming_the_lost():
        dist.all_reduce(value)
    return value


# -- gradients and batch norms ------------------------------------------------------------------------------------


def check_strategy(trainer: pl.Trainer) -> None:
    """Raise InputError for a trainer's strategy of several processes that is not plain DDP."""
    strategy = trainer.strategy
    if not isinstance(strategy, ParallelStrategy):
        return
    if type(strategy) is not DDPStrategy:
        raise InputError(
            f"a search on several devices goes with Lightning's DDP, but the evaluator's trainer has "
            f"{type(strategy).__name__}; give it strategy='ddp'"
        )
    given = {"static_graph": strategy._ddp_kwargs.get("static_graph"), "ddp_comm_hook": strategy._ddp_comm_hook}
    if named := [name for name, value in given.items() if value]:
        raise InputError(
            f"a search averages gradients itself, where {named[0]} of the trainer's DDPStrategy has no effect; leave "
            "it out"
        )


@contextmanager
def by_hand(strategy) -> Iterator[None]:
    """Inside, DDP's reducer leaves the gradients of backward passes alone."""
    if isinstance(strategy, ParallelStrategy):
        with strategy.block_backward_sync():
            yield
    else:
        yield


def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Put the mean over the processes in the place of the gradients of those parameters that need one now.

    A gradient that is None counts as zeros where another process has one; where none has, it stays None. One exchange
    for all of a dtype.
    """
    if processes() == 1:
        return
    learning = [p for p in parameters if p.requires_grad]
    absent = [i for i, p in enumerate(learning) if p.grad is None]
    held = torch.ones(len(learning), dtype=learning[0].dtype, device=learning[0].device)
    for i in absent:
        held[i] = 0
        learning[i].grad = torch.zeros_like(learning[i])
    _average([held, *(p.grad for p in learning)])
    for i in absent:
        if not held[i]:
            learning[i].grad = None


def batch_norms(module: nn.Module) -> list[_BatchNorm]:
    """The batch norms inside that keep statistics."""
    return [m for m in module.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]


def average_statistics(norms: Iterable[_BatchNorm]) -> None:
    """Put the mean over the processes in the place of running means and variances.

    DDP takes the first process's; these are of all batches. Other buffers stay each process's own.
    """
    if processes() > 1:
        _average([t for norm in norms for t in (norm.running_mean, norm.running_var)])


@torch.no_grad()
def _average(tensors: Iterable[Tensor]) -> None:
    kinds: dict[tuple, list[Tensor]] = {}
    for tensor in tensors:
        kinds.setdefault((tensor.dtype, tensor.device), []).append(tensor)
    for alike in kinds.values():
        flat = mean(torch.cat([t.reshape(-1) for t in alike]))
        pieces = flat.split([t.numel() for t in alike])
        torch._foreach_copy_(alike, [piece.view(t.shape) for piece, t in zip(pieces, alike, strict=True)])


# -- data, random numbers, logs ----------------------------------------------------------------------------------------


class Shard(DistributedSampler):
    """This process's part of a data set; no two parts have an image in common.

    With a ``seed`` the set is shuffled anew in every epoch and the parts are equally large: up to ``processes`` - 1
    images, others in every epoch, are left out. Without one it is in order and whole: parts differ by up to one image.
    (Lightning's own are equally large always: images at the beginning are in two of them.)
    """

    def __init__(self, dataset: Dataset, processes: int, seed: int | None = None):
        shuffled = seed is not None
        super().__init__(dataset, processes, launched_rank(), shuffled, seed or 0, drop_last=shuffled)
        if not shuffled:
            self.num_samples = len(range(self.rank, len(dataset), processes))
            self.total_size = len(dataset)


def draw_apart() -> None:
    """Let every process but the first draw other random numbers than the first; the seed still says which.

    Lightning seeds all alike: they would augment their images and drop paths in the same way.
    """
    if processes() > 1 and (rank := dist.get_rank()):
        seed = (torch.initial_seed() + rank) % 2**63
        torch.manual_seed(seed)
        np.random.seed(seed % 2**32)
        random.seed(seed)


class AmongProcesses(pl.LightningModule):
    """Mixed into a trained module: it draws its own random numbers, and its validation is that of all processes.

    Numbers that ``validation_step`` logs are means over the examples of all, so that callbacks and schedules decide
    the same everywhere. A metric of torchmetrics' sees to that itself.
    """

    def on_fit_start(self):
        if self.trainer.lightning_module is self:  # and not a guest in a search
            draw_apart()
        return super().on_fit_start()

    def on_validation_batch_start(self, batch, *args, **kwargs):
        self._examples = extract_batch_size(batch) if processes() > 1 else None
        return super().on_validation_batch_start(batch, *args, **kwargs)

    def log(self, name, value, prog_bar=False, logger=None, on_step=None, *args, **kwargs):
        # Not of single steps: the processes may have different numbers of them.
        if processes() > 1 and self.trainer.evaluating and not on_step:
            # No whole number: Lightning's mean of those over processes is rounded down.
            examples = self._examples if self._current_fx_name == "validation_step" else 1
            kwargs |= {"sync_dist": True, "batch_size": float(kwargs.get("batch_size") or examples)}
        return super().log(name, value, prog_bar, logger, on_step, *args, **kwargs)
