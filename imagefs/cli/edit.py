"""`set`, `delete` and `clone`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import click

from imagefs.cli.opening import complete_image, image_properties, opened, resolve
from imagefs.cli.output import json_option, print_record, say
from imagefs.cli.settings import Settings, pass_settings, repo_option
from imagefs.errors import InvalidValue, Refused
from imagefs.images import fields
from imagefs.images.service import Images
from imagefs.types import CONTAINER_FORMATS, DISK_FORMATS, Image, Status, Visibility

Command = TypeVar("Command", bound=Callable[..., object])


@dataclass(frozen=True)
class Edit:
    """What the options of `set` and `create` say about a record: a pure function of it when called."""

    fields: dict[str, object]
    properties: dict[str, str]
    tags: tuple[str, ...]
    tags_off: tuple[str, ...] = ()
    unset: tuple[str, ...] = ()
    active: bool | None = None
    """Whether everybody may open the data again (True), or only root from now on (False)."""

    def __call__(self, image: Image) -> Image:
        """The record with the edit; InvalidValue for an attribute that cannot be unset, Refused for the
        (de)activation of an image in another state."""
        if self.active is not None:
            image = _activated(image, self.active)
        for name in self.unset:
            image = _unset(image, name)
        tags = tuple(tag for tag in image.tags if tag not in self.tags_off)
        return replace(
            image,
            properties={**image.properties, **self.properties},
            tags=tuple(dict.fromkeys((*tags, *self.tags))),
            **self.fields,  # type: ignore[arg-type]
        )


def _activated(image: Image, active: bool) -> Image:
    if image.status not in (Status.ACTIVE, Status.DEACTIVATED):
        raise Refused(f"Image {image.id} is {image.status}: only active images are deactivated.")
    return replace(image, status=Status.ACTIVE if active else Status.DEACTIVATED)


def _unset(image: Image, name: str) -> Image:
    if name == "tags":
        return replace(image, tags=())
    if name in fields.SETTABLE:
        return replace(image, **{name: fields.SETTABLE[name].default})  # type: ignore[arg-type]
    if name in image.properties:
        return replace(image, properties={key: text for key, text in image.properties.items() if key != name})
    raise InvalidValue(f"{name!r} is neither a property of {image.id} nor a field that can be unset.")


def record_options(command: Command) -> Command:
    """The options that `set` and `create` have in common."""
    for option in (
        click.option("--property", "properties", multiple=True, metavar="KEY=VALUE", help="A custom property."),
        click.option("--tag", "tags", multiple=True, help="Add a tag."),
        click.option("--protected/--unprotected", default=None, help="Whether it is safe from deletion."),
        click.option("--hidden/--listed", "os_hidden", default=None, help="Whether listings leave it out."),
        click.option("--visibility", type=click.Choice([str(v) for v in Visibility])),
        click.option("--disk-format", type=click.Choice(DISK_FORMATS)),
        click.option("--container-format", type=click.Choice(CONTAINER_FORMATS)),
        click.option("--min-disk", metavar="GB", help="Smallest disk that it boots on."),
        click.option("--min-ram", metavar="MB", help="Least memory that it boots with."),
        click.option("--owner", "--project", metavar="ID", help="The project that owns it."),
    ):
        command = option(command)
    return command


def edit_of(
    *,
    properties: tuple[str, ...],
    tags: tuple[str, ...],
    tags_off: tuple[str, ...] = (),
    unset: tuple[str, ...] = (),
    **values: str | bool | None,
) -> Edit:
    """The edit that the values of `record_options` describe; InvalidValue for one that a field refuses."""
    given = {
        name: fields.parse(name, value) if isinstance(value, str) else value
        for name, value in values.items()
        if value is not None
    }
    return Edit(given, image_properties(properties), tags, tags_off, unset)


@click.command("set")
@click.argument("image", shell_complete=complete_image)
@click.option("--name", help="Rename the image.")
@record_options
@click.option("--remove-tag", "tags_off", multiple=True, help="Remove a tag.")
@click.option("--activate/--deactivate", "active", default=None, help="Whether others than root may open the data.")
@click.option("--unset", multiple=True, metavar="NAME", help="Remove a property, or a field's value.")
@json_option
@repo_option
@pass_settings
def set_command(settings: Settings, /, image: str, as_json: bool, active: bool | None, **options: Any) -> None:
    """Change an image's name, properties, tags and other metadata."""
    edit = replace(edit_of(**options), active=active)
    with opened(settings) as repo:
        changed = Images(repo).update(resolve(repo, image).id, edit)
    if as_json:
        print_record(changed)


@click.command("delete")
@click.argument("images", shell_complete=complete_image, nargs=-1, required=True)
@repo_option
@pass_settings
def delete_command(settings: Settings, /, images: tuple[str, ...]) -> None:
    """Delete images. Whoever has one open goes on reading it until they close it.

    All words are looked up before anything is deleted; a protected image stops the command there.
    """
    with opened(settings) as repo:
        service = Images(repo)
        for image in [resolve(repo, word) for word in images]:
            service.delete(image.id)
            say(f"Deleted {image.id} ({image.name or 'without a name'}).")


@click.command("clone")
@click.argument("image", shell_complete=complete_image)
@click.argument("name")
@click.option("--draft", is_flag=True, help="A draft to be written to, which `imagefs seal` makes an image.")
@json_option
@repo_option
@pass_settings
def clone_command(settings: Settings, /, image: str, name: str, draft: bool, as_json: bool) -> None:
    """Make a new image NAME of the same data. No data is read or moved.

    With --draft it can be written to: only what is overwritten is stored.
    """
    name = str(fields.parse("name", name))
    if draft:
        # Imported here: it brings all that opens files, which a clone of 100 ms has no time for.
        from imagefs.cli.working import opened_for_data  # noqa: PLC0415
        from imagefs.images.cloning import writable_copy  # noqa: PLC0415

        with opened_for_data(settings) as (images, files):
            new = writable_copy(images, files, resolve(images.repo, image), name)
    else:
        with opened(settings) as repo:
            new = Images(repo).clone(resolve(repo, image).id, name)
    if as_json:
        print_record(new)
    else:
        click.echo(str(new.id))
