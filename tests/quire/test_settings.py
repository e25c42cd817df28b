"""Settings come from flags, environment, file and defaults, in that order, and nothing is ignored."""

from pathlib import Path

import pytest
from pydantic import Field, SecretStr

from quire.settings import CommaSeparated, ServiceSettings, SettingsError, load_settings


class ExampleSettings(ServiceSettings):
    listen: str = Field("127.0.0.1:0", description="address")
    workers: CommaSeparated = Field((), description="addresses of workers")
    max_rows: int = Field(8, gt=0, description="rows")
    token: SecretStr | None = Field(None, description="what only some know")


def load(*argv: str) -> ExampleSettings:
    return load_settings(ExampleSettings, "example", argv)


def write(path: Path, text: str) -> str:
    (path / "quire.toml").write_text(text)
    return str(path / "quire.toml")


def test_flags_beat_environment_beats_file_beats_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = write(tmp_path, "[example]\nmax_rows = 2\n[gpu_worker]\nmax_rows = 99\n")
    assert load().max_rows == 8
    assert load("--config", config).max_rows == 2
    monkeypatch.setenv("QUIRE_MAX_ROWS", "3")
    assert load("--config", config).max_rows == 3
    assert load("--config", config, "--max-rows", "4").max_rows == 4


def test_lists_are_comma_separated_or_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    assert load("--workers", "a,b").workers == ("a", "b")
    assert load("--workers", "a", "--workers", "b").workers == ("a", "b")
    monkeypatch.setenv("QUIRE_WORKERS", "c, d")
    assert load().workers == ("c", "d")


@pytest.mark.parametrize("value", ["0", "-1", "many"])
def test_a_bad_value_names_its_field(value: str) -> None:
    with pytest.raises(SettingsError, match="max-rows"):
        load(f"--max-rows={value}")


def test_an_unknown_environment_variable_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUIRE_MAX_ROW", "3")
    with pytest.raises(SettingsError, match="QUIRE_MAX_ROW"):
        load()


def test_an_unknown_key_in_the_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="max-row"):
        load("--config", write(tmp_path, "[example]\nmax_row = 1\n"))


@pytest.mark.parametrize(
    ("text", "named"),
    [("[exmaple]\nmax_rows = 1\n", r"\[exmaple\]"), ("max_rows = 1\n", "max_rows"), ("[[other]]\n", "other")],
)
def test_an_unknown_table_in_the_file_is_refused_by_name(tmp_path: Path, text: str, named: str) -> None:
    with pytest.raises(SettingsError, match=rf"unknown {named}; .*\[example\], \[gateway\]"):
        load("--config", write(tmp_path, text))


@pytest.mark.parametrize("text", ["[example", "example = 3"])
def test_a_broken_file_is_one_clear_error(tmp_path: Path, text: str) -> None:
    with pytest.raises(SettingsError, match=r"quire\.toml"):
        load("--config", write(tmp_path, text))


def test_an_unknown_flag_ends_the_program(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        load("--max-row", "3")
    assert "--max-row" in capsys.readouterr().err


def test_a_secret_may_lie_in_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = tmp_path / "secret"
    secret.write_text("from-the-file\n")
    monkeypatch.setenv("QUIRE_TOKEN_FILE", str(secret))
    assert load().token == SecretStr("from-the-file")
    monkeypatch.setenv("QUIRE_TOKEN", "from-the-environment")
    assert load().token == SecretStr("from-the-environment")


def test_a_secret_whose_file_cannot_be_read_names_the_variable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QUIRE_TOKEN_FILE", str(tmp_path / "nowhere"))
    with pytest.raises(SettingsError, match="QUIRE_TOKEN_FILE"):
        load()


def test_only_secrets_lie_in_files_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUIRE_MAX_ROWS_FILE", "/etc/hostname")
    with pytest.raises(SettingsError, match="QUIRE_MAX_ROWS_FILE"):
        load()
