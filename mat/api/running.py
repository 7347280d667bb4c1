"""Training from Python."""

from typing import Any

from mat.api.session import Config, read_config, session
from mat.data.splits import class_names
from mat.train import train_runs
from mat.trainer import TrainingResult


def train(config: Config, *, resume: bool = False, extend: int | None = None, **keys: Any) -> TrainingResult:
    """Train a model with meta adversarial training, as the command `mat-train` does, into the result directory that the config names.

    Args:
        config: a YAML file, a dict of keys and values, or a `mat.config.PatchTrainingConfig`.
        resume: continue the run in the result directory.
        extend: continue it to so many epochs in total, as `--extend` does.
        keys: replace those of the config; keys of a section are given as a dict, `optimizer={"n_iterations": 3}`.

    Returns:
        The trained `model`, with its `class_names`; the result `directory`; `accuracies`, on the clean validation images after each epoch
        of this call; and the `report` on its robustness, as of `mat.evaluate`, or None. Of `plain_baseline: true` the second run is in its
        own directory, and compared on the console.

    Raises:
        UserError: the config, the data, the weights or the result directory cannot be used.
        NonFiniteLossError: the loss became NaN or infinite; the state before that step is saved.
        KeyboardInterrupt: after the step in hand is saved.

    Example:
        >>> import mat
        >>> plain = {"n_patches": 0, "plain_baseline": False, "robust_evaluation": "none"}
        >>> run = mat.train("configs/demo.yaml", unique_name="example", n_epochs=1, **plain)
        >>> run.model.class_names[4]
        'rings'
        >>> len(run.accuracies)
        1
    """
    with session():
        config = read_config(config, keys, resume=resume or extend is not None)
        result = train_runs(config, resume=resume, extend=extend)[0]
        result.model.class_names = class_names(config.data_dir, config.n_classes)
        return result
