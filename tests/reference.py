"""Naive versions, written from the paper's text, to compare the package with."""

import math

import torch
from torch.nn.functional import conv2d, max_pool2d

OPERATIONS = ["max_pool_3x3", "avg_pool_3x3", "skip_connect"]
OPERATIONS += ["sep_conv_3x3", "sep_conv_5x5", "dil_conv_3x3", "dil_conv_5x5"]


def kept(gates, rule, threshold, operations, inputs=2):
    """The three discretisation rules: [(operation, node, source)], by picking one maximum after the other."""
    rows, found, node = list(gates), [], inputs
    while rows:
        sources, rows = rows[:node], rows[node:]
        if rule == "edge":
            for source, row in enumerate(sources):
                left, picked = list(range(len(row))), []
                while left and len(picked) < 2:
                    best = left[0]
                    for op in left:
                        if row[op] >= row[best]:
                            best = op
                    left.remove(best)
                    picked.insert(0, best)
                found += [(operations[op], node, source) for op in picked if not row[op] < threshold]
        else:
            left, picked = list(range(len(sources))), 0
            while left and picked < 2:
                best = (left[0], 0)
                for source in left:
                    for op, gate in enumerate(sources[source]):
                        if gate > sources[best[0]][best[1]]:
                            best = (source, op)
                left.remove(best[0])
                picked += 1
                if rule == "darts" or not sources[best[0]][best[1]] < threshold:
                    found.append((operations[best[1]], node, best[0]))
        node += 1
    return found


def pruned(edges):
    """The edges with a path back to an input, by recursion: [(operation, node, source)]."""

    def fed(node):
        return node < 2 or any(fed(source) for _, target, source in edges if target == node)

    return [edge for edge in edges if fed(edge[2])]


# -- supernet ------------------------------------------------------------------------------------------------------


def sigmoid(number):
    return 1 / (1 + math.exp(-number))


def gated_cell(cell, alpha, before_last, last):
    """A gated cell's output, term by term: alpha holds numbers, [edge][operation]."""
    states, row = list(cell.preprocessor([before_last, last])), 0
    for _ in range(4):
        node = 0
        for state in list(states):
            for column, name in enumerate(OPERATIONS):
                node = node + sigmoid(alpha[row][column]) * cell.edges[row][name](state)
            row += 1
        states.append(node)
    return torch.cat(states[2:], 1)


# -- derived network -----------------------------------------------------------------------------------------------


def dropped(x, probability):
    """Drop path: whole samples of x go to 0, the others grow by 1 / (1 - probability)."""
    kept = torch.empty(len(x), 1, 1, 1, dtype=x.dtype).bernoulli_(1 - probability)
    return x * kept / (1 - probability)


def derived_cell(cell, edges, reduction, style, probability, before_last, last):
    """A derived cell's output in training mode; edges are (operation, node, source), pruned and in order of nodes."""
    states = dict(enumerate(cell.preprocessor([before_last, last])))
    for node in sorted({node for _, node, _ in edges}):
        total = 0
        for (name, target, source), op in zip(edges, cell.ops, strict=True):
            if target == node:
                x = op(states[source])
                identity = name == "skip_connect" and not (reduction and source < 2)
                total = total + (dropped(x, probability) if style == "darts" and not identity else x)
        states[node] = dropped(total, probability) if style == "fairdarts" else total
    return torch.cat([states[node] for node in sorted(states) if node > 1], 1)


def derived_logits(network, cells, style, images):
    """A derived network's logits in evaluation mode; cells are edges as ``derived_cell`` takes them, by kind."""
    depth = len(network.cells)
    before_last = last = network.stem(images)
    for index, cell in enumerate(network.cells):
        reduction = index in (depth // 3, 2 * depth // 3)
        edges = cells["reduce" if reduction else "normal"]
        before_last, last = last, derived_cell(cell, edges, reduction, style, 0.0, before_last, last)
    return network.classifier(last.mean((2, 3)))


def derived_parameters(cells, width, depth, classes, channels):
    """How many parameters a derived network with the CIFAR stem has, each layer's by its formula."""

    def convolution(inputs, outputs):  # 1×1 with batch norm, in one piece or in two halves
        return inputs * outputs + 2 * outputs

    def operation(name, c, stride):
        if name.startswith(("sep", "dil")):
            kernel = int(name[-1])
            return (2 if name.startswith("sep") else 1) * (c * kernel**2 + convolution(c, c))
        return convolution(c, c) if name == "skip_connect" and stride == 2 else 0

    c, total = width, channels * 3 * width * 9 + 2 * 3 * width
    before_last = last = 3 * width
    for index in range(depth):
        reduction = index in (depth // 3, 2 * depth // 3)
        edges, c = (cells["reduce"], 2 * c) if reduction else (cells["normal"], c)
        total += convolution(before_last, c) + convolution(last, c)
        total += sum(operation(name, c, 2 if reduction and source < 2 else 1) for name, _, source in edges)
        before_last, last = last, c * len({node for _, node, _ in edges})
    return total + last * classes + classes


# -- bilevel step --------------------------------------------------------------------------------------------------


def batch_norm(x):
    mean = x.mean((0, 2, 3), keepdim=True)
    return (x - mean) / (((x - mean) ** 2).mean((0, 2, 3), keepdim=True) + 1e-5).sqrt()


def choices_logits(w, alphas, x):
    """A stem; ``first``: convolution, pooling with its batch norm, or identity; ``second`` twice: two convolutions."""
    scale, shift = (w[f"stem.1.{name}"].view(1, -1, 1, 1) for name in ("weight", "bias"))
    h = batch_norm(conv2d(x, w["stem.0.weight"], w["stem.0.bias"], padding=1)) * scale + shift
    g = 1 / (1 + torch.exp(-alphas["first"]))
    conv = conv2d(h, w["first.0.weight"], w["first.0.bias"], padding=1)
    h = g[0] * conv + g[1] * batch_norm(max_pool2d(h, 3, 1, 1)) + g[2] * h
    g = 1 / (1 + torch.exp(-alphas["second"]))
    for layer in ("second", "third"):
        small = conv2d(h, w[f"{layer}.a.weight"], w[f"{layer}.a.bias"])
        h = g[0] * small + g[1] * conv2d(h, w[f"{layer}.b.weight"], w[f"{layer}.b.bias"], padding=1)
    return h.mean((2, 3)) @ w["classifier.weight"].T + w["classifier.bias"]


def bilevel(logits, weights, alphas, train, val, *, epochs, lr, momentum, decay, alpha_lr, betas, alpha_decay, w01,
            zero_one, clip, single_level=False, warmup_epochs=0):  # fmt: skip
    """Whole epochs of the search, with SGD and Adam written out; returns weights, alphas and each epoch's mean losses.

    weights, alphas: names to tensors; train, val: the batches (x, y) of an epoch.
    """
    weights, alphas = ({k: v.clone() for k, v in group.items()} for group in (weights, alphas))
    velocity, moments, steps, means = {k: 0 for k in weights}, {k: (0, 0) for k in alphas}, 0, []

    def loss(batch):
        out = logits(weights, alphas, batch[0])
        return (out.logsumexp(1) - out[range(len(out)), batch[1]]).mean()

    def penalty():
        gates = [g for a in alphas.values() for g in 1 / (1 + torch.exp(-a))]
        terms = {"l2": lambda g: (g - 0.5) ** 2, "l1": lambda g: (g - 0.5).abs(), "none": lambda g: 0 * g}
        return -sum(terms[zero_one](g) for g in gates) / len(gates)

    def slopes(value, *groups):
        found = iter(torch.autograd.grad(value, [p for group in groups for p in group.values()]))
        return [{k: next(found) for k in group} for group in groups]

    def learn(on):
        for group in (weights, alphas):
            for key in group:
                group[key] = group[key].detach().requires_grad_(on)

    def descend(gradients):
        norm = sum((g**2).sum() for g in gradients.values()).sqrt()
        factor = 1 if clip is None else min(1, clip / (norm + 1e-6))
        for k, g in gradients.items():
            velocity[k] = momentum * velocity[k] + g * factor + decay * weights[k].detach()
            weights[k] = weights[k].detach() - lr * velocity[k]

    def adam(gradients):
        nonlocal steps
        steps += 1
        for k, g in gradients.items():
            g = g + alpha_decay * alphas[k].detach()
            m, v = moments[k]
            m, v = betas[0] * m + (1 - betas[0]) * g, betas[1] * v + (1 - betas[1]) * g * g
            moments[k] = m, v
            m, v = m / (1 - betas[0] ** steps), v / (1 - betas[1] ** steps)
            alphas[k] = alphas[k].detach() - alpha_lr * m / (v.sqrt() + 1e-8)

    for epoch in range(epochs):
        of_weights, of_alphas = [], []
        for train_batch, val_batch in zip(train, val, strict=True):
            warm = epoch >= warmup_epochs
            if warm and not single_level:
                learn(True)
                total = loss(val_batch) + w01 * penalty()
                of_alphas.append(total.item())
                adam(slopes(total, alphas)[0])
            learn(True)
            own = loss(train_batch)
            of_weights.append(own.item())
            if warm and single_level:
                total = own + w01 * penalty()
                of_alphas.append(total.item())
                for_weights, for_alphas = slopes(total, weights, alphas)
                descend(for_weights)
                adam(for_alphas)
            else:
                descend(slopes(own, weights)[0])
        learn(False)
        means.append({"train_loss": sum(of_weights) / len(of_weights), "zero_one_loss": float(penalty()),
                      "arch_loss": sum(of_alphas) / len(of_alphas) if of_alphas else None})  # fmt: skip
    return weights, alphas, means
