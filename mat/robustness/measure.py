"""An evaluation of one network, from its inputs to the report: plan, fit, score, report."""

import datetime
import functools
import json
import os
import time
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from mat import __version__
from mat.cli.console import console, print_facts
from mat.cli.devices import device_name, precision_overrides, report_device_errors, use_xla
from mat.cli.errors import UserError
from mat.cli.files import npz
from mat.cli.progress import WorkProgress, duration
from mat.config import PatchTrainingConfig
from mat.data.reading import Records
from mat.data.splits import class_names, describe, fingerprint
from mat.distribution.strategy import is_chief
from mat.distribution.workers import check_same, stopped_together
from mat.models.kernels import forward_flops
from mat.models.weights import git_blob, weights_sha256
from mat.robustness.checklist import NOT_CHECKED, WARNING, checklist
from mat.robustness.display import Report
from mat.robustness.fit import Callbacks, FittedPatch, fit_patches
from mat.robustness.given import read_given
from mat.robustness.inputs import find_transferred, read_bank, read_transferred
from mat.robustness.intervals import interval_text
from mat.robustness.pictures import report_pictures
from mat.robustness.plan import CURVE_PATCHES, EvaluationPlan, curve_specs, make_plan
from mat.robustness.report import examples_csv, headline_text, make_report
from mat.robustness.score import Scores, check_finite, control_patches, position_gradients, score_patches, vanishing_gradients
from mat.robustness.store import FITTED_PATCHES_FILE, REPORT_FILE, ReportDirectory, read_report
from mat.robustness.tables import report_markdown
from mat.robustness.universal import Images, UniversalAttacks, load_images

Path = str | os.PathLike[str]
SUBJECT_KEYS = (  # of the config, those that the results depend on: a report counts for a run only if they are the same
    *("dataset", "image_size", "n_classes", "network", "input_range", "logits", "depth", "width", "n_stacks", "normalization", "precision"),
    *("patch_shape", "seed", "deterministic", "jit_compile"),
)
_STOPPED = "Stopped, all workers together; what was fitted is kept: run the same command with --resume on all of them"


def measure_robustness(
    config: PatchTrainingConfig,
    model: keras.Model,
    splits: tuple[Records, Records],
    directory: Path,
    *,
    weights: Path | None,
    strategy: tf.distribute.Strategy | None = None,
    bank: Path | None = None,
    patches_from: Sequence[Path] = (),
    patches: Sequence[Path] = (),
    resume: bool = False,
    numbered: bool = False,
) -> Report:
    """Evaluate a network by the protocol `config.evaluation` and write the report, unless it is there already; returns the report.

    Args:
        model: images [B, H, W, 3] in [0, 1] -> logits [B, n_classes].
        splits: training and validation records.
        weights: the file that the model's weights came from; None where they came from none.
        strategy: of the replicas that share the work, in whose scope the model was made; None for one device.
        bank: a `patches.npz` to start attacks from.
        patches_from: directories of evaluations of other networks, whose patches are tried on this one.
        patches: files of patches that are tried too; see `given.read_given`.
        resume: continue the evaluation in the directory, which must be of the same protocol, data, weights, bank and versions of this
            program and TensorFlow. A finished one ends at once, or adds attacks, curves and patches that it has not.
        numbered: where another evaluation is in the directory, write into a numbered one beside it instead of refusing.

    Raises:
        UserError: a file or the directory cannot be used, or does not fit; a network whose logits are not finite.
    """
    strategy = strategy or tf.distribute.get_strategy()
    start_bank = read_bank(bank, config.n_classes) if bank else None
    foreign = list(dict.fromkeys(find_transferred(run, exclude=directory) for run in patches_from))  # each counts once
    transferred, (given, told) = read_transferred(foreign), read_given(patches, config.patch_shape)
    plan = make_plan(config, splits, bank=start_bank, transferred=transferred, given=given)
    files = {"weights": weights, "bank": bank, "patches_from": foreign, "patches": list(patches)}
    subject = _subject(config, model, splits, files)
    results = _open_directory(directory, subject, config.evaluation, strategy, resume=resume, numbered=numbered)
    title, report = "This evaluation was finished before", results.report
    if report:
        report["checklist"] = checklist(report, config.evaluation)  # keys that no result depends on may be others
    else:
        title, started = "Evaluated", time.monotonic()
        words = {
            "weights": weights or "of the model that was given",
            **describe(splits, config.data_dir, image_size=config.image_size, n_classes=config.n_classes),
        }
        _print_plan(plan, forward_flops(model), words | ({"given patches": told} if given else {}), results)
        try:
            scores = _run(plan, model, splits, results, config, strategy)
            names = class_names(config.data_dir, config.n_classes)
            report = _report(scores, config, subject, files, names, seconds=time.monotonic() - started)
            results.write_report(_report_files(scores, report, names))
        except OSError as error:
            raise UserError(f"{error.filename or directory}: cannot be written: {error.strerror or error}") from None
    _print_summary(report, results, title)
    return Report(report, results.path)


def _subject(config: PatchTrainingConfig, model: keras.Model, splits: tuple[Records, Records], files: dict[str, Any]) -> dict[str, Any]:
    """The network, files, data and versions that the results depend on, beside the protocol."""
    values, foreign = config.to_values(), files["patches_from"]
    blobs = {f"{name}_git_blob": _of_each(git_blob, path) for name, path in files.items()}
    if not files["weights"]:
        blobs["weights_sha256"] = weights_sha256(model)
    for file in foreign:
        theirs = (read_report(file.parent) or {"subject": {}})["subject"]
        if any(name.startswith("weights") and value and value == theirs.get(name) for name, value in blobs.items()):
            raise UserError(f"{file}: these patches were fitted on the very weights to be evaluated. Give --patches-from another network's")
    computing = {"precision_overrides": precision_overrides(config.precision), "mat": __version__, "tensorflow": tf.__version__}
    return {key: values[key] for key in SUBJECT_KEYS} | blobs | {"data_sha256": fingerprint(splits)} | computing


def _of_each(function, file):
    """What a function makes of a file or of each of several; None where there is none."""
    if not file:
        return None
    return [function(path) for path in file] if isinstance(file, list) else function(file)


def _open_directory(directory, subject, protocol, strategy, **options):
    """The `ReportDirectory`; a UserError tells of workers that would not evaluate the same."""
    results = ReportDirectory(directory, subject | protocol.fixed_values(), **options, writes=is_chief(strategy))
    check_same(
        strategy, {"evaluation": json.dumps([subject, protocol.to_values()]), "report so far": f"{results.path.name} {results.report}"}
    )
    return results


def _run(plan, model, splits, results, config, strategy):
    """Load the images, then fit and score what is planned; gives the `Scores`."""
    advice = (
        f"evaluation.images_at_once: {plan.images_at_once} images take more than there is. Set fewer, at least "
        f"evaluation.images_per_iteration: {plan.images_per_iteration}, and run the same command with --resume: what was fitted is kept"
    )
    with report_device_errors(lambda: advice), stopped_together(strategy, _STOPPED) as stop_if_asked:
        fitted_on = load_images(splits[0].take(plan.fit_examples), n_classes=plan.n_classes, image_size=plan.image_size)
        scored = load_images(splits[1].take(plan.scored_examples), n_classes=plan.n_classes, image_size=plan.image_size)
        attacks = UniversalAttacks(model, fitted_on.images, fitted_on.labels, jit_compile=use_xla(config.jit_compile), strategy=strategy)
        # A few images now, before anything is written: weights that are NaN are NaN on every image.
        few = attacks.predict_clean(scored.images[: plan.images_at_once], images_at_once=plan.images_at_once)
        check_finite(few, "without a patch")
        results.create()
        with WorkProgress(plan.cost) as progress:

            def advance(n_passes: int, text: str) -> None:
                progress.advance(n_passes, text)
                stop_if_asked()

            return fit_and_score(plan, attacks, scored, Callbacks(results.load, results.save, advance, progress.skip))


def fit_and_score(plan: EvaluationPlan, attacks: UniversalAttacks, scored: Images, callbacks: Callbacks) -> Scores:
    """Fit and score everything that a plan says; a UserError tells of a loss or logits that are not finite."""
    score = functools.partial(score_patches, plan=plan, attacks=attacks, scored=scored, callbacks=callbacks)
    clean = attacks.predict_clean(scored.images, images_at_once=plan.images_at_once)
    callbacks.advance(len(clean), "clean images")
    check_finite(clean, "without a patch")
    # Fitted first, so that what an earlier call fitted does not count in the time that is left.
    grid, gradient_free = map(score, [fit_patches(specs, plan, attacks, callbacks) for specs in (plan.grid, plan.gradient_free)])
    controls = score(control_patches(plan, attacks.images))
    transfer = score([FittedPatch(f"transfer-{name}", patch) for name, patch in plan.transferred])
    strongest = np.argsort([np.mean(patch.predictions == scored.labels) for patch in grid], kind="stable")[:CURVE_PATCHES]
    specs = curve_specs(plan, [plan.grid[i] for i in strongest])
    curves = score(fit_patches(specs, plan, attacks, callbacks))
    return Scores(
        **scored._asdict(),
        offsets=plan.scored_offsets(plan.patch_shape),
        clean=clean,
        controls=controls,
        grid=grid,
        gradient_free=gradient_free,
        transfer=transfer,
        given=score([FittedPatch(name, patch) for name, patch in plan.given]),
        iterations=[patch for patch, spec in zip(curves, specs, strict=True) if spec.patch_shape == plan.patch_shape],
        patch_sizes=[patch for patch, spec in zip(curves, specs, strict=True) if spec.n_iterations == plan.grid[0].n_iterations],
        vanishing=vanishing_gradients(plan, attacks, scored, callbacks),
        position_gradients=position_gradients(plan, attacks, scored, callbacks),
        cost=plan.cost,
    )


def _report(scores, config, subject, files, names, *, seconds):
    """The contents of `report.json`."""
    paths = {name: _of_each(str, path) for name, path in files.items()} | {"data_dir": config.data_dir}
    subject = paths | subject | {"protocol": config.evaluation.to_values()}
    report = make_report(scores, protocol=config.evaluation, subject=subject, class_names=names)
    finished = f"{datetime.datetime.now():%Y-%m-%d %H:%M:%S}"
    return report | {"run": {"finished": finished, "seconds": round(seconds, 1), "device": device_name()}}


def _report_files(scores, report, names):
    """Everything that a finished evaluation writes, name -> bytes, the report last."""
    fitted, accuracies = scores.fitted, [row["accuracy"] for row in (*report["grid"], *report["gradient_free"])]
    files = {
        FITTED_PATCHES_FILE: npz(names=[p.name for p in fitted], patches=[p.patch for p in fitted], accuracies=accuracies),
        "examples.csv": examples_csv(scores),
        "report.md": report_markdown(report),
    }
    try:
        files |= report_pictures(scores, report, names)
    except ImportError:
        console.print("No pictures: they need matplotlib (pip install matplotlib)")
    return files | {REPORT_FILE: (json.dumps(report, indent=2, allow_nan=False) + "\n").encode()}


def _print_plan(plan, flops, words, results):
    """Print what the evaluation will do."""
    attacks = [f"{len(plan.grid)} white-box patches x {plan.grid[0].n_iterations} iterations"]
    if plan.gradient_free:
        attacks.append(f"{len(plan.gradient_free)} gradient-free x {plan.gradient_free[0].n_iterations} queries")
    if plan.transferred:
        attacks.append(f"{len(plan.transferred)} transferred")
    if plan.given:
        attacks.append(f"{len(plan.given)} given")
    height, width, _ = plan.patch_shape
    facts = {
        "images": f"{len(plan.scored_examples):,} to score on, {len(plan.fit_examples):,} training images to fit patches on",
        "attacks": f"{', '.join(attacks)}; {height}x{width} pixels, {plan.images_per_iteration} images each time",
        "cost": f"{plan.cost:,} forward passes of one image, {plan.cost * flops / 1e12:,.1f} TFLOP",
        "report": results.path,
    }
    print_facts("Robustness against universal patches", words | facts)


def _print_summary(report, results, title):
    """Print the accuracies, and the checks that raised a warning."""
    facts = {
        "clean accuracy": interval_text(report["headline"]["clean"]),
        "robust accuracy": headline_text(report),
        "time": duration(report["run"]["seconds"]),
        "report": f"{results.path}: report.md, {REPORT_FILE}",
    }
    print_facts(title, facts)
    for item in report["checklist"]:
        if item["status"] == WARNING:
            console.print(f"  WARNING: failed check: {item['check']}: {item['message']}")
    if unchecked := sum(item["status"] == NOT_CHECKED for item in report["checklist"]):
        console.print(f"  {unchecked} of {len(report['checklist'])} checks were not part of this protocol (report.md)")
