"""The report as Markdown tables, `report.md`."""

from collections.abc import Iterable

from mat.robustness.checklist import WARNING


def report_markdown(report: dict) -> bytes:
    """`report.md`, made from the contents of `report.json`."""
    headline, robust, summary = report["headline"], report["headline"]["robust"], report["grid_summary"]
    accuracies = [
        ["clean", *_interval(headline["clean"])],
        ["robust: under the worst patch", *_interval(robust)],
        ["every image under its own worst patch", *_interval(headline["every_image_under_its_worst_patch"])],
    ]
    checks = [(i["check"], "**WARNING**" if i["status"] == WARNING else i["status"], i["message"]) for i in report["checklist"]]
    subject = dict(report["subject"])
    subject |= {f"evaluation.{key}": value for key, value in subject.pop("protocol").items()}
    subject |= {"forward passes": report["cost"]["forward_passes"]} | report["versions"]
    sections = {
        "# Robustness against universal patches": f"{markdown_table(['', 'accuracy', '95 % interval'], accuracies)}\n\n"
        f"On {headline['clean']['n_images']:,} held-out images. The worst of the {headline['n_patches']} patches that were tried is "
        f"`{robust['name']}` ({robust['attack'].replace('_', '-')}). Over the {summary['n_patches']} white-box patches of the grid the "
        f"accuracy is {summary['mean']:.1%} on average (standard deviation {summary['standard_deviation']:.1%}, from "
        f"{summary['lowest']:.1%} to {summary['highest']:.1%}). Intervals: Beta posterior under the Jeffreys prior, of each patch by "
        "itself.",
        "## Can it be trusted?": markdown_table(["check", "status", ""], checks),
        "## Attacks": _attack_table(report["grid"]),
        "### Gradient-free: random search over squares": _attack_table(report["gradient_free"]),
        "### Patches fitted on another network": _other_table(report["transfer"]),
        "### Patches that were given": _other_table(report["given"]),
        "## Controls": _other_table(report["controls"]),
        "## Accuracy against iterations": _curve_table(report["curves"]["iterations"], "iterations"),
        "## Accuracy against patch size": _curve_table(report["curves"]["patch_size"], "patch_shape"),
        "## What was evaluated": markdown_table(["", ""], ([name, f"`{value}`"] for name, value in subject.items())),
    }
    return ("\n\n".join(f"{title}\n\n{content}" for title, content in sections.items() if content) + "\n").encode()


def _attack_table(rows: list[dict]) -> str:
    """Fitted patches, the strongest first."""
    header = ["target", "start", "step size", "iterations", "accuracy", "95 % interval", "fooled", "target reached", "loss"]
    lines = []
    for row in sorted(rows, key=lambda row: row["accuracy"]):
        goal = "untargeted" if row["target"] is None else f"{row['target_name']} ({row['target']})"
        step_size = "" if row["step_size"] is None else f"{row['step_size']:g}"
        effect = [*_interval(row), _percent(row["fooled"]), _percent(row.get("success"))]
        lines.append([goal, row["start"], step_size, row["iterations"], *effect, f"{row['first_loss']:.3f} → {row['last_loss']:.3f}"])
    return markdown_table(header, lines)


def _other_table(rows: list[dict]) -> str:
    """Patches that were not fitted to the network."""
    lines = [[f"`{row['name']}`", *_interval(row), _percent(row["fooled"])] for row in rows]
    return markdown_table(["patch", "accuracy", "95 % interval", "fooled"], lines)


def _curve_table(points: list[dict], key: str) -> str:
    """The points of a curve; `key` is what they differ in."""
    lines = [[curve_value(p, key), *_interval(p), _percent(p["mean"]), p["n_patches"]] for p in points]
    return markdown_table([key.replace("_", " "), "worst", "95 % interval", "mean", "patches"], lines)


def curve_value(point: dict, key: str) -> str:
    """What a point of a curve is at, as tables show it; `key` is what the points differ in: `iterations` or `patch_shape`."""
    return "x".join(map(str, point[key][:2])) if key == "patch_shape" else str(point[key])


def _interval(estimate: dict) -> tuple[str, str]:
    return f"{estimate['accuracy']:.1%}", f"{estimate['low']:.1%} to {estimate['high']:.1%}"


def _percent(share: float | None) -> str:
    return "" if share is None else f"{share:.1%}"


def markdown_table(header: list[str], rows: Iterable[Iterable[object]]) -> str:
    """A Markdown table; empty without rows."""
    lines = [" | ".join(str(cell).replace("|", "\\|") for cell in row) for row in rows]
    return "\n".join(f"| {line} |" for line in (" | ".join(header), " | ".join(["---"] * len(header)), *lines)) if lines else ""
