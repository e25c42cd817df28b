"""Settings: flags over `QUIRE_*` variables over a TOML file over defaults; all checked, none ignored."""

import argparse
import os
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Self, TypeVar, get_args

from pydantic import BeforeValidator, Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import (
    BaseSettings,
    CliSettingsSource,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from quire.logging import LogFormat, LogLevel

ENV_PREFIX = "QUIRE_"

SERVICES = ("gateway", "tokenizer_svc", "scheduler_svc", "gpu_worker")
"""In a request's order: each calls the next one, and no other. Each has a table of its name in the TOML file."""

# Read by the launcher or by Python code before settings exist; any service may find them in its environment.
_FOREIGN_ENV = frozenset({"QUIRE_CONFIG", "QUIRE_HOME"})


_MIN_TOKEN_CHARACTERS = 16


def _split_commas(value: object) -> object:
    parts = [value] if isinstance(value, str) else value
    if isinstance(parts, list | tuple):
        return tuple(item.strip() for part in parts for item in str(part).split(",") if item.strip())
    return value


CommaSeparated = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split_commas)]
"""A list that flags and variables give as `a,b`; a repeated flag adds to it."""


class SettingsError(Exception):
    """The settings are wrong; the message names each field."""


class ServiceSettings(BaseSettings):
    """What every service can be told. A service's own class adds its fields and the default of `listen`."""

    model_config = SettingsConfigDict(
        frozen=True,
        env_prefix=ENV_PREFIX,
        extra="forbid",
        cli_kebab_case=True,
        cli_implicit_flags=True,
        cli_hide_none_type=True,
        cli_avoid_json=True,
    )

    listen: str = Field(description="address to serve on: host:port, or unix:/path")
    metrics_listen: str = Field("", description="host:port of /metrics over HTTP; empty: not served")
    log_level: LogLevel = Field("info", description="least important lines to log")
    log_format: LogFormat = Field("auto", description="json, console, or auto: json off a terminal")
    otlp_endpoint: str = Field("", description="http://host:port of an OTLP gRPC collector; empty: no traces")
    grace_s: float = Field(30.0, ge=0, description="seconds that running requests get after SIGTERM")
    tls_cert: str = Field(
        "", description="PEM file of this service's certificate: with it, the services' gRPC is mutual TLS"
    )
    tls_key: str = Field("", description="PEM file of the certificate's private key")
    tls_ca: str = Field(
        "", description="PEM file of the authorities that may have issued the others' certificates"
    )
    rpc_token: SecretStr | None = Field(
        None, description="secret that the services' gRPC calls carry and ask for; empty: none"
    )

    @model_validator(mode="after")
    def _whole_identity(self) -> Self:
        given = [bool(value) for value in (self.tls_cert, self.tls_key, self.tls_ca)]
        if any(given) and not all(given):
            raise ValueError("tls-cert, tls-key and tls-ca are needed together")
        return self

    @field_validator("rpc_token", mode="after")
    @classmethod
    def _usable_token(cls, value: SecretStr | None) -> SecretStr | None:
        token = value.get_secret_value() if value is not None else ""
        if not token:
            return None
        if (
            len(token) < _MIN_TOKEN_CHARACTERS
            or not token.isascii()
            or not token.isprintable()
            or " " in token
        ):
            raise ValueError(
                f"must be {_MIN_TOKEN_CHARACTERS} or more printable ASCII characters without spaces"
            )
        return value

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Init (the TOML table) last: pydantic's own order would put it first."""
        return env_settings, init_settings


S = TypeVar("S", bound=ServiceSettings)


def load_settings(cls: type[S], table: str, argv: Sequence[str]) -> S:
    """Read the settings of the service whose TOML table is `table`.

    The TOML file is named by `--config` or `QUIRE_CONFIG`. A secret can also lie in a file that `QUIRE_{NAME}_FILE`
    names, as containers get theirs. Raises SettingsError, one line per mistake, for an unknown flag, an unknown
    `QUIRE_*` variable, an unknown key or table, a file that cannot be read, or a bad value.
    """
    arguments, rest = _split_config(argv)
    secret_files = {f"{ENV_PREFIX}{name.upper()}_FILE": name for name in _secrets(cls)}
    known = {ENV_PREFIX + name.upper() for name in cls.model_fields} | secret_files.keys() | _FOREIGN_ENV
    unknown = sorted(name for name in os.environ if name.startswith(ENV_PREFIX) and name not in known)
    if unknown:
        raise SettingsError(f"unknown environment variables for {table}: {', '.join(unknown)}")
    values = {**_read_table(arguments, table), **_read_secrets(secret_files)}
    source: CliSettingsSource[S] = CliSettingsSource(
        cls, cli_prog_name=f"python -m {table}", cli_parse_args=list(rest), cli_exit_on_error=True
    )
    try:
        return cls(_cli_settings_source=source, **values)  # type: ignore[call-arg]
    except ValidationError as error:
        raise SettingsError(_describe(error)) from None


def _split_config(argv: Sequence[str]) -> tuple[Path | None, list[str]]:
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--config", type=Path, default=os.environ.get("QUIRE_CONFIG") or None)
    known, rest = parser.parse_known_args(argv)
    return (Path(known.config) if known.config else None), rest


def _read_table(config: Path | None, table: str) -> dict[str, Any]:
    if config is None:
        return {}
    try:
        document = tomllib.loads(config.read_text())
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise SettingsError(f"cannot read {config}: {error}") from None
    tables = sorted({table, *SERVICES})
    unknown = [
        f"[{name}]" if isinstance(value, dict) else name
        for name, value in document.items()
        if name not in tables
    ]
    if unknown:
        known = ", ".join(f"[{name}]" for name in tables)
        raise SettingsError(f"{config}: unknown {', '.join(unknown)}; its tables are {known}")
    values = document.get(table, {})
    if not isinstance(values, dict):
        raise SettingsError(f"{config}: [{table}] must be a table")
    return values


def _secrets(cls: type[ServiceSettings]) -> list[str]:
    fields = cls.model_fields.items()
    return [name for name, field in fields if SecretStr in (field.annotation, *get_args(field.annotation))]


def _read_secrets(files: Mapping[str, str]) -> dict[str, str]:
    """Values by name of the secrets whose variable, a key of `files`, names a file."""
    values = {}
    for variable, name in files.items():
        if path := os.environ.get(variable):
            try:
                values[name] = Path(path).read_text().strip()
            except (OSError, UnicodeDecodeError) as error:
                raise SettingsError(f"cannot read {path}, which {variable} names: {error}") from None
    return values


def _describe(error: ValidationError) -> str:
    lines = []
    for item in error.errors():
        name = ".".join(str(part) for part in item["loc"]) or "settings"
        lines.append(f"{name.replace('_', '-')}: {item['msg']}")
    return "\n".join(lines)
