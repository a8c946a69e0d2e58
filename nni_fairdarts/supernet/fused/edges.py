"""The edges of a cell, fused: the candidates on all edges that leave a state are computed together."""

import copy

import torch
from torch import Tensor, nn

from nni_fairdarts.supernet.fused.plan import Chain, plan_of
from nni_fairdarts.supernet.fused.sources import source_for
from nni_fairdarts.supernet.fused.stacked import StackedNorm, parts, stack, stacked
from nni_fairdarts.supernet.recompute import run


class FusedEdges(nn.Module):
    """In the place of a cell's list of edges: the same candidates, with those on the edges of one state in a stack.

    ``forward`` does what the list's does; ``state_dict`` and ``load_state_dict`` have the list's names and tensors, so
    that each loads the other's; ``self[k]`` is a copy of the list's k-th entry. Candidates of a structure that
    ``plan_of`` does not know stay as they are, one for each edge.
    """

    def __init__(self, edges: nn.ModuleList, indices: list[tuple[int, int]], recompute: bool):
        super().__init__()
        self.inputs = min(node for node, _ in indices)
        self.places = _by_source(indices)
        self.recompute = recompute
        self.partial = edges.partial
        self.operations = edges.operations
        self.holders = [
            {name: held for name in self.operations if (held := [k for k in places if name in edges[k]])}
            for places in self.places
        ]
        self.sources = nn.ModuleList(
            nn.ModuleDict({name: _together([edges[k][name] for k in held]) for name, held in holders.items()})
            for holders in self.holders
        )
        self.plans = [{name: plan_of(module) for name, module in source.items()} for source in self.sources]
        self.groups = [
            _alike({name: holders[name] for name, plan in plans.items() if plan is not None}, places)
            for holders, plans, places in zip(self.holders, self.plans, self.places, strict=True)
        ]
        self._norms = [module for module in self.modules() if isinstance(module, StackedNorm)]
        self._skeleton = (copy.deepcopy(edges).to("meta"),)  # in a tuple: none of its weights are this module's
        if not edges.training:
            self.eval()
        self.register_state_dict_post_hook(_plain_names)
        self.register_load_state_dict_pre_hook(_stacked_names)

    def forward(self, states: list[Tensor], gates: Tensor, weights: Tensor) -> list[Tensor]:
        """``states`` with those of all nodes behind them; gates (edges, operations), weights of the edges (edges,)."""
        states, rows = list(states), gates.unbind()
        terms: list[list[Tensor]] = [[] for _ in self.places[0]]  # of every node
        done = 0  # edges into the nodes so far
        for i, places in enumerate(self.places):
            seen = states[i] if self.partial is None else self.partial.seen(states[i])
            leaving = self._leaving(i, seen, [rows[k] for k in places])
            first = max(i + 1, self.inputs)
            for node, images in enumerate(leaving, first):
                terms[node - self.inputs] += images
            if i + 1 >= self.inputs:
                one, *others = terms[i + 1 - self.inputs]
                total = sum(others, one)
                into = weights[done : done + len(states)]
                done += len(states)
                states.append(total if self.partial is None else self.partial.joined(total, states, into))
        return states

    def _leaving(self, i: int, x: Tensor, rows: list[Tensor]) -> list[list[Tensor]]:
        """What each edge from state i adds to its node: images, and vectors for all pixels. ``rows``: its gates."""
        leaving: list[list[Tensor]] = [[] for _ in rows]
        plans, column = self.plans[i], self.operations.index
        for edges, names in self.groups[i]:
            gates = torch.stack([rows[e] for e in edges])
            if len(names) < len(self.operations):
                gates = torch.stack([gates[:, column(name)] for name in names], 1)
            kind = source_for(x, self._norms)
            images, constants = kind(x, [plans[name] for name in names], gates, not self.recompute).run()
            for k, (e, image) in enumerate(zip(edges, images, strict=True)):
                leaving[e] += [image] if constants is None else [image, constants[k].view(-1, 1, 1)]
        for name, candidates in self.sources[i].items():
            if plans[name] is None:
                for place, candidate in zip(self.holders[i][name], candidates, strict=True):
                    e = self.places[i].index(place)
                    output = run(candidate, x, recompute=self.recompute)
                    leaving[e].append(rows[e][column(name)] * output)
        return leaving

    # -- the plain list -----------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        return sum(map(len, self.places))

    def __getitem__(self, k: int) -> nn.ModuleDict:
        edge = self._skeleton[0][k]
        return self._filled(edge, f"{range(len(self))[k]}.")

    def plain(self) -> nn.ModuleList:
        """The list of edges, with copies of the weights and statistics."""
        return self._filled(self._skeleton[0], "")

    def _filled(self, skeleton: nn.Module, prefix: str) -> nn.Module:
        """A part of the list, whose names there begin with ``prefix``, with copies of its weights and statistics."""
        own = self.tensors()
        like = next((tensor for tensor in own.values() if tensor.is_floating_point()), torch.empty(0))
        part = copy.deepcopy(skeleton).to_empty(device=like.device).to(like.dtype)
        state = {name: tensor for name, tensor in self.state_dict().items() if name.startswith(prefix)}
        part.load_state_dict({name.removeprefix(prefix): tensor for name, tensor in state.items()})
        for name, plain in self.names().items():
            for inside in (p.removeprefix(prefix) for p in plain if p.startswith(prefix)):
                if isinstance(own[name], nn.Parameter):
                    part.get_parameter(inside).requires_grad_(own[name].requires_grad)
        return part.train(self.training)

    def gains(self) -> bool:
        """Whether there is anything to share but the states themselves."""
        known = [plan for plans in self.plans for plan in plans.values() if plan is not None]
        return any(isinstance(plan, Chain) or plan.pooling is not None for plan in known)

    def tensors(self) -> dict[str, Tensor]:
        """Weights and statistics by their names here, also those that several names share."""
        parameters = self.named_parameters(remove_duplicate=False)
        return dict(parameters) | dict(self.named_buffers(remove_duplicate=False))

    def names(self) -> dict[str, list[str]]:
        """{name of a tensor here: its names in the plain list, edge by edge}."""
        found = {}
        for i, (source, plans, holders) in enumerate(zip(self.sources, self.plans, self.holders, strict=True)):
            for operation, module in source.items():
                places = holders[operation]
                for path in module.state_dict():
                    own = f"sources.{i}.{operation}.{path}"
                    if plans[operation] is None:
                        e, _, inside = path.partition(".")
                        found[own] = [f"{places[int(e)]}.{operation}.{inside}"]
                    else:
                        found[own] = [f"{k}.{operation}.{path}" for k in places]
        return found


def _by_source(indices: list[tuple[int, int]]) -> list[list[int]]:
    """For every state that edges leave: their places in the list, in the order of their nodes."""
    places: dict[int, list[int]] = {}
    for k, (_, source) in enumerate(indices):
        places.setdefault(source, []).append(k)
    return [places[source] for source in sorted(places)]


def _alike(holders: dict[str, list[int]], places: list[int]) -> list[tuple[list[int], list[str]]]:
    """(edges by their number among ``places``, operations that just these have): each is computed at once."""
    groups: dict[tuple[int, ...], list[str]] = {}
    for name, held in holders.items():
        groups.setdefault(tuple(places.index(k) for k in held), []).append(name)
    return [(list(edges), names) for edges, names in groups.items()]


def _together(candidates: list[nn.Module]) -> nn.Module:
    """The same candidate on several edges: a stack of them where their structure is known, else a list."""
    alike = len({(repr(c), *(p.requires_grad for p in c.parameters())) for c in candidates}) == 1
    return stacked(candidates) if alike and plan_of(candidates[0]) else nn.ModuleList(candidates)


def _plain_names(module: FusedEdges, state: dict, prefix: str, local_metadata: dict) -> None:
    """State-dict hook: the plain list's names and tensors in the place of the stacked ones, in the list's order."""
    like, plain = module._skeleton[0].state_dict(), {}
    for own, names in module.names().items():
        plain.update(zip(names, parts(state.pop(prefix + own), like[names[0]], len(names)), strict=True))
    for name in like:
        state[prefix + name] = plain[name]


def _stacked_names(module: FusedEdges, state: dict, prefix: str, _, strict, missing: list, unexpected, errors) -> None:
    """Hook before loading: the stacked tensors in the place of the plain list's.

    What the list would miss, or could not load, is noted under the list's names; the tensors here keep that part.
    """
    own_tensors = module.tensors()
    like = module._skeleton[0].state_dict()
    for own, names in module.names().items():
        tensors = parts(own_tensors[own].detach(), like[names[0]], len(names))
        for k, name in enumerate(names):
            given = state.pop(prefix + name, None)
            if given is None:
                if not name.endswith("num_batches_tracked"):  # torch does not miss it either
                    missing.append(prefix + name)
            elif given.shape != like[name].shape:
                errors.append(f"size mismatch for {prefix}{name}: got {(*given.shape,)}, not {(*like[name].shape,)}.")
            else:
                tensors[k] = given
        device = next((t.device for t in tensors if t.device != own_tensors[own].device), own_tensors[own].device)
        state[prefix + own] = stack([tensor.to(device) for tensor in tensors], own_tensors[own])
