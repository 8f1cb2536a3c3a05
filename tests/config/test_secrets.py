"""Where secrets come from, what is refused, and that no message, repr or pickle holds one."""

from __future__ import annotations

import json
import os
import pickle
import time

import jwt
import pytest
from pydantic import SecretStr

from hpcrl.config.dsn import check_dsn
from hpcrl.config.secrets import POSTGRES, Secrets, check_key, conninfo, read_secrets, redact, without_secrets
from hpcrl.types import HpcrlError

CANARY = "canary-7f3a9c"
URL = "https://abcdefghij.supabase.co"
PAIR = {"SUPABASE_URL": URL, "SUPABASE_SERVICE_ROLE_KEY": CANARY}


def key(**claims) -> SecretStr:
    return SecretStr(jwt.encode(claims, "a signing secret of thirty-two bytes"))


@pytest.fixture
def env_file(tmp_path):
    """``env_file(text, mode=0o600)``: a .env in tmp_path."""

    def write(text: str | bytes, mode: int = 0o600):
        path = tmp_path / ".env"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        path.chmod(mode)
        return path

    return write


def refused(folder, environ, **options) -> str:
    with pytest.raises(HpcrlError) as caught:
        read_secrets(folder, environ, **options)
    message = str(caught.value)
    assert caught.value.exit_code == 2 and "\n" not in message
    assert CANARY not in message and CANARY not in repr(caught.value.__context__)
    return message


def test_nothing_set_is_nothing_found(tmp_path):
    assert read_secrets(tmp_path, {}) == Secrets()
    assert read_secrets(tmp_path / "no such folder", {"PATH": "/bin", "PGPASSWORD": " "}) == Secrets()


def test_the_environment_wins_over_the_file_and_empty_is_unset(tmp_path, env_file):
    env_file(f"SUPABASE_URL={URL}\nexport SUPABASE_SERVICE_ROLE_KEY='of $HOME ${{URL}}'  # mine\nOTHER=x\n")
    before = dict(os.environ)
    found = read_secrets(tmp_path, {"SUPABASE_URL": "", "PGPASSWORD": ""})
    assert found.supabase_url == URL and found.supabase_key.get_secret_value() == "of $HOME ${URL}"
    assert found.pg_password is None and found.database_url is None
    found = read_secrets(tmp_path, {"SUPABASE_SERVICE_ROLE_KEY": f" {CANARY}\n"})
    assert found.supabase_key.get_secret_value() == CANARY and found.supabase_url == URL
    assert dict(os.environ) == before


def test_only_the_names_asked_for_are_read(tmp_path, env_file):
    env_file(f"SUPABASE_URL={URL}\nPGPASSWORD=pw\n")
    found = read_secrets(tmp_path, {"SUPABASE_SERVICE_ROLE_KEY": ""}, POSTGRES)
    assert found == Secrets(pg_password=SecretStr("pw"))


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o620, 0o601, 0o666])
def test_a_file_open_to_others_is_refused_where_it_is_used(tmp_path, env_file, mode):
    path = env_file(f"SUPABASE_URL={URL}\nSUPABASE_SERVICE_ROLE_KEY={CANARY}\n", mode)
    message = refused(tmp_path, {})
    assert f"chmod 600 {path}" in message and f"{mode:04o}" in message and "SUPABASE_URL" in message
    found = read_secrets(tmp_path, PAIR)
    assert found.supabase_key.get_secret_value() == CANARY


def test_an_open_file_without_our_names_is_nobodys_business(tmp_path, env_file):
    env_file("DEBUG=1\n", 0o644)
    assert read_secrets(tmp_path, {}) == Secrets()


def test_a_file_of_another_user_is_refused(tmp_path, env_file, monkeypatch):
    env_file(f"PGPASSWORD={CANARY}\n")
    owner = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: 12345)  # giving a file away would need root
    if owner == 0:
        assert read_secrets(tmp_path, {}).pg_password.get_secret_value() == CANARY
        os.chown(tmp_path / ".env", 54321, -1)
    message = refused(tmp_path, {})
    assert f"belongs to user {owner or 54321}" in message and "chown 12345" in message


def test_what_is_no_regular_file_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / ".env")
    assert "no regular file" in refused(tmp_path, {})
    (tmp_path / ".env").unlink()
    (tmp_path / ".env").mkdir()
    assert "no regular file" in refused(tmp_path, {})


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (f"A=1\n\n\nSUPABASE_SERVICE_ROLE_KEY {CANARY}\n", 4),
        (f"{CANARY}\n", 1),
        (f"# keys\nPGPASSWORD='{CANARY}\n", 2),
        (f"A=1\r\n\r\n={CANARY}\r\n", 3),
    ],
)
def test_a_malformed_line_is_named_by_its_number_alone(tmp_path, env_file, text, line):
    path = env_file(text)
    assert f"{path}, line {line}: not understood" in refused(tmp_path, {})


def test_a_name_given_twice_and_a_binary_file_are_refused(tmp_path, env_file):
    env_file(f"PGPASSWORD=a\nA=1\nPGPASSWORD={CANARY}\n")
    assert "PGPASSWORD is given twice, in lines 1 and 3" in refused(tmp_path, {})
    env_file(b"PGPASSWORD=" + CANARY.encode() + b"\xff\n")
    assert "not a text file" in refused(tmp_path, {})


@pytest.mark.parametrize("name", PAIR)
def test_half_of_what_supabase_needs_is_refused(tmp_path, env_file, name):
    other = next(each for each in PAIR if each != name)
    assert f"{name} is set (the environment) but {other} is not" in refused(tmp_path, {name: PAIR[name]})
    path = env_file(f"{name}={PAIR[name]}\n")
    assert f"{name} is set ({path}) but {other} is not" in refused(tmp_path, {})


@pytest.mark.parametrize(
    ("url", "part"),
    [
        (f"{URL}/", f"write {URL}, "),
        (f"{URL}/rest/v1", f"write {URL}, "),
        ("http://127.0.0.1:3000/rest/v1/", "write http://127.0.0.1:3000, "),
        ("https://[::1]:3000/db/rest/v1/", "write https://[::1]:3000/db, "),
        ("https://supabase.com/dashboard/project/abcdefghij/settings", f"write {URL}"),
        ("abcdefghij.supabase.co", "expected https://PROJECT.supabase.co"),
        ("https://", "expected https://"),
        (f"ftp://{CANARY}.x", "expected https://"),
        (f"postgresql://u:{CANARY}@h/db", "expected https://"),
        (f"https://u:{CANARY}@h.co", "holds a user or password"),
        (f"https://{CANARY}@h.co", "holds a user or password"),
        (f"https://h.co?apikey={CANARY}", "expected https://"),
        (f"https://h.co:{CANARY}", "expected https://"),
        (f"https://h.co\n{CANARY}", "expected https://"),
        (CANARY, "expected https://"),
    ],
)
def test_an_address_that_cannot_be_right_is_told_what_would_be(tmp_path, url, part):
    message = refused(tmp_path, PAIR | {"SUPABASE_URL": url})
    assert "SUPABASE_URL" in message and part in message, message


@pytest.mark.parametrize(
    "url", [URL, "http://127.0.0.1:54321", "https://db.example.org/api", "http://[::1]:80"]
)
def test_an_address_of_a_project_passes(tmp_path, url):
    assert read_secrets(tmp_path, PAIR | {"SUPABASE_URL": url}).supabase_url == url


@pytest.mark.parametrize(
    ("bad", "parts"),
    [
        (key(role="anon"), ["is an anon key: row level security would hide rows", "Settings > API"]),
        (key(role="authenticated", exp=1), ["is an authenticated key"]),
        (key(sub="x"), ["no service_role key"]),
        (key(role=[CANARY]), ["no service_role key"]),
        (key(role="service_role", exp=1_600_000_000), ["expired on 2020-09-13 12:26 UTC"]),
        (SecretStr(f"sb_publishable_{CANARY}"), ["publishable", "row level security would hide rows"]),
        (SecretStr(key(role="service_role").get_secret_value()[:30]), ["not whole"]),
        (SecretStr(f"eyJ{CANARY}"), ["not whole"]),
        (SecretStr(f"{CANARY} {CANARY}"), ["a space or a character that no key has"]),
        (SecretStr(f"{CANARY}\u200b"), ["a space or a character that no key has"]),
    ],
)
def test_a_key_that_cannot_read_all_rows_is_refused(bad, parts):
    with pytest.raises(HpcrlError) as caught:
        check_key(bad)
    message = str(caught.value)
    assert all(part in message for part in ("SUPABASE_SERVICE_ROLE_KEY", *parts)), message
    assert CANARY not in message and bad.get_secret_value() not in message


def test_keys_that_may_read_all_rows_pass():
    for good in (
        key(role="service_role", exp=int(time.time()) + 3600, ref="abcdefghij"),
        key(role="service_role"),
        SecretStr(f"sb_secret_{CANARY}"),
        SecretStr("an-opaque.key.of-our-own"),
    ):
        check_key(good, URL)


def test_a_key_of_another_project_is_refused():
    with pytest.raises(HpcrlError, match=f"of another project than SUPABASE_URL = {URL}"):
        check_key(key(role="service_role", ref="zzzzzzzzzz"), URL)
    check_key(key(role="service_role", ref="zzzzzzzzzz"), "http://127.0.0.1:3000")


@pytest.mark.parametrize(
    "dsn",
    [
        f"postgresql://u:{CANARY}@h/db",
        f"postgres://u@h/db?password={CANARY}",
        f"host=h password={CANARY}",
        f"host=h sslpassword={CANARY}",
        f"postgresql+psycopg://u:{CANARY}@h/db",
        f"mysql://u:{CANARY}@h/db",
        f"host=h {CANARY}",
        f"host=h pasword={CANARY}",
        f"host=h\0 password={CANARY}",
    ],
)
def test_a_dsn_with_a_password_or_of_another_kind_is_refused_unseen(dsn):
    with pytest.raises(HpcrlError) as caught:
        check_dsn(dsn)
    message = str(caught.value)
    assert message.startswith("--dsn ") and CANARY not in message
    assert "PGPASSWORD" in message or "no connection string" in message


def test_a_dsn_without_a_password_passes():
    for dsn in ("postgresql://u@h:5433/db?sslmode=require", "host=/run/pg dbname=x", "service=mine", ""):
        check_dsn(dsn)


def test_the_password_of_the_file_is_merged_into_a_string_without_one(tmp_path, env_file):
    password = "it's \\ a p@ss/word"
    env_file(f'DATABASE_URL=postgresql://u@h/db\nPGPASSWORD="{password.replace(chr(92), chr(92) * 2)}"\n')
    found = read_secrets(tmp_path, {})
    from psycopg.conninfo import conninfo_to_dict

    want = {"user": "u", "host": "h", "dbname": "db", "password": password}
    assert conninfo_to_dict(found.database_url.get_secret_value()) == want
    assert conninfo(found) == found.database_url
    given = conninfo_to_dict(conninfo(found, "host=other").get_secret_value())
    assert given == {"host": "other", "password": password}
    own = read_secrets(tmp_path, {"DATABASE_URL": f"postgresql://u:{CANARY}@h/db"})
    assert own.database_url.get_secret_value() == f"postgresql://u:{CANARY}@h/db"


def test_a_foreign_database_url_matters_only_to_those_who_connect_by_it(tmp_path):
    found = read_secrets(tmp_path, {"DATABASE_URL": f"mysql://u:{CANARY}@h/db"})
    with pytest.raises(HpcrlError, match="DATABASE_URL is no connection string of PostgreSQL") as caught:
        conninfo(found)
    assert CANARY not in str(caught.value)
    assert conninfo(Secrets()) is None
    assert "not UTF-8" in refused(tmp_path, {"PGPASSWORD": f"{CANARY}\udcff"})


def test_redact_hides_every_spelling():
    password = "it's/päss w%rd\\"
    secrets = Secrets(
        supabase_key=SecretStr(CANARY),
        pg_password=SecretStr(password),
        database_url=SecretStr("postgresql://me:s%2fcr%C3%A9t@h/db"),
    )
    shown = [
        f"Bearer {CANARY}",
        password,
        "it%27s%2Fp%C3%A4ss%20w%25rd%5C",
        "it%27s/p%C3%A4ss%20w%25rd%5C",
        "it%27s%2Fp%C3%A4ss+w%25rd%5C",
        repr(password),
        "password='it\\'s/päss w%rd\\\\'",
        "postgresql://me:s%2fcr%C3%A9t@h/db",
        "s/crét",
        "s%2Fcr%C3%A9t",
    ]
    text = redact(" | ".join(shown), secrets)
    for part in (CANARY, "ss w%rd", "p%C3%A4ss", "crét", "cr%C3%A9t"):
        assert part not in text, text
    assert "postgresql://me:***@h/db" in text and text.count("***") == len(shown)
    assert redact("nothing to hide in the database", Secrets()) == "nothing to hide in the database"
    token = key(role="service_role")
    signature = token.get_secret_value().rpartition(".")[2]
    assert redact(f"bad signature {signature}", Secrets(supabase_key=token)) == "bad signature ***"
    foreign = Secrets(database_url=SecretStr(f"mysql://u:{CANARY}@h"))
    assert CANARY not in redact(f"cannot use mysql://u:{CANARY}@h nor {CANARY}", foreign)


def test_neither_repr_nor_json_nor_pickle_holds_a_secret(tmp_path):
    environ = PAIR | {"DATABASE_URL": f"postgresql://u:{CANARY}@h/db", "PGPASSWORD": CANARY}
    found = read_secrets(tmp_path, environ)
    for text in (
        repr(found),
        str(found),
        found.model_dump_json(),
        json.dumps(found.model_dump(), default=str),
    ):
        assert CANARY not in text and URL in text
    with pytest.raises(TypeError, match="secrets are not pickled"):
        pickle.dumps(found)
    with pytest.raises(ValueError) as caught:
        Secrets(supabase_key=5, database_url=[CANARY])
    assert CANARY not in str(caught.value)


def test_another_file_may_be_named_in_place_of_env(tmp_path, env_file):
    env_file("PGPASSWORD=here\n")
    other = tmp_path / "other"
    other.write_text("PGPASSWORD=there\n")
    other.chmod(0o600)
    found = read_secrets(tmp_path, {"HPCRL_ENV_FILE": str(other)}).pg_password
    assert found is not None and found.get_secret_value() == "there"
    other.unlink()
    with pytest.raises(HpcrlError, match=r"HPCRL_ENV_FILE = .*other: no such file"):
        read_secrets(tmp_path, {"HPCRL_ENV_FILE": str(other)})


@pytest.mark.parametrize(
    "text",
    [
        "postgresql://me:hunter2@host/db",
        "/data/postgresql:/me:hunter2@host/db",  # as Path has it
        "https://me:hunter2@host",
        "host=h password=hunter2 user=u",
        "https://h/rest?apikey=hunter2&x=1",
        "eyJhbGciOiJIUzI1NiJ9.eyJyb2xlIjoic2VydmljZV9yb2xlIn0.hunter2",
        "sb_secret_hunter2",
    ],
)
def test_what_looks_like_a_secret_becomes_stars(text):
    shown = json.dumps(without_secrets({"a": [text], text: {"b": text}}))
    assert "hunter2" not in shown and "***" in shown


def test_ordinary_texts_stay():
    tree = {"path": "/data/a b/market.h5", "symbols": ["BRK.B", "ETH/BTC", "ES=F"], "n": [1, 2.5, None, True]}
    assert without_secrets(tree) == tree
