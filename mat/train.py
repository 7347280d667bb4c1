"""Command line: train a model with meta adversarial training as a YAML file says."""

import argparse
import dataclasses
import pathlib
import sys

if not __package__:  # run as a file: its own directory is on the path, where `config` or `data` would hide other packages
    sys.path[0] = str(pathlib.Path(__file__).resolve().parent.parent)

import yaml

from mat.config import PatchTrainingConfig
from mat.errors import NonFiniteLossError, StoppedError, UserError
from mat.terminal import console, quiet_stderr

STATUS = """
exit status:
  0 done; 2 the config, the data, the weights or the result directory are at fault; 3 the loss became NaN or infinite;
  130 Ctrl-C; 143 SIGTERM; 1 a bug"""


def _key_list(cls, prefix=""):
    """The config's keys with their defaults and meanings, a line each."""
    lines = [] if prefix else ["keys of CONFIG, with their defaults:"]
    for f in dataclasses.fields(cls):
        if dataclasses.is_dataclass(f.default):
            lines.append(_key_list(type(f.default), f"{f.name}."))
            continue
        default = yaml.safe_dump(list(f.default) if isinstance(f.default, tuple) else f.default, default_flow_style=True)
        lines.append(f"  {prefix + f.name:<26} {default.splitlines()[0]:<20} {f.metadata['meaning']}")
    return "\n".join(lines)


def parse_arguments(arguments):
    """The parsed command line; `--help` and wrong usage end the process."""
    parser = argparse.ArgumentParser(
        prog="mat-train",
        description="Train an image classifier to be robust against universal patches, by meta adversarial training (arXiv:2101.11453).",
        epilog=_key_list(PatchTrainingConfig) + STATUS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("config", metavar="CONFIG", help="YAML file, such as configs/demo.yaml; its keys are listed below")
    parser.add_argument(
        "--set",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        help="replace a key of the config; nested keys as in optimizer.n_iterations=3; may be given several times",
    )
    parser.add_argument("--resume", action="store_true", help="continue the run in the result directory after its last complete epoch")
    return parser.parse_args(arguments)


def train(arguments):
    """Read the config, then train; the config is reported on before the seconds that TensorFlow takes to import."""
    config = PatchTrainingConfig.from_yaml(arguments.config, arguments.set, resume=arguments.resume)
    console.print(f"{arguments.config}: training into {config.result_dir}; loading TensorFlow")
    with quiet_stderr():
        import tensorflow as tf

        from mat.trainer import Trainer

        tf.config.list_physical_devices()  # finds the devices now, while their greetings are held back
    Trainer(config, resume=arguments.resume).fit()


def main(arguments=None):
    """Run the command; returns the exit status."""
    try:
        train(parse_arguments(arguments))
    except UserError as error:
        return _report(error, 2)
    except NonFiniteLossError as error:
        return _report(error, 3)
    except StoppedError as stop:
        return _report(stop, stop.exit_status)
    except KeyboardInterrupt:
        return _report("Interrupted", 130)
    return 0


def _report(message, status):
    print(f"mat-train: {message}", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
