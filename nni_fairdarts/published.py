"""Weights under the names of the published checkpoints -> the derived network's."""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from nni_fairdarts.errors import InputError
from nni_fairdarts.network import DerivedNetwork

_OPERATION = re.compile(r"cells\.(\d+)\._ops\.(?:(\d+)\.(\d+)\.(\d+)|(\d+))\.(?:op\.)?(.+)")
_PREPROCESS = re.compile(r"cells\.(\d+)\.preprocess(\d)\.(?:op\.)?(.+)")


def load_published(network: DerivedNetwork, weights: Mapping[str, Tensor]) -> DerivedNetwork:
    """Load weights under the names of the published checkpoints (FairDARTS' and DARTS' own code); returns the network.

    Weights of edges that pruning dropped are left out, those of an auxiliary head where the network has none too.
    Raises InputError where a weight is missing, unknown, or of another shape.
    """
    theirs = {name.removeprefix("module."): torch.as_tensor(value) for name, value in weights.items()}
    translated = {}
    for name, value in theirs.items():
        own = _own_name(network, name)
        if own is not None:
            translated[own] = value
    wanted = network.state_dict()
    missing = [n for n in wanted if n not in translated and not n.endswith("num_batches_tracked")]
    unknown = [n for n in translated if n not in wanted]
    if missing or unknown:
        raise InputError(
            "these weights are not of this network: "
            + "; ".join(
                f"{len(names)} {what}, such as {names[0]}"
                for names, what in ((missing, "missing"), (unknown, "unknown"))
                if names
            )
            + ". Give the width, depth, classes and genotype they were trained with"
        )
    for name, value in translated.items():
        if value.shape != wanted[name].shape:
            raise InputError(
                f"{name} has shape {tuple(value.shape)} in these weights and {tuple(wanted[name].shape)} in the "
                "network; give the width, depth and classes they were trained with"
            )
    network.load_state_dict(translated, strict=False)
    return network


def _own_name(network: DerivedNetwork, name: str) -> str | None:
    """This package's name for a published weight, or None where the network leaves it out."""
    if name.startswith("auxiliary_head.") and not network.auxiliary_loss:
        return None
    if match := _PREPROCESS.fullmatch(name):
        cell, which, rest = match.groups()
        return f"cells.{cell}.preprocessor.pre{which}.{rest}"
    if match := _OPERATION.fullmatch(name):
        cell, node, source, place, index, rest = match.groups()
        if int(cell) >= len(network.cells):
            return name  # unknown, and reported as such
        kept = network.cells[int(cell)].edges
        if index is not None:  # 2-tuples: numbered in the order of the genotype
            return f"cells.{cell}.ops.{index}.{rest}"
        places = [i for i, edge in enumerate(kept) if (edge.node, edge.source) == (int(node), int(source))]
        if int(place) < len(places):
            return f"cells.{cell}.ops.{places[int(place)]}.{rest}"
        return None if _was_pruned(network, int(cell), int(node), int(source)) else name
    return name


def _was_pruned(network: DerivedNetwork, cell: int, node: int, source: int) -> bool:
    genotype = network.genotype
    every = {(e.node, e.source) for e in (*genotype.normal, *genotype.reduce)}
    return (node, source) in every and not any((e.node, e.source) == (node, source) for e in network.cells[cell].edges)
