"""The settings that tie a server to its directory or its machine.

===============================  =====================================================
setting                          why a copy does not have it
===============================  =====================================================
external_pid_file,               two servers share the file, directory or socket
stats_temp_directory,
unix_socket_directories
archive_mode, archive_command,   a copy archives its history over that of the
archive_library                  original, under the same file names
synchronous_standby_names,       a copy has no standbys, so commits or logical decoding
synchronized_standby_slots       hang
recovery_target...               a copy has nothing to recover; two of them stop a start
data_directory                   the copy is one itself
hba_file, ident_file             see `bbcache.postgres.pgdata.settings`
ssl_passphrase_command           it runs a program of the machine
unix_socket_group                the group may be missing, which stops a start
unix_socket_permissions          they are for the socket of the original's machine
bonjour, bonjour_name            two servers announce one name
huge_pages = on, huge_page_size  the pages may be missing, which stops a start
io_method = io_uring,            the kernel or file system may lack it, which stops
debug_io_direct                  a start
listen_addresses                 if it names an address of the machine
log_directory, ssl_..._file,     if they are outside of the data directory
ssl_crl_dir, krb_server_keyfile
===============================  =====================================================

Settings that depend on the installation rather than on the machine are kept: loaded
libraries, locales, time zones, compression methods. So are sizes of memory, ports, and
settings that only a standby or a recovery reads.
"""

from __future__ import annotations

from typing import Final

_ALWAYS: Final = frozenset(
    {
        "archive_command",
        "archive_library",
        "archive_mode",
        "bonjour",
        "bonjour_name",
        "data_directory",
        "debug_io_direct",
        "external_pid_file",
        "hba_file",
        "huge_page_size",
        "ident_file",
        "recovery_target",
        "recovery_target_lsn",
        "recovery_target_name",
        "recovery_target_time",
        "recovery_target_xid",
        "ssl_passphrase_command",
        "stats_temp_directory",
        "synchronized_standby_slots",
        "synchronous_standby_names",
        "unix_socket_directories",
        "unix_socket_group",
        "unix_socket_permissions",
    }
)
_WITH_VALUE: Final = {
    "huge_pages": frozenset({"on", "true", "yes", "1"}),
    "io_method": frozenset({"io_uring"}),
}
_PORTABLE_ADDRESSES: Final = frozenset(
    {"", "*", "0.0.0.0", "127.0.0.1", "::", "::1", "localhost"}  # noqa: S104 - names, not binds
)
_FILES: Final = frozenset({"krb_server_keyfile", "log_directory", "ssl_crl_dir"})


def is_tied(name: str, value: str) -> bool:
    """Return whether a setting by itself ties a server to its directory or machine.

    Args:
        name: the setting, in lower case.
        value: its value, without quotes.
    """
    if name == "listen_addresses":
        return not _PORTABLE_ADDRESSES.issuperset(part.strip() for part in value.split(","))
    return name in _ALWAYS or value.lower() in _WITH_VALUE.get(name, ())


def names_file(name: str) -> bool:
    """Return whether a setting names a file or directory that a copy needs."""
    return name in _FILES or (name.startswith("ssl_") and name.endswith("_file"))
