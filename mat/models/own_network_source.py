"""Where an own network comes from: a `.keras` file, or a Python function."""

import contextlib
import importlib
import inspect
import json
import os
import pathlib
import random
import re
import sys
import traceback
import zipfile
import zlib
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np

import mat.models.resnet  # noqa: F401 - registers the classes of its layers, which a saved ResNet has
from mat.cli.errors import UserError
from mat.cli.file_kinds import HEAD, kind_of_file
from mat.cli.text import single_line

_SAVE = "Give the file that model.save('NAME.keras') wrote"
_TERMINAL_CODE = re.compile(r"\x1b\[\d*m")  # bold print in messages of Keras


@contextlib.contextmanager
def seeded(stream: str) -> Iterator[None]:
    """Within the block, random draws of Python, NumPy, TensorFlow and Keras follow from `stream`; the former two then go on as before."""
    states = random.getstate(), np.random.get_state()  # noqa: NPY002 - layers and users draw from it
    keras.utils.set_random_seed(zlib.crc32(stream.encode()))
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002


def load_file(path: str, *, safe_mode: bool) -> keras.Model:
    """The Keras model in a `.keras` file, not compiled.

    Raises:
        UserError: there is no such file, it is another one or damaged, it would run code of its own and `safe_mode` is set, or it has
            classes that are not known here.
    """
    try:
        with open(path, "rb") as file:
            kind = kind_of_file(file.read(HEAD))
        with zipfile.ZipFile(path) as archive:
            version = json.loads(archive.read("metadata.json"))["keras_version"]
    except FileNotFoundError:
        raise UserError(f"{path}: no such file (network). {_SAVE}") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}. {_SAVE}") from None
    except (zipfile.BadZipFile, LookupError, ValueError, TypeError):
        raise UserError(f"{path}: not a Keras model, but {kind}. {_SAVE}") from None
    try:
        model = keras.models.load_model(path, compile=False, safe_mode=safe_mode)
    except MemoryError:
        raise
    except Exception as error:  # whatever its layers, or Keras' reading of them, raise
        raise UserError(_load_error(path, version, error)) from None
    return checked_model(model, path)


def _load_error(path, version, error):
    """The message of a file that Keras does not load."""
    text = str(error)
    while error.__context__ is not None:  # what Keras found first tells most
        error = error.__context__
    if "safe_mode=False" in text:
        return (
            f"{path}: has code of its own, such as a Lambda layer's, which could do anything on this machine, and so is not loaded. Save "
            "the network with layers in place of it, or, if you trust where it comes from, set safe_mode: false (--set safe_mode=false)"
        )
    if isinstance(error, ImportError) or re.search("Could not (locate|deserialize)", f"{text} {error}"):
        return (
            f"{path}: has classes that Keras does not know ({reason(error)}). Write a function that imports them and returns "
            f"keras.models.load_model({path!r}), and set network: package.module:function"
        )
    other = f"; it was saved by Keras {single_line(str(version))}, and this is {keras.__version__}" if version != keras.__version__ else ""
    return f"{path}: cannot be loaded ({reason(error)}){other}. {_SAVE}"


def call_function(name: str, *, image_size: int, n_classes: int, dtype: str) -> keras.Model:
    """The model that the function `package.module:function` returns for these arguments, under a dtype policy.

    Modules are looked up as Python does, and in the working directory.

    Raises:
        UserError: there is no such module or function, it fails, or returns something else.
    """
    function = _find_function(name)
    arguments = {"image_size": image_size, "n_classes": n_classes}
    called = f"{name.partition(':')[2]}({', '.join(f'{key}={value}' for key, value in arguments.items())})"
    try:
        inspect.signature(function).bind(**arguments)
    except TypeError as error:
        raise UserError(f"{name}: cannot be called as {called}: {error}. Give it these arguments") from None
    except ValueError:
        pass  # a callable without a signature
    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy(dtype)
    try:
        model = function(**arguments)
    except MemoryError:
        raise
    except Exception as error:
        raise UserError(f"{name}: {called} raised {type(error).__name__}: {reason(error)} ({_place(error)}). Mend it") from None
    finally:
        keras.config.set_dtype_policy(policy)
    return checked_model(model, f"{name}: {called}")


def _find_function(name):
    module_name, _, function_name = name.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        missing = isinstance(error, ModuleNotFoundError) and f"{module_name}.".startswith(f"{error.name}.")
        if missing:
            where = f"in {os.getcwd()} nor among the installed packages"
            raise UserError(f"network: {name}: no module {error.name} {where}. Start in its directory, or set PYTHONPATH") from None
        message = f"network: {name}: importing {module_name} raised {type(error).__name__}: {reason(error)} ({_place(error)})"
        raise UserError(f"{message}. Mend it") from None
    function = getattr(module, function_name, None)
    if not callable(function):
        names = [key for key, value in vars(module).items() if inspect.isfunction(value) and value.__module__ == module_name]
        remedy = f"It has {', '.join(names)}" if names else "Write one that returns a Keras model"
        raise UserError(f"network: {name}: {module.__file__} has no function {function_name}. {remedy}")
    return function


def checked_model(model: Any, source: str) -> keras.Model:
    """A model as it is; of anything else, a `UserError` tells that `source` is it."""
    if not isinstance(model, keras.Model):
        kind = f"{type(model).__module__}.{type(model).__qualname__}"
        raise UserError(f"{source} is no Keras model, but {kind}. Give a keras.Model (Keras {keras.__version__}, not tf_keras)")
    return model


def _place(error: Exception) -> str:
    """File and line where it was raised, the innermost outside of installed packages."""
    frames = traceback.extract_tb(error.__traceback__)[1:] or traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if "site-packages" not in pathlib.Path(frame.filename).parts and "<frozen" not in frame.filename]
    frame = (own or frames)[-1]
    return f"{frame.filename}:{frame.lineno}"


def reason(error: Exception) -> str:
    """What an error of another library says, in a short line."""
    return single_line(_TERMINAL_CODE.sub("", str(error)))
