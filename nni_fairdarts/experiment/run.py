"""Search, derivation and retraining as one run, and what came out of it."""

from nni_fairdarts.config import RunConfig
from nni_fairdarts.experiment.common import load_images
from nni_fairdarts.experiment.retraining import retrain, retrain_loaders
from nni_fairdarts.experiment.searching import search
from nni_fairdarts.genotype import Genotype


def run(config: RunConfig) -> tuple[dict, dict]:
    """Search, derive and retrain; returns what both ``result.json`` hold.

    Raises InputError, before anything is trained or written, for what does not fit the search or the retraining.
    """
    retrain_loaders(config, load_images(config))
    searched = search(config)
    genotype = Genotype.load(config.folder / "genotype.json")
    return searched, retrain(config, genotype, config.folder / "retrain")


def summary(searched: dict | None = None, retrained: dict | None = None) -> str:
    """What came out of a search, of a retraining, or of both, in a few lines."""
    lines = []
    if searched:
        lines.append(f"supernet accuracy   {searched['supernet_accuracy']:.2%} (validation)")
    if retrained:
        size = f"{retrained['parameters']:,} parameters, {retrained['multiply_adds']:,} multiply-adds"
        lines.append(f"derived accuracy    {retrained['test_accuracy']:.2%} (test), {size}")
    if searched:
        lines.append(f"decided gates       {searched['decided_gates']:.1%} (under 0.1 or over 0.9)")
    result = searched or retrained
    lines.append(str(Genotype.from_json(result["genotype"])))
    lines.append(f"run folder          {result['folder']}")
    return "\n".join(lines)
