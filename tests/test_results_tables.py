"""The runs of docs/results.md: their configs, the command that repeats them, and the tables."""

import contextlib
import json
import pathlib
import shutil

import pytest

import mat.evaluate as evaluate
import mat.train as train
from mat.config import PatchTrainingConfig
from mat.data import convert
from mat.data.class_choice import read_class_names
from mat.robustness.store import report_path
from mat.tools import results
from mat.tools.results_tables import RESULTS_DOCUMENT, RUN_TITLES, forward_equivalents, read_figures, tables, with_tables

ROOT = RESULTS_DOCUMENT.parents[1]


@pytest.fixture
def calls(monkeypatch, tmp_path):
    """The commands that are called, in a directory that has the configs alone; each leaves the files that tell that it is done."""
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(results, "FIGURES", tmp_path / "docs" / "results")
    monkeypatch.setattr(results, "run_figures", lambda weights: {"weights": [path.name for path in weights]})
    made = []

    def call(program, *arguments):
        made.append((program, *arguments))
        if program == "-m":
            parsed = convert.parse_arguments(arguments[1:])
            directory = pathlib.Path(parsed.destination)
            directory.mkdir(parents=True)
            (directory / "dataset.json").write_text(json.dumps({"image_size": 64, "classes": read_class_names(parsed.classes)}))
        elif program == "mat/train.py":
            parsed = train.parse_arguments(list(arguments))
            config = PatchTrainingConfig.from_yaml(parsed.config, parsed.set)
            config.result_dir.mkdir(parents=True, exist_ok=True)
            (config.result_dir / "log.csv").write_text((config.n_epochs + 1) * "\n")
        else:
            parsed = evaluate.parse_arguments(list(arguments))
            protocol = evaluate.read_config(parsed).evaluation
            assert protocol.n_targets == 10
            directory = report_path(parsed.weights, quick=parsed.quick)
            assert parsed.resume == directory.exists()
            directory.mkdir(exist_ok=True)
            subject = {"patches_from": parsed.patches_from, "protocol": protocol.to_values()}
            (directory / "report.json").write_text(json.dumps({"headline": {}, "subject": subject}))

    monkeypatch.setattr(results, "_call", call)
    return made


def evaluated(call):
    """The names of the run whose weights a call evaluates, and of those whose patches it tries."""
    parsed = evaluate.parse_arguments(list(call[1:]))
    directories = [pathlib.Path(path) for path in parsed.patches_from]
    return pathlib.Path(parsed.weights).parent.name, [(path.parent if "results" in path.parts else path).name for path in directories]


def options(call):
    """The options of a call that evaluates."""
    return evaluate.parse_arguments(list(call[1:]))


def publish(directory):
    """An evaluation as those in weights/ are."""
    directory.mkdir(parents=True)
    (directory / "report.json").write_text(json.dumps({"headline": {}, "subject": {}}))


def test_results_are_made_once(calls, tmp_path):
    assert results.main(["--data", "tiny.zip"]) == 0
    assert calls[0] == ("-m", "mat.data.convert", "tiny.zip", "data/tiny-imagenet-10", "--classes", "configs/results/classes.txt")
    trained = [call[1:4:2] for call in calls if call[0] == "mat/train.py"]
    assert trained == [(f"configs/results/{run.config}.yaml", f"seed={run.seed}") for run in results.RUNS]
    others = dict(evaluated(call) for call in calls if "--patches-from" in call)
    assert others.pop("standard_0") == ["mat_0", "standard_1"]
    assert others.pop("mat_0") == ["standard_0", "mat_1"]
    assert others.pop("standard_1") == others.pop("mat_1") == ["standard_0", "mat_0"]
    assert others == {run.name: ["standard_0", "mat_0"] for run in results.RUNS[4:]}
    assert {tuple(options(call).patches) for call in calls if "--patches-from" in call} == {("results/tiny_imagenet_10/mat_0/patches.npz",)}
    assert {evaluated(call)[0] for call in calls if "evaluation.curves=true" in call} == {"standard_0", "mat_0"}
    assert {evaluated(call)[0] for call in calls if "--quick" in call} == {"mat_1"}
    quick = [pathlib.Path(options(call).weights).stem[-3:] for call in calls if "--quick" in call]
    assert quick == ["004", "009", "014", "019", "024", "029"]
    assert sorted(path.stem for path in (tmp_path / "docs" / "results").iterdir()) == sorted(RUN_TITLES)
    calls.clear()
    assert results.main([]) == 0
    assert not calls


@pytest.mark.parametrize(
    ("file", "key", "value"),
    [
        ("mat_0/tiny_imagenet_weights_029_evaluation", "curves", False),
        ("mat_1/tiny_imagenet_weights_009_quick_evaluation", "max_images", 50),
    ],
)
def test_a_report_of_another_protocol_is_not_taken_for_done(calls, tmp_path, file, key, value):
    results.make_results(results.RUNS, "tiny.zip")
    path = tmp_path / "results/tiny_imagenet_10" / file / "report.json"
    report = json.loads(path.read_text())
    report["subject"]["protocol"][key] = value
    path.write_text(json.dumps(report))
    calls.clear()
    results.make_results(results.RUNS, None)
    [call] = calls
    assert options(call).resume
    assert report_path(options(call).weights, quick=options(call).quick) == pathlib.Path("results/tiny_imagenet_10", file)


def test_an_interrupted_run_goes_on_and_has_no_figures_without_the_others(calls, tmp_path, capsys):
    results.make_results(results.RUNS[:1], "tiny.zip")
    assert "standard_0: no figures, as the patches of mat_0, standard_1 are tried for these" in capsys.readouterr().out
    assert not (tmp_path / "docs" / "results").exists()
    log = tmp_path / "results/tiny_imagenet_10/standard_0/log.csv"
    log.write_text(log.read_text()[1:])
    calls.clear()
    results.make_results(results.RUNS[:1], None)
    assert calls == [("mat/train.py", "configs/results/standard.yaml", "--set", "seed=0", "--resume")]


def test_a_run_alone_is_attacked_with_the_published_patches(calls, tmp_path):
    for run in ("standard", "mat"):
        publish(tmp_path / f"weights/tiny_imagenet_10_{run}")
    half_trained = tmp_path / "results/tiny_imagenet_10/mat_0/patches.npz"
    half_trained.parent.mkdir(parents=True)
    half_trained.write_bytes(b"")
    results.make_results(results.RUNS[4:5], "tiny.zip")
    *_, last = calls
    assert evaluated(last) == ("adversarial_training_0", ["tiny_imagenet_10_standard", "tiny_imagenet_10_mat"])
    assert options(last).patches == ["weights/tiny_imagenet_10_mat/patches.npz"]
    assert (tmp_path / "docs/results/adversarial_training_0.json").is_file()


def test_figures_that_cannot_be_written_are_told(calls, tmp_path, capsys):
    for run in ("standard", "mat"):
        publish(tmp_path / f"weights/tiny_imagenet_10_{run}")
    (tmp_path / "docs").write_text("no directory")
    assert results.main(["--data", "tiny.zip", "--only", "adversarial_training_0"]) == 2
    assert "docs/results/adversarial_training_0.json: cannot be written: " in capsys.readouterr().err


# A command that stops when it is told to, which `kill` tells the process that called it.
STOPPED = """
import os, signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
os.kill(os.getppid(), signal.SIGTERM)
time.sleep(60)
"""


@pytest.mark.parametrize(
    ("code", "status"), [("pass", None), ("raise SystemExit(3)", 3), ("import os; os.kill(os.getpid(), 9)", 137), (STOPPED, 143)]
)
def test_a_command_that_fails_ends_it_with_its_status(code, status):
    with contextlib.nullcontext() if status is None else pytest.raises(SystemExit) as raised:
        results._call("-c", code)
    assert status is None or raised.value.code == status


def test_missing_data_is_told(calls, capsys):
    assert results.main(["--only", "mat_0"]) == 2
    assert "data/tiny-imagenet-10: no data. Give Tiny ImageNet's folder or zip: make results DATA=" in capsys.readouterr().err


def test_runs_differ_from_mat_in_what_they_are_named_for():
    settings = {run.config: run.read_config() for run in results.RUNS if run.seed == 0}
    mat = settings.pop("mat")
    assert forward_equivalents(mat) == 3 + 2 * 3 + 3
    differences = {name: {key for key, _, _ in mat.differences(config)} for name, config in settings.items()}
    plain = {"n_patches", "n_patch_trials", "optimizer.n_iterations"}
    assert differences == {
        "standard": plain,
        "standard_long": plain | {"n_epochs"},
        "adversarial_training": {"patch_lr", "n_patches"},
        "shared_patch": {"n_patches", "optimizer.targeted_attack", "optimizer.min_step_size", "optimizer.max_step_size"},
        "mat_untargeted": {"optimizer.targeted_attack"},
        "mat_from_standard": {"initial_weights", "n_epochs"},
    }


@pytest.mark.parametrize(
    "path", sorted({*(ROOT / "configs").glob("*.yaml"), *(ROOT / "configs" / "results").glob("*.yaml")}), ids=lambda path: path.stem
)
def test_configs_that_come_with_the_program_load(path):
    assert PatchTrainingConfig.from_yaml(path, ["data_dir=nowhere", "n_classes=10"])


def estimate(accuracy):
    return {"accuracy": accuracy, "low": accuracy - 0.04, "high": accuracy + 0.03}


def test_tables_have_the_figures_of_the_runs():
    headline = {"clean": estimate(0.82), "robust": estimate(0.7), "every_image_under_its_worst_patch": estimate(0.5)}
    mat_0 = {
        "n_epochs": 30,
        "forward_equivalents": 12,
        "headline": headline,
        "grid_summary": {"mean": 0.75},
        "curves": {
            "iterations": [{"iterations": 10, **estimate(0.8)}, {"iterations": 20, **estimate(0.72)}],
            "patch_size": [{"patch_shape": [6, 6, 3], **estimate(0.81)}],
        },
        "strongest": {"grid": {"accuracy": 0.7}, "controls": {"accuracy": 0.78}},
        "highest_success": {"success": 0.2, "target_name": "pizza"},
        "lowest_by_goal": {"untargeted": 0.75, "pizza": 0.7},
        "epochs": {"004": headline},
    }
    mat_1 = mat_0 | {"curves": {"iterations": [{"iterations": 40, **estimate(0.7)}], "patch_size": []}, "epochs": {"009": headline}}
    both = tables({"mat_0": mat_0, "mat_1": mat_1})  # which were evaluated at other epochs and numbers of iterations
    assert both["epochs"].splitlines()[::2] == [
        "| after epoch | 5 | 10 |",
        "| **MAT**, seed 0: clean | 82.0% |  |",
        "| **MAT**, seed 1: clean |  | 82.0% |",
    ]
    assert both["curves"].splitlines()[:4:3] == ["| iterations | 10 | 20 | 40 |", "| **MAT**, seed 1 |  |  | 70.0% |"]
    made = {name: table.splitlines()[2:] for name, table in tables({"mat_0": mat_0}).items()}
    cells = [
        "**MAT**, seed 0",
        "82.0% (78.0% to 85.0%)",
        "70.0% (66.0% to 73.0%)",
        "75.0%",
        "50.0% (46.0% to 53.0%)",
        "20.0% (pizza)",
        "360",
    ]
    assert made["accuracies"] == [f"| {' | '.join(cells)} |"]
    assert made["kinds"] == ["| **MAT**, seed 0 | 70.0% |  |  |  | 78.0% |"]
    assert made["goals"] == ["| **MAT**, seed 0 | 75.0% | 70.0% |"]
    assert made["epochs"] == ["| **MAT**, seed 0: clean | 82.0% |", "| **MAT**, seed 0: robust | 70.0% |"]
    assert made["curves"] == ["| **MAT**, seed 0 | 80.0% | 72.0% |", "", "| patch | 6x6 |", "| --- | --- |", "| **MAT**, seed 0 | 81.0% |"]
    assert set(tables({}).values()) <= {"", "\n\n"}


def test_the_document_has_the_tables_of_the_figures():
    document = RESULTS_DOCUMENT.read_text("utf-8")
    assert with_tables(document, read_figures()) == document
    assert "| **MAT**, seed 0 | " in document
