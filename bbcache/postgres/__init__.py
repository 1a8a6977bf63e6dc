"""What a host needs to know of PostgreSQL: WAL, pg_control, PGDATA tarballs, clusters."""
