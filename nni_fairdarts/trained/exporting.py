"""A trained network as a file that other programs run: ONNX, or torch.export's own."""

import json
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from nni_fairdarts.errors import ExportError, InputError
from nni_fairdarts.experiment.common import versions
from nni_fairdarts.folder import write_json
from nni_fairdarts.genotype import Genotype
from nni_fairdarts.guests import transferred, validation_batches
from nni_fairdarts.network import count_parameters
from nni_fairdarts.trained.loading import Trained

TOLERANCE = 1e-4
"""How far an output of the file may be from the network's: this part of the batch's largest output, or of 1 if that is
less. Float32 has 7 digits; a deep network, its operations in another order, loses one or two of them."""

INPUT, OUTPUT = "images", "logits"
DESCRIPTION = "nni_fairdarts.json"
"""Name of the description inside the file: an entry of ONNX' metadata, a file in the archive of torch.export."""


@dataclass(frozen=True)
class Exported:
    """A file that was written, read back and compared; ``description``: what ``description_file`` holds.

    ``deviation``: the largest difference of an output from the network's, as ``TOLERANCE`` measures it, over ``images``
    random and real ones in batches of the sizes ``batches``.
    """

    file: Path
    description_file: Path
    deviation: float
    images: int
    batches: tuple[int, ...]
    description: dict

    def __str__(self) -> str:
        sizes = ", ".join(map(str, self.batches))
        return (
            f"{self.file} ({self.file.stat().st_size / 2**20:.2f} MiB), described in {self.description_file}\n"
            f"checked on {self.images} images, random and real, in batches of {sizes}: outputs differ by at most "
            f"{self.deviation:.1e} of the largest from the network's ({TOLERANCE:.0e} is allowed)"
        )


class Format(NamedTuple):
    """How a format is written and read: ``write(program, path, description)``, ``read(path)`` -> images to outputs."""

    suffix: str
    write: Callable
    read: Callable
    needs: tuple[str, ...] = ()


def check_export(output: str | Path, format: str) -> None:
    """Raise InputError where the format is unknown, lacks a package, or ``output`` cannot be written."""
    if format not in FORMATS:
        raise InputError(f"unknown format {format!r}; known: {', '.join(FORMATS)}")
    if missing := [name for name in FORMATS[format].needs if find_spec(name) is None]:
        raise InputError(
            f"the format {format} needs {', '.join(missing)}: pip install 'nni-fairdarts[export]'; or take --format "
            "torch, which needs nothing more"
        )
    suffix, output = FORMATS[format].suffix, Path(output)
    if output.suffix != suffix:
        raise InputError(f"a file of the format {format} ends in {suffix}, got {output}")
    for path in (output, _beside(output)):
        if os.path.lexists(path):
            raise InputError(f"{path} exists already; choose another --output")
    if not (os.path.isdir(output.parent) and os.access(output.parent, os.W_OK | os.X_OK)):
        raise InputError(f"{output.parent} must be a folder that can be written to; choose another --output")


def export(trained: Trained, output: str | Path, format: str = "onnx") -> Exported:
    """Write the network in evaluation mode, for batches of any size, and compare what the file puts out.

    ``format``: "onnx" (read back by onnxruntime) or "torch" (torch.export). Beside the file, in FILE.json, and inside
    of it is a description: input, its normalisation, classes, architecture. On random images and on those of the test
    set the file has to agree with the network, see ``TOLERANCE``; where it does not it is deleted and ExportError is
    raised. Raises InputError as ``check_export`` does, and for networks that torch cannot export.
    """
    check_export(output, format)
    output, form = Path(output), FORMATS[format]
    network, images = trained.network.cpu().eval(), _images(trained)
    with torch.no_grad():
        expected = network(images)
    if not isinstance(expected, Tensor) or len(expected) != len(images):
        raise InputError(
            f"export takes networks that put out one tensor with a row for each image, got {type(expected).__name__}"
        )
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}.") as place:
        file = Path(place) / output.name
        description = _description(trained, format, images)
        form.write(_program(network, images), file, description)
        deviation, sizes = _compare(form.read(file), network, images, output)
        description["checked"] = {"deviation": deviation, "tolerance": TOLERANCE, "batches": list(sizes)}
        check_export(output, format)  # it took a while
        os.replace(file, output)
        write_json(_beside(output), description)
    return Exported(output, _beside(output), deviation, 2 * len(images), sizes, description)


def _beside(output: Path) -> Path:
    return output.with_name(f"{output.name}.json")


MOST = 16
"""Real images that are compared, at most."""


def _images(trained: Trained) -> Tensor:
    """Some images of the test set, at least three: as the network takes them, (N, C, H, W)."""
    loaders = validation_batches(trained.evaluator)
    batch = next(iter(loaders[0] if isinstance(loaders, list | tuple) else loaders))
    batch = transferred(trained.evaluator, batch)
    images = batch[0] if isinstance(batch, list | tuple) else batch
    if not isinstance(images, Tensor):
        raise InputError(
            f"export takes networks of one tensor, the first of the evaluator's batches, got {type(images).__name__}"
        )
    images = images[:MOST].cpu()
    return torch.cat([images] * -(-3 // len(images)))


def _program(network: nn.Module, images: Tensor) -> torch.export.ExportedProgram:
    """The network's operations, for batches of any size. Raises InputError where torch cannot tell them."""
    try:
        with torch.no_grad():
            return torch.export.export(network, (images[:2],), dynamic_shapes=({0: torch.export.Dim("batch")},))
    except Exception as error:  # of many kinds, and long
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise InputError(
            f"torch cannot export this network for batches of any size: {reason}; its forward may not depend on "
            "numbers in tensors, nor on the number of images"
        ) from error


def _compare(run: Callable, network: nn.Module, images: Tensor, output: Path) -> tuple[float, tuple[int, ...]]:
    """(largest deviation, sizes of the batches). Raises ExportError where that is over ``TOLERANCE``."""
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0)).to(images)
    sizes, deviations = (1, 3, len(images)), []
    for batch in (part[:size] for part in (images, noise) for size in sizes):
        with torch.no_grad():
            expected = network(batch)
        try:
            found = run(batch)
        except Exception as error:  # of another library
            raise ExportError(f"{output} cannot be run on {len(batch)} images, and was deleted: {error}") from error
        if found.shape != expected.shape:
            raise ExportError(
                f"{output} puts out {tuple(found.shape)} for {len(batch)} images, the network "
                f"{tuple(expected.shape)}; the file was deleted"
            )
        deviations.append(float((found - expected).abs().max() / expected.abs().max().clamp(min=1)))
        if not deviations[-1] <= TOLERANCE:  # nor where it is no number
            raise ExportError(
                f"{output} does not put out what the network does: on {len(batch)} images outputs differ by "
                f"{deviations[-1]:.1e} of the largest, and {TOLERANCE:.0e} is allowed; the file was deleted"
            )
    return max(deviations), sizes


def _description(trained: Trained, format: str, images: Tensor) -> dict:
    """What who runs the file has to know, as JSON values."""
    data, cells = trained.images, isinstance(trained.architecture, Genotype)
    scaled = None
    if data is not None:
        scaled = {"pixels": "from 0 to 1", "subtract_mean": list(data.mean), "divide_by_std": list(data.std)}
        if data.as_stored:
            scaled = {"resize_shorter_side": round(data.image_size / 0.875), "centre_crop": data.image_size, **scaled}
    return {
        "format": format,
        "input": {
            "name": INPUT,
            "shape": ["batch", *images.shape[1:]],
            "dtype": str(images.dtype).removeprefix("torch."),
            "preprocessing": scaled,
        },
        "output": {"name": OUTPUT, "classes": None if data is None else data.num_classes},
        "data": None if data is None else data.name,
        "architecture": trained.architecture.to_json() if cells else dict(trained.architecture),
        "parameters": count_parameters(trained.network),
        "versions": versions(),
    }


# -- formats ----------------------------------------------------------------------------------------------------------


def _write_torch(program: torch.export.ExportedProgram, path: Path, description: dict) -> None:
    torch.export.save(program, path, extra_files={DESCRIPTION: json.dumps(description)})


def _read_torch(path: Path) -> Callable[[Tensor], Tensor]:
    module = torch.export.load(path).module()

    def run(images: Tensor) -> Tensor:
        with torch.no_grad():
            return module(images)

    return run


def _write_onnx(program: torch.export.ExportedProgram, path: Path, description: dict) -> None:
    made = torch.onnx.export(program, dynamo=True, input_names=[INPUT], output_names=[OUTPUT], verbose=False)
    made.model.metadata_props[DESCRIPTION] = json.dumps(description)
    made.save(path, external_data=False)


def _read_onnx(path: Path) -> Callable[[Tensor], Tensor]:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(None, {INPUT: images.numpy()})[0])


FORMATS = {
    "onnx": Format(".onnx", _write_onnx, _read_onnx, ("onnx", "onnxscript", "onnxruntime")),
    "torch": Format(".pt2", _write_torch, _read_torch),
}
"""Formats by name."""
