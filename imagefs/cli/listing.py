"""`list` and `show`."""

from __future__ import annotations

from typing import Any

import click

from imagefs.catalog import Query
from imagefs.cli.damage import image_damage
from imagefs.cli.opening import complete_image, entry_of, every_image, image_properties, opened, resolve
from imagefs.cli.output import json_option, print_json, size_text, time_text
from imagefs.cli.settings import Settings, pass_settings, repo_option
from imagefs.cli.space import image_figures, image_rows, show_space
from imagefs.cli.tables import print_record, print_table
from imagefs.cli.trash import show_deleted
from imagefs.images.arming import blocked_reason
from imagefs.images.repository import Repository
from imagefs.tree.metadata import document
from imagefs.types import DISK_FORMATS, Image, Status, Visibility

SORTS = ("name", "status", "container_format", "disk_format", "size", "id", "created_at", "updated_at")


def current_size(repo: Repository, image: Image) -> int | None:
    """Bytes of the sealed data, or of the draft as it is now; None without data."""
    if image.draft is None:
        return image.size
    status = repo.staging.stat(image.id, image.draft.gen)
    return status.st_size if status else 0


@click.command("list")
@click.option("--status", type=click.Choice([str(status) for status in Status]), help="Only in this state.")
@click.option("--name", help="Only with exactly this name.")
@click.option("--owner", help="Only of this project.")
@click.option("--tag", multiple=True, help="Only with this tag (may be repeated: all of them).")
@click.option("--property", "properties", multiple=True, metavar="KEY=VALUE", help="Only with this property.")
@click.option("--visibility", type=click.Choice([str(v) for v in Visibility]), help="Only so visible.")
@click.option("--disk-format", type=click.Choice(DISK_FORMATS), help="Only of this format.")
@click.option("--all", "hidden", is_flag=True, help="Hidden images (os_hidden) too.")
@click.option("--sort", type=click.Choice(SORTS), default="name", show_default=True)
@click.option("--reverse", is_flag=True, help="Last first.")
@click.option("--deleted", is_flag=True, help="Deleted images that `undelete` can bring back; nothing else counts.")
@click.option("--quiet", "-q", is_flag=True, help="Print ids alone.")
@json_option
@repo_option
@pass_settings
def list_command(settings: Settings, /, as_json: bool, quiet: bool, deleted: bool, **options: Any) -> None:
    """List images."""
    with opened(settings) as repo:
        if deleted:
            show_deleted(repo, as_json=as_json, quiet=quiet)
            return
        images = [(image, current_size(repo, image)) for image in every_image(repo, _conditions(**options))]
    if as_json:
        print_json([document(image) | {"entry": entry_of(image) or None} for image, _ in images])
    elif quiet:
        for image, _ in images:
            click.echo(str(image.id))
    else:
        print_table(
            ("id", "name", "status", "format", "size", "virtual"),
            [
                (
                    str(image.id),
                    entry_of(image) or image.name or "-",
                    str(image.status),
                    image.disk_format or "-",
                    size_text(size),
                    size_text(image.virtual_size),
                )
                for image, size in images
            ],
            right=("size", "virtual"),
        )


def _conditions(
    *,
    status: str | None,
    visibility: str | None,
    tag: tuple[str, ...],
    properties: tuple[str, ...],
    hidden: bool,
    reverse: bool,
    **exact: Any,
) -> Query:
    return Query(
        status=Status(status) if status else None,
        visibility=Visibility(visibility) if visibility else None,
        tags=tag,
        properties=image_properties(properties),
        hidden=None if hidden else False,
        descending=reverse,
        **exact,
    )


@click.command("show")
@click.argument("image", shell_complete=complete_image)
@click.option("--space", is_flag=True, help="Say why the image is as big as it is, and what deleting it frees.")
@json_option
@repo_option
@pass_settings
def show_command(settings: Settings, /, image: str, space: bool, as_json: bool) -> None:
    """Show one image's record, or where its bytes are."""
    with opened(settings) as repo:
        found = resolve(repo, image)
        if space:
            show_space(repo, found, as_json=as_json)
            return
        figures = image_figures(repo, found)
        damaged = image_damage(repo, found)
        size, reason = current_size(repo, found), blocked_reason(repo, found)
    if as_json:
        print_json(
            document(found)
            | _figures(found, size, reason)
            | figures
            | _layout(found, figures)
            | {"damaged": [list(one) for one in damaged]}
        )
    else:
        layout = [(key.replace("_", " "), _text(value)) for key, value in _layout(found, figures).items()]
        lost = [("DAMAGED", f"bytes {offset} to {offset + length - 1}") for offset, length in damaged]
        print_record([*_rows(found, size, reason), *image_rows(figures), *layout, *lost])


def _layout(image: Image, figures: dict[str, Any]) -> dict[str, object]:
    """How its data is stored, and the bytes that this saves: compressed data as it is shares nothing."""
    unique, size = figures.get("unique_bytes"), image.size
    saves = size - unique if image.layout != "plain" and size is not None and unique is not None else None
    return {"layout": image.layout if image.sealed else None, "layout_saves_bytes": saves}


def _figures(image: Image, size: int | None, reason: str | None) -> dict[str, object]:
    """What the Image service's record has no field for."""
    draft = image.draft
    return {
        "entry": entry_of(image) or None,
        "current_size": size,
        "allocated": image.allocated,
        "root": image.root,
        "sealed": image.sealed,
        "seal_blocked": reason,
        "seal_failed": draft.failed if draft else None,
        "expected": dict(draft.expected) if draft else {},
        "attributes": sorted(image.xattrs),
    }


def _rows(image: Image, size: int | None, reason: str | None) -> list[tuple[str, str]]:
    record = document(image)
    rows = [(key, _text(value)) for key, value in record.items() if key not in image.properties]
    rows = [(key, text) for key, text in rows if key not in ("self", "file", "schema")]
    rows += [(f"property {key}", value) for key, value in sorted(image.properties.items())]
    rows += [("entry", entry_of(image) or "-"), ("owner uid:gid", f"{image.uid}:{image.gid}")]
    rows += [("bytes", f"{size if size is not None else '-'} ({size_text(size)})")]
    rows += [("not hole", size_text(image.allocated)), ("modified", time_text(image.mtime))]
    if image.draft:
        rows.append(("not sealed because", reason or "-"))
        rows.append(("last try failed", image.draft.failed or "-"))
        rows += [(f"declared {key}", value) for key, value in sorted(image.draft.expected.items())]
    return [*rows, ("blake3 root", image.root or "-")]


def _text(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "-" if value is None else str(value)
