"""Which errors are the storage's."""

import errno

import pytest
from ray.exceptions import OutOfDiskError

from aloftrag.errors import RunError, storage_failures_explained


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "/a/b"), "No space left on device: '/a/b'"),
        (OSError(errno.EROFS, "Read-only file system"), "Read-only file system"),
        (OSError("115200 requested and 1984 written"), "No space left on device: 115200 requested and 1984 written"),
        (OSError(errno.ENOTCONN, "Transport endpoint is not connected", "/mnt/x"), "Transport endpoint is not connected: '/mnt/x'"),
        (
            ConnectionRefusedError("object-store error: Generic S3 error: in 6 s (path: s3://b/x)\n\nCaused by: TCP"),
            "Generic S3 error: in 6 s",
        ),
        (OSError("I/O error: No space left on device (os error 28)"), "No space left on device (os error 28)"),
    ],
)
def test_what_the_storage_refuses_is_one_line(error: OSError, said: str) -> None:
    with pytest.raises(RunError) as found, storage_failures_explained():
        raise error
    assert said in str(found.value)
    assert str(found.value).endswith("when that is mended, the same command goes on from here")
    assert "\n" not in str(found.value)


@pytest.mark.parametrize(
    "error",
    [
        FileNotFoundError(errno.ENOENT, "No such file", "x"),
        ConnectionRefusedError(errno.ECONNREFUSED, "no"),
        TimeoutError(errno.ETIMEDOUT, "Connection timed out"),
    ],
)
def test_other_errors_keep_their_traceback(error: OSError) -> None:
    with pytest.raises(type(error)), storage_failures_explained():
        raise error


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(errno.EIO, "Input/output error"), r"\[Errno 5\] Input/output error"),
        (OutOfDiskError("Local disk is full"), "No space left on device: a disk that Ray's object store spills to.*"),
    ],
)
def test_a_storage_failure_in_a_task_is_one_too(error: Exception, said: str, ray_session: None) -> None:
    import ray

    def fails() -> None:
        raise error

    with pytest.raises(RunError, match=rf"^the storage failed \({said}\); when that is mended, .*$"), storage_failures_explained():
        ray.get(ray.remote(fails).remote())
