"""Settings come from flags, environment, file and defaults, in that order, and nothing is ignored."""

from pathlib import Path

import pytest
from pydantic import Field

from quire.settings import CommaSeparated, ServiceSettings, SettingsError, load_settings


class ExampleSettings(ServiceSettings):
    listen: str = Field("127.0.0.1:0", description="address")
    workers: CommaSeparated = Field((), description="addresses of workers")
    max_rows: int = Field(8, gt=0, description="rows")


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
