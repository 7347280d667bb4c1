"""The training loop: epochs, validation, saving and stopping."""

import contextlib
import dataclasses
import pathlib
import signal
import time

import keras

from mat.cli.console import console, print_facts
from mat.cli.devices import report_device_errors, use_xla
from mat.cli.errors import StoppedError
from mat.cli.progress import TrainingProgress
from mat.cli.signals import StopRequest, noted_signals, raised_signals
from mat.config import EvaluationConfig
from mat.data.splits import class_names
from mat.distribution.strategy import next_batch
from mat.distribution.workers import any_worker, check_shared, report_lost_workers
from mat.results.estimate import print_estimate
from mat.results.run_files import BANK_FILE, CONFIG_FILE
from mat.results.summary import print_summary
from mat.robustness.clean import Validation
from mat.robustness.display import Report
from mat.robustness.measure import measure_robustness
from mat.robustness.plan import make_plan
from mat.robustness.report import headline_text
from mat.robustness.store import read_report, report_path
from mat.run import TrainingRun, memory_advice, non_finite_error


@dataclasses.dataclass(frozen=True)
class TrainingResult:
    """How a run ended.

    Attributes:
        model: the trained network, float images [B, H, W, 3] in [0, 1] -> logits [B, n_classes].
        directory: the result directory.
        accuracies: clean validation accuracy in [0, 1] after each epoch that ended in this process.
        report: on the robustness, the contents of its `report.json`; None without one.
    """

    model: keras.Model
    directory: pathlib.Path
    accuracies: list[float]
    report: Report | None


class Trainer:
    """Trains a run: `Trainer(build_run(config)).fit()`.

    Args:
        run: its parts; their variables are changed in place.

    Attributes:
        run: as given.
    """

    def __init__(self, run: TrainingRun):
        self.run = run
        self._stop = StopRequest()
        self._saved_at = 0.0  # when this process last wrote a checkpoint
        jit_compile = use_xla(run.config.jit_compile)
        self._validation = Validation(run.model, run.validation_records, run.strategy, **run.sizes, jit_compile=jit_compile)

    def fit(self) -> TrainingResult:
        """Train, validate and save for the epochs that are left, then evaluate robustness as `robust_evaluation` says.

        Raises:
            NonFiniteLossError: the loss or a gradient became NaN or infinite; the state before that step is saved.
            LostWorkerError: another worker of the run does not answer any more.
            StoppedError: SIGINT, SIGTERM or SIGHUP came, to any worker; the step in hand was completed and saved.
            UserError: the result directory cannot be written, or another process trains into it.
        """
        run, config, results = self.run, self.run.config, self.run.results
        first_epoch, started = run.epoch, time.monotonic()
        restart = f"Start all of them again, to go on from the last checkpoint: {results.resume_command}"
        try:
            with report_lost_workers(restart), noted_signals() as self._stop, results.opened():
                if run.is_extended_now:  # once there is such a checkpoint, the network of the shorter run must be gone
                    results.remove_network()
                    self._save()  # before the config: how long a run is, its newest checkpoint says
                results.save_config(config, comment=f"Extended {run.extended}" if run.extended else "")
                check_shared(run.strategy, results.path / CONFIG_FILE)
                results.save_class_names(class_names(config.data_dir, config.n_classes))
                self._write_log()
                for row in run.record.rows:  # values that the event files lack
                    results.write_events(row)
                if first_epoch < config.n_epochs:
                    with report_device_errors(lambda: memory_advice(config, results)):
                        self._train()
                else:
                    console.print(f"{results.path}: this run is finished; nothing is left to train")
                results.save_network(run.model)
                seconds = time.monotonic() - started
                report = self._evaluate()
                self._save_or_stop()
        except OSError as error:
            raise results.unusable_error(error) from None
        accuracies = [row["validation_accuracy"] for row in run.record.rows]
        if first_epoch < config.n_epochs:
            robust = headline_text(report) if report else None
            print_summary(config, accuracies, weights=results.weights_path(config.n_epochs - 1), robust=robust, seconds=seconds)
        return TrainingResult(run.model, results.path, accuracies[first_epoch:], report)

    @report_lost_workers()
    def dry_run(self) -> None:
        """Print the plan of the run, and from two steps and a batch of validation what is left of it will take; nothing is written.

        Raises:
            NonFiniteLossError: the loss or a gradient of these steps is NaN or infinite.
        """
        run, config, results = self.run, self.run.config, self.run.results
        if run.epoch == config.n_epochs:
            console.print(f"{results.path}: this run is finished; nothing is left to train")
            path = report_path(results.weights_path(config.n_epochs - 1), quick=config.robust_evaluation == "quick")
            if self._protocol is not None and read_report(path) is None:
                print_facts("Dry run: what is left to evaluate", {"evaluation": self._describe_evaluation()})
            return
        run.print_plan()
        batch, validation_batch = (next_batch(run.strategy, iter(shares)) for shares in (run.shares(run.epoch), self._validation.shares))

        def step() -> None:
            run.step.train_on_batch(*batch)
            if (failed_step := int(run.step.failed_step.numpy())) >= 0:
                raise non_finite_error(run, failed_step, "in this dry run nothing is saved")

        with report_device_errors(lambda: memory_advice(config, results)):
            print_estimate(
                step=step,
                validation=lambda: self._validation.count_correct(*validation_batch),
                n_steps=config.n_epochs * run.steps_per_epoch - int(run.step.step.numpy()),
                n_validations=config.n_epochs - run.epoch,
                n_validation_batches=self._validation.n_batches,
                batch_size=config.batch_size,
                evaluation=self._describe_evaluation(),
            )

    def _train(self) -> None:
        """Train the epochs that are left."""
        run, config, n_done = self.run, self.run.config, int(self.run.step.step.numpy())
        run.print_plan()
        progress = TrainingProgress(
            n_epochs=config.n_epochs, steps_per_epoch=run.steps_per_epoch, batch_size=config.batch_size, first_step=n_done
        )
        self._saved_at = time.monotonic()
        try:
            with progress:
                for epoch in range(run.epoch, config.n_epochs):
                    self._train_epoch(epoch, progress)
                    self._finish_epoch(epoch, progress)
        except OSError:
            with contextlib.suppress(OSError):  # it may have been another file or place that failed
                self._save(ending=True)
            raise

    def _train_epoch(self, epoch: int, progress: TrainingProgress) -> None:
        """One pass over the training images, or what is left of it."""
        run, step = self.run, self.run.step
        n_done, first_of_epoch = int(step.step.numpy()), epoch * run.steps_per_epoch
        if n_done == first_of_epoch:
            step.reset_metrics()
        shares, end = iter(run.shares(epoch, n_done - first_of_epoch)), first_of_epoch + run.steps_per_epoch
        while n_done < end:
            first, n_done = n_done + 1, min(n_done + run.config.steps_per_call, end)  # of this call, counted from 1
            losses, accuracies = step.train_on_batches(shares, n_done + 1 - first)
            for logged in range(-first % run.log_every_steps, len(losses), run.log_every_steps):
                self._check_finite()  # nothing is logged of a step that was not made
                run.results.write_step(first + logged, loss=float(losses[logged]), accuracy=float(accuracies[logged]))
            due = progress.due(n_done)
            self._save_or_stop(save=time.monotonic() - self._saved_at >= 60 * run.config.checkpoint_every_minutes, check=due)
            if due:
                progress.update(n_done, *step.metrics())
        self._check_finite()

    def _finish_epoch(self, epoch: int, progress: TrainingProgress) -> None:
        """Validate, log and save. The checkpoint comes last: until it is written, a resumed run does all of this again."""
        run, results = self.run, self.run.results
        loss, accuracy = run.step.metrics()
        row = {"epoch": epoch, "loss": loss, "accuracy": accuracy, "validation_accuracy": self.validate()}
        row["learning_rate"] = float(run.step.optimizer.learning_rate.numpy())
        results.save_weights(run.model, epoch)
        if run.bank is not None:
            results.save_bank(run.bank, epoch)
        results.write_events(row, images_per_second=progress.images_per_second)
        self._write_log(row)
        run.record.rows.append(row)
        self._save()
        progress.end_epoch(epoch, loss=loss, accuracy=accuracy, validation_accuracy=row["validation_accuracy"])

    def validate(self) -> float:
        """Clean accuracy on all validation images, in [0, 1]."""
        return self._validation.accuracy(self._save_or_stop)

    @property
    def _protocol(self) -> EvaluationConfig | None:
        """How robustness is evaluated after the last epoch; None where it is not."""
        config = self.run.config
        return {"none": None, "quick": config.evaluation.quick(), "full": config.evaluation}[config.robust_evaluation]

    def _describe_evaluation(self) -> str:
        """How robustness is evaluated after the last epoch, in words."""
        run, config, protocol = self.run, self.run.config, self._protocol
        if protocol is None:
            return "none (robust_evaluation: none)"
        bank = (run.bank.patches.numpy(), run.bank.targets.numpy()) if run.bank and "bank" in protocol.starts else None
        plan = make_plan(config.replace(evaluation=protocol), (run.train_records, run.validation_records), bank=bank)
        return f"{config.robust_evaluation}: {plan.cost:,} forward passes of one image, not in the time of the training"

    def _evaluate(self) -> Report | None:
        """Measure the robust accuracy of the trained model and log it, if that is wanted."""
        self._save_or_stop()
        run, config, results = self.run, self.run.config, self.run.results
        last_epoch, quick, protocol = config.n_epochs - 1, config.robust_evaluation == "quick", self._protocol
        if protocol is None:
            return None
        weights, bank = results.weights_path(last_epoch), results.path / BANK_FILE
        if not weights.exists():
            results.save_weights(run.model, last_epoch)
        if run.bank is not None and not bank.exists():
            results.save_bank(run.bank, last_epoch)
        with raised_signals(f"Stopped in the evaluation of robustness; the training is saved. Continue with: {results.resume_command}"):
            self._save_or_stop()  # the signal may have come before this block
            report = measure_robustness(
                config.replace(evaluation=protocol),
                run.model,
                (run.train_records, run.validation_records),
                report_path(weights, quick=quick),
                weights=weights,
                strategy=run.strategy,
                bank=bank if run.bank is not None and "bank" in protocol.starts else None,
                resume=True,
                numbered=True,
            )
        self._log_robust_accuracy(report["headline"]["robust"]["accuracy"], quick=quick)
        return report

    def _log_robust_accuracy(self, accuracy: float, *, quick: bool) -> None:
        """Log the robust accuracy of the last epoch, unless an earlier evaluation found a lower one."""
        row = self.run.record.rows[-1]
        tag = "validation/robust_accuracy" + ("" if quick else "_full")
        self.run.results.write_events({"epoch": self.run.epoch - 1}, **{tag: accuracy})
        logged = row.get("robust_accuracy")
        if logged is not None and logged < accuracy:
            console.print(f"The log keeps the robust accuracy of {logged:.1%} that an earlier evaluation found")
        elif logged != accuracy:
            row["robust_accuracy"] = accuracy
            self._write_log()
            self._save()

    def _write_log(self, *new_rows: dict[str, float]) -> None:
        robust = self.run.config.robust_evaluation != "none"
        self.run.results.write_log([*self.run.record.rows, *new_rows], robust=robust)

    def _save(self, *, ending: bool = False) -> str:
        """Write a checkpoint; returns its path prefix. `ending` as of `save_checkpoint`."""
        self._check_finite()
        path = self.run.results.save_checkpoint(self.run.state, n_bytes=self.run.checkpoint_bytes, ending=ending)
        self._saved_at = time.monotonic()
        return path

    def _save_or_stop(self, *, save: bool = False, check: bool = False) -> None:
        """Write a checkpoint if `save`, `check` that all steps were finite, and end the run if a stop signal came.

        What one worker asks for all of them do, at the same points of the run.
        """
        save, check, stop = any_worker(self.run.strategy, [save, check, bool(self._stop.received)])
        if check:
            self._check_finite()
        if save or stop:
            self._save(ending=stop)
        if stop:
            message = f"Stopped after {self.run.position}; all of it is saved. Continue with: {self.run.results.resume_command}"
            raise StoppedError(message, self._stop.received or signal.SIGTERM)

    def _check_finite(self) -> None:
        """Stop the run if a step was not finite, with the state before that step saved."""
        failed_step = int(self.run.step.failed_step.numpy())
        if failed_step < 0:
            return
        self.run.step.failed_step.assign(-1)  # in the checkpoint that step is still to come
        try:
            saved = f"the state before it is saved as {self._save(ending=True)}"
        except OSError as error:
            saved = f"the state before it cannot be saved ({error.filename}: {error.strerror})"
        raise non_finite_error(self.run, failed_step, saved)
