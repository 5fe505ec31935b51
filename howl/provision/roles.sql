-- Made by `howl init`; the postgres image runs it in a new data folder. Running it again sets passwords and rights anew:
--   docker compose exec postgres psql -U postgres -d mcp_manager -f /docker-entrypoint-initdb.d/roles.sql
DO $$ BEGIN
  IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'howl_server') THEN CREATE ROLE howl_server; END IF;
  IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'howl_reader') THEN CREATE ROLE howl_reader; END IF;
END $$;
ALTER ROLE howl_server LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION PASSWORD '@howl_server@';
ALTER ROLE howl_reader LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION PASSWORD '@howl_reader@';
ALTER ROLE howl_reader SET default_transaction_read_only = on;
DO $$ BEGIN
  EXECUTE format('ALTER DATABASE %I OWNER TO howl_server', current_database());
  EXECUTE format('REVOKE ALL ON DATABASE %I FROM PUBLIC', current_database());
  EXECUTE format('GRANT CONNECT ON DATABASE %I TO howl_reader', current_database());
END $$;
ALTER SCHEMA public OWNER TO howl_server;
REVOKE ALL ON SCHEMA public FROM PUBLIC;
GRANT USAGE ON SCHEMA public TO howl_reader;
GRANT SELECT ON ALL TABLES IN SCHEMA public TO howl_reader;
ALTER DEFAULT PRIVILEGES FOR ROLE howl_server IN SCHEMA public GRANT SELECT ON TABLES TO howl_reader;
