"""Files that are mistaken for weights: what they are, and what to give in their place."""

import os
import re

from mat.cli.errors import UserError
from mat.cli.file_kinds import HEAD, LFS, UNKNOWN, kind_of_file

_ZIP = rb"PK\x03\x04.{26}"  # then the name of the first file in it
WHOLE_MODEL = 'a whole Keras model. Save its weights alone with model.save_weights("NAME.weights.h5"), and give that file'
_SAVED_MODEL = 'a SavedModel, a whole TensorFlow model. Call save_weights("NAME.weights.h5") of the Keras model, and give that file'
_CHECKPOINT = "a TensorFlow checkpoint. Give the .h5 file that training wrote beside its checkpoints, or save the model's weights as one"
_PICKLE = "a PyTorch file or another pickle. Set its arrays in a model of mat.models, and save them with mat.models.save_weights"
_STARTS = [  # how files of models and arrays begin
    (_ZIP + rb"(metadata\.json|config\.json|model\.weights\.h5)", WHOLE_MODEL),
    (_ZIP + rb"[^/]+/(data\.pkl|version|byteorder|\.)|\x80[\x02-\x05]", _PICKLE),
    (_ZIP + rb"[^/]*\.npy|\x93NUMPY", "a file of NumPy arrays. Give an .h5 file; a bank of patches is given with --bank"),
    (rb"model_checkpoint_path:", _CHECKPOINT),
    (rb"version https://git-lfs", f"{LFS}. Fetch the file itself with git lfs pull"),
]


def refuse_other_files(path: str | os.PathLike[str]) -> None:
    """Refuse a path where no file is, and files of other kinds, in a `UserError` that tells what is there and what to give instead."""
    try:
        other = _other_kind(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}. Give a weights file that can") from None
    if other:
        raise UserError(f"{path}: not a weights file, but {other}")
    if not os.path.isfile(path):
        directory = ", but a directory" if os.path.isdir(path) else ""
        raise UserError(f"{path}: no such weights file{directory}. Give the path of an .h5 file")


def _other_kind(path):
    """What a path has that is known not to be weights, with the remedy; None for anything else."""
    if not os.path.isfile(path):  # False for names that no file can have
        saved_model = os.path.isfile(os.path.join(path, "saved_model.pb"))
        return _CHECKPOINT if os.path.isfile(f"{path}.index") else _SAVED_MODEL if saved_model else None
    with open(path, "rb") as file:
        start = file.read(HEAD)
    if start.startswith(b"\x89HDF\r\n\x1a\n"):
        return None
    for pattern, kind in _STARTS:
        if re.match(pattern, start, re.DOTALL):
            return kind
    if re.search(r"\.(index|data-\d{5}-of-\d{5})$", str(path)):
        return _CHECKPOINT
    if (kind := kind_of_file(start)) == UNKNOWN:
        return None
    return f"{kind}. {'Unpack it first' if kind.endswith('archive') else 'Fetch the file itself, or copy it again'}"
