-- Made by `howl init`; the postgres image runs it in a new data folder. Running it again sets passwords and rights anew:
--   docker compose exec postgres psql -U postgres -d mcp_manager -f /docker-entrypoint-initdb.d/roles.sql
DO $$ BEGIN
  IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'howl_server') THEN CREATE ROLE howl_server; END IF;
  IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'howl_reader') THEN CREATE ROLE howl_reader; END IF;
END $$;
ALTER ROLE howl_server LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION PASSWORD '@howl_server@';
ALTER ROLE howl_reader LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION PASSWORD '@howl_reader@';
ALTER ROLE howl_reader SET default_transaction_read_only = on;
-- Whoever reads holds nobody up: old rows cannot be cleared away while a transaction lasts. The first two bind a reader
-- that means harm as well; from the others it can release itself.
ALTER ROLE howl_reader CONNECTION LIMIT 20;
ALTER ROLE howl_reader SET temp_file_limit = '1GB';
ALTER ROLE howl_reader SET statement_timeout = '1min';
ALTER ROLE howl_reader SET idle_in_transaction_session_timeout = '1min';
DO $$ BEGIN
  IF current_setting('server_version_num')::int >= 170000 THEN
    ALTER ROLE howl_reader SET transaction_timeout = '5min';
  END IF;
END $$;
DO $$ BEGIN
  EXECUTE format('ALTER DATABASE %I OWNER TO howl_server', current_database());
  EXECUTE format('REVOKE ALL ON DATABASE %I FROM PUBLIC', current_database());
  EXECUTE format('GRANT CONNECT ON DATABASE %I TO howl_reader', current_database());
END $$;
ALTER SCHEMA public OWNER TO howl_server;
REVOKE ALL ON SCHEMA public FROM PUBLIC;
GRANT USAGE ON SCHEMA public TO howl_reader;
-- Every role may lock others out by a number, and keep large objects, in which a disk can be filled.
DO $$ DECLARE made regprocedure; BEGIN
  FOR made IN SELECT oid FROM pg_proc WHERE pronamespace = 'pg_catalog'::regnamespace
    AND (proname ~ '^pg_(try_)?advisory_(xact_)?lock' OR proname IN ('lo_creat', 'lo_create', 'lo_from_bytea'))
  LOOP
    EXECUTE format('REVOKE EXECUTE ON FUNCTION %s FROM PUBLIC', made);
    EXECUTE format('GRANT EXECUTE ON FUNCTION %s TO howl_server', made);
  END LOOP;
END $$;
GRANT SELECT ON ALL TABLES IN SCHEMA public TO howl_reader;
ALTER DEFAULT PRIVILEGES FOR ROLE howl_server IN SCHEMA public GRANT SELECT ON TABLES TO howl_reader;
