"""Settings that a session needs in PostgreSQL, whatever a server, a database or a role has set for its clients.

With a pooler in transaction mode (PgBouncer) every transaction may get another server process, which knows nothing that
was set or prepared before: there each transaction sets them itself.
"""

import psycopg

#: Seconds that a statement waits for another client's lock: less than anybody waits for its answer.
LOCK_TIMEOUT = 10
#: Settings of how values are read and written, and defaults of a transaction.
PINNED = {
    "DateStyle": "ISO, YMD",
    "IntervalStyle": "postgres",
    "TimeZone": "UTC",
    "extra_float_digits": "1",
    "bytea_output": "hex",
    "standard_conforming_strings": "on",
    "array_nulls": "on",
    "transform_null_equals": "off",
    "default_transaction_isolation": "read committed",
    "default_transaction_read_only": "off",
    "default_transaction_deferrable": "off",
    "lock_timeout": f"{LOCK_TIMEOUT}000",
}
#: Limits in milliseconds that stay as set if they allow at least a minute, and are set to a minute otherwise.
LEFT_A_MINUTE = ("statement_timeout", "idle_in_transaction_session_timeout", "transaction_timeout")
MINUTE = 60_000
#: Settings changed to the second value only where they have the first: Redis forgets an outcome once it is committed,
#: and a server process must notice that its client is gone (milliseconds; PostgreSQL 14).
INSTEAD = {"synchronous_commit": ("off", "on"), "client_connection_check_interval": ("0", "10000")}


def _statement(scope: str) -> str:
    """Return SQL that sets what differs and this PostgreSQL knows; scope `true` is for this transaction alone."""
    pinned = [f"('{name}', '{value}', NULL, NULL::bigint)" for name, value in PINNED.items()]
    pinned += [f"('{name}', '{value}', '{was}', NULL)" for name, (was, value) in INSTEAD.items()]
    pinned += [f"('{name}', '{MINUTE}', NULL, {MINUTE})" for name in LEFT_A_MINUTE]
    return (  # built only from the constants above
        f"SELECT pg_catalog.set_config(name, wanted, {scope}) FROM pg_catalog.pg_settings "  # noqa: S608
        f"JOIN (VALUES {', '.join(pinned)}) AS pinned (name, wanted, was, least) USING (name) "
        "WHERE CASE WHEN least IS NOT NULL THEN setting::bigint BETWEEN 1 AND least - 1 "
        "WHEN was IS NOT NULL THEN setting = was ELSE setting <> wanted END;"
        # Schema of the tables. pg_dump, through the same pooler, leaves server processes without a search path.
        f"SELECT pg_catalog.set_config('search_path', 'public', {scope}) "
        "WHERE pg_catalog.to_regclass('alembic_version') IS NULL "
        "AND (pg_catalog.to_regclass('public.alembic_version') IS NOT NULL "
        "OR coalesce(pg_catalog.current_schema(), 'pg_catalog') = 'pg_catalog')"
    )


#: SQL for a connection's whole session, and for one transaction.
SESSION, TRANSACTION = _statement("false"), _statement("true")


def begin(connection: psycopg.Connection) -> bool:
    """Pin the settings of a new connection's session; return whether a pooler is between, whose processes change."""
    connection.autocommit = True
    try:
        row = connection.execute(f"SELECT pg_catalog.pg_backend_pid(); {SESSION}", prepare=False).fetchone()
    finally:
        connection.autocommit = False
    return row is not None and row[0] != connection.info.backend_pid


def pin_transaction(connection: psycopg.Connection) -> None:
    """Pin the same settings for the transaction that begins."""
    connection.execute(TRANSACTION, prepare=False)
