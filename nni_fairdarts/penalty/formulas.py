"""What NNI's profilers lack: shapes and costs of cells, of the hub's stages, and of a few operators."""

import torch
from nni.mutable import Categorical, Mutable, MutableExpression
from nni.nas.hub.pytorch import nasbench201, nasnet
from nni.nas.nn.pytorch import Cell, InputChoice
from nni.nas.nn.pytorch.cell import create_cell_op_candidates, preprocess_cell_inputs
from nni.nas.profiler.pytorch.flops import FlopsParamsCounterConfig, FlopsResult, _count_repeat, count_flops_params
from nni.nas.profiler.pytorch.utils import (
    MutableShape,
    ShapeTensor,
    extract_shape_info,
    shape_inference,
    submodule_input_output_shapes,
)
from nni.nas.profiler.pytorch.utils.shape_formula import aten_mean_dim, input_choice_formula
from torch import nn

from nni_fairdarts.errors import InputError

# -- cells -------------------------------------------------------------------------------------------------------------


def cell_shape(cell: Cell, *inputs):
    """What the cell returns. Nodes have the shape that their first operation gives them; all are concatenated."""
    inputs = preprocess_cell_inputs(cell.num_predecessors, *inputs)
    states, _ = _preprocessed(cell, [tensor.real_shape for tensor in inputs])
    for node in range(cell.num_predecessors, cell.num_predecessors + cell.num_nodes):
        _, candidate = next(iter(_candidates(cell, node, 0).items()))
        states.append(_shapes(candidate, _tensor(states[0], "meta"))[""][1])
    output = list(states[-1])
    output[cell.concat_dim] = sum(state[cell.concat_dim] for state in states[cell.num_predecessors :])
    return cell.postprocessor(_tensor(MutableShape(*output)), inputs)


def cell_cost(cell: Cell, inputs, output, config: FlopsParamsCounterConfig) -> FlopsResult:
    """Preprocessor + Σ over nodes i and states j < i of the cost of the operation that edge (i, j) chooses.

    The operations are those that are built for the edge: in a reduction cell only edges from its inputs have stride 2.
    """
    states, total = _preprocessed(cell, preprocess_cell_inputs(cell.num_predecessors, *inputs), config)
    for node in range(cell.num_predecessors, cell.num_predecessors + cell.num_nodes):
        for source in range(node):
            costs = {}
            for name, candidate in _candidates(cell, node, source).items():
                shapes = _shapes(candidate, _tensor(states[source], "meta"))
                costs[name] = count_flops_params("", candidate, shapes, config)
            choice = Categorical(list(costs), label="edge")
            choice.label = f"{cell.label}/{node}_{source}"  # a new label may not hold a slash
            total += FlopsResult(
                *(
                    MutableExpression.switch_case(choice, {name: getattr(c, part) for name, c in costs.items()})
                    for part in FlopsResult._fields
                )
            )
        states.append(shapes[""][1])
    return total


def _preprocessed(cell: Cell, shapes: list[MutableShape], config: FlopsParamsCounterConfig | None = None):
    """Shapes of the cell's first states, and with ``config`` what the preprocessor costs."""
    parameter = next(cell.preprocessor.parameters(), None)
    device = None if parameter is None else parameter.device
    inside = _shapes(cell.preprocessor, [_tensor(shape, device) for shape in shapes])
    cost = config and count_flops_params("", cell.preprocessor, inside, config)
    return list(inside[""][1]), cost


def _candidates(cell: Cell, node: int, source: int) -> dict[str, nn.Module]:
    if cell.op_candidates_factory is None:
        raise InputError(
            f"Cell {cell.label!r} was given modules instead of functions that make them, so its operations for an edge "
            "are not known; give it functions of (node_index, op_index, input_index)"
        )
    with torch.device("meta"):  # no memory, no time, no random numbers
        candidates, _ = create_cell_op_candidates(cell.op_candidates_factory, node, 0, source)
    return candidates


def _shapes(module: nn.Module, inputs) -> dict:
    """Input and output shapes of ``module`` (under "") and all that is inside."""
    return submodule_input_output_shapes(module.eval(), inputs)


def _tensor(shape: MutableShape, device=None) -> ShapeTensor:
    sizes = [size.default() if isinstance(size, Mutable) else size for size in shape]
    return ShapeTensor(torch.zeros(sizes, device=device), tuple(shape))


def has_cells(space: nn.Module) -> bool:
    return any(isinstance(module, Cell) for module in space.modules())


# -- modules and operators ------------------------------------------------------------------------------------------


def postprocessor_shape(module: nasnet.CellPostprocessor, this_cell: ShapeTensor, previous_cells: list):
    """Inside the hub's cell its inputs have no shapes yet: ``cell_shape`` gives them."""
    return [previous_cells[-1], this_cell]


def stage_shape(stage: nasnet.NDSStage, state: list[ShapeTensor], is_leaf=None):
    """What the last cell of the greatest depth hands on: every other depth is aligned to it."""
    for block in stage.blocks:
        state = shape_inference(block, state, is_leaf=is_leaf)
    return extract_shape_info(state)


def zero_shape(module, x: ShapeTensor) -> MutableShape:
    """Zeros in the place of an operation with ``stride``."""
    shape = list(x.real_shape)
    shape[1] = getattr(module, "C_out", shape[1])
    return MutableShape(*shape[:2], *(-(-size // module.stride) for size in shape[2:]))


def input_choice_shape(module: InputChoice, inputs: list[ShapeTensor]):
    """Sums and means of several inputs have the shape of one, which NNI's formula refuses."""
    if module.reduction in ("sum", "mean"):
        return inputs[0].real_shape
    return input_choice_formula(module, inputs)


def pad_shape(function, x: ShapeTensor, padding: list[int], *args, **kwargs) -> MutableShape:
    """``padding`` has two numbers for each dimension, from the last one on."""
    shape = list(x.real_shape)
    for place in range(len(padding) // 2):
        shape[-1 - place] = shape[-1 - place] + padding[2 * place] + padding[2 * place + 1]
    return MutableShape(*shape)


def stack_shape(function, tensors: list[ShapeTensor], dim: int = 0) -> MutableShape:
    shape = list(tensors[0].real_shape)
    shape.insert(dim if dim >= 0 else dim + len(shape) + 1, len(tensors))
    return MutableShape(*shape)


SHAPES = {
    Cell: cell_shape,
    nasnet.CellPostprocessor: postprocessor_shape,
    nasnet.NDSStage: stage_shape,
    nasnet.Zero: zero_shape,
    nasbench201.Zero: zero_shape,
    InputChoice: input_choice_shape,
    torch.ops.aten.constant_pad_nd.default: pad_shape,
    torch.ops.aten.stack.default: stack_shape,
    torch.ops.aten.sum.dim_IntList: aten_mean_dim,
}
"""Shapes by module or operator, as NNI's ``register_shape_inference_formula`` takes them."""

COSTS = {Cell: cell_cost, nasnet.NDSStage: _count_repeat}
"""Costs by module, as NNI's ``register_flops_formula`` takes them."""

LEAVES = (Cell,)
"""Modules whose inside NNI does not look into: an operation of a cell has as many shapes as it has edges."""
