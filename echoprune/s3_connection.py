"""One connection to S3 through s3fs, and single requests over it; none of them is tried again here."""

from __future__ import annotations

import os
from typing import Any

import botocore.exceptions
import s3fs

from echoprune.errors import ConfigError
from echoprune.s3_options import S3Options, check_endpoint

# Requests under way at most in one process; S3 answers 5,500 reads a second under one prefix, one request takes 20 to 50 ms.
MOST_REQUESTS = 32


def connect(options: S3Options) -> Any:
    """An s3fs file system that tries nothing again by itself. Raises ConfigError for options that cannot be used."""
    config: dict[str, Any] = {
        "connect_timeout": 10,
        "read_timeout": 60,
        "max_pool_connections": MOST_REQUESTS,
        "retries": {"total_max_attempts": 1},
    }
    variables = [name for name in ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL") if os.environ.get(name)]
    for name in variables:
        # Errors of the connection show the endpoint.
        check_endpoint(os.environ[name], name=name)
    if options.endpoint or variables:
        # Servers other than AWS's reject the checksums that its clients add by default.
        config["request_checksum_calculation"] = "when_required"
        config["response_checksum_validation"] = "when_required"
    own = {"profile": options.profile} if options.profile else {}
    fs = s3fs.S3FileSystem(
        anon=options.anonymous,
        endpoint_url=options.endpoint,
        requester_pays=options.requester_pays,
        config_kwargs=config,
        skip_instance_cache=True,
        use_listings_cache=False,
        **own,
    )
    fs.retries = 1
    try:
        fs.connect()
    except (botocore.exceptions.BotoCoreError, ValueError) as error:
        raise ConfigError(
            f"cannot use S3: {' '.join(str(error).split())}; check --s3-profile, --s3-endpoint and AWS_REGION"
        ) from error
    return fs


async def ask(fs: Any, method: str, **asked: Any) -> Any:
    """What the server answers to one request."""
    return await fs._call_s3(method, **asked)


async def fetch(fs: Any, method: str, **asked: Any) -> tuple[dict[str, Any], bytes]:
    """The answer and its body. Raises ConnectionError for a body that is shorter than the answer says."""
    answer = await fs._call_s3(method, **asked)
    try:
        body: bytes = await answer["Body"].read()
    finally:
        answer["Body"].close()
    if len(body) != int(answer["ContentLength"]):
        raise ConnectionError(f"{len(body)} bytes came of {answer['ContentLength']}")
    return answer, body
