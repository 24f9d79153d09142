"""The two kinds of error that a user sees as one line; everything else is a bug or an outage and keeps its traceback."""

import errno
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager

# A disk or a storage that fails or refuses, and not a path that is wrong.
_OF_STORAGE = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ESTALE, errno.EREMOTEIO, errno.EBUSY, errno.EACCES}
_OF_STORAGE_WITH_A_PATH = {errno.ENOTCONN, errno.ETIMEDOUT, errno.EHOSTDOWN}  # without one they are the network's
_OF_OBJECT_STORES = re.compile(
    # pyarrow's words, those of botocore and s3fs, and polars'
    r"AWS Error (?:NETWORK_CONNECTION|NO_SUCH_BUCKET|SERVICE_UNAVAILABLE|SLOW_DOWN|INTERNAL_FAILURE|ACCESS_DENIED"
    r"|UNKNOWN \(HTTP status 5\d\d\)).*"
    r"|(?:EndpointConnection|ConnectTimeout|ReadTimeout|ConnectionClosed|NoCredentials|Permission)Error: (?!\[Errno).*"
    r"|The specified bucket does not exist|Generic S3 error.*"
)
_OF_CLIENTS = (
    ("botocore.exceptions", "BotoCoreError"),
    ("gcsfs.retry", "HttpError"),
    ("google.auth.exceptions", "GoogleAuthError"),
    ("aiohttp", "ClientError"),
)
_WHERE_THEY_PASS = (("ray.exceptions", "RayError"), ("polars.exceptions", "PolarsError"))


class UsageError(ValueError):
    """The command line or the job file is wrong (exit code 2): names the file, the key and what was expected."""


class RunError(RuntimeError):
    """The run cannot go on (exit code 1): says what happened and what to do next."""


@contextmanager
def storage_failures_explained() -> Iterator[None]:
    """Raises a failure of the storage, wherever on the cluster it was met, as a ``RunError`` of one line."""
    try:
        yield
    except (*outages(), *_loaded(*_WHERE_THEY_PASS)) as error:
        if (failure := _storage_failure(error)) is None:
            raise
        raise RunError(f"the storage failed ({failure}); when that is mended, the same command goes on from here") from error


def outages() -> tuple[type[Exception], ...]:
    """What a storage that does not answer raises: the system's error, or that of the object store's client where there is one."""
    return OSError, *_loaded(*_OF_CLIENTS)


def _loaded(*names: tuple[str, str]) -> tuple[type[Exception], ...]:
    """Those of a module's classes that can have been raised, since the module is in use."""
    return tuple(getattr(sys.modules[module], name) for module, name in names if module in sys.modules)


def _storage_failure(error: BaseException) -> str | None:
    """What the storage said, where that caused an error; of what was raised in a task Ray keeps the text alone."""
    text = f"{type(error).__name__}: {error}"
    if short := re.findall(r"OSError: (\d+ requested and \d+ written)", text):  # numpy's words
        return f"{os.strerror(errno.ENOSPC)}: {short[-1]}"
    if "OutOfDiskError: " in text:
        return f"{os.strerror(errno.ENOSPC)}: a disk that Ray's object store spills to, below its temporary folder"
    if of_object_store := _OF_OBJECT_STORES.findall(text):
        return str(of_object_store[-1])
    said = [(line, int(number)) for line, number in re.findall(r"Error: (\[Errno (\d+)\] .*)", text)]
    said += [(line, int(number)) for line, number in re.findall(r"(\S.*\(os error (\d+)\))", text)]  # Rust's words
    with_a_path = {line for line, _ in said if re.search(r"'/.+'", line)}
    return next(
        (line for line, number in reversed(said) if number in _OF_STORAGE or (number in _OF_STORAGE_WITH_A_PATH and line in with_a_path)),
        None,
    )
