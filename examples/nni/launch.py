"""digits.yaml in Python: NNI's own Experiment, its manager bound to this machine. Run: python examples/nni/launch.py"""

from pathlib import Path

from nni.experiment import Experiment

from nni_fairdarts.manager import guard

guard()  # without it NNI's manager listens on every interface; with it trials also find this environment's programs
experiment = Experiment("local")
experiment.config.trial_command = "nni-fairdarts trial --config digits.yaml"
experiment.config.trial_code_directory = Path(__file__).parents[1]
experiment.config.trial_concurrency, experiment.config.max_trial_number = 2, 4
experiment.config.tuner.name = "GridSearch"
experiment.config.search_space = {
    "strategy": {"_type": "choice", "_value": ["fairdarts", "darts"]},
    "seed": {"_type": "choice", "_value": [0, 1]},
}
experiment.run(port=8080)
experiment.stop()
