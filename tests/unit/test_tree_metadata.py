"""metadata.json: the record as the Image service shows it."""

from __future__ import annotations

import json
from uuid import UUID

from imagefs.tree import metadata
from imagefs.types import Image, Status, Visibility

IMAGE = Image(
    id=UUID("0b7e3e0c-6d0a-4f0e-9f5e-2b1d4c5a6f70"),
    name="grün",
    status=Status.ACTIVE,
    visibility=Visibility.PUBLIC,
    size=5000,
    checksum="0" * 32,
    tags=("one", "two"),
    properties={"os_distro": "debian", "empty": ""},
    created_at=1_700_000_000_999_999_999,
    updated_at=1_700_000_001_000_000_000,
    map_id=1,
)


def test_the_document_is_that_of_the_image_service() -> None:
    """Field by field as in the body of `GET /v2/images/<id>` of Glance 33."""
    assert json.loads(metadata.render(IMAGE)) == {
        "id": "0b7e3e0c-6d0a-4f0e-9f5e-2b1d4c5a6f70",
        "name": "grün",
        "status": "active",
        "visibility": "public",
        "owner": None,
        "protected": False,
        "os_hidden": False,
        "disk_format": None,
        "container_format": None,
        "size": 5000,
        "virtual_size": None,
        "min_disk": 0,
        "min_ram": 0,
        "checksum": "0" * 32,
        "os_hash_algo": None,
        "os_hash_value": None,
        "tags": ["one", "two"],
        "created_at": "2023-11-14T22:13:20Z",
        "updated_at": "2023-11-14T22:13:21Z",
        "self": "/v2/images/0b7e3e0c-6d0a-4f0e-9f5e-2b1d4c5a6f70",
        "file": "/v2/images/0b7e3e0c-6d0a-4f0e-9f5e-2b1d4c5a6f70/file",
        "schema": "/v2/schemas/image",
        "os_distro": "debian",
        "empty": "",
    }


def test_it_is_text_for_people() -> None:
    text = metadata.render(IMAGE)
    assert text.endswith(b"}\n")
    assert text.count(b"\n") > 20
    assert "grün".encode() in text


def test_a_property_never_hides_a_field() -> None:
    assert metadata.document(Image(id=IMAGE.id, properties={"status": "x"}))["status"] == "queued"
