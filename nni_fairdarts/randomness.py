"""Random states: kept and brought back, and batches whose draws come from a seed of every epoch."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch
from pytorch_lightning.utilities import CombinedLoader

from nni_fairdarts.errors import InputError
from nni_fairdarts.variables import workers_hang


def random_state() -> dict:
    """The states of Python's, numpy's and torch's generators, of CUDA devices too, as plain values and tensors."""
    name, keys, *position = np.random.get_state()
    return {
        "python": random.getstate(),
        "numpy": (name, torch.from_numpy(keys.astype(np.int64)), *position),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],
    }


def set_random_state(state: dict) -> None:
    """Bring back what ``random_state`` gave. Devices that are not here are passed over."""
    name, keys, *position = state["numpy"]
    _set_host_state((state["python"], (name, keys.numpy().astype(np.uint32), *position), state["torch"]))
    for device, value in enumerate(state["cuda"][: torch.cuda.device_count()]):
        torch.cuda.set_rng_state(value, device)


def _host_state() -> tuple:
    return random.getstate(), np.random.get_state(), torch.get_rng_state()


def _set_host_state(state: tuple) -> None:
    python, numpy, cpu = state
    random.setstate(python)
    np.random.set_state(numpy)
    torch.set_rng_state(cpu)


@dataclass
class Place:
    """Where a training is in its data: the seed of all its epochs, the epoch, and batches of it to pass over.

    ``generators``: the seeds that the user gave to generators of loaders and samplers, in their order.
    """

    seed: int | None = None
    epoch: int = 0
    batches: int = 0
    generators: list[int] = field(default_factory=list)


class SeededLoaders(CombinedLoader):
    """Loaders whose draws, of shuffling and augmentation alike, come from a seed of each epoch's own.

    What a network draws meanwhile leaves them alone, and the other way round, so an epoch's batches can be gone through
    again up to any of them: the next iteration begins at ``place``. iterables: a loader or a dict of loaders, the
    shorter ones begin again until the longest is done; or a CombinedLoader of Lightning's. What nothing can bring back:
    workers with ``persistent_workers``, which go on drawing where they were, and generators inside of a data set.
    Raises InputError for workers that could never hand a batch on.
    """

    def __init__(self, iterables, place: Place):
        combined = isinstance(iterables, CombinedLoader)
        super().__init__(*(iterables.iterables, iterables._mode) if combined else (iterables, "max_size_cycle"))
        self.place = place
        if any(getattr(loader, "num_workers", 0) for loader in self.flattened) and (why := workers_hang()):
            raise InputError(f"{why} (num_workers=0)")

    def __iter__(self):
        place = self.place
        if place.seed is None:
            place.seed = _the_first_ones(int(torch.randint(2**62, ())))
        for owner in self._owners():
            if hasattr(owner, "set_epoch"):  # before it is iterated; Lightning is too late where it goes on
                owner.set_epoch(place.epoch)
        generators = [owner.generator for owner in self._owners() if getattr(owner, "generator", None) is not None]
        if len(place.generators) != len(generators):
            place.generators = [generator.initial_seed() for generator in generators]
        for generator, seed in zip(generators, place.generators, strict=True):
            generator.manual_seed(_words(place, seed)[0])
        with self._drawing(_seeded(place)):
            super().__iter__()
            for _ in range(place.batches):
                super().__next__()
        place.batches = 0
        return self

    def __next__(self):
        with self._drawing(self._state):
            return super().__next__()

    def _owners(self) -> Iterator:
        """What may have a generator of the user's: loaders and their samplers."""
        for loader in self.flattened:
            batches = getattr(loader, "batch_sampler", None)
            yield from (loader, getattr(loader, "sampler", None), batches, getattr(batches, "sampler", None))

    @contextmanager
    def _drawing(self, state: tuple) -> Iterator[None]:
        """Inside, draws go on from ``state``; what the process draws elsewhere goes on afterwards as if nothing was."""
        outside = _host_state()
        _set_host_state(state)
        try:
            yield
        finally:
            self._state = _host_state()
            _set_host_state(outside)


def _the_first_ones(value):
    """What the first process of a group has in the place of this one's ``value``; all of them must be here."""
    values = [value]
    if torch.distributed.is_initialized():
        torch.distributed.broadcast_object_list(values, 0)
    return values[0]


def _seeded(place: Place) -> tuple:
    """Generators at the beginning of an epoch's data."""
    first, second, third = _words(place)
    numpy = np.random.RandomState(second % 2**32).get_state()
    return random.Random(first).getstate(), numpy, torch.Generator().manual_seed(third).get_state()


def _words(place: Place, *more: int) -> list[int]:
    """Three numbers in [0, 2^63) for an epoch of this process: every process of a group has its own."""
    rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
    words = np.random.SeedSequence([place.seed, place.epoch, rank, *more]).generate_state(3, np.uint64)
    return [int(word) >> 1 for word in words]
