"""An image's record as the Image service API v2 shows it: the content of metadata.json.

The document has the API's fields, the tags, the links `self`, `file` and `schema`, and the custom
properties beside them at the top level, as in the body of `GET /v2/images/<id>`.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime

from imagefs.types import Image


def timestamp(ns: int) -> str:
    """A moment as the API writes it, e.g. 2026-11-22T16:58:27Z (whole seconds, UTC)."""
    return datetime.fromtimestamp(ns // 1_000_000_000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def document(image: Image) -> dict[str, object]:
    """The record as JSON values. Properties come first, so that no property can hide a field."""
    return {
        **image.properties,
        "id": str(image.id),
        "name": image.name,
        "status": str(image.status),
        "visibility": str(image.visibility),
        "owner": image.owner,
        "protected": image.protected,
        "os_hidden": image.os_hidden,
        "disk_format": image.disk_format,
        "container_format": image.container_format,
        "size": image.size,
        "virtual_size": image.virtual_size,
        "min_disk": image.min_disk,
        "min_ram": image.min_ram,
        "checksum": image.checksum,
        "os_hash_algo": image.os_hash_algo,
        "os_hash_value": image.os_hash_value,
        "tags": list(image.tags),
        "created_at": timestamp(image.created_at),
        "updated_at": timestamp(image.updated_at),
        "self": f"/v2/images/{image.id}",
        "file": f"/v2/images/{image.id}/file",
        "schema": "/v2/schemas/image",
    }


def render(image: Image) -> bytes:
    """The bytes of images/<id>/metadata.json: UTF-8, indented for people, one line feed at the end."""
    return json.dumps(document(image), indent=2, ensure_ascii=False).encode("utf-8", "replace") + b"\n"
