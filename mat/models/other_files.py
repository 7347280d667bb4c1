"""Files that are given in place of weights: what they are, and where weights come from then."""

import os
import re

from mat.cli.errors import UserError
from mat.cli.file_kinds import HEAD, LFS, UNKNOWN, kind_of_file

HDF5 = b"\x89HDF\r\n\x1a\n"
ZIP = rb"PK\x03\x04.{26}"  # then the name of the first file in it

WHOLE_MODEL = "a whole Keras model", 'Save its weights alone with model.save_weights("NAME.weights.h5"), and give that file'
SAVED_MODEL = "a SavedModel, a whole TensorFlow model", 'Call save_weights("NAME.weights.h5") of the Keras model, and give that file'
CHECKPOINT = "a TensorFlow checkpoint", "Give the .h5 file that training wrote beside its checkpoints, or save the model's weights as one"
PYTORCH = "a PyTorch file or another pickle", "Set its arrays in a model of mat.models, and save them with mat.models.save_weights"
MODELS = [  # how files of models and arrays begin, what they are and what to do
    (ZIP + rb"(metadata\.json|config\.json|model\.weights\.h5)", *WHOLE_MODEL),
    (ZIP + rb"[^/]+/(data\.pkl|version|byteorder|\.)", *PYTORCH),
    (rb"\x80[\x02-\x05]", *PYTORCH),
    (ZIP + rb"[^/]*\.npy|\x93NUMPY", "a file of NumPy arrays", "Give an .h5 file; a bank of patches is given with --bank"),
    (rb"model_checkpoint_path:", *CHECKPOINT),
]


def refuse_other_files(path):
    """Refuse what is not there, and what is known to be something else than weights.

    Args:
        path: what was given for a weights file.

    Raises:
        UserError: it is not there, cannot be read, or is something else; the message says what it is and what to do.
    """
    if not os.path.isfile(path):  # False for names that no file can have
        if os.path.isfile(f"{path}.index"):
            raise _other(path, *CHECKPOINT)
        if os.path.isdir(path):
            if os.path.exists(os.path.join(path, "saved_model.pb")):
                raise _other(path, *SAVED_MODEL)
            raise UserError(f"{path}: no such weights file, but a directory. Give the path of an .h5 file")
        raise UserError(f"{path}: no such weights file. Give the path of an .h5 file")
    try:
        with open(path, "rb") as file:
            start = file.read(HEAD)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}. Give a weights file that can") from None
    if start.startswith(HDF5):
        return
    for pattern, what, remedy in MODELS:
        if re.match(pattern, start, re.DOTALL):
            raise _other(path, what, remedy)
    if re.search(r"\.(index|data-\d{5}-of-\d{5})$", str(path)):
        raise _other(path, *CHECKPOINT)
    if (kind := kind_of_file(start)) != UNKNOWN:
        remedy = "Fetch the file itself with git lfs pull" if kind == LFS else "Fetch the file itself, or copy it again"
        raise _other(path, kind, "Unpack it first" if kind.endswith("archive") else remedy)


def refuse_whole_model(path, file):
    """Refuse an open HDF5 file if it holds a whole Keras model.

    Raises:
        UserError: it does.
    """
    if "model_config" in file.attrs:
        raise _other(path, *WHOLE_MODEL)


def _other(path, what, remedy):
    return UserError(f"{path}: not a weights file, but {what}. {remedy}")
