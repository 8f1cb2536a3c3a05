"""The server that other tests stand on: real, alone, and gone afterwards."""

from __future__ import annotations

import os
import select
import subprocess
import sys
from pathlib import Path

import psycopg
import pytest

from servers import postgres as module
from servers.postgres import canary, find_program

pytestmark = pytest.mark.database

START = """
import sys; sys.path.insert(0, sys.argv[1])
from servers.postgres import PostgresServer
server = PostgresServer(); server.start()
print(server.folder, server._process.pid, server._broom.pid, flush=True)
sys.stdin.read()
"""


def test_databases_are_apart_and_the_server_has_no_port(postgres):
    one, other = postgres.fresh_database(), postgres.fresh_database()
    with postgres.connect(one) as connection:
        connection.execute("create table t (x int)")
        assert connection.execute("show listen_addresses").fetchone() == ("",)
    with postgres.connect(other) as connection, pytest.raises(psycopg.errors.UndefinedTable):
        connection.execute("select * from t")


def test_a_role_made_with_a_password_is_asked_for_it(postgres):
    password = canary()
    user = postgres.user_with_password(password)
    postgres.connect(user=user, password=password).close()
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        postgres.connect(user=user, password="another")
    with pytest.raises(psycopg.OperationalError, match="no password supplied"):
        postgres.connect(user=user)


def test_a_killed_test_process_leaves_neither_server_nor_folder():
    process = subprocess.Popen(
        [sys.executable, "-c", START, str(Path(module.__file__).parents[1])],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    folder, *pids = process.stdout.readline().split()
    assert Path(folder, "data").is_dir()
    left = [os.pidfd_open(int(pid)) for pid in pids]
    process.kill()
    process.communicate()
    for descriptor in left:
        assert select.select([descriptor], [], [], 30)[0], "still running"
        os.close(descriptor)
    assert not Path(folder).exists()


def test_the_newest_of_debians_versions_is_found_where_path_has_none(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    found = find_program("postgres")
    if found is None:
        assert not list(Path("/usr/lib/postgresql").glob("*/bin/postgres"))
    else:
        assert os.access(found, os.X_OK)


def test_without_the_programs_the_skip_says_what_to_install(monkeypatch):
    monkeypatch.setattr(module, "find_program", lambda name: None)
    with pytest.raises(pytest.skip.Exception, match="apt-get install postgresql"):
        module.PostgresServer().start()
