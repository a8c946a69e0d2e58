import multiprocessing
import sys
import tempfile
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader

from nni_fairdarts import variables
from nni_fairdarts.data import search_loaders
from nni_fairdarts.datasets import load
from nni_fairdarts.errors import InputError
from nni_fairdarts.randomness import Place, SeededLoaders


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the length of a socket's path is Linux'")
@pytest.mark.parametrize("more", [0, 1])
def test_workers_in_a_long_folder_for_temporary_files(monkeypatch, more):
    """The longest path with which torch's workers hand a batch on; beyond it they would be waited for without end."""
    longest = variables.LONGEST - len(variables.SOCKET)
    with tempfile.TemporaryDirectory(dir="/tmp") as short:
        folder = Path(short, "f" * (longest + more - len(short) - 1))
        folder.mkdir()
        monkeypatch.setattr(tempfile, "tempdir", str(folder))
        monkeypatch.delitem(multiprocessing.current_process()._config, "tempdir", raising=False)
        images = load("digits")
        plain = DataLoader(torch.ones(4, 3), batch_size=2, num_workers=1, timeout=5)
        if not more:
            assert torch.equal(next(iter(plain)), torch.ones(2, 3))
            (first, _), *_ = search_loaders(images, 64, None, workers=1)[2]
            assert first.shape == (64, 1, 8, 8)
            return
        with pytest.raises(RuntimeError, match="timed out"):
            next(iter(plain))
        says = rf"whose path has at most {longest} bytes, got {folder} \({longest + 1}\); set TMPDIR to a shorter one"
        with pytest.raises(InputError, match=rf"{says}, or load without them \(data.workers 0\)"):
            search_loaders(images, 64, None, workers=1)
        assert search_loaders(images, 64, None, workers=0)
        with pytest.raises(InputError, match=rf"{says}, or load without them \(num_workers=0\)"):
            SeededLoaders({"train": plain, "val": plain}, Place())
