"""`mount.imagefs`: what mount(8) runs for a line of /etc/fstab, or for `mount -t imagefs`.

    mount.imagefs SOURCE MOUNTPOINT [-sfnvrw] [-t TYPE] [-N NAMESPACE] [-o OPTIONS]

SOURCE is the repository's directory; `imagefs`, `none` or `default` mean the default one.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import click

from imagefs.cli.mount import mount_command
from imagefs.cli.output import say
from imagefs.cli.settings import Settings, pass_settings
from imagefs.errors import MountFailed

DEFAULT_SOURCES = ("imagefs", "none", "default")
VALUES = ("transport", "settle", "seal", "project", "uid", "gid", "log")
FLAGS = {"allow_other": "--allow-other", "no_allow_other": "--no-allow-other"}
IGNORED = re.compile(
    r"rw|defaults|(no)?auto|nofail|_netdev|(no)?users?|owner|group|nosuid|nodev|exec|(no|rel|strict)?atime"
    r"|(no)?diratime|async|x-.*|X-.*|comment=.*|rootcontext=.*|user=.*"
)
"""Options of mount(8) and systemd that say when and by whom, or what every mount of imagefs is anyway."""


@click.command("mount-helper", hidden=True)
@click.argument("source")
@click.argument("mountpoint")
@click.option("-o", "options", multiple=True)
@click.option("-s", "sloppy", is_flag=True)
@click.option("-f", "fake", is_flag=True)
@click.option("-r", "readonly", is_flag=True)
@click.option("-n", "-v", "-w", "_ignored", count=True, expose_value=False)
@click.option("-t", "-N", "_told", multiple=True, expose_value=False)
@pass_settings
@click.pass_context
def mount_helper_command(
    ctx: click.Context,
    settings: Settings,
    /,
    source: str,
    mountpoint: str,
    options: tuple[str, ...],
    sloppy: bool,
    fake: bool,
    readonly: bool,
) -> None:
    """What mount(8) runs; its options are those of `imagefs mount`, written as in /etc/fstab."""
    given = split_options(",".join(options))
    if readonly or "ro" in given:
        raise MountFailed("imagefs has no read-only mounts: leave out ro (sealed images never change anyway).")
    repo = given.pop("repo", "") or ("" if source in DEFAULT_SOURCES else source)
    config = given.pop("config", "")
    words = mount_words(given, sloppy=sloppy)
    ctx.obj = replace(
        settings,
        repo=Path(repo) if repo else settings.repo,
        config_file=Path(config) if config else settings.config_file,
    )
    with mount_command.make_context("mount", [*words, "--", mountpoint], parent=ctx) as inner:
        if not fake:
            mount_command.invoke(inner)


def split_options(text: str) -> dict[str, str]:
    """`a,b=c` as a mapping, flags with an empty value. A backslash keeps a comma in a value."""
    words = re.findall(r"(?:\\.|[^,\\])+", text)
    pairs = (re.sub(r"\\(.)", r"\1", word).partition("=") for word in words)
    return {name: value for name, _, value in pairs}


def mount_words(given: dict[str, str], *, sloppy: bool) -> list[str]:
    """The options as words of `imagefs mount`. MountFailed for one that means nothing here."""
    words = []
    for name, value in given.items():
        if name in VALUES:
            words.append(f"--{name}={value}")
        elif name in FLAGS:
            words.append(FLAGS[name])
        elif not IGNORED.fullmatch(f"{name}={value}" if value else name):
            if not sloppy:
                known = ", ".join((*VALUES, *FLAGS, "repo", "config"))
                raise MountFailed(f"{name} is no mount option of imagefs; these are: {known}.")
            say(f"The mount option {name} is left out: imagefs does not know it.")
    return words
