"""Settings that tie a server to its place do not go into a basebackup."""

from __future__ import annotations

import os
import socket
from contextlib import chdir
from typing import TYPE_CHECKING

import pytest

from bbcache.errors import PostgresError
from bbcache.postgres.pgdata.settings import PortableConfig, make_portable

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import ClusterFactory

    from bbcache.postgres.server.cluster import PostgresBinaries


@pytest.fixture
def config_dir(tmp_path: Path) -> Path:
    """A directory with the two files that must be there."""
    (tmp_path / "postgresql.conf").write_text("")
    (tmp_path / "pg_hba.conf").write_text("local all all trust\n")
    return tmp_path


def portable(config_dir: Path, *lines: str, file: str = "postgresql.conf") -> str:
    """What becomes of a configuration file with these lines."""
    (config_dir / file).write_text("\n".join(lines))
    return PortableConfig(config_dir).contents[file].decode()


@pytest.mark.parametrize(
    "line",
    [
        "unix_socket_directories = '/run/postgresql'",
        "Unix_Socket_Directories '/run/postgresql'",
        "  external_pid_file='/run/postgresql/15.pid'  # Debian",
        "stats_temp_directory = '/run/postgresql/stats'",
        "archive_mode = on",
        "archive_command = 'cp %p /archive/%f'",
        "archive_library = 'basic_archive'",
        "synchronous_standby_names = '*'",
        "log_directory = '/var/log/postgresql'",
        "log_directory = 'log/../../logs'",
        "listen_addresses = '10.0.0.5'",
        "listen_addresses = 'localhost, 10.0.0.5'",
        "unix_socket_directories = 'it''s \\'here\\', /there'",
        "unix_socket_group = 'staff'",
        "unix_socket_permissions = 0000",
        "huge_pages = on",
        "huge_pages = 'TRUE'",
        "huge_page_size = '1GB'",
        "io_method = 'io_uring'",
        "debug_io_direct = 'data, wal'",
        "bonjour = on",
        "bonjour_name = 'me'",
        "data_directory = '/elsewhere'",
        "hba_file = '/etc/pg_hba.conf'",
        "hba_file = 'relative.conf'",
        "ident_file = '../pg_ident.conf'",
        "ssl_passphrase_command = '/etc/ssl/ask'",
        "ssl_ca_file = '/etc/ssl/ca.pem'",
        "ssl_cert_file = '../server.crt'",
        "ssl_crl_dir = '/etc/ssl/crl'",
        "krb_server_keyfile = 'FILE:/etc/krb5.keytab'",
        "krb_server_keyfile = '/etc/krb5.keytab'",
        "synchronized_standby_slots = 'standby'",
        "recovery_target_xid = '5'",
        "recovery_target = 'immediate'",
    ],
)
@pytest.mark.parametrize("file", ["postgresql.conf", "postgresql.auto.conf"])
def test_commented_out(config_dir: Path, line: str, file: str) -> None:
    """A setting that ties a server to its place is commented out, its neighbours kept."""
    got = portable(config_dir, "work_mem = 1MB", line, "port = 5433", file=file)
    assert got == f"work_mem = 1MB\n# not portable: {line}\nport = 5433"


@pytest.mark.parametrize(
    "line",
    [
        "#unix_socket_directories = '/tmp'",
        "log_directory = 'log'",
        "listen_addresses = '*'",
        "listen_addresses = 'localhost,::1'",
        "listen_addresses = ''",
        "shared_preload_libraries = 'pg_stat_statements'",
        "my.archive_mode = 'x'",
        "restore_command = 'cp /archive/%f %p'",
        "ssl_cert_file = 'server.crt'",
        "ssl_ca_file = ''",
        "ssl = off",
        "huge_pages = try",
        "io_method = worker",
        "krb_server_keyfile = 'FILE:own.keytab'",
        "shared_preload_libraries = '/usr/lib/postgresql/lib/x.so, $libdir/y'",
        "= broken",
        "'",
        "",
    ],
)
def test_left_alone(config_dir: Path, line: str) -> None:
    """Anything else stays as it is, byte for byte, also what does not parse."""
    assert portable(config_dir, line, "") == f"{line}\n"


def test_bytes_that_are_no_text(config_dir: Path) -> None:
    """A file in another encoding goes through unchanged."""
    content = b"search_path = '\xff\xfe'\r\nport = 1\r\n"
    (config_dir / "postgresql.conf").write_bytes(content)
    assert PortableConfig(config_dir).contents["postgresql.conf"] == content


def made_relative(config_dir: Path, line: str) -> str:
    """What a setting becomes that is followed by what it was."""
    new, _, old = portable(config_dir, line).partition("  # made relative: ")
    assert old == line
    return new


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("log_directory = '{}/my logs'", "log_directory = 'my logs'"),
        ("Log_Directory '{}/it''s'  # x", "Log_Directory = 'it''s'"),
        ("log_directory = '{}'", "log_directory = '.'"),
        ("log_directory = '../{0.name}/a/../b'", "log_directory = 'b'"),
        ("ssl_ca_file='{}/ssl/ca.pem'", "ssl_ca_file = 'ssl/ca.pem'"),
        ("krb_server_keyfile = '{}/own.keytab'", "krb_server_keyfile = 'own.keytab'"),
        ("include_if_exists '{}/missing.conf'", "include_if_exists = 'missing.conf'"),
        (
            "shared_preload_libraries = 'a,\"{}/l/b.so\"'",
            "shared_preload_libraries = 'a,\"l/b.so\"'",
        ),
    ],
)
def test_absolute_path_inside(config_dir: Path, line: str, expected: str) -> None:
    """A path that leads into the directory goes with it, as a relative one."""
    assert made_relative(config_dir, line.format(config_dir)) == expected


def test_path_by_another_name(config_dir: Path) -> None:
    """A link to the directory, and its path at the last start of its server, lead into it."""
    (config_dir.parent / "link").symlink_to(config_dir)
    line = f"log_directory = '{config_dir.parent}/link/x'"
    assert made_relative(config_dir, line) == "log_directory = 'x'"
    opts = '/usr/bin/postgres "-D" "/former/place" "--port=1"\n'
    (config_dir / "postmaster.opts").write_text(opts)
    assert made_relative(config_dir, "log_directory = '/former/place/x'") == "log_directory = 'x'"
    for outside in ("/former/places/x", "/former"):
        line = f"log_directory = '{outside}'"
        assert portable(config_dir, line) == f"# not portable: {line}"


def test_absolute_include_inside(config_dir: Path) -> None:
    """An include inside the directory is followed, and named relative to its own file."""
    (config_dir / "conf.d").mkdir()
    (config_dir / "conf.d/two.conf").write_text("huge_pages = on")
    (config_dir / "conf.d/one.conf").write_text(f"include '{config_dir}/conf.d/two.conf'")
    portable(config_dir, f"include_dir '{config_dir}/conf.d'")
    contents = PortableConfig(config_dir).contents
    assert contents["postgresql.conf"].startswith(b"include_dir = 'conf.d'  # made relative: ")
    assert contents["conf.d/one.conf"].startswith(b"include = 'two.conf'  # made relative: ")
    assert contents["conf.d/two.conf"] == b"# not portable: huge_pages = on"


@pytest.mark.parametrize(
    ("name", "own"), [("hba_file", "pg_hba.conf"), ("ident_file", "pg_ident.conf")]
)
def test_access_file_of_the_settings(config_dir: Path, name: str, own: str) -> None:
    """The access file that a setting names inside is the copy's, with all that it names."""
    (config_dir / "access").mkdir()
    (config_dir / "access/users").write_text("bob")
    lines = 'local all @users trust\nlocal all @"{}/access/users" trust # @/fine'
    (config_dir / "access/own.conf").write_text(lines.format(config_dir))
    line = f"{name} = '{config_dir}/access/own.conf'"
    assert portable(config_dir, line) == f"# not portable: {line}"
    contents = PortableConfig(config_dir).contents
    moved = 'local all @"access/users" trust'
    assert contents[own].decode() == f"{moved}\n{moved} # @/fine"
    assert contents["access/users"] == b"bob"


def test_access_file_elsewhere(config_dir: Path) -> None:
    """Where a setting names an access file outside, the copy has the directory's own."""
    portable(config_dir, "hba_file = '/etc/hba.conf'")
    assert PortableConfig(config_dir).contents["pg_hba.conf"] == b"local all all trust\n"


@pytest.fixture
def ssl_dir(config_dir: Path) -> Path:
    """A directory with a certificate and a key."""
    (config_dir / "server.crt").write_text("a certificate")
    (config_dir / "server.key").write_text("a key")
    return config_dir


def test_ssl_with_its_files(ssl_dir: Path) -> None:
    """A server keeps TLS where all that it reads at its start goes along."""
    (ssl_dir / "ca.pem").touch()
    for line in ("", "ssl_ca_file = 'ca.pem'", "ssl_crl_file = '/etc/ssl/crl'"):
        assert "# not portable: ssl = on" not in portable(ssl_dir, "ssl = on", line)


@pytest.mark.parametrize("lack", ["server.crt", "server.key", "ca", "crl", "link", "passphrase"])
def test_ssl_without_its_files(ssl_dir: Path, lack: str) -> None:
    """A server that could not start with TLS starts without, wherever it is turned on."""
    line = {"ca": "ssl_ca_file = 'gone.pem'", "crl": "ssl_crl_file = 'gone.pem'"}.get(lack, "")
    if lack.startswith("server"):
        (ssl_dir / lack).unlink()
    elif lack == "link":
        (ssl_dir / "server.key").rename(ssl_dir / "real.key")
        (ssl_dir / "server.key").symlink_to("real.key")
    elif lack == "passphrase":
        (ssl_dir / "server.key").write_text("-----BEGIN ENCRYPTED PRIVATE KEY-----")
    (ssl_dir / "postgresql.auto.conf").write_text("SSL = 'on'")
    portable(ssl_dir, "ssl = on", line)
    config = PortableConfig(ssl_dir)
    assert config.contents["postgresql.conf"].startswith(b"# not portable: ssl = on\n")
    assert config.contents["postgresql.auto.conf"] == b"# not portable: SSL = 'on'"
    assert config.left_out == ["ssl (postgresql.conf line 1)", "ssl (postgresql.auto.conf line 1)"]
    assert portable(ssl_dir, "ssl = on", line, "ssl = off", file="postgresql.auto.conf")
    assert PortableConfig(ssl_dir).left_out == []


@pytest.mark.parametrize("directive", ["include", "include_if_exists", "include_dir"])
@pytest.mark.parametrize("target", ["/etc/extra.conf", "../extra.conf", "a/../../extra.conf", ".."])
def test_include_from_outside(config_dir: Path, directive: str, target: str) -> None:
    """An include that leads out of the directory is commented out, and named."""
    line = f"{directive} '{target}'"
    assert portable(config_dir, line) == f"# not portable: {line}"
    assert PortableConfig(config_dir).left_out == [f"{directive} (postgresql.conf line 1)"]


def test_included_files(config_dir: Path) -> None:
    """Included files get the same treatment, from whatever directory they are included."""
    (config_dir / "conf.d").mkdir()
    line = "external_pid_file = '/run/x'"
    for file in ("one.conf", "conf.d/two.conf", "conf.d/deep", "conf.d/unread.txt"):
        (config_dir / file).write_text(line)
    (config_dir / "conf.d/three.conf").write_text(f"{line}\ninclude 'deep'\ninclude '../one.conf'")
    (config_dir / "conf.d/.hidden.conf").write_text(line)
    portable(config_dir, "include_dir = 'conf.d'", "include_if_exists 'missing.conf'")
    contents = PortableConfig(config_dir).contents
    marked = {name for name, content in contents.items() if b"# not portable" in content}
    assert marked == {"one.conf", "conf.d/two.conf", "conf.d/three.conf", "conf.d/deep"}


@pytest.mark.parametrize("directive", ["include", "include_dir"])
def test_include_of_nothing(config_dir: Path, directive: str) -> None:
    """An include of what is not there, with which no server starts, is commented out."""
    for target in ("missing", ""):
        line = f"{directive} '{target}'"
        expected = line if (directive, target) == ("include_dir", "") else f"# not portable: {line}"
        assert portable(config_dir, line) == expected


@pytest.mark.parametrize("name", ["directory", "pipe", "link", "linked/x.conf"])
@pytest.mark.parametrize("directive", ["include", "include_if_exists"])
def test_include_of_no_file(config_dir: Path, directive: str, name: str) -> None:
    """An include of what is not sent is commented out, and no pipe is waited on."""
    (config_dir / "directory").mkdir()
    os.mkfifo(config_dir / "pipe")
    (config_dir / "link").symlink_to("/etc/hosts")
    (config_dir / "linked").symlink_to(config_dir.parent)
    (config_dir.parent / "x.conf").touch()
    line = f"{directive} '{name}'"
    assert portable(config_dir, line) == f"# not portable: {line}"


@pytest.mark.parametrize("name", ["directory", "pipe"])
def test_access_list_that_is_no_file(config_dir: Path, name: str) -> None:
    """A directory or pipe that an access file names as a list is refused, and not waited on."""
    (config_dir / "directory").mkdir()
    os.mkfifo(config_dir / "pipe")
    with pytest.raises(PostgresError, match=rf"/{name} is not .*: it is not a regular file"):
        portable(config_dir, f"local @{name} all trust", file="pg_hba.conf")


def test_include_of_the_directory_itself(config_dir: Path) -> None:
    """Its files have one name each."""
    assert portable(config_dir, "include_dir '.'") == "include_dir '.'"
    assert PortableConfig(config_dir).contents.keys() == {"postgresql.conf", "pg_hba.conf"}


def test_include_in_a_circle(config_dir: Path) -> None:
    """Files that include each other are each read once."""
    (config_dir / "a.conf").write_text("include 'postgresql.conf'")
    assert portable(config_dir, "include 'a.conf'") == "include 'a.conf'"


def test_included_setting_wins_like_in_the_server(config_dir: Path) -> None:
    """The last value counts, in postgresql.auto.conf or wherever it is."""
    (config_dir / "postgresql.auto.conf").write_text("log_directory = 'b/'")
    portable(config_dir, "log_directory = 'a'")
    assert PortableConfig(config_dir).log_dir == "b"


@pytest.mark.parametrize("name", ["postgresql.conf", "pg_hba.conf"])
def test_configuration_elsewhere(config_dir: Path, name: str) -> None:
    """A missing or linked configuration file is named, with what to do about it."""
    (config_dir / name).unlink()
    for target in (None, "/etc/hosts"):
        if target:
            (config_dir / name).symlink_to(target)
        with pytest.raises(PostgresError, match=rf"{name} is not .*\nhint: Configuration kept"):
            PortableConfig(config_dir)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every file")
def test_configuration_that_cannot_be_read(config_dir: Path) -> None:
    """A file that is in its place is not to be put there."""
    (config_dir / "pg_hba.conf").chmod(0)
    with pytest.raises(PostgresError, match=r"pg_hba\.conf is not .*: Permission denied$"):
        PortableConfig(config_dir)


def test_configuration_that_is_a_socket(config_dir: Path) -> None:
    """Another error than a file that is elsewhere has no hint about that."""
    (config_dir / "pg_hba.conf").unlink()
    with socket.socket(socket.AF_UNIX) as server, chdir(config_dir):
        server.bind("pg_hba.conf")
    with pytest.raises(PostgresError, match=r"pg_hba\.conf is not .*: No such device or address$"):
        PortableConfig(config_dir)


@pytest.mark.parametrize("name", ["postgresql.auto.conf", "pg_ident.conf"])
def test_dispensable_file_that_is_a_link(config_dir: Path, name: str) -> None:
    """A file that a server starts without is not read where it is a link."""
    (config_dir / name).symlink_to("/etc/hosts")
    assert name not in PortableConfig(config_dir).contents


@pytest.mark.parametrize("file", ["pg_hba.conf", "pg_ident.conf"])
@pytest.mark.parametrize(
    "line",
    [
        "local @/etc/dbs all trust",
        'local all bob,@"/etc/users" trust',
        "include /etc/hba",
        "include_dir ../x",
        'local all "a#b",@/etc/users trust',
    ],
)
def test_access_file_from_outside(config_dir: Path, file: str, line: str) -> None:
    """A list or include of pg_hba.conf or pg_ident.conf that is elsewhere is refused."""
    with pytest.raises(PostgresError, match=rf"{file} line 2 names .* is not in the data dir"):
        portable(config_dir, "# @/fine", line, file=file)


def test_access_files_are_kept(config_dir: Path) -> None:
    """Lists and includes inside the directory, and names with an @ in them, are fine."""
    text = 'local @dbs all trust\nlocal all bob@/x trust\ninclude "extra.conf"'
    text += "\ninclude_if_exists missing.conf\n# @missing"
    for name in ("dbs", "extra.conf"):
        (config_dir / name).touch()
    assert portable(config_dir, *text.split("\n"), file="pg_hba.conf") == text


@pytest.mark.parametrize(
    ("names", "line"),
    [
        ("@lists/users", "bob @../../outside"),
        ("include lists/users", "local all @/etc/users trust"),
        ("include_if_exists lists/users", "include ../../hba.conf"),
        ("include_dir lists", "include /etc/hba.conf"),
    ],
)
def test_access_file_that_names_another(config_dir: Path, names: str, line: str) -> None:
    """An included file is judged like the file that includes it, wherever it lies."""
    (config_dir / "lists").mkdir()
    for file in ("users", "some.conf"):
        (config_dir / "lists" / file).write_text(f"# @/fine\n{line}\n")
    with pytest.raises(PostgresError, match=r"lists/\w.* line 2 names .* is not in the"):
        portable(config_dir, names, file="pg_hba.conf")


def test_access_files_that_name_each_other(config_dir: Path) -> None:
    """All of them go along, and each is read once."""
    (config_dir / "lists").mkdir()
    (config_dir / "lists" / "users").write_text("bob @../more @users\n")
    (config_dir / "more").write_text("eve\n")
    portable(config_dir, "local all @lists/users trust", file="pg_hba.conf")
    contents = PortableConfig(config_dir).contents
    assert contents["more"] == b"eve\n"
    assert contents.keys() == {"postgresql.conf", "pg_hba.conf", "lists/users", "more"}


@pytest.mark.parametrize("line", ["local all @gone trust", "include gone", "include_dir gone"])
def test_access_file_that_names_nothing(config_dir: Path, line: str) -> None:
    """A line that names a missing file, with which no server starts, is refused."""
    with pytest.raises(PostgresError, match=r"line 1 names 'gone', which is not there\nhint: "):
        portable(config_dir, line, file="pg_hba.conf")


def test_huge_file(config_dir: Path) -> None:
    """A configuration file that is none is not read into memory whole."""
    with (config_dir / "postgresql.conf").open("wb") as file:
        file.truncate(1 << 30)
    with pytest.raises(PostgresError, match="is larger than 16777216 bytes"):
        PortableConfig(config_dir)


@pytest.mark.postgres
def test_server_agrees(pg: PostgresBinaries, make_cluster: ClusterFactory) -> None:
    """A server on the portable files has its defaults where a setting was commented out."""
    cluster = make_cluster(pg)
    conf = cluster.pgdata_dir / "postgresql.conf"
    with conf.open("a") as file:
        file.write("archive_mode=on\nArchive_Command 'false' # x\nwork_mem = '5MB'\n")
    conf.write_bytes(PortableConfig(cluster.pgdata_dir).contents["postgresql.conf"])
    cluster.start()
    assert cluster.psql("SHOW archive_mode") == "off"
    assert cluster.psql("SHOW work_mem") == "5MB"


@pytest.mark.postgres
def test_make_portable(newest_pg: PostgresBinaries, make_cluster: ClusterFactory) -> None:
    """A server that has crashed starts, and recovers, whatever its user has set."""
    cluster = make_cluster(newest_pg)
    cluster.start()
    inside = f"{cluster.pgdata_dir}/access.conf"
    cluster.psql(f"COPY (SELECT 'local all all trust') TO '{inside}'")
    cluster.psql("ALTER SYSTEM SET huge_pages = on")
    cluster.psql(f"ALTER SYSTEM SET hba_file = '{inside}'")
    cluster.psql("CREATE TABLE t AS SELECT 1 AS i")
    cluster.stop("immediate")
    make_portable(cluster.pgdata_dir)
    assert (cluster.pgdata_dir / "pg_hba.conf").read_text() == "local all all trust\n"
    cluster.start()
    assert cluster.psql("SELECT i FROM t") == "1"
    assert cluster.psql("SHOW huge_pages") == "try"


def test_make_portable_of_what_is(config_dir: Path) -> None:
    """A file that is portable already is not written to."""
    portable(config_dir, "work_mem = 1MB")
    before = {path: path.stat() for path in config_dir.iterdir()}
    make_portable(config_dir)
    assert {path: path.stat() for path in config_dir.iterdir()} == before
