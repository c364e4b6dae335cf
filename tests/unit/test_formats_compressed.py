"""What is inside compressed images: clusters found, decoded, and made again bit by bit."""

from __future__ import annotations

import shutil
import struct
import subprocess
from pathlib import Path

import pytest

from imagefs.formats import Read, deflate, inside
from imagefs.formats.deflate import Codec
from tests import compressed
from tests.compressed import CLUSTER


def reader(data: bytes) -> Read:
    return lambda offset, length: data[offset : offset + length]


def remade(data: bytes, wanted: bytes) -> int:
    """Checks each cluster against the disk and its stream; how many there are."""
    found = inside.look(reader(data), len(data))
    assert found is not None
    samples = []
    for cluster in found.clusters:
        stored = data[cluster.file_off : cluster.file_off + cluster.room]
        decoded = deflate.decode(stored, found.wbits[0], found.unit)
        assert decoded is not None
        plain, length = decoded
        end = cluster.guest_off + found.unit
        assert plain == wanted[cluster.guest_off : end].ljust(found.unit, b"\0")
        samples.append((plain, stored[:length]))
    codec = deflate.probe(samples[:8], deflate.candidates(found.wbits))
    assert codec is not None
    assert all(codec.encode(plain) == stream for plain, stream in samples)
    return len(samples)


@pytest.mark.parametrize("version", [2, 3])
def test_qcow2(version: int) -> None:
    disk = compressed.disk(1, 1)
    assert remade(compressed.qcow2(disk, version=version), disk) == 16 + 2


def test_vmdk() -> None:
    disk = compressed.disk(1, 2, noise=False)
    assert remade(compressed.vmdk(disk), disk) == 16 + 2


@pytest.mark.skipif(shutil.which("qemu-img") is None, reason="qemu-img is not installed")
@pytest.mark.parametrize(
    "options",
    [
        ("-c", "-O", "qcow2"),
        ("-c", "-O", "qcow2", "-o", "cluster_size=4k"),
        ("-c", "-O", "qcow2", "-o", "compat=0.10"),
        ("-O", "vmdk", "-o", "subformat=streamOptimized"),
    ],
    ids=["qcow2", "qcow2-4k", "qcow2-v2", "vmdk"],
)
def test_what_qemu_writes(tmp_path: Path, options: tuple[str, ...]) -> None:
    # In a VMDK qemu writes what does not compress as stored blocks cut to its buffer, and of the last grain only
    # what there is: such grains stay as they are.
    disk = compressed.disk(3, 3, noise=False)[: 53 * CLUSTER]
    (tmp_path / "raw").write_bytes(disk)
    subprocess.run(
        ["qemu-img", "convert", "-f", "raw", *options, tmp_path / "raw", tmp_path / "made"], check=True, timeout=60
    )
    assert remade((tmp_path / "made").read_bytes(), disk) > 40


@pytest.mark.skipif(shutil.which("qemu-img") is None, reason="qemu-img is not installed")
@pytest.mark.parametrize("options", [("-O", "qcow2"), ("-c", "-O", "qcow2", "-o", "compression_type=zstd")])
def test_nothing_to_make_again(tmp_path: Path, options: tuple[str, ...]) -> None:
    (tmp_path / "raw").write_bytes(compressed.disk(1, 4))
    done = subprocess.run(
        ["qemu-img", "convert", "-f", "raw", *options, tmp_path / "raw", tmp_path / "made"],
        check=False, capture_output=True, timeout=60,
    )  # fmt: skip
    if done.returncode:
        pytest.skip(f"this qemu-img cannot: {done.stderr!r}")
    data = (tmp_path / "made").read_bytes()
    assert inside.look(reader(data), len(data)) is None


@pytest.mark.parametrize("codec", [Codec(9, -12, 9), Codec(1, -12, 8), Codec(3, -12, 9)])
def test_the_probe_tells_the_parameters(codec: Codec) -> None:
    plains = [compressed.text(CLUSTER, seed) for seed in range(4)]
    found = deflate.probe([(plain, codec.encode(plain)) for plain in plains], deflate.candidates((-12,)))
    assert found is not None
    assert all(found.encode(plain) == codec.encode(plain) for plain in plains)


def test_streams_of_another_encoder_are_not_claimed() -> None:
    plain = compressed.text(CLUSTER, 5)
    twice = Codec(6, -12, 9).encode(plain[: CLUSTER // 2])
    assert deflate.probe([(plain, twice)], deflate.candidates((-12,))) is None


def test_the_probe_digest_tells_encoders_apart() -> None:
    digests = {deflate.probe_digest(codec) for codec in deflate.candidates((-12, 15))}
    assert len(digests) == len(deflate.candidates((-12, 15)))


def test_a_stream_that_says_more_or_less_than_a_cluster() -> None:
    codec = compressed.QEMU
    assert deflate.decode(codec.encode(bytes(CLUSTER)), -12, CLUSTER // 2) is None
    assert deflate.decode(codec.encode(bytes(CLUSTER // 2)), -12, CLUSTER) is None
    assert deflate.decode(b"\xff" * 100, -12, CLUSTER) is None
    assert deflate.decode(codec.encode(bytes(CLUSTER))[:-2], -12, CLUSTER) is None
    stream = codec.encode(compressed.text(CLUSTER, 6))
    assert deflate.decode(stream + b"more", -12, CLUSTER) == (compressed.text(CLUSTER, 6), len(stream))


@pytest.mark.parametrize("at", range(0, 112, 4))
@pytest.mark.parametrize("make", [compressed.qcow2, compressed.vmdk])
def test_a_header_that_lies_is_harmless(make: object, at: int) -> None:
    """Any word of a header may be anything: nothing is found, or what is found does not decode."""
    data = bytearray(make(compressed.disk(1, 7, noise=False)))  # type: ignore[operator]
    for word in (0, 1, 0x7FFF_FFFF, 0xFFFF_FFFF):
        data[at : at + 4] = struct.pack(">I", word)
        inside.look(reader(bytes(data)), len(data))
