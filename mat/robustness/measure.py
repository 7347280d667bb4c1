"""A whole evaluation of one network: what it needs is found and checked, the findings become a report, and its summary is printed."""

import dataclasses
import datetime
import time

import tensorflow as tf

from mat import __version__
from mat.cli.config_keys import plain_values
from mat.cli.console import console, print_facts
from mat.cli.devices import device_name, memory_limits, precision_overrides
from mat.cli.errors import UserError
from mat.cli.files import npz
from mat.cli.progress import duration
from mat.data.splits import class_names, describe, fingerprint
from mat.models.resnet import forward_flops
from mat.models.weights import git_blob
from mat.robustness.fit import Evaluation
from mat.robustness.intervals import interval_text
from mat.robustness.pictures import report_pictures
from mat.robustness.report import NOT_CHECKED, WARNING, checklist, examples_csv, make_report, report_json, report_markdown, robust_words
from mat.robustness.store import PATCHES, REPORT, ReportDirectory, find_patches, read_bank, read_patches, read_report

SUBJECT_KEYS = (  # of the config, those that the results depend on
    *("dataset", "image_size", "n_classes", "depth", "width", "n_stacks", "normalization", "precision"),
    *("patch_shape", "seed", "deterministic", "jit_compile"),
)


def evaluate(config, model, splits, directory, *, weights, bank=None, patches_from=None, resume=False, or_next=False):
    """Evaluate a network and write the report, unless it is there already.

    Args:
        config: a `PatchTrainingConfig`; its section `evaluation` is the protocol.
        model: the network with its weights.
        splits: (training, validation) `Records`.
        directory: where the report goes.
        weights: path of the file that the weights came from.
        bank: path of a `patches.npz` to start attacks from, or None.
        patches_from: directory of an evaluation of another network whose patches are tried on this one, or None.
        resume: continue the evaluation in the directory. A finished report counts if protocol, data, weights, bank, foreign patches and
            the versions of this program and of TensorFlow are the same.
        or_next: where another evaluation is in the directory, write into a numbered one beside it instead of refusing.

    Returns:
        dict, the report.

    Raises:
        UserError: a file or the directory cannot be used, or does not fit; a network whose logits are not finite.
    """
    start_bank = read_bank(bank, config.n_classes) if bank else None
    foreign = find_patches(patches_from, but_not=directory) if patches_from else None
    transferred = read_patches(foreign) if foreign else ()
    files = {"weights": weights, "bank": bank, "patches_from": foreign}
    blobs = {f"{name}_git_blob": git_blob(path) if path else None for name, path in files.items()}
    if foreign and (read_report(foreign.parent) or {"subject": {}})["subject"].get("weights_git_blob") == blobs["weights_git_blob"]:
        raise UserError(f"{foreign}: these patches were fitted on the very weights to be evaluated. Give --patches-from another network's")
    settings = {key: plain_values(getattr(config, key)) for key in SUBJECT_KEYS} | blobs
    settings |= {"data_sha256": fingerprint(splits), "precision_overrides": precision_overrides(config.precision)}
    settings |= {"mat": __version__, "tensorflow": tf.__version__}
    protocol = plain_values(dataclasses.asdict(config.evaluation))
    fixed_keys = [f.name for f in dataclasses.fields(config.evaluation) if not f.metadata["free"]]
    fixed = settings | {f"evaluation.{key}": protocol[key] for key in fixed_keys}
    results = ReportDirectory(directory, fixed, resume=resume, or_next=or_next)
    if report := results.finished():
        report["checklist"] = checklist(report, config.evaluation)  # keys that no result depends on may be others
        _print_summary(report, results.path, title="This evaluation was finished before")
        return report
    with memory_limits(lambda: _less_memory(config)):
        evaluation = Evaluation(config, model, splits, results, bank=start_bank, transferred=transferred)
    _print_plan(config, evaluation, splits, weights, forward_flops(model))
    started = time.monotonic()
    try:
        results.create()
        with memory_limits(lambda: _less_memory(config)):
            findings = evaluation.run()
        names = class_names(config.data_dir, config.n_classes)
        subject = {name: str(path) if path else None for name, path in files.items()} | {"data_dir": config.data_dir} | settings
        report = make_report(findings, protocol=config.evaluation, subject=subject | {"protocol": protocol}, class_names=names)
        run = {"finished": f"{datetime.datetime.now():%Y-%m-%d %H:%M:%S}", "seconds": round(time.monotonic() - started, 1)}
        report["run"] = run | {"device": device_name()}
        results.write(_files(findings, report, names))
    except OSError as error:
        raise UserError(f"{error.filename or directory}: cannot be written: {error.strerror or error}") from None
    _print_summary(report, results.path, title="Evaluated")
    return report


def _less_memory(config):
    """How to get along with less memory."""
    return (
        f"evaluation.images_at_once: {config.evaluation.images_at_once} images take more than there is. Set fewer, at least "
        f"evaluation.images_per_iteration: {config.evaluation.images_per_iteration}, and run the same command with --resume: what was "
        "fitted is kept"
    )


def _files(findings, report, names):
    """Everything that a finished evaluation writes, name -> bytes, the report last."""
    fitted, accuracies = findings.fitted, [row["accuracy"] for row in (*report["grid"], *report["gradient_free"])]
    files = {
        PATCHES: npz(names=[o.name for o in fitted], patches=[o.patch for o in fitted], accuracies=accuracies),
        "examples.csv": examples_csv(findings),
        "report.md": report_markdown(report),
    }
    try:
        files |= report_pictures(findings, report, names)
    except ImportError:
        console.print("No pictures: they need matplotlib (pip install matplotlib)")
    return files | {REPORT: report_json(report)}


def _print_plan(config, evaluation, splits, weights, flops):
    """What the evaluation will do."""
    protocol = config.evaluation
    kinds = {kind: [r for r in evaluation.grid if r.attack == kind] for kind in ("white_box", "gradient_free")}
    attacks = [f"{len(kinds['white_box'])} white-box patches x {protocol.iterations} iterations"]
    if kinds["gradient_free"]:
        attacks.append(f"{len(kinds['gradient_free'])} gradient-free x {protocol.search_iterations} queries")
    if evaluation.transferred:
        attacks.append(f"{len(evaluation.transferred)} transferred")
    height, width, _ = config.patch_shape
    cost = evaluation.cost()
    facts = {
        "weights": str(weights),
        **describe(splits, config.data_dir, image_size=config.image_size, n_classes=config.n_classes),
        "images": f"{len(evaluation.labels):,} to score on, {len(evaluation.fit_labels):,} training images to fit patches on",
        "attacks": f"{', '.join(attacks)}; {height}x{width} pixels, {protocol.images_per_iteration} images each time",
        "cost": f"{cost:,} forward passes of one image, {cost * flops / 1e12:,.1f} TFLOP",
        "report": str(evaluation.store.path),
    }
    print_facts("Robustness against universal patches", facts)


def _print_summary(report, path, *, title):
    """How the network did, and what to doubt."""
    headline = report["headline"]
    facts = {
        "clean accuracy": interval_text(headline["clean"]),
        "robust accuracy": robust_words(report),
        "time": duration(report["run"]["seconds"]),
        "report": f"{path}: report.md, {REPORT}",
    }
    print_facts(title, facts)
    for item in report["checklist"]:
        if item["status"] == WARNING:
            console.print(f"  WARNING: not true that {item['check']}: {item['message']}")
    unchecked = sum(item["status"] == NOT_CHECKED for item in report["checklist"])
    if unchecked:
        console.print(f"  {unchecked} of {len(report['checklist'])} checks were not part of this protocol (report.md)")
