"""An object storage that speaks S3, on a real socket, for the tests."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

import boto3
from moto.server import ThreadedMotoServer
from s3fs import S3FileSystem

BUCKET = "models"


@contextmanager
def object_storage(address: str = "127.0.0.1") -> Iterator[dict[str, str]]:
    """A storage with one empty bucket, and the environment variables that lead to it, set in this process as well."""
    server = ThreadedMotoServer(ip_address=address, port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    environment = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "NO_PROXY": host,
    }
    # Drivers remember the address that they were made with.
    S3FileSystem.clear_instance_cache()
    try:
        with mock.patch.dict(os.environ, environment):
            boto3.client("s3").create_bucket(Bucket=BUCKET)
            yield environment
    finally:
        server.stop()
        S3FileSystem.clear_instance_cache()
