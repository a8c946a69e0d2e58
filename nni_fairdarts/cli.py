"""``nni-fairdarts``: search, derive, retrain, the three as one run, what came of it, and experiments of many runs."""

import logging
import os
import sys
import warnings
from dataclasses import replace
from pathlib import Path

from jsonargparse import ArgumentError, ArgumentParser, Namespace

from nni_fairdarts.arguments import FORMAT, check_file, explain, run_config, run_parser
from nni_fairdarts.config import RunConfig, to_yaml
from nni_fairdarts.errors import ExportError, InputError, LostProcess, ManagerError, NonFiniteLoss
from nni_fairdarts.failures import complain, unexpected
from nni_fairdarts.folder import going_on, run_of, trained_config, write_json
from nni_fairdarts.launched import end_with_parent, launched_rank
from nni_fairdarts.metrics import word, written
from nni_fairdarts.plots import command as plot
from nni_fairdarts.report import command as report
from nni_fairdarts.stopping import Stopped
from nni_fairdarts.trained import command as trained
from nni_fairdarts.variables import nonsense

# Imports of torch and NNI wait until a command needs them: --help and mistakes are answered at once.


def _run(parsed: Namespace, config: RunConfig) -> None:
    from nni_fairdarts import experiment

    print(experiment.summary(*(experiment.go_on if parsed.resume else experiment.run)(config)))


def _search(parsed: Namespace, config: RunConfig) -> None:
    from nni_fairdarts import experiment

    searched = experiment.resume(Path(parsed.resume), config) if parsed.resume else experiment.search(config)
    print(experiment.summary(searched))


def _retrain(parsed: Namespace, config: RunConfig) -> None:
    from nni_fairdarts import experiment
    from nni_fairdarts.genotype import resolve

    if parsed.resume:
        if parsed.run is not None or parsed.genotype is not None or parsed.into is not None:
            raise InputError("retrain --resume FOLDER goes on with what was begun there; leave out all but settings")
        print(experiment.summary(retrained=experiment.resume_retraining(Path(parsed.resume), config)))
        return
    if parsed.run is None and parsed.genotype is None:
        raise InputError("retrain needs a run's folder, or --genotype with a file, a published name or text")
    if parsed.into is not None and (not parsed.into.strip(".") or Path(parsed.into).name != parsed.into):
        raise InputError(f"--into must be a folder's name without slashes, got {parsed.into!r}")
    folder = config.folder if parsed.run is None else Path(parsed.run) / (parsed.into or "retrain")
    named = parsed.genotype
    architecture = experiment.architecture_of(Path(parsed.run)) if named is None else resolve(named)
    print(experiment.summary(retrained=experiment.retrain(config, architecture, folder)))


def _derive(parsed: Namespace, config: None) -> None:
    from nni_fairdarts import experiment

    if parsed.output and os.path.lexists(parsed.output):
        raise InputError(f"{parsed.output} exists already; choose another --output")
    genotype = experiment.derive(Path(parsed.run), parsed.discretization, parsed.threshold)
    print(genotype)
    print(genotype.to_text())
    if parsed.output:
        genotype.save(parsed.output)
        print(f"saved in {parsed.output}")


def _analyse(parsed: Namespace, config: None) -> None:
    from nni_fairdarts import experiment

    if parsed.json is not None and os.path.lexists(parsed.json):
        raise InputError(f"{parsed.json} exists already; choose another --json")
    result = experiment.analyse(Path(parsed.run), hessian_batches=parsed.hessian_batches)
    print(experiment.analysis_table(result))
    if parsed.json is not None:
        write_json(Path(parsed.json), result)


def _trial(parsed: Namespace, config: RunConfig) -> None:
    from nni_fairdarts.experiment.trial import trial

    result = trial(config)
    metric = result.get("metric")
    score = f"{word(metric)} {written(result['default'], metric)}"
    print(f"{score} of {result['strategy']}, seed {result['seed']}; {result['genotype']}")


def _launch(parsed: Namespace, config: None) -> None:
    from nni_fairdarts.manager import launching

    given = [name for name in ("config", "resume", "view") if parsed[name] is not None]
    if len(given) != 1:
        raise InputError("launch takes one of --config FILE (a new experiment), --resume ID and --view ID")
    if given == ["view"]:
        if parsed.wait:
            raise InputError("--view shows a stopped experiment until it is stopped again; leave out --wait")
        launching.view(parsed.view, parsed.port, parsed.host)
    elif given == ["resume"]:
        launching.resume(parsed.resume, parsed.port, parsed.host, parsed.wait)
    else:
        launching.launch(Path(parsed.config), parsed.port, parsed.host, parsed.wait)


def _results(parsed: Namespace, config: None) -> None:
    from nni_fairdarts.manager.results import results

    print(results(parsed.experiment, parsed.csv, parsed.json))


def _launch_parser() -> ArgumentParser:
    parser = ArgumentParser(
        exit_on_error=False, allow_abbrev=False, description="Start NNI's manager and an experiment in it."
    )
    parser.add_argument("--config", metavar="FILE", help="An experiment in NNI's own format.")
    parser.add_argument("--resume", metavar="ID", help="Go on with this stopped experiment.")
    parser.add_argument("--view", metavar="ID", help="Show this stopped experiment in the web UI.")
    parser.add_argument("--port", type=int, default=8080, help="Of the web UI.")
    parser.add_argument(
        "--host", default="127.0.0.1", help="Address to listen on: whoever reaches it can run code as you."
    )
    parser.add_argument("--wait", action="store_true", help="Stay until the experiment is done, then stop the manager.")
    return parser


def _results_parser() -> ArgumentParser:
    parser = ArgumentParser(
        exit_on_error=False, allow_abbrev=False, description="What the trials of an NNI experiment came to."
    )
    parser.add_argument("experiment", help="Id or folder of an experiment, running or stopped.")
    parser.add_argument("--csv", metavar="FILE", help="By default results.csv in the experiment's folder.")
    parser.add_argument("--json", metavar="FILE", help="By default results.json in the experiment's folder.")
    return parser


def _search_parser() -> ArgumentParser:
    parser = run_parser(description="Search, and derive the architecture.")
    parser.add_argument("--resume", metavar="RUN", help="Go on with this search from its last checkpoint.")
    return parser


def _retrain_parser() -> ArgumentParser:
    parser = run_parser(description="Train a derived network from scratch.")
    parser.add_argument("run", nargs="?", help="Folder of a search: its configuration and genotype are used.")
    parser.add_argument("--genotype", help="Instead of the run's: a file, a published name, or a published text.")
    parser.add_argument("--into", help="Folder inside the run for the results; retrain by default.")
    parser.add_argument("--resume", metavar="FOLDER", help="Go on with the retraining in this folder, RUN/retrain.")
    return parser


def _derive_parser() -> ArgumentParser:
    parser = ArgumentParser(
        exit_on_error=False, allow_abbrev=False, description="Derive a finished search again, without searching."
    )
    parser.add_argument("run", help="Folder of a search, or one with normal_weight.npy and reduce_weight.npy.")
    parser.add_argument("--threshold", type=float, help="A gate at or over it is kept; by default the run's.")
    parser.add_argument("--discretization", help="sparse, edge or darts; by default the run's.")
    parser.add_argument("--output", help="File for the genotype (JSON).")
    return parser


def _analyse_parser() -> ArgumentParser:
    parser = ArgumentParser(
        exit_on_error=False, allow_abbrev=False, description="Numbers about a search, and the supernet it ended with."
    )
    parser.add_argument("run", help="Folder of a search.")
    parser.add_argument(
        "--hessian_batches",
        type=int,
        default=0,
        help="Validation batches for the loss's curvature in α, which takes long; 0 for none.",
    )
    parser.add_argument("--json", metavar="FILE", help="A new file for the numbers.")
    return parser


def _trial_parser() -> ArgumentParser:
    return run_parser(description="A run as a trial of NNI's manager, with the parameters that it gives.")


def _run_parser() -> ArgumentParser:
    parser = run_parser(description="Search, derive and retrain.")
    parser.add_argument("--resume", metavar="RUN", help="Go on with this run from the last checkpoint of either part.")
    return parser


COMMANDS = {
    "run": (_run_parser, _run, "search, derive and retrain"),
    "search": (_search_parser, _search, "search, and derive the architecture"),
    "derive": (_derive_parser, _derive, "derive a finished search at another threshold or rule"),
    "analyse": (_analyse_parser, _analyse, "entropy of gates, dominant skips, gap and curvature of a search"),
    "launch": (_launch_parser, _launch, "start an NNI experiment, its manager bound to this machine"),
    "results": (_results_parser, _results, "the table of an NNI experiment"),
    "trial": (_trial_parser, _trial, "a run as a trial of NNI's manager, with its parameters"),
    "report": (report.parser, report.run, "a page about a search, or a comparison of several or of an experiment"),
    "retrain": (_retrain_parser, _retrain, "train a derived network from scratch"),
    "plot": (plot.parser, plot.run, "draw what a search did"),
    "evaluate": (trained.evaluate_parser, trained.evaluate, "accuracy and loss of a trained derived network"),
    "export": (trained.export_parser, trained.export, "a trained derived network as ONNX or torch.export"),
}


RESUMABLE = ("run", "search", "retrain")
"""Commands that take --resume."""

OF_A_RUN = ("run", "search", "retrain", "trial", "evaluate", "export")
"""Commands that take a run's configuration."""

OF_A_FOLDER = ("retrain", "evaluate", "export")
"""Commands that take that of a run whose folder they are given."""


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0, 1 for a failed training, 2 for bad input."""
    parser = ArgumentParser(
        prog="nni-fairdarts", exit_on_error=False, allow_abbrev=False, parser_mode=FORMAT, description=__doc__
    )
    commands = parser.add_subcommands(required=True, dest="command")
    arguments = _config_first(sys.argv[1:] if arguments is None else arguments)
    # Only the parser that is needed: to make all takes longer than a command that ends with an error.
    parsers = {name: make() if [name] == arguments[:1] else ArgumentParser() for name, (make, _, _) in COMMANDS.items()}
    for name, (_, _, text) in COMMANDS.items():
        commands.add_subcommand(name, parsers[name], help=text)
    known = parsers.get(arguments[0]) if arguments else None
    try:
        if arguments[:1] != ["launch"]:  # its --config is NNI's
            for path in _config_files(arguments):
                check_file(path)
        resuming = any(argument.split("=")[0] == "--resume" for argument in arguments)
        if arguments[:1] and (arguments[0] in OF_A_FOLDER or (resuming and arguments[0] in RESUMABLE)):
            _take_defaults_of_the_run(arguments[1:], parsers[arguments[0]])
        parsed = parser.parse_args(arguments)
        command = parsed.command
        values = parsed[command]
        config = run_config(values) if command in OF_A_RUN else None
    except (ArgumentError, InputError) as error:
        return complain(explain(error, known or parser), error=error)
    except Exception as error:
        return unexpected(error)
    if error := nonsense():
        return complain(error)
    if launched_rank() >= (processes := 1 if config is None else config.devices):
        return complain(
            f"LOCAL_RANK must be under {processes}, the number of processes of this command, got {launched_rank()}; "
            "unset it, or give --devices"
        )
    sys.path.insert(0, os.getcwd())  # for module:function in the user's own folder
    if launched_rank() != 0:
        _be_one_of_several()
    try:
        with warnings.catch_warnings():
            _quieten()
            COMMANDS[command][1](values, config)
    except InputError as error:
        return complain(str(error), error=error)
    except (NonFiniteLoss, ManagerError, ExportError) as error:
        return _complain_once(str(error), 1, error)
    except LostProcess as error:
        return _complain_once(f"{error}{_how_to_go_on(command, values, config)}", 1, error)
    except Stopped as stop:
        how = _how_to_go_on(command, values, config)
        return _complain_once(f"{stop}{how}", 128 + stop.signal)
    except BrokenPipeError:  # of "… | head": nobody reads on
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:  # a disk that is full, a folder that is gone
        return complain(f"{error}{_how_to_go_on(command, values, config)}", 1, error)
    except (KeyboardInterrupt, SystemExit):  # Lightning turns the one into the other
        return _complain_once(f"stopped{_how_to_go_on(command, values, config)}", 130)
    except Exception as error:
        return unexpected(error)
    return 0


def _how_to_go_on(command: str, values: Namespace, config: RunConfig | None) -> str:
    """The command that goes on with what was interrupted; nothing where nothing can be gone on with."""
    if command not in RESUMABLE:
        return ""
    if values.resume:
        folder = Path(values.resume)
    elif command == "retrain" and values.run is not None:
        folder = Path(values.run) / (values.into or "retrain")
    else:
        folder = config.folder
    if command == "run" and (folder / "config.yaml").is_file():
        return f"; go on with: nni-fairdarts run --resume {folder}"
    known = going_on(folder)
    return "" if known is None else f"; go on with: {known}"


def _config_first(arguments: list[str]) -> list[str]:
    """The same arguments with --config right behind the command: flags win over the file wherever they stand."""
    files, others, rest = [], [], list(arguments)
    while rest:
        argument = rest.pop(0)
        if argument == "--config" and rest:
            files += [argument, rest.pop(0)]
        elif argument.startswith("--config="):
            files.append(argument)
        else:
            others.append(argument)
    return others[:1] + files + others[1:]


def _take_defaults_of_the_run(arguments: list[str], parser: ArgumentParser) -> None:
    """For commands of a RUN and ``--resume RUN``: put the run's configuration in the place of ``parser``'s defaults."""
    values = parser.parse_args([a for a in arguments if not a.startswith("--print_config")])
    if "trained" in values:
        if values.trained is not None and os.path.isdir(values.trained):  # else a genotype
            _put_defaults(trained_config(Path(values.trained)), parser)
        return
    run = values.resume or values.get("run")
    if run is None:
        return
    if others := [name for name in ("name", "runs") if values[name] != parser.get_defaults()[name]]:
        hint = "leave out" if values.resume else "use --into instead of"
        raise InputError(f"this goes into the run's own folder; {hint} --{others[0]}")
    config = run_of(Path(run))
    if values.resume:
        folder = Path(run) if Path(run).name else Path(run).absolute()
        config = replace(config, name=folder.name, runs=str(folder.parent))
    _put_defaults(config, parser)


def _put_defaults(config: RunConfig, parser: ArgumentParser) -> None:
    parser.set_defaults(parser.parse_string(to_yaml(config), defaults=False).as_flat().__dict__)


def _config_files(arguments: list[str]) -> list[Path]:
    """The files that --config names."""
    behind = [file for option, file in zip(arguments, arguments[1:], strict=False) if option == "--config"]
    return [Path(file) for file in behind] + [Path(a[9:]) for a in arguments if a.startswith("--config=")]


def _be_one_of_several() -> None:
    """What the first process prints is enough; without it this one has nothing to do."""
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115 (to the end of the process)
    warnings.showwarning = lambda *args, **kwargs: None
    end_with_parent()


def _complain_once(message: str, code: int, error: BaseException | None = None) -> int:
    """Complain of what all processes that train together have met.

    The first one does it: where another ends with an error Lightning kills it, within 5 seconds, whatever it is doing.
    """
    return complain(message, code, error) if launched_rank() == 0 else 0


def _show_warning(message, category, filename, lineno, file=None, line=None) -> None:
    print(f"nni-fairdarts: warning: {message}", file=sys.stderr)


def _quieten() -> None:
    """Keep the console for the progress bar and one line per epoch; errors and real warnings still show."""
    for name in ("pytorch_lightning", "lightning_fabric", "lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
        logging.getLogger(f"{name}.utilities.rank_zero").setLevel(logging.WARNING)
        logging.getLogger(f"{name}.utilities.distributed").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*smaller than the logging interval.*")
    warnings.filterwarnings("ignore", message="Checkpoint directory .* exists and is not empty")
    warnings.filterwarnings("ignore", message=".*found to be not a nn.Module.*")
    warnings.filterwarnings("ignore", message=".*LeafSpec.* is deprecated.*")
    warnings.filterwarnings("ignore", module=r"nni\.")  # not nni_fairdarts
    if launched_rank() == 0:
        warnings.showwarning = _show_warning
    else:
        warnings.simplefilter("ignore")
    import nni  # noqa: F401 (it sets its logger up when imported)

    logging.getLogger("nni").setLevel(logging.CRITICAL)  # its errors say that there was one; the command says which


if __name__ == "__main__":
    sys.exit(main())
