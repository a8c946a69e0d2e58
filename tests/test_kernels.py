"""The kernels of the fused supernet against torch's own operations, and their gradients against autograd's."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import gradcheck

from nni_fairdarts.kernels.depthwise import Geometry, depthwise, input_gradient, weight_gradient
from nni_fairdarts.kernels.gated import Gated
from nni_fairdarts.kernels.normalize import Normalize
from nni_fairdarts.kernels.rows import by_edge, products, to_image, to_rows
from nni_fairdarts.kernels.separable import Separable
from nni_fairdarts.kernels.weighted import Weighted

CLOSE = {"rtol": 0, "atol": 1e-10}
EPS = 1e-3  # large enough to show in the numbers
LAYOUTS = {"channels_last": torch.channels_last, "contiguous": torch.contiguous_format}


def geometry(stride=1, padding=0, dilation=1) -> Geometry:
    return Geometry(*((n, n) for n in (stride, padding, dilation)))


def drawn(*shape, dtype=torch.float64):
    return torch.randn(*shape, dtype=dtype)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


# -- depthwise -----------------------------------------------------------------------------------------------------


FILTERS = [
    *((kernel, geometry(1, kernel // 2)) for kernel in (1, 3, 5, 7, 9)),
    *((kernel, geometry(2, kernel // 2)) for kernel in (3, 5, 7)),
    *((kernel, geometry(1, kernel - 1, 2)) for kernel in (3, 5, 7)),
    *((kernel, geometry(2, kernel - 1, 2)) for kernel in (3, 5)),
    (3, geometry(1, 3, 3)),
    (5, geometry()),
    (5, geometry(1, 4)),  # puts out more than goes in
    (1, geometry(1, 1)),
    (2, geometry(1, 1, 2)),  # of the size of the image, though no pixel is a kernel's centre
    (4, geometry(1, 3, 2)),
    (4, geometry(2, 1)),
    ((3, 7), Geometry((1, 2), (1, 3), (1, 1))),
    ((5, 3), Geometry((1, 1), (4, 2), (2, 2))),
    ((3, 5), Geometry((1, 1), (1, 4), (1, 2))),
]
SIDES = [(8, 8), (7, 9), (6, 5), (1, 1), (2, 1)]


def filtered(kernel, g, side, dtype):
    """An image, a kernel, a gradient of the output, and torch's gradients of both in float64; None where none fits."""
    kernel = kernel if isinstance(kernel, tuple) else (kernel, kernel)
    x, weight = drawn(2, 3, *side, dtype=dtype), drawn(3, 1, *kernel, dtype=dtype)
    if any(n + 2 * p < d * (k - 1) + 1 for n, p, d, k in zip(side, g.padding, g.dilation, kernel, strict=True)):
        return None
    x64, weight64 = (tensor.double().requires_grad_() for tensor in (x, weight))
    y = F.conv2d(x64, weight64, None, *g, groups=3)
    grad = drawn(*y.shape, dtype=dtype)
    return x, weight, grad, y, *torch.autograd.grad(y, (x64, weight64), grad.double())


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)], ids=str)
@pytest.mark.parametrize(("kernel", "g"), FILTERS, ids=str)
def test_depthwise_and_its_gradients(kernel, g, dtype, tolerance, layout):
    close = {"rtol": tolerance, "atol": tolerance}
    met = 0
    for side in SIDES:
        if (case := filtered(kernel, g, side, dtype)) is None:
            continue
        x, weight, grad, y, dx, dweight = case
        x, grad = (tensor.contiguous(memory_format=LAYOUTS[layout]) for tensor in (x, grad))
        torch.testing.assert_close(depthwise(x, weight, g).double(), y, **close)
        torch.testing.assert_close(input_gradient(grad, weight, x, g).double(), dx, **close)
        torch.testing.assert_close(weight_gradient(x, grad, weight, g).double(), dweight, **close)
        met += 1
    assert met


@pytest.mark.parametrize("kernel", [3, 5, 7])
@pytest.mark.parametrize("dilation", [1, 2])
def test_a_gradient_that_is_a_view_is_taken(kernel, dilation):
    """As autograd hands them on: an expanded number, a part of a concatenation."""
    g = geometry(1, dilation * (kernel // 2), dilation)
    x, weight, grad, *_ = filtered(kernel, g, (6, 6), torch.float32)
    for view in (torch.ones(()).expand_as(grad), torch.cat([grad, grad], 1)[:, 3:]):
        copy = view.clone()
        torch.testing.assert_close(input_gradient(view, weight, x, g), input_gradient(copy, weight, x, g))
        torch.testing.assert_close(weight_gradient(x, view, weight, g), weight_gradient(x, copy, weight, g))


# -- rows ----------------------------------------------------------------------------------------------------------


def test_rows_are_the_pixels_and_images_come_back():
    image = drawn(2, 6, 3, 4)
    rows = to_rows(image)
    assert torch.equal(rows[1 * 12 + 2 * 4 + 3], image[1, :, 2, 3])
    assert torch.equal(to_image(rows, (2, 3, 4)), image)
    assert torch.equal(by_edge(rows, 3)[2], rows[:, 4:])
    last = image.contiguous(memory_format=torch.channels_last)
    assert to_rows(last).data_ptr() == last.data_ptr()
    torch.testing.assert_close(products(by_edge(rows, 3), by_edge(rows, 2)[:1].expand(3, -1, -1)).shape, (3, 2, 3))


# -- convolutions --------------------------------------------------------------------------------------------------

EDGES, IN, OUT, SIDE = 3, 2, 4, (5, 4)
NAMES = ("x", "scale", "shift", "weight", "pointwise", "gate", "bias", "total")
FRONTS = {
    "x": {},
    "filter": {"kernel": 3},
    "shared": {"shared": True},
    "shared, filter": {"shared": True, "kernel": 3},
    "norm": {"norm": "plain"},
    "norm, filter": {"norm": "plain", "kernel": 3},
    "scaled norm": {"norm": "scaled"},
    "scaled norm, dilated filter": {"norm": "scaled", "kernel": 5, "g": geometry(1, 4, 2)},
    "filter of stride 2": {"kernel": 3, "g": geometry(2, 1)},
    "shared, dilated filter of stride 2": {"shared": True, "kernel": 3, "g": geometry(2, 2, 2)},
    "norm, filter without padding": {"norm": "scaled", "kernel": 3, "g": geometry()},
}
each_front = pytest.mark.parametrize("front", FRONTS)
each_keep = pytest.mark.parametrize("keep", [True, False])


class Case:
    """Random arguments of a kernel, what they stand for in torch's operations, and both in one call."""

    def __init__(self, norm=None, kernel=None, g=None, shared=False, edges=EDGES, bias=False, total=False):
        self.eps = None if norm is None else EPS
        self.g = g or (geometry() if kernel is None else geometry(1, kernel // 2))
        self.edges = edges
        channels = IN if shared else edges * IN
        wide, tensors = edges * IN, dict.fromkeys(NAMES)
        tensors["x"] = drawn(3, channels, *SIDE).relu_() if norm is None else 1 + drawn(3, channels, *SIDE)
        if norm == "scaled":
            tensors["scale"], tensors["shift"] = 1 + drawn(wide), drawn(wide)
        if kernel is not None:
            tensors["weight"] = drawn(wide, 1, kernel, kernel)
        tensors["pointwise"], tensors["gate"] = drawn(edges, OUT, IN), drawn(edges, OUT)
        tensors["bias"] = drawn(edges, OUT) if bias else None
        self.tensors = {name: tensor for name, tensor in tensors.items() if tensor is not None}
        if total:
            self.tensors["total"] = drawn(*self.mixed(**self.arguments()).shape)

    def arguments(self, learning=()) -> dict:
        """Fresh tensors, those whose names are given with gradient."""
        return {name: tensor.clone().requires_grad_(name in learning) for name, tensor in self.tensors.items()}

    def mixed(self, x, pointwise, scale=None, shift=None, weight=None, **_):
        """What the pointwise convolutions put out, (B, E·O, h, w), by torch's operations."""
        if self.eps is not None:
            x = F.batch_norm(x, None, None, scale, shift, True, 0.0, self.eps).relu()
        x = torch.cat([x] * (self.edges * IN // x.shape[1]), 1)
        if weight is not None:
            x = F.conv2d(x, weight, None, *self.g, groups=x.shape[1])
        return F.conv2d(x, pointwise.reshape(-1, IN, 1, 1), groups=self.edges)

    def gated(self, gate, bias=None, total=None, **arguments):
        y = self.mixed(**arguments)
        shift = None if bias is None else bias.flatten()
        z = F.batch_norm(y, None, None, gate.flatten(), shift, True, 0.0, 2 * EPS)
        return z if total is None else z + total

    def separable(self, keep, x, pointwise, scale=None, shift=None, weight=None, **_):
        return Separable.apply(x, scale, shift, weight, pointwise, self.eps, self.g, keep)

    def kernel(self, keep, x, pointwise, gate, scale=None, shift=None, weight=None, bias=None, total=None):
        """``Gated`` as it is meant: (image with its constants, what it says of the batch norms)."""
        if total is not None:
            total = by_edge(to_rows(total), self.edges).clone(memory_format=torch.contiguous_format)
        rows, constants, *seen, size = Gated.apply(
            total, x, scale, shift, weight, pointwise, gate, bias, self.eps, 2 * EPS, self.g, keep
        )
        images = to_image((rows + constants.unsqueeze(1)).transpose(0, 1).flatten(1), size)
        return images, seen


def compared(ours, torchs, case, learning, check=CLOSE):
    """Outputs and gradients of two functions of the case's tensors."""
    results = []
    for call in (ours, torchs):
        arguments = case.arguments(learning)
        output = call(**arguments)
        torch.manual_seed(1)
        (output * torch.randn(output.shape, dtype=output.dtype)).sum().backward()
        results.append([output, *(arguments[name].grad for name in learning)])
        assert all(arguments[name].grad is None for name in arguments if name not in learning)
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, **check)


@each_keep
@each_front
def test_gated_is_convolution_batch_norm_and_gate(front, keep):
    case = Case(**FRONTS[front], bias=True, total=True)
    compared(lambda **a: case.kernel(keep, **a)[0], case.gated, case, tuple(case.tensors))


@each_front
def test_gated_without_bias_on_nothing(front):
    case = Case(**FRONTS[front])
    compared(lambda **a: case.kernel(True, **a)[0], case.gated, case, tuple(case.tensors))


@each_keep
@pytest.mark.parametrize("front", [front for front in FRONTS if "filter" in front or front in ("x", "norm")])
def test_separable_is_batch_norm_and_convolutions(front, keep):
    case = Case(**FRONTS[front])
    del case.tensors["gate"]
    compared(lambda **a: case.separable(keep, **a)[0], case.mixed, case, tuple(case.tensors))


@pytest.mark.parametrize("shared", [True, False])
def test_one_edge_is_as_good_as_many(shared):
    case = Case(shared=shared, edges=1, total=True)
    compared(lambda **a: case.kernel(True, **a)[0], case.gated, case, tuple(case.tensors))


@pytest.mark.parametrize(
    "learning",
    [("gate",), ("bias",), ("pointwise",), ("weight",), ("x",), ("total",), ("scale",), ("shift",)]
    + [("weight", "pointwise"), ("x", "gate", "bias", "total"), ("scale", "shift", "weight", "pointwise", "total")],
    ids=str,
)
@each_keep
def test_only_what_learns_gets_a_gradient(learning, keep):
    case = Case(norm="scaled", kernel=3, bias=True, total=True)
    compared(lambda **a: case.kernel(keep, **a)[0], case.gated, case, learning)
    if not set(learning) & {"gate", "bias", "total"}:
        compared(lambda **a: case.separable(keep, **a)[0], case.mixed, case, learning)


@each_front
def test_statistics_are_those_of_the_batch_norms(front):
    case = Case(**FRONTS[front])
    _, (mean, variance, *inner) = case.kernel(True, **case.arguments())
    y = case.mixed(**case.arguments())
    torch.testing.assert_close(mean.flatten(), y.mean((0, 2, 3)), **CLOSE)
    torch.testing.assert_close(variance.flatten(), y.var((0, 2, 3), correction=0), **CLOSE)
    others = [inner]
    if case.tensors.get("weight") is not None:
        others.append(case.separable(True, **case.arguments())[1:])
    for mean, variance in others:
        if case.eps is None:
            assert mean is variance is None
        else:
            torch.testing.assert_close(mean, case.tensors["x"].mean((0, 2, 3)), **CLOSE)
            torch.testing.assert_close(variance, case.tensors["x"].var((0, 2, 3), correction=0), **CLOSE)


@each_front
def test_layouts_of_images_and_gradients_do_not_matter(front):
    case = Case(**FRONTS[front])
    results = []
    for layout in LAYOUTS.values():
        arguments = case.arguments(case.tensors)
        x = arguments["x"].detach().contiguous(memory_format=layout).requires_grad_()
        arguments["x"] = x
        images, _ = case.kernel(True, **arguments)
        images.sum().backward()  # an expanded number
        results.append([images, *(arguments[name].grad for name in arguments)])
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, **CLOSE)


@each_keep
@each_front
def test_gradcheck(front, keep):
    case = Case(**FRONTS[front], edges=2, bias=True, total=True)
    case.tensors["x"] = case.tensors["x"][:1]
    case.tensors["total"] = case.tensors["total"][:1]
    names = tuple(case.tensors)
    arguments = tuple(case.arguments(names).values())
    fast = {"fast_mode": True, "atol": 1e-6}
    assert gradcheck(lambda *a: case.kernel(keep, **dict(zip(names, a, strict=True)))[0], arguments, **fast)
    if front != "shared":  # which is for ``Gated`` alone
        assert gradcheck(lambda *a: case.separable(keep, **dict(zip(names, a, strict=True)))[0], arguments, **fast)


def test_a_graph_that_is_kept_gives_the_same_again():
    case = Case(norm="scaled", kernel=3, bias=True, total=True)
    arguments = case.arguments(case.tensors)
    images, _ = case.kernel(True, **arguments)
    first, again = (
        torch.autograd.grad(images.square().sum(), list(arguments.values()), retain_graph=True) for _ in range(2)
    )
    assert all(map(torch.equal, first, again))


def test_recomputing_gives_the_same_bits():
    case = Case(norm="scaled", kernel=5, g=geometry(1, 4, 2), bias=True, total=True)
    results = []
    for keep in (True, False):
        arguments = case.arguments(case.tensors)
        images, _ = case.kernel(keep, **arguments)
        images.square().sum().backward()
        results.append([images, *(arguments[name].grad for name in arguments)])
    assert all(map(torch.equal, *results))


# -- float32 -------------------------------------------------------------------------------------------------------


def deviations(call, case, learning, dtype):
    """Relative deviations of output and gradients from torch's in float64."""

    def results(function, dtype):
        arguments = {
            name: tensor.to(dtype).contiguous(memory_format=torch.channels_last) if tensor.dim() == 4 else
            tensor.to(dtype) for name, tensor in case.arguments().items()
        }  # fmt: skip
        for name in learning:
            arguments[name] = arguments[name].detach().clone().requires_grad_()
        output = function(**arguments)
        torch.manual_seed(1)
        (output * torch.randn(output.shape, dtype=torch.float64).to(dtype)).sum().backward()
        return [output.detach(), *(arguments[name].grad for name in learning)]

    exact = results(case.gated, torch.float64)
    return [float((f - e).norm() / e.norm()) for f, e in zip(results(call, dtype), exact, strict=True)]


IMAGES = {
    "as drawn": lambda x: x,
    "mean 3": lambda x: x + 3,
    "mean 100": lambda x: x + 100,
    "mean 10000": lambda x: x + 1e4,
    "tiny": lambda x: 1e-3 * x,
    "tiny, mean 1": lambda x: 1 + 1e-3 * x,
}


@pytest.mark.parametrize("images", IMAGES)
@pytest.mark.parametrize("front", ["x", "shared", "filter", "shared, filter", "norm", "norm, filter"])
def test_float32_is_as_exact_as_torchs(front, images):
    """E[dd] - E[d]E[d] would lose all digits where means are large; what is left is what torch's own loses."""
    case = Case(**FRONTS[front])
    case.tensors["x"] = IMAGES[images](drawn(*case.tensors["x"].shape[:2], 8, 8))
    learning = ("x", "pointwise", "gate")
    ours = deviations(lambda **a: case.kernel(True, **a)[0], case, learning, torch.float32)
    torchs = deviations(case.gated, case, learning, torch.float32)
    for found, expected in zip(ours, torchs, strict=True):
        assert found < 2e-5 or found < 4 * expected, (ours, torchs)


def test_channels_that_are_alike_keep_the_variance_of_their_difference():
    case = Case(shared=True)
    case.tensors["x"] = 100 * drawn(3, 1, 8, 8) + drawn(3, IN, 8, 8)
    case.tensors["pointwise"] = drawn(EDGES, OUT, 1) * torch.tensor([1.0, -1.0], dtype=torch.float64)
    ours = deviations(lambda **a: case.kernel(True, **a)[0], case, ("gate",), torch.float32)
    torchs = deviations(case.gated, case, ("gate",), torch.float32)
    assert ours[0] < 2 * torchs[0]


# -- the rest ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("affine", ["both", "scale", "neither"])
def test_normalize_is_a_batch_norm(affine):
    rows = 2 + drawn(7, 3)
    scale = None if affine == "neither" else drawn(3)
    shift = drawn(3) if affine == "both" else None
    up, results = drawn(7, 3), []
    for ours in (True, False):
        tensors = [t.clone().requires_grad_() for t in (rows, scale, shift) if t is not None]
        y, s, b = tensors + [None] * (3 - len(tensors))
        if ours:
            z, mean, variance = Normalize.apply(y, s, b, EPS)
            torch.testing.assert_close(mean, rows.mean(0), **CLOSE)
            torch.testing.assert_close(variance, rows.var(0, correction=0), **CLOSE)
            assert not mean.requires_grad
            assert not variance.requires_grad
        else:
            z = F.batch_norm(y, None, None, s, b, True, 0.0, EPS)
        results.append([z, *torch.autograd.grad(z, tensors, up)])
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, **CLOSE)
    tensors = [None if t is None else t.clone().requires_grad_() for t in (rows, scale, shift)]
    assert gradcheck(lambda *a: Normalize.apply(*a, EPS)[0], tensors)


@pytest.mark.parametrize("learning", [(True, True), (True, False), (False, True)])
def test_weighted_is_the_sum_of_gates_times_images(learning):
    gates, images, up = drawn(3, 2), drawn(2, 5, 4), drawn(3, 5, 4)
    results = []
    for call in (Weighted.apply, partial(torch.einsum, "ek,kpc->epc")):
        tensors = [t.clone().requires_grad_(on) for t, on in zip((gates, images), learning, strict=True)]
        total = call(*tensors)
        total.backward(up)
        results.append([total, *(t.grad for t in tensors if t.requires_grad)])
        assert all(t.grad is None for t in tensors if not t.requires_grad)
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, **CLOSE)
    assert gradcheck(Weighted.apply, (gates.requires_grad_(), images.requires_grad_()))


def calls():
    case = Case(norm="scaled", kernel=3)
    names = ("x", "scale", "shift", "weight", "pointwise", "gate")
    tensors = [case.arguments(case.tensors)[name] for name in names]

    def named(call):
        return lambda *a: call(True, **dict(zip(names, a, strict=True)))[0]

    yield "Gated", named(case.kernel), tensors
    yield "Separable", named(case.separable), tensors
    yield "Normalize", lambda y: Normalize.apply(y, None, None, EPS)[0], [drawn(5, 3).requires_grad_()]
    yield "Weighted", Weighted.apply, [drawn(2, 3).requires_grad_(), drawn(3, 4, 2).requires_grad_()]


@pytest.mark.parametrize("name", ["Gated", "Separable", "Normalize", "Weighted"])
@pytest.mark.parametrize("loss", [torch.sum, lambda output: output.square().sum()], ids=["linear", "square"])
def test_second_derivatives_are_refused(name, loss):
    """Also behind a linear loss, whose gradient is a constant: torch's own guard would let its terms go."""
    call, tensors = next((call, tensors) for other, call, tensors in calls() if other == name)
    plain = torch.autograd.grad(loss(call(*tensors)), tensors[0])
    (slope,) = torch.autograd.grad(loss(call(*tensors)), tensors[:1], create_graph=True)
    assert torch.equal(slope, plain[0])
    with pytest.raises(NotImplementedError, match=r"first derivatives only.*FairDARTS\(fused=False\)"):
        torch.autograd.grad(slope.square().sum(), tensors, retain_graph=True, allow_unused=True)
    with pytest.raises(NotImplementedError, match=r"first derivatives only.*FairDARTS\(fused=False\)"):
        slope.square().sum().backward()


def test_nothing_is_kept_where_no_gradient_is_wanted():
    kept = []
    with torch.no_grad(), torch.autograd.graph.saved_tensors_hooks(kept.append, lambda t: t):
        for _, call, tensors in calls():
            assert not call(*tensors).requires_grad
    assert kept == []
