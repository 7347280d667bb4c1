"""The report of an evaluation: what the findings say, as `report.json`, `report.md` and `examples.csv`.

docs/evaluation.md documents the schema of `report.json`.
"""

import csv
import io
import itertools
import json
import platform

import keras
import numpy as np
import tensorflow as tf

from mat import __version__
from mat.robustness.intervals import accuracy_interval, images_needed, interval_text

SCHEMA_VERSION = 2
TRIED = {  # what the headline is the worst of: lists of patches, all of one size, and what their rows are called
    "grid": "white_box",
    "gradient_free": "gradient_free",
    "transfer": "transfer",
    "controls": "control",
}
VANISHING_SHARE = 0.01  # of images without a gradient that raises a warning
LOSS_WINDOW = 25  # iterations that the first and the last loss are means of
SMALLEST_GRADIENT = 0.3  # at any position, in units of the mean over all, that raises no warning
LARGEST_CHANGE = 0.02  # of an accuracy, that counts as little

PASSED, WARNING, NOT_CHECKED = "passed", "warning", "not checked"


def make_report(findings, *, protocol, subject, class_names):
    """All that the findings say.

    Args:
        findings: `Findings` of an evaluation.
        protocol: the `EvaluationConfig`.
        subject: dict of what was evaluated: weights, data, network, seed; copied into the report.
        class_names: list of the classes' names.

    Returns:
        dict, plain values only: `report.json`.
    """
    lists = {name: getattr(findings, name) for name in (*TRIED, "iterations", "patch_sizes")}
    correct = {name: np.array([o.predictions == findings.labels for o in outcomes], bool) for name, outcomes in lists.items()}
    tried = np.concatenate([correct[name] for name in TRIED if lists[name]])  # [patches, N]
    counts = {name: np.array([n.sum() for n in correct[name]], int) for name in lists}
    counts |= {"clean": np.array([np.sum(findings.clean == findings.labels)]), "every": np.array([tried.all(axis=0).sum()])}
    estimates = _estimates(counts, len(findings.labels))
    rows = {
        name: [_row(outcome, findings, class_names) | estimate for outcome, estimate in zip(outcomes, estimates[name], strict=True)]
        for name, outcomes in lists.items()
    }
    worst = min((row | {"attack": attack} for name, attack in TRIED.items() for row in rows[name]), key=lambda row: row["accuracy"])
    accuracies = [row["accuracy"] for row in rows["grid"]]
    report = {
        "schema_version": SCHEMA_VERSION,
        "headline": {
            "clean": estimates["clean"][0],
            "robust": {key: worst[key] for key in (*estimates["clean"][0], "name", "attack")},
            "every_image_under_its_worst_patch": estimates["every"][0],
            "n_patches": len(tried),
        },
        "grid_summary": {
            "n_patches": len(accuracies),
            "mean": float(np.mean(accuracies)),
            "standard_deviation": float(np.std(accuracies)),
            "highest": max(accuracies),
            "lowest": min(accuracies),
        },
        "grid": rows["grid"],
        "gradient_free": rows["gradient_free"],
        "transfer": rows["transfer"],
        "controls": rows["controls"],
        "curves": {
            "iterations": _curve(rows["iterations"], "iterations"),
            "patch_size": _curve(rows["patch_sizes"], "patch_shape"),
        },
        "vanishing_gradients": findings.vanishing,
        "position_gradients": [{"offset": list(offset), "gradient": value} for offset, value in findings.position_gradients.items()],
    }
    report["checklist"] = checklist(report, protocol)
    return report | {"subject": subject, "cost": {"forward_passes": findings.cost}, "versions": versions()}


def versions():
    """The versions of everything that computes, a dict of strings."""
    import tensorflow_probability  # takes most of a second to import

    modules = {"tensorflow": tf, "keras": keras, "tensorflow_probability": tensorflow_probability, "numpy": np}
    return {"mat": __version__, "python": platform.python_version()} | {name: module.__version__ for name, module in modules.items()}


def _estimates(counts, n_images):
    """Accuracies with their intervals from lists of counts by name; all intervals in one call, which costs most of it."""
    flat = np.concatenate(list(counts.values()))
    low, high = accuracy_interval(flat, n_images)
    entries = iter(
        {"accuracy": int(n) / n_images, "low": float(lo), "high": float(hi), "n_correct": int(n), "n_images": n_images}
        for n, lo, hi in zip(flat, low, high, strict=True)
    )
    return {name: [next(entries) for _ in values] for name, values in counts.items()}


def _row(outcome, findings, class_names):
    """What the report says of a patch beside its accuracy."""
    right = findings.clean == findings.labels
    row = {"name": outcome.name, "fooled": _share(outcome.predictions[right] != findings.labels[right])}
    if (restart := outcome.restart) is None:
        return row
    row |= {
        "attack": restart.attack,
        "target": restart.target,
        "target_name": None if restart.target is None else class_names[restart.target],
        "start": restart.start,
        "step_size": restart.step_size,
        "iterations": restart.n_iterations,
        "patch_shape": list(restart.patch_shape),
        "first_loss": float(np.mean(outcome.losses[:LOSS_WINDOW])),
        "last_loss": float(np.mean(outcome.losses[-LOSS_WINDOW:])),
    }
    if restart.target is not None:
        row["success"] = _share(outcome.predictions[findings.labels != restart.target] == restart.target)
    return row


def _share(flags):
    """The share of true flags; None where there are none to count."""
    return float(np.mean(flags)) if len(flags) else None


def _curve(rows, key):
    """Points (value of `key`, worst and mean accuracy of the patches that share it), in rising order; empty without a curve."""
    points = []
    for value, group in itertools.groupby(sorted(rows, key=lambda row: row[key]), key=lambda row: row[key]):
        group = list(group)
        worst = min(group, key=lambda row: row["accuracy"])
        points.append(
            {key: value, "mean": float(np.mean([row["accuracy"] for row in group])), "n_patches": len(group)}
            | {name: worst[name] for name in ("accuracy", "low", "high", "name")}
        )
    return points


def checklist(report, protocol):
    """The signs that an evaluation is not to be trusted.

    Args:
        report: of `make_report`, as far as it is.
        protocol: the `EvaluationConfig`.

    Returns:
        list of dicts: `check`, `status` (passed | warning | not checked) and `message`.
    """
    robust = report["headline"]["robust"]
    white_box = min(report["grid"], key=lambda row: row["accuracy"])
    iterations, sizes = report["curves"]["iterations"], report["curves"]["patch_size"]
    width = robust["high"] - robust["low"]
    needed = max(images_needed(robust["n_correct"], robust["n_images"], protocol.interval_width), robust["n_images"] + 1)
    wide = f"{width:.1%} wide from {robust['n_images']:,} images"
    return [
        _gradients_reach(max(report["vanishing_gradients"].values()), report["position_gradients"]),
        _weaker("the gradient-free attack is weaker than white-box", report["gradient_free"], white_box, "masked gradients"),
        _weaker("transferred patches are weaker than white-box", report["transfer"], white_box, "masked gradients or too weak an attack"),
        _weaker(
            "grey, noise and natural patches are weaker than white-box", report["controls"], white_box, "an attack that attacks nothing"
        ),
        _converged(iterations, robust),
        _monotone(sizes),
        _check(
            f"the interval is at most {protocol.interval_width:.1%} wide",
            width <= protocol.interval_width,
            wide if width <= protocol.interval_width else f"{wide}; about {needed:,} are needed",
        ),
    ]


def _check(check, passed, message):
    return {"check": check, "status": PASSED if passed else WARNING, "message": message}


def _gradients_reach(vanishing, positions):
    """Nearly all images must give a patch a gradient, and a patch must get one of the same order wherever it lies."""
    weakest = min(positions, key=lambda position: position["gradient"], default={"gradient": 0.0, "offset": None})
    message = f"{vanishing:.1%} of the images give a grey patch no gradient (up to {VANISHING_SHARE:.0%} pass)"
    if positions:
        message += (
            f"; where its gradient is smallest, at offset {tuple(weakest['offset'])}, it is {weakest['gradient']:.2f} of the mean over all "
            f"positions (down to {SMALLEST_GRADIENT} passes)"
        )
    return _check("gradients reach the patch", vanishing <= VANISHING_SHARE and weakest["gradient"] >= SMALLEST_GRADIENT, message)


def _weaker(check, rows, white_box, sign):
    """The strongest of `rows` must leave more images correct than the strongest white-box patch."""
    if not rows:
        return {"check": check, "status": NOT_CHECKED, "message": "not part of this evaluation"}
    strongest = min(rows, key=lambda row: row["accuracy"])
    passed = strongest["n_correct"] > white_box["n_correct"] or white_box["n_correct"] == 0  # nothing can be stronger than 0
    message = f"{strongest['accuracy']:.1%} under {strongest['name']}, {white_box['accuracy']:.1%} under the white-box attack"
    return _check(check, passed, message if passed else f"{message}: a sign of {sign}")


def _converged(points, robust):
    """Doubling the iterations must change little, against the same patches with fewer and against the headline."""
    check = "twice the iterations change little"
    if len(points) < 2:
        return {"check": check, "status": NOT_CHECKED, "message": "no curve was measured"}
    before, after = points[-2:]
    reference, words = before["accuracy"], f"after {before['iterations']} iterations"
    if robust["accuracy"] > reference:
        reference, words = robust["accuracy"], "in the headline"
    message = f"{reference:.1%} {words}, {after['accuracy']:.1%} after {after['iterations']}"
    return _check(check, _is_little(reference - after["accuracy"]), f"{message} (up to {LARGEST_CHANGE:.0%} less pass)")


def _is_little(change):
    """Whether a change of an accuracy counts as little; a difference of rounded numbers may lie just beyond."""
    return change <= LARGEST_CHANGE + 1e-9


def _monotone(points):
    """A larger patch must not help the defender."""
    check = "larger patches are no weaker"
    if len(points) < 2:
        return {"check": check, "status": NOT_CHECKED, "message": "no curve was measured"}
    gains = [after["accuracy"] - before["accuracy"] for before, after in zip(points[:-1], points[1:], strict=True)]
    shapes = [f"{'x'.join(map(str, point['patch_shape'][:2]))}: {point['accuracy']:.1%}" for point in points]
    return _check(check, _is_little(max(gains)), ", ".join(shapes))


def attack_words(robust):
    """What kind of patch set the headline: `white-box`, `gradient-free`, `transfer` or `control`."""
    return robust["attack"].replace("_", "-")


def robust_words(report):
    """The headline of a report in words: `28.1% (25.4% to 30.9%) under the worst of 60 patches (white-box)`."""
    robust, n_patches = report["headline"]["robust"], report["headline"]["n_patches"]
    return f"{interval_text(robust)} under the worst of {n_patches} universal patches ({attack_words(robust)})"


def report_json(report):
    """`report.json`, bytes."""
    return (json.dumps(report, indent=2, allow_nan=False) + "\n").encode()


def examples_csv(findings):
    """`examples.csv`: for every scored image its record, label, clean prediction and the prediction under each patch; bytes."""
    outcomes = [*findings.controls, *findings.grid, *findings.gradient_free, *findings.transfer]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["record", "label", "clean", *(outcome.name for outcome in outcomes)])
    writer.writerows(np.stack([findings.records, findings.labels, findings.clean, *(o.predictions for o in outcomes)], axis=1).tolist())
    return text.getvalue().encode()


def report_markdown(report):
    """`report.md`, bytes: the same as tables for people."""
    headline, summary = report["headline"], report["grid_summary"]
    sections = [
        "# Robustness against universal patches",
        _table(
            ["", "accuracy", "95 % interval"],
            [
                ["clean", *_interval(headline["clean"])],
                ["robust: under the worst patch", *_interval(headline["robust"])],
                ["every image under its own worst patch", *_interval(headline["every_image_under_its_worst_patch"])],
            ],
        ),
        f"On {headline['clean']['n_images']:,} held-out images. The worst of the {headline['n_patches']} patches that were tried is "
        f"`{headline['robust']['name']}` ({attack_words(headline['robust'])}). Over the {summary['n_patches']} white-box patches of the "
        f"grid the accuracy is {summary['mean']:.1%} on average (standard deviation "
        f"{summary['standard_deviation']:.1%}, from {summary['lowest']:.1%} to {summary['highest']:.1%}). Intervals: Beta posterior under "
        "the Jeffreys prior, of each patch by itself.",
        "## Can it be trusted?",
        _table(
            ["check", "status", ""],
            [
                [item["check"], "**WARNING**" if item["status"] == WARNING else item["status"], item["message"]]
                for item in report["checklist"]
            ],
        ),
        "## Attacks",
        _attack_table(report["grid"]),
    ]
    if report["gradient_free"]:
        sections += ["### Gradient-free: random search over squares", _attack_table(report["gradient_free"])]
    if report["transfer"]:
        sections += ["### Patches fitted on another network", _control_table(report["transfer"])]
    sections += ["## Controls", _control_table(report["controls"])]
    for curve, key in {"iterations": "iterations", "patch_size": "patch_shape"}.items():
        if points := report["curves"][curve]:
            sections += [f"## Accuracy against {curve.replace('_', ' ')}", _curve_table(points, key)]
    subject = {key: value for key, value in report["subject"].items() if key != "protocol"}
    subject |= {f"evaluation.{key}": value for key, value in report["subject"]["protocol"].items()}
    subject |= {"forward passes": report["cost"]["forward_passes"]} | report["versions"]
    sections += ["## What was evaluated", _table(["", ""], [[name, f"`{value}`"] for name, value in subject.items()])]
    return ("\n\n".join(sections) + "\n").encode()


def _interval(estimate):
    return [f"{estimate['accuracy']:.1%}", f"{estimate['low']:.1%} to {estimate['high']:.1%}"]


def _attack_table(rows):
    """Fitted patches, the strongest first."""
    header = ["target", "start", "step size", "iterations", "accuracy", "95 % interval", "fooled", "target reached", "loss"]
    lines = [
        [
            "untargeted" if row["target"] is None else f"{row['target_name']} ({row['target']})",
            row["start"],
            "" if row["step_size"] is None else f"{row['step_size']:g}",
            str(row["iterations"]),
            *_interval(row),
            _percent(row["fooled"]),
            _percent(row.get("success")),
            f"{row['first_loss']:.3f} → {row['last_loss']:.3f}",
        ]
        for row in sorted(rows, key=lambda row: row["accuracy"])
    ]
    return _table(header, lines)


def _control_table(rows):
    header = ["patch", "accuracy", "95 % interval", "fooled"]
    return _table(header, [[f"`{row['name']}`", *_interval(row), _percent(row["fooled"])] for row in rows])


def _curve_table(points, key):
    """A curve; `key` is what its points differ in."""
    header = [key.replace("_", " "), "worst", "95 % interval", "mean", "patches"]
    return _table(header, [[_at(point[key]), *_interval(point), f"{point['mean']:.1%}", str(point["n_patches"])] for point in points])


def _at(value):
    return "x".join(map(str, value[:2])) if isinstance(value, list) else str(value)


def _percent(share):
    return "" if share is None else f"{share:.1%}"


def _table(header, rows):
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
