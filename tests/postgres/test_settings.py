"""Settings that tie a server to its place do not go into a basebackup."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from bbcache.errors import PostgresError
from bbcache.postgres.settings import PortableConfig

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import ClusterFactory

    from bbcache.postgres.cluster import PostgresBinaries


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
        "ssl_cert_file = '/etc/ssl/cert.pem'",
        "ssl_cert_file = 'server.crt'",
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


@pytest.mark.parametrize(
    ("name", "own"),
    [("data_directory", ""), ("hba_file", "pg_hba.conf"), ("ident_file", "pg_ident.conf")],
)
def test_files_by_name(config_dir: Path, name: str, own: str) -> None:
    """A setting that names what is in its place anyway is commented out, another refused."""
    line = f"{name} = '{config_dir / own}'"
    assert portable(config_dir, line) == f"# not portable: {line}"
    for value in ("/etc/postgresql/elsewhere", "relative.conf"):
        with pytest.raises(PostgresError) as caught:
            portable(config_dir, "", f"{name} = '{value}'")
        assert f"postgresql.conf line 2 sets {name} to '{value}'" in str(caught.value)


@pytest.mark.parametrize(
    "name", ["ssl_cert_file", "ssl_key_file", "ssl_ca_file", "ssl_crl_dir", "ssl_dh_params_file"]
)
def test_ssl_files_elsewhere(config_dir: Path, name: str) -> None:
    """With ssl on, a key or certificate outside the directory is refused by name."""
    with pytest.raises(PostgresError, match=rf"line 1 sets {name} to '/etc/ssl/x'"):
        portable(config_dir, f"{name} = '/etc/ssl/x'", "ssl = on")
    with pytest.raises(PostgresError, match=rf"line 2 sets {name} to '../x'"):
        portable(config_dir, "ssl = on", f"{name} = '../x'")
    assert portable(config_dir, f"{name} = '/etc/ssl/x'", "ssl = on", "ssl = off")
    assert portable(config_dir, f"{name} = 'x'", "ssl = on", "ssl_ciphers = '/x'")


@pytest.mark.parametrize("directive", ["include", "include_if_exists", "include_dir"])
@pytest.mark.parametrize("target", ["/etc/extra.conf", "../extra.conf", "a/../../extra.conf", ".."])
def test_include_from_outside(config_dir: Path, directive: str, target: str) -> None:
    """An include that leads out of the directory is refused by name."""
    with pytest.raises(PostgresError, match=rf"line 1 sets {directive} to '{target}'"):
        portable(config_dir, f"{directive} '{target}'")


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


def test_include_of_nothing(config_dir: Path) -> None:
    """A directory to include that is not there is left for the server to complain about."""
    assert portable(config_dir, "include_dir 'missing'") == "include_dir 'missing'"


@pytest.mark.parametrize("name", ["directory", "pipe"])
@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("postgresql.conf", "include '{}'"),
        ("postgresql.auto.conf", "include_if_exists = '{}'"),
        ("pg_hba.conf", "local @{} all trust"),
    ],
)
def test_include_of_no_file(config_dir: Path, file: str, line: str, name: str) -> None:
    """A directory or pipe that is included as a file is named, and not waited on."""
    (config_dir / "directory").mkdir()
    os.mkfifo(config_dir / "pipe")
    with pytest.raises(PostgresError, match=rf"/{name} is no regular file"):
        portable(config_dir, line.format(name), file=file)


def test_include_of_the_directory_itself(config_dir: Path) -> None:
    """Its files have one name each, and an empty path is no file."""
    assert portable(config_dir, "include_dir '.'") == "include_dir '.'"
    assert PortableConfig(config_dir).contents.keys() == {"postgresql.conf", "pg_hba.conf"}
    with pytest.raises(PostgresError, match="is no regular file"):
        portable(config_dir, "include ''")


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
    with pytest.raises(PostgresError, match=rf"{file} line 2 sets a list of names"):
        portable(config_dir, "# @/fine", line, file=file)


def test_access_files_are_kept(config_dir: Path) -> None:
    """Lists and includes inside the directory, and names with an @ in them, are fine."""
    text = 'local @dbs all trust\nlocal all bob@/x trust\ninclude "extra.conf"'
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
    """What is included is judged like what includes it, wherever it lies."""
    (config_dir / "lists").mkdir()
    for file in ("users", "some.conf"):
        (config_dir / "lists" / file).write_text(f"# @/fine\n{line}\n")
    with pytest.raises(PostgresError, match=r"lists/\w.* line 2 sets a list of names"):
        portable(config_dir, names, file="pg_hba.conf")


def test_access_files_that_name_each_other(config_dir: Path) -> None:
    """All of them go along, and each is read once."""
    (config_dir / "lists").mkdir()
    (config_dir / "lists" / "users").write_text("bob @../more @users @missing\n")
    (config_dir / "more").write_text("eve\n")
    portable(config_dir, "local all @lists/users trust", file="pg_hba.conf")
    contents = PortableConfig(config_dir).contents
    assert contents["more"] == b"eve\n"
    assert contents.keys() == {"postgresql.conf", "pg_hba.conf", "lists/users", "more"}


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
