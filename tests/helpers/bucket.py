"""A bucket of the test's own, and what a client of it has in its environment."""

from __future__ import annotations

import contextlib
import logging
import urllib.request
from collections.abc import Iterator
from typing import Any

NAME = "bucket"
ACCESS = {
    "AWS_ACCESS_KEY_ID": "user",
    "AWS_SECRET_ACCESS_KEY": "secret",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}


def client(env: dict[str, str]) -> Any:
    """boto3's client with such an environment."""
    import boto3

    access = {
        "aws_access_key_id": env["AWS_ACCESS_KEY_ID"],
        "aws_secret_access_key": env["AWS_SECRET_ACCESS_KEY"],
        "region_name": env["AWS_DEFAULT_REGION"],
    }
    return boto3.client("s3", endpoint_url=env["FSSPEC_S3_ENDPOINT_URL"], **access)


@contextlib.contextmanager
def served(address: str) -> Iterator[dict[str, str]]:
    """The environment of those who use an empty bucket that is served at an address of this machine."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.WARNING)  # each request is a line, and there are thousands
    server = ThreadedMotoServer(ip_address=address, port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        # A process has one set of buckets, however many servers: those of the test before are still there.
        urllib.request.urlopen(f"http://{host}:{port}/moto-api/reset", data=b"", timeout=30).close()
        env = {"FSSPEC_S3_ENDPOINT_URL": f"http://{host}:{port}", **ACCESS}
        client(env).create_bucket(Bucket=NAME)
        yield env
    finally:
        server.stop()
