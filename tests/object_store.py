"""An S3-compatible server on loopback."""

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator

BUCKET = "bucket"


def environment_of(port: int) -> dict[str, str]:
    """What clients of the server at a port of this machine need in their environment."""
    return {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ALLOW_HTTP": "true",
        "AWS_ACCESS_KEY_ID": "tests",
        "AWS_SECRET_ACCESS_KEY": "of-tests-alone",
        "AWS_REGION": "us-east-1",
        "AWS_DEFAULT_REGION": "us-east-1",
    }


@contextlib.contextmanager
def s3_server() -> Iterator[tuple[dict[str, str], "subprocess.Popen[bytes]"]]:
    """What its clients need in their environment, and its process; there is one empty bucket."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    log = subprocess.DEVNULL
    server = subprocess.Popen([sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)], stdout=log, stderr=log)
    environ = environment_of(port)
    try:
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                break
            time.sleep(0.1)
        import boto3

        secret = {"aws_access_key_id": environ["AWS_ACCESS_KEY_ID"], "aws_secret_access_key": environ["AWS_SECRET_ACCESS_KEY"]}
        client = boto3.client("s3", endpoint_url=environ["AWS_ENDPOINT_URL"], region_name="us-east-1", **secret)
        client.create_bucket(Bucket=BUCKET)
        yield environ, server
    finally:
        server.kill()
        server.wait()


@contextlib.contextmanager
def in_this_process(environ: dict[str, str]) -> Iterator[None]:
    """Variables of the environment, while this lasts."""
    from s3fs import S3FileSystem

    before = {name: os.environ.get(name) for name in environ}
    os.environ.update(environ)
    S3FileSystem.clear_instance_cache()  # a client keeps the address that it began with
    try:
        yield
    finally:
        S3FileSystem.clear_instance_cache()
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
