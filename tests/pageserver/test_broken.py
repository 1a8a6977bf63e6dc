"""Tenants and timelines on disk that cannot be served, beside others that are."""

from __future__ import annotations

import logging
import os
import shutil
import socket
import struct
from typing import TYPE_CHECKING

import google_crc32c
import pytest
from prometheus_client import REGISTRY
from support.helpers import TENANT, TIMELINE

from bbcache import BasebackupCacheConfig, Lsn, StoreError, TenantState
from bbcache.errors import BrokenError, PostgresError
from bbcache.pageserver import Pageserver, PgdataTenantManager
from bbcache.pageserver.broken import BrokenRegister

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from pageserver.conftest import Address, Lab

    from bbcache.pageserver import PgdataTenant

pytestmark = pytest.mark.postgres

_STATE_OFFSET = 16  # of ControlFileData, in a file whose checksum stands at 288 or 292
_IN_PRODUCTION = 6


def timeline_dir(lab: Lab, address: Address) -> Path:
    """The directory of a timeline."""
    tenant_id, timeline_id = address
    return lab.root / "tenants" / str(tenant_id) / "timelines" / str(timeline_id)


def cut(place: Path) -> None:
    """Shorten pg_control."""
    os.truncate(place / "global/pg_control", 100)


def zero(place: Path) -> None:
    """Overwrite pg_control."""
    (place / "global/pg_control").write_bytes(bytes(8192))


def rewrite(place: Path, offset: int, value: int) -> None:
    """Change a number in pg_control, and make the checksum right."""
    path = place / "global/pg_control"
    data = bytearray(path.read_bytes())
    crc_offset = 288 if struct.unpack_from("<I", data, 8)[0] < 1800 else 292
    struct.pack_into("<I", data, offset, value)
    struct.pack_into("<I", data, crc_offset, google_crc32c.value(bytes(data[:crc_offset])))
    path.write_bytes(data)


def replace(path: Path, make: Callable[[Path], object]) -> None:
    """Put something else in a file's place."""
    path.unlink()
    make(path)


def fifos(place: Path) -> None:
    """FIFOs that nobody writes to, in the place of what is read first."""
    replace(place / "global/pg_control", os.mkfifo)
    os.mkfifo(place / "postmaster.pid")


def empty(place: Path) -> None:
    """Nothing in the directory."""
    shutil.rmtree(place)
    place.mkdir()


def as_file(place: Path) -> None:
    """A file in the place of the directory."""
    shutil.rmtree(place)
    place.touch()


def as_link(place: Path, target: str) -> None:
    """A link in the place of the directory."""
    shutil.rmtree(place)
    place.symlink_to(target)


def spell_twice(place: Path) -> None:
    """Two spellings of the id."""
    shutil.copytree(place, place.with_name(place.name.upper()))


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "pg_control cut": (cut, "has 100 bytes, not 8192"),
    "pg_control zeroed": (zero, "version 0 is not one of PostgreSQL"),
    "pg_control missing": (lambda p: (p / "global/pg_control").unlink(), "No such file"),
    "pg_control of another version": (lambda p: rewrite(p, 12, 1), "catalog version 1 is not of"),
    "not cleanly shut down": (
        lambda p: rewrite(p, _STATE_OFFSET, _IN_PRODUCTION),
        "was not shut down cleanly: its state is in production",
    ),
    "pg_control a FIFO": (
        lambda p: replace(p / "global/pg_control", os.mkfifo),
        "it is not a regular file",
    ),
    "pg_control a directory": (
        lambda p: replace(p / "global/pg_control", os.mkdir),
        "it is not a regular file",
    ),
    "pg_control a loop": (
        lambda p: replace(p / "global/pg_control", lambda q: q.symlink_to(q.name)),
        "it is a symbolic link",
    ),
    "pg_control and postmaster.pid FIFOs": (
        fifos,
        "it is not a regular file",
    ),
    "PG_VERSION missing": (lambda p: (p / "PG_VERSION").unlink(), "PG_VERSION does not exist"),
    "PG_VERSION of another version": (
        lambda p: (p / "PG_VERSION").write_text("9\n"),
        "PG_VERSION does not say ",
    ),
    "PG_VERSION empty": (lambda p: os.truncate(p / "PG_VERSION", 0), "PG_VERSION does not say "),
    "PG_VERSION a FIFO": (
        lambda p: replace(p / "PG_VERSION", os.mkfifo),
        "PG_VERSION does not exist",
    ),
    "empty": (empty, "PG_VERSION does not exist"),
    "a file": (as_file, "is not a directory"),
    "a broken link": (lambda p: as_link(p, "nowhere"), "is not a directory"),
    "a link loop": (lambda p: as_link(p, p.name), "is not a directory"),
    "two spellings": (spell_twice, "there are 2 directories of this id"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_timeline_is_refused_and_its_neighbours_are_served(
    lab: Lab, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    """It is logged with path and reason, its entry stays, and clients see no path."""
    bad = lab.add_timeline()
    tenant = lab.pageserver.tenants.get_tenant(bad.tenant_id)
    sibling, other = lab.add_timeline(tenant), lab.add_timeline()
    for address in (bad, sibling, other):
        lab.pageserver.cache.send_prepare(
            lab.shard(address), address.timeline_id, lab.timeline(address).get_last_record_lsn()
        )
    lab.wait_idle()
    lab.close()
    spoil, reason = DAMAGES[damage]
    spoil(timeline_dir(lab, bad))
    pageserver = lab.open()
    with pytest.raises(BrokenError) as raised:
        pageserver.open_basebackup(*bad)
    text = str(raised.value)
    assert text.startswith(f"timeline {bad.timeline_id} of tenant {bad.tenant_id} is broken: ")
    assert reason in text
    assert str(lab.root) not in text
    lines = [each.getMessage() for each in caplog.records if "is broken" in each.getMessage()]
    assert len(lines) == 1
    assert reason in lines[0]
    assert str(timeline_dir(lab, bad)) in lines[0]
    assert "\n" not in lines[0]
    pageserver.cache.run_cleanup()
    assert len(pageserver.cache.entries()) == 3
    for address in (sibling, other):
        with pageserver.open_basebackup(*address).file as file:
            assert file.read(1)
    assert [each.timeline_id for each in pageserver.tenants.broken.list()] == [bad.timeline_id]


def test_clean_up_is_quiet_about_what_is_broken(lab: Lab, caplog: pytest.LogCaptureFixture) -> None:
    """The damage is reported once, not by each clean-up, and a sibling that is gone goes."""
    bad = lab.add_timeline()
    gone = lab.add_timeline(lab.pageserver.tenants.get_tenant(bad.tenant_id))
    for address in (bad, gone):
        lab.play(address)
    lab.close()
    cut(timeline_dir(lab, bad))
    shutil.rmtree(timeline_dir(lab, gone))
    pageserver = lab.open()
    caplog.clear()
    pageserver.cache.run_cleanup()
    pageserver.cache.run_cleanup()
    assert [each.timeline_id for each in pageserver.cache.entries()] == [bad.timeline_id]
    assert [each for each in caplog.records if each.levelname != "INFO"] == []


def tenant_loop(place: Path) -> None:
    """A tenant that is a link to itself."""
    shutil.rmtree(place)
    place.symlink_to(place.name)


def tenant_timelines_file(place: Path) -> None:
    """A file in the place of ``timelines``."""
    shutil.rmtree(place / "timelines")
    (place / "timelines").touch()


def tenant_timelines_link(place: Path) -> None:
    """A broken link in the place of ``timelines``."""
    shutil.rmtree(place / "timelines")
    (place / "timelines").symlink_to("nowhere")


@pytest.mark.parametrize(
    "spoil",
    [
        as_file,
        lambda place: as_link(place, "nowhere"),
        tenant_loop,
        spell_twice,
        tenant_timelines_file,
        tenant_timelines_link,
    ],
    ids=["file", "broken link", "loop", "two spellings", "timelines a file", "timelines a link"],
)
def test_a_damaged_tenant_is_broken_and_its_neighbours_are_served(
    lab: Lab, spoil: Callable[[Path], None]
) -> None:
    """Its state says so, its entries stay, and the other tenant is served."""
    bad, other = lab.add_timeline(), lab.add_timeline()
    lab.play(bad)
    lab.close()
    spoil(lab.root / "tenants" / str(bad.tenant_id))
    pageserver = lab.open()
    tenant = pageserver.tenants.get_tenant(bad.tenant_id)
    assert tenant.current_state() is TenantState.BROKEN
    with pytest.raises(BrokenError, match=f"^tenant {bad.tenant_id} is broken: "):
        pageserver.open_basebackup(*bad)
    pageserver.cache.run_cleanup()
    assert [each.tenant_id for each in pageserver.cache.entries()] == [bad.tenant_id]
    with pageserver.open_basebackup(*other).file as file:
        assert file.read(1)


@pytest.mark.parametrize("error", [PermissionError(13, "Permission denied"), OSError(5, "I/O")])
def test_a_directory_that_cannot_be_read_is_broken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: OSError
) -> None:
    """EACCES and EIO: the tenant is broken, not empty."""
    (tmp_path / str(TENANT) / "timelines").mkdir(parents=True)
    listdir = os.listdir

    def failing(path: str | Path = ".") -> list[str]:
        if str(path).endswith("timelines"):
            raise error
        return listdir(path)

    monkeypatch.setattr(os, "listdir", failing)
    tenants = PgdataTenantManager(tmp_path)
    tenants.attach_all()
    assert tenants.get_tenant(TENANT).current_state() is TenantState.BROKEN
    with pytest.raises(BrokenError, match=f"its directory cannot be read: {error.strerror}"):
        tenants.get_tenant(TENANT).get_timeline(TIMELINE)


NAMES = ["lost+found", ".DS_Store", "a\nb", os.fsdecode(b"\xff\xfe"), "0" * 31, f"{'0' * 32}x"]


@pytest.mark.parametrize("where", ["tenants", "timelines"])
def test_foreign_names_are_reported_and_left_alone(
    lab: Lab, caplog: pytest.LogCaptureFixture, where: str
) -> None:
    """A name that is no id gets a line of printable characters, and nothing is done to it."""
    address = lab.add_timeline()
    lab.close()
    parents = timeline_dir(lab, address).parents
    directory = parents[2] if where == "tenants" else parents[0]
    for name in NAMES:
        (directory / name).mkdir()
    pageserver = lab.open()
    assert pageserver.tenants.broken.foreign_count == len(NAMES)
    lines = [each.getMessage() for each in caplog.records if "is not an id" in each.getMessage()]
    assert len(lines) == len(NAMES)
    assert all(line.isascii() and line.isprintable() for line in lines)
    assert all((directory / name).is_dir() for name in NAMES)
    with pageserver.open_basebackup(*address).file as file:
        assert file.read(1)


def test_thousands_of_bad_ones_have_twenty_lines(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The log is bounded, and says how many lines it leaves out."""
    timelines_dir = tmp_path / str(TENANT) / "timelines"
    timelines_dir.mkdir(parents=True)
    for number in range(2000):
        (timelines_dir / f"{number:032x}").touch()
        (timelines_dir / f"foreign file{number}").touch()
    tenants = PgdataTenantManager(tmp_path)
    tenants.attach_all()
    assert len(tenants.broken.list()) == 2000
    assert len(caplog.records) == 42
    assert "1980 more tenants and timelines are broken" in caplog.text
    assert "ignoring 1980 more names" in caplog.text


@pytest.mark.parametrize("make", [lambda path: path.touch(), lambda path: path.symlink_to(path)])
def test_a_tenants_directory_that_cannot_be_listed_ends_the_start(
    tmp_path: Path, make: Callable[[Path], None]
) -> None:
    """Which tenants there are is unknown then, and none is taken for gone."""
    make(tmp_path / "tenants")
    with pytest.raises(StoreError, match=r"/tenants cannot be listed: "):
        PgdataTenantManager(tmp_path / "tenants").attach_all()


def test_a_timeline_breaks_and_is_mended_while_it_is_served(
    lab: Lab, caplog: pytest.LogCaptureFixture
) -> None:
    """The next build reports it, once; the build after the repair takes the report back."""
    caplog.set_level(logging.INFO, "bbcache")
    address = lab.add_timeline()
    tenants, control = lab.pageserver.tenants, timeline_dir(lab, address) / "global/pg_control"
    content = control.read_bytes()
    cut(timeline_dir(lab, address))
    for _ in range(2):
        with pytest.raises(BrokenError, match="pg_control: has 100 bytes"):
            lab.pageserver.open_basebackup(*address)
    assert [each.timeline_id for each in tenants.broken.list()] == [address.timeline_id]
    assert caplog.text.count("is broken") == 1
    control.write_bytes(content)
    lab.pageserver.open_basebackup(*address).file.close()
    assert tenants.broken.list() == []
    assert "works again" in caplog.text


def test_a_timeline_whose_takeover_has_failed_has_no_hits(lab: Lab) -> None:
    """What the compute node has left is newer than the cache's entry; others have their hits."""
    address, other = lab.add_timeline(), lab.add_timeline()
    tenants = lab.pageserver.tenants
    tenants.check_usable(*address)
    lab.timeline(address).refuse_until_takeover()
    with pytest.raises(BrokenError, match="a takeover failed"):
        tenants.check_usable(*address)
    tenants.check_usable(*other)


def test_a_start_that_fails_leaves_no_metrics(lab: Lab) -> None:
    """The next one in the process counts from scratch, also in the default registry."""
    root, program = lab.root, lab.binaries
    lab.close()
    (root / "tenants").rename(root / "away")
    (root / "tenants").touch()
    with pytest.raises(StoreError, match="cannot be listed"):
        Pageserver(root, program, BasebackupCacheConfig())
    (root / "tenants").unlink()
    (root / "away").rename(root / "tenants")
    name, labels = "bbcache_pageserver_tenants", {"state": "broken"}
    for _ in range(2):
        with Pageserver(root, program, BasebackupCacheConfig()):
            assert REGISTRY.get_sample_value(name, labels) == 0
    assert REGISTRY.get_sample_value(name, labels) is None


def test_the_disk_of_the_client_does_not_break_a_timeline(lab: Lab) -> None:
    """What a writer raises says nothing about the timeline."""
    address = lab.add_timeline()

    class Full:
        def write(self, _: object) -> int:
            raise PostgresError("the other side is full")

    with pytest.raises(PostgresError, match="the other side is full"):
        lab.timeline(address).send_basebackup_tarball(
            Full(), lab.timeline(address).get_last_record_lsn()
        )
    assert lab.pageserver.tenants.broken.list() == []


def test_a_timeline_can_be_reported_before_and_after_the_attach(lab: Lab) -> None:
    """`break_timeline` refuses it until the next start, also one without a directory."""
    early, late = lab.add_timeline(), lab.add_timeline()
    lab.play(early)
    lab.close()
    tenants = PgdataTenantManager(lab.root / "tenants")
    tenants.break_timeline(*early, PostgresError(f"{lab.root}/computes/x cannot be adopted"))
    tenants.attach_all()
    tenants.break_timeline(*late, "it is evil\nhint: Flee.")
    tenants.break_timeline(late.tenant_id, TIMELINE, "no directory")

    def refusal(tenant: PgdataTenant, address: Address) -> str:
        with pytest.raises(BrokenError) as raised:
            tenant.get_timeline(address.timeline_id)
        return str(raised.value)

    assert "the log of the service has the reason" in refusal(
        tenants.get_tenant(early.tenant_id), early
    )
    assert "is broken: it is evil\nhint: Repair" in refusal(
        tenants.get_tenant(late.tenant_id), late
    )
    for tenant_id, timeline_id in (early, late, (late.tenant_id, TIMELINE)):
        listed = tenants.get_tenant(tenant_id).list_timelines()
        assert timeline_id in [each.timeline_id for each in listed]
        with pytest.raises(BrokenError):
            tenants.check_usable(tenant_id, timeline_id)
    tenants.check_usable(TENANT, TIMELINE)
    (stand_in,) = tenants.get_tenant(early.tenant_id).list_timelines()
    for method in (
        stand_in.get_last_record_lsn,
        lambda: stand_in.wait_lsn(Lsn(1), 0),
        lambda: stand_in.send_basebackup_tarball(socket.socket, Lsn(1)),  # type: ignore[arg-type]
    ):
        with pytest.raises(BrokenError):
            method()


def test_a_reason_names_no_path(tmp_path: Path) -> None:
    """Whatever an error says, a client reads no path of the service's machine."""
    register = BrokenRegister()
    for error in (
        PostgresError(f"cannot read {tmp_path}/global/pg_control: I/O error"),
        PostgresError(f"{tmp_path} was not shut down"),
        PostgresError("cannot rename '/srv/a' to /srv/b"),
        FileNotFoundError(2, "No such file", "/srv/secret"),
        RuntimeError(""),
    ):
        assert "/srv" not in register.report(TENANT, TIMELINE, tmp_path, error).reason
        assert str(tmp_path) not in register.report(TENANT, TIMELINE, tmp_path, error).reason
