"""A small search network written from the paper's text, with the recorded files' names: writes files like theirs."""

import json

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F


def norm(channels):
    return nn.BatchNorm2d(channels, affine=False)


def conv(channels_in, channels_out, kernel=1, **options):
    return nn.Conv2d(channels_in, channels_out, kernel, bias=False, **options)


class Named(nn.Module):
    """A sequence under the attribute ``op``."""

    def __init__(self, *layers):
        super().__init__()
        self.op = nn.Sequential(*layers)

    def forward(self, x):
        return self.op(x)


class Halve(nn.Module):
    """Two 1×1 convolutions of stride 2, one on the image shifted by a pixel."""

    def __init__(self, channels_in, channels_out):
        super().__init__()
        self.conv_1, self.conv_2 = (conv(channels_in, channels_out // 2, stride=2) for _ in range(2))
        self.bn = norm(channels_out)

    def forward(self, x):
        x = F.relu(x)
        return self.bn(torch.cat([self.conv_1(x), self.conv_2(x[:, :, 1:, 1:])], 1))


def separable(c, kernel, stride, dilation, times):
    layers = []
    for time in range(times):
        padding = dilation * (kernel - 1) // 2
        depthwise = {"stride": 1 if time else stride, "padding": padding, "dilation": dilation, "groups": c}
        layers += [nn.ReLU(), conv(c, c, kernel, **depthwise), conv(c, c), norm(c)]
    return Named(*layers)


def operations(c, stride):
    return nn.ModuleList([
        nn.Sequential(nn.MaxPool2d(3, stride, 1), norm(c)),
        nn.Sequential(nn.AvgPool2d(3, stride, 1, count_include_pad=False), norm(c)),
        nn.Identity() if stride == 1 else Halve(c, c),
        separable(c, 3, stride, 1, 2),
        separable(c, 5, stride, 1, 2),
        separable(c, 3, stride, 2, 1),
        separable(c, 5, stride, 2, 1),
    ])  # fmt: skip


class Mixed(nn.Module):
    def __init__(self, c, stride):
        super().__init__()
        self._ops = operations(c, stride)


class SearchCell(nn.Module):
    def __init__(self, before_last, last, c, reduction, reduction_before):
        super().__init__()
        self.preprocess0 = (
            Halve(before_last, c) if reduction_before else Named(nn.ReLU(), conv(before_last, c), norm(c))
        )
        self.preprocess1 = Named(nn.ReLU(), conv(last, c), norm(c))
        sources = [source for node in range(2, 6) for source in range(node)]
        self._ops = nn.ModuleList(Mixed(c, 2 if reduction and source < 2 else 1) for source in sources)

    def forward(self, x, y, gates):
        states, edge = [self.preprocess0(x), self.preprocess1(y)], 0
        for node in range(2, 6):
            total = 0
            for state in states[:node]:
                for gate, op in zip(gates[edge], self._ops[edge]._ops, strict=True):
                    total = total + gate * op(state)
                edge += 1
            states.append(total)
        return torch.cat(states[2:], 1)


class SearchNetwork(nn.Module):
    def __init__(self, c, cells, classes, channels):
        super().__init__()
        self.reductions = (cells // 3, 2 * cells // 3)
        self.stem = nn.Sequential(conv(channels, 3 * c, 3, padding=1), nn.BatchNorm2d(3 * c))
        self.cells, before_last, last, before = nn.ModuleList(), 3 * c, 3 * c, False
        for index in range(cells):
            reduction = index in self.reductions
            c *= 2 if reduction else 1
            self.cells.append(SearchCell(before_last, last, c, reduction, before))
            before_last, last, before = last, 4 * c, reduction
        self.classifier = nn.Linear(last, classes)

    def forward(self, x, normal, reduce):
        before_last = last = self.stem(x)
        for index, cell in enumerate(self.cells):
            alpha = reduce if index in self.reductions else normal
            before_last, last = last, cell(before_last, last, 1 / (1 + torch.exp(-alpha)))
        return self.classifier(last.mean((2, 3)))


def record_search_steps(path, meta, classes=10, channels=3, size=16, seed=0):
    """Run ``meta["steps"]`` bilevel steps in float64 and write them, with the states before and after, to ``path``."""
    torch.manual_seed(seed)
    network = SearchNetwork(meta["channels"], meta["cells"], classes, channels).double()
    normal, reduce = (nn.Parameter(torch.randn(14, 7, dtype=torch.float64)) for _ in range(2))
    for_weights = torch.optim.SGD(
        network.parameters(), meta["weight_lr"], momentum=meta["momentum"], weight_decay=meta["weight_decay"]
    )
    for_alphas = torch.optim.Adam(
        [normal, reduce], meta["alpha_lr"], betas=meta["alpha_betas"], weight_decay=meta["alpha_weight_decay"]
    )
    found = {"meta": np.array(json.dumps(meta))}

    def keep(name, value):
        found[name] = value.detach().numpy().copy()

    def keep_state(moment):
        for name, value in network.state_dict().items():
            if "num_batches" not in name:
                keep(f"{moment}/weights/{name}", value)
        keep(f"{moment}/alphas_normal", normal)
        keep(f"{moment}/alphas_reduce", reduce)

    keep_state("before")
    for step in range(meta["steps"]):
        batches = {}
        for half in ("train", "val"):
            x = torch.randn(meta["batch"], channels, size, size, dtype=torch.float64)
            y = torch.randint(classes, (meta["batch"],))
            batches[half] = x, y
            keep(f"step{step}/{half}_x", x)
            keep(f"step{step}/{half}_y", y)
        x, y = batches["val"]
        logits = network(x, normal, reduce)
        gates = torch.cat([normal, reduce]).sigmoid() - 0.5
        cross_entropy = F.cross_entropy(logits, y)
        zero_one = -{"l2": gates**2, "l1": gates.abs()}[meta["zero_one_loss"]].mean()
        total = cross_entropy + meta["zero_one_weight"] * zero_one
        for_alphas.zero_grad()
        total.backward()
        recorded = {"logits": logits, "cross_entropy": cross_entropy, "total": total}
        for name, value in recorded.items():
            keep(f"step{step}/val_{name}", value)
        keep(f"step{step}/zero_one_loss", zero_one)
        keep(f"step{step}/grad_alphas_normal", normal.grad)
        keep(f"step{step}/grad_alphas_reduce", reduce.grad)
        for_alphas.step()
        x, y = batches["train"]
        for_weights.zero_grad()
        logits = network(x, normal, reduce)
        F.cross_entropy(logits, y).backward()
        keep(f"step{step}/train_logits", logits)
        keep(f"step{step}/weight_grad_norm", nn.utils.clip_grad_norm_(network.parameters(), meta["clip"]))
        for_weights.step()
    keep_state("after")
    np.savez(path, **found)
