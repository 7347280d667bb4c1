"""The checklist of a report: signs that the true robust accuracy may be lower than the reported one."""

import itertools

from mat.config import EvaluationConfig
from mat.robustness.intervals import images_needed

PASSED, WARNING, NOT_CHECKED = "passed", "warning", "not checked"
_VANISHING_SHARE = 0.01  # of images without a gradient that raises a warning
_SMALLEST_GRADIENT = 0.3  # at any position, in units of the mean over all, that raises no warning
_LARGEST_CHANGE = 0.02 + 1e-9  # of an accuracy, that counts as little; a difference of rounded numbers may lie just beyond

_Result = tuple[bool | None, str]  # whether a check holds, None where that was not measured, and a message


def checklist(report: dict, protocol: EvaluationConfig) -> list[dict[str, str]]:
    """The checks of a report, each with `check`, `status` (passed | warning | not checked) and `message`."""
    robust, curves, width = report["headline"]["robust"], report["curves"], protocol.interval_width
    checks = {
        "gradients reach the patch": _gradients_reach(report["vanishing_gradients"], report["position_gradients"]),
        "the gradient-free attack is weaker than white-box": _weaker(report, "gradient_free", "masked gradients"),
        "transferred patches are weaker than white-box": _weaker(report, "transfer", "masked gradients or too weak an attack"),
        "given patches are weaker than white-box": _weaker(report, "given", "masked gradients or too weak an attack"),
        "grey, noise and natural patches are weaker than white-box": _weaker(report, "controls", "an attack that attacks nothing"),
        "twice the iterations change little": _converged(curves["iterations"], robust),
        "larger patches are no weaker": _monotone(curves["patch_size"]),
        f"the interval is at most {width:.1%} wide": _narrow(robust, width),
    }
    statuses = {True: PASSED, False: WARNING, None: NOT_CHECKED}
    return [{"check": check, "status": statuses[holds], "message": message} for check, (holds, message) in checks.items()]


def _gradients_reach(vanishing: dict[str, float], positions: list[dict]) -> _Result:
    """Nearly all images must give a patch a gradient, and a patch must get one of the same order wherever it lies."""
    share = max(vanishing.values())
    message = f"{share:.1%} of the images give a grey patch no gradient (up to {_VANISHING_SHARE:.0%} pass)"
    if not positions:
        return False, message
    gradient, offset = min((position["gradient"], tuple(position["offset"])) for position in positions)
    message += f"; where its gradient is smallest, at offset {offset}, it is {gradient:.2f} of the mean over all positions"
    message += f" (down to {_SMALLEST_GRADIENT} passes)"
    return share <= _VANISHING_SHARE and gradient >= _SMALLEST_GRADIENT, message


def _weaker(report: dict, name: str, sign: str) -> _Result:
    """The strongest patch of a list must leave more images correct than the strongest white-box patch; nothing is stronger than 0."""
    if not report[name]:
        return None, "not part of this evaluation"
    strongest, white_box = (min(report[rows], key=lambda row: row["accuracy"]) for rows in (name, "grid"))
    holds = strongest["n_correct"] > white_box["n_correct"] or white_box["n_correct"] == 0
    message = f"{strongest['accuracy']:.1%} under {strongest['name']}, {white_box['accuracy']:.1%} under the white-box attack"
    return holds, message if holds else f"{message}: a sign of {sign}"


def _converged(points: list[dict], robust: dict) -> _Result:
    """Doubling the iterations must change little, against the same patches with fewer and against the headline."""
    if len(points) < 2:
        return None, "no curve was measured"
    before, after = points[-2:]
    candidates = [(before["accuracy"], f"after {before['iterations']} iterations"), (robust["accuracy"], "in the headline")]
    reference, words = max(candidates, key=lambda candidate: candidate[0])
    message = f"{reference:.1%} {words}, {after['accuracy']:.1%} after {after['iterations']} (up to {_LARGEST_CHANGE:.0%} less pass)"
    return reference - after["accuracy"] <= _LARGEST_CHANGE, message


def _monotone(points: list[dict]) -> _Result:
    """A larger patch must not help the defender."""
    if len(points) < 2:
        return None, "no curve was measured"
    gains = (after["accuracy"] - before["accuracy"] for before, after in itertools.pairwise(points))
    message = ", ".join(f"{'x'.join(map(str, point['patch_shape'][:2]))}: {point['accuracy']:.1%}" for point in points)
    return max(gains) <= _LARGEST_CHANGE, message


def _narrow(robust: dict, largest: float) -> _Result:
    """There must be enough images for an interval of at most the protocol's width."""
    width, n_images = robust["high"] - robust["low"], robust["n_images"]
    message = f"{width:.1%} wide from {n_images:,} images"
    if width > largest:
        message += f"; about {max(images_needed(robust['n_correct'], n_images, largest), n_images + 1):,} are needed"
    return width <= largest, message
