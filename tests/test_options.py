"""Options of speed around the fused supernet: what goes together, what does not, whom a checkpoint serves."""

import pytest
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import nn

from nni_fairdarts import FairDARTS, InputError
from nni_fairdarts.spaces import DARTS
from nni_fairdarts.supernet.cell import GatedCell
from nni_fairdarts.supernet.fused import check_norms


def darts():
    torch.manual_seed(0)
    return DARTS(2, 3, operations=["sep_conv_3x3", "skip_connect"])


def logits(space, **options):
    supernet = FairDARTS(**options).mutate_model(space)
    output = supernet(torch.ones(2, 3, 8, 8))
    output = output[0] if isinstance(output, tuple) else output
    output.square().sum().backward()
    return output, [p.grad for name, p in supernet.named_parameters() if name.endswith("alpha")]


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"compile": "fast"}, "unknown compile 'fast'; known: .*inductor"),
        (
            {"cuda_graphs": True, "recompute": True},
            "cuda_graphs does not go with recompute",
        ),
    ],
)
def test_options_that_do_not_go(options, text):
    with pytest.raises(InputError, match=text):
        FairDARTS(**options)


def test_graphs_need_a_cuda_device(classification, search):
    with pytest.raises(InputError, match="cuda_graphs needs a CUDA device, but the search runs on cpu"):
        search(darts(), classification(), FairDARTS(cuda_graphs=True))


@pytest.mark.parametrize("fused", [True, False])
def test_compiled_cells_compute_the_same(fused):
    """Traced whole, by the compiler's front alone: its own backend takes minutes on a CPU."""
    plain, compiled = logits(darts(), fused=fused), logits(darts(), fused=fused, compile="eager")
    torch.testing.assert_close(compiled[0], plain[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(compiled[1], plain[1], rtol=1e-3, atol=1e-4)


def test_every_cell_is_compiled():
    supernet = FairDARTS(compile=True).mutate_model(darts())
    cells = [module for module in supernet.modules() if isinstance(module, GatedCell)]
    assert len(cells) == 3
    assert all(cell._compiled_call_impl is not None for cell in cells)
    assert all(m._compiled_call_impl is None for m in supernet.modules() if not isinstance(m, GatedCell))


@pytest.mark.parametrize("fused", [True, False])
def test_a_checkpoint_of_the_other_kind_is_refused(fused, classification, search, tmp_path):
    """The optimizer's momenta are those of other tensors."""
    callbacks = [ModelCheckpoint(tmp_path, save_last=True)]
    keeping = {"enable_checkpointing": True, "callbacks": callbacks, "default_root_dir": tmp_path}
    search(darts(), classification(**keeping), FairDARTS(fused=fused))
    evaluator = classification(max_epochs=2)
    evaluator.fit_kwargs["ckpt_path"] = str(tmp_path / "last.ckpt")
    evaluator.fit_kwargs["weights_only"] = False  # NNI's evaluator keeps classes in it
    with pytest.raises(InputError, match=rf"of a search with fused={fused}.*go on with FairDARTS\(fused={fused}\)"):
        search(darts(), evaluator, FairDARTS(fused=not fused))


def test_batch_norms_that_wait_for_other_processes_are_refused():
    fused, plain = (
        nn.SyncBatchNorm.convert_sync_batchnorm(FairDARTS(fused=kind).mutate_model(darts())) for kind in (True, False)
    )
    check_norms(plain)
    with pytest.raises(InputError, match=r"sync_batchnorm does not go with a fused supernet.*FairDARTS\(fused=False\)"):
        check_norms(fused)
