"""The files of evaluations: banks and foreign patches that are read, and the report directory."""

import json

import numpy as np
import pytest

from mat.cli.errors import UserError
from mat.robustness.inputs import find_transferred, read_bank, read_transferred
from mat.robustness.store import ReportDirectory, read_report, report_path

PATCHES = np.linspace(0, 1, 2 * 4 * 4 * 3, dtype=np.float32).reshape(2, 4, 4, 3)
ARRAYS = {"patches": PATCHES, "targets": [0, 3], "names": ["one", "two"], "step_sizes": [0.1, 0.2]}
REPORT = json.dumps({"headline": {}, "subject": {"weights_git_blob": "w"}}).encode()


@pytest.mark.parametrize(
    "changes",
    [
        {"targets": [0, 1, 3]},
        {"targets": [0, 4]},
        {"patches": np.zeros((2, 4, 4))},
        {"patches": np.zeros((2, 4, 4, 1))},
        {"patches": np.zeros((0, 4, 4, 3)), "targets": []},
        {"patches": np.full((2, 4, 4, 3), 7.0)},
        {"patches": np.full((2, 4, 4, 3), np.nan)},
    ],
)
def test_files_that_are_no_bank_are_refused(tmp_path, changes):
    np.savez(tmp_path / "file.npz", **ARRAYS | changes)
    with pytest.raises(UserError, match=r"file\.npz: not a bank for 4 classes \(.*(patches|targets).*--bank"):
        read_bank(tmp_path / "file.npz", 4)


DAMAGES = {
    "cut": lambda content: content[: len(content) // 2],
    "changed": lambda content: content.replace(PATCHES.tobytes()[:40], bytes(40)),
    "empty": lambda content: b"",
    "another file": lambda content: b"key: value\n",
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_damaged_patches_are_refused_or_made_again(tmp_path, damage):
    directory, path = ReportDirectory(tmp_path / "report", {"seed": 0}), tmp_path / "report" / "restarts" / "one.npz"
    directory.create()
    directory.save("one", **ARRAYS)
    for patches in (directory.load("one")["patches"], read_bank(path, 4)[0], [patch for _, patch in read_transferred([path])]):
        np.testing.assert_array_equal(patches, PATCHES)
    path.write_bytes(damage(path.read_bytes()))
    assert directory.load("one") is directory.load("two") is None
    with pytest.raises(UserError, match=r"one\.npz: not a bank"):
        read_bank(path, 4)
    with pytest.raises(UserError, match=r"one\.npz: cannot be read"):
        read_transferred([path])


@pytest.mark.parametrize("content", [REPORT[:-1], b"", b"[]", b'{"headline": {}}', b"\xff\xfe"])
def test_damaged_reports_do_not_count(tmp_path, content):
    directory = ReportDirectory(tmp_path, {"seed": 0})
    directory.create()
    directory.write({"report.json": REPORT})
    assert read_report(tmp_path) == json.loads(REPORT)
    directory.write({"report.json": content})
    assert read_report(tmp_path) is None


@pytest.mark.parametrize(
    ("saved", "resume", "words"),
    [
        ('{"seed": 0}', False, r"exists already\. Choose another --output, or continue the evaluation in it with --resume"),
        ('{"seed": 1}', True, "the evaluation in it has seed: 1, and this one has seed: 0"),
        ('{"seed": 0, "bank": "b"}', True, "the evaluation in it has bank: b, and this one has bank: None"),
        ('{"seed": 0', True, r"holds no evaluation to continue \(protocol.json\)"),
    ],
)
def test_a_directory_holds_one_evaluation(tmp_path, saved, resume, words):
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "job.log").write_text("logs do not count")
    ReportDirectory(tmp_path / "report", {"seed": 0}).create()
    (tmp_path / "report" / "protocol.json").write_text(saved)
    with pytest.raises(UserError, match=f"report: {words}"):
        ReportDirectory(tmp_path / "report", {"seed": 0}, resume=resume)
    for _ in range(2):
        another = ReportDirectory(tmp_path / "report", {"seed": 0}, resume=True, numbered=True)
        assert another.path == tmp_path / ("report_2" if resume else "report")
        another.create()


def test_foreign_patches_come_from_one_finished_evaluation(tmp_path):
    for name in ("a_quick_evaluation", "b_evaluation", "unfinished_evaluation"):
        (tmp_path / name).mkdir()
        np.savez(tmp_path / name / "universal_patches.npz", **ARRAYS)
    with pytest.raises(UserError, match="no finished evaluation"):
        find_transferred(tmp_path, exclude=tmp_path)
    for name in ("a_quick_evaluation", "b_evaluation"):
        (tmp_path / name / "report.json").write_bytes(REPORT)
    with pytest.raises(UserError, match=r"several evaluations to take patches from\. Give --patches-from one of .*a_quick.*, .*b_eval"):
        find_transferred(tmp_path, exclude=tmp_path)
    found = tmp_path / "b_evaluation" / "universal_patches.npz"
    assert find_transferred(tmp_path, exclude=tmp_path / "a_quick_evaluation") == find_transferred(found.parent, exclude=tmp_path) == found


@pytest.mark.parametrize(("name", "stem"), [("a_001.h5", "a_001"), ("a.weights.h5", "a")])
def test_reports_go_beside_the_weights(tmp_path, name, stem):
    assert report_path(tmp_path / name, quick=False) == tmp_path / f"{stem}_evaluation"
    assert report_path(tmp_path / name, quick=True) == tmp_path / f"{stem}_quick_evaluation"


def test_patches_of_several_networks_have_names_of_their_own(tmp_path):
    path = tmp_path / "universal_patches.npz"
    np.savez(path, **ARRAYS)
    names = [name for name, _ in read_transferred([path])]
    assert [name for name, _ in read_transferred([path, path])] == [f"{number}-{name}" for number in (1, 2) for name in names]


def test_a_report_stays_until_its_successor_is_made(tmp_path):
    asked, more = {"seed": 0, "patches_git_blob": None}, {"seed": 0, "patches_git_blob": ["a"]}
    directory = ReportDirectory(tmp_path / "report", asked)
    directory.create()
    content = json.dumps({"headline": {}, "subject": asked}).encode()
    directory.write_report({"report.md": b"", "report.json": content})
    grown = ReportDirectory(tmp_path / "report", more, resume=True)
    assert grown.report is None
    grown.create()  # and is killed
    assert ReportDirectory(tmp_path / "report", asked, resume=True).report == json.loads(content)
    assert ReportDirectory(tmp_path / "report", more, resume=True).report is None
    with pytest.raises(FileNotFoundError):  # killed between two files: the old report does not stand beside new files
        grown.write_report({"report.md": b"new", "missing/directory": b""})
    assert read_report(tmp_path / "report") is None


def test_growth_that_was_only_begun_may_be_given_up(tmp_path):
    asked = {"seed": 0, "patches_git_blob": ["a"], "evaluation.curves": False}
    wrong, right = asked | {"patches_git_blob": ["a", "wrong"], "evaluation.curves": True}, asked | {"patches_git_blob": ["a", "right"]}
    directory = ReportDirectory(tmp_path / "report", wrong)
    directory.create()
    ReportDirectory(tmp_path / "report", asked, resume=True).create()  # of one that is not finished too
    report = {"headline": {}, "subject": {"seed": 0, "patches_git_blob": ["a"], "protocol": {"curves": False}}}
    directory.write_report({"report.json": json.dumps(report).encode()})
    ReportDirectory(tmp_path / "report", wrong, resume=True).create()
    ReportDirectory(tmp_path / "report", right, resume=True).create()
    with pytest.raises(UserError, match=r"has patches_git_blob: \['a'\], and this one has patches_git_blob: \['right'\]"):
        ReportDirectory(tmp_path / "report", asked | {"patches_git_blob": ["right"]}, resume=True)
