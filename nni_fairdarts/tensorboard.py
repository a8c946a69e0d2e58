"""Gates and cells in TensorBoard while a search runs: histograms and, with matplotlib, pictures."""

import warnings
from dataclasses import replace

import numpy as np
import pytorch_lightning as pl
from pytorch_lightning.loggers import TensorBoardLogger

from nni_fairdarts.config import RunConfig, SearchConfig
from nni_fairdarts.errors import InputError
from nni_fairdarts.gates import RELAXATIONS
from nni_fairdarts.genotype import CELLS, Genotype
from nni_fairdarts.recorded import Recorded
from nni_fairdarts.recording import RecordsEpochs
from nni_fairdarts.search import FairDartsModule

PICTURES = ("gates_", "cell_")
"""What the names of the figures begin with that are drawn during a search; the others are of its whole history."""


class GateFigures(pl.Callback):
    """A Lightning callback: every few epochs, and after the last, TensorBoard gets a search's gates.

    For each label a histogram, the gates as colours and numbers, and the cell that would be derived now. The step that
    they are shown at is the epoch, from 1. Give it to the evaluator's trainer, ``Classification(...,
    callbacks=[GateFigures(5)])``; runs have it, ``figure_epochs`` in their configuration. It goes with FairDARTS and,
    in runs, with NNI's strategies; without TensorBoard's logger, or gates, it does nothing. It draws no random number,
    and a picture that cannot be drawn is a warning.

    every: epochs between two; 0 for none. Raises InputError for others.
    """

    def __init__(self, every: int = 5):
        if not isinstance(every, int) or isinstance(every, bool) or every < 0:
            raise InputError(f"every must be a number of epochs, 0 or more, got {every!r}")
        self.every = every
        self._pending: int | None = None  # the epoch that was not shown, for it might be the last
        self._warned = False

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._pending = epoch = trainer.current_epoch + 1
        if self.every and epoch % self.every == 0:
            self._show(trainer, pl_module)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.every and self._pending is not None:
            self._show(trainer, pl_module)

    def _show(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        epoch, self._pending = self._pending, None
        writers = [logger.experiment for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]
        if not (trainer.is_global_zero and writers and isinstance(module, RecordsEpochs)):
            return
        record = module.gate_record()
        if not record.get("gates"):
            return
        recorded = Recorded("search", ({"epoch": epoch - 1, **record},), config=_settings(module))
        for writer in writers:
            for label in recorded.labels:
                writer.add_histogram(f"gates/{label}", recorded.gates(label), epoch)
        for name, image in self._pictures(module, recorded).items():
            for writer in writers:
                writer.add_image(name, image, epoch, dataformats="HWC")

    def _pictures(self, module: RecordsEpochs, recorded: Recorded) -> dict[str, np.ndarray]:
        """{name: (height, width, 3) uint8}; where they cannot be drawn nothing, and the first time a warning."""
        try:
            from nni_fairdarts.plots.album import chosen

            drawn = chosen(replace(recorded, genotype=_genotype(module, recorded)))
            return {name: _pixels(draw()) for name, draw in drawn.items() if name.startswith(PICTURES)}
        except Exception as error:  # a search of days does not end for a picture
            missing = isinstance(error, ModuleNotFoundError) and error.name.partition(".")[0]
            why = f"{missing} is not installed; pip install 'nni-fairdarts[plots]'" if missing else error
            if not self._warned:
                self._warned = True
                warnings.warn(f"TensorBoard lacks pictures of the gates ({why})", RuntimeWarning, stacklevel=1)
            return {}


def _genotype(module: RecordsEpochs, recorded: Recorded) -> Genotype | None:
    """What a search of cells would export now; the gates do not tell it of NNI's strategies, which compare α."""
    if not all(label in recorded.labels and recorded.is_cell(label) for label in CELLS):
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of few gates over the threshold; the last export says so
        sample = module.export()
    return Genotype.from_sample(sample, nodes=recorded.edges("normal")[-1][0] - 1)


def _settings(module: RecordsEpochs) -> RunConfig:
    """The settings that say what a cell keeps."""
    if not isinstance(module, FairDartsModule):  # NNI's: shares of a softmax
        return RunConfig(search=SearchConfig("darts"))
    settings = module.settings()
    if RELAXATIONS[settings["relaxation"]].shared:
        return RunConfig(search=SearchConfig("darts"))
    return RunConfig(search=SearchConfig(threshold=settings["threshold"], discretization=settings["discretization"]))


def _pixels(figure) -> np.ndarray:
    """A figure as TensorBoard takes it; torch's own way there goes through pyplot."""
    from nni_fairdarts.plots.canvas import styled

    with styled():
        figure.canvas.draw()
    return np.asarray(figure.canvas.buffer_rgba())[..., :3]
