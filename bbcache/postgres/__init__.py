"""PostgreSQL from the outside: WAL, pg_control, PGDATA tarballs, clusters."""
