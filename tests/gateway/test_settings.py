"""What the gateway can be told, and how."""

import pytest

from gateway.settings import GatewaySettings
from quire.settings import ServiceSettings, SettingsError, load_settings


def test_lists_come_comma_separated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUIRE_METRICS_UPSTREAMS", "http://a:1/metrics, http://b:2/metrics")
    settings = load_settings(GatewaySettings, "gateway", ["--tokenizers", "unix:/a,b:1"])
    assert settings.tokenizers == ("unix:/a", "b:1")
    assert settings.metrics_upstreams == ("http://a:1/metrics", "http://b:2/metrics")
    assert settings.listen == "0.0.0.0:8000"


def test_an_empty_key_is_no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUIRE_API_KEY", "")
    assert load_settings(GatewaySettings, "gateway", []).api_key is None


@pytest.mark.parametrize("key", ["a b", "ü", "a\n"])
def test_a_key_that_no_header_can_carry_is_refused(key: str) -> None:
    with pytest.raises(SettingsError, match="api-key"):
        load_settings(GatewaySettings, "gateway", ["--api-key", key])


def test_a_key_is_not_shown() -> None:
    settings = load_settings(GatewaySettings, "gateway", ["--api-key", "secret-key"])
    assert "secret-key" not in repr(settings)
    assert "secret-key" not in settings.model_dump_json()


def test_settings_stay_few() -> None:
    assert len(GatewaySettings.model_fields.keys() - ServiceSettings.model_fields.keys()) <= 23
    assert len(ServiceSettings.model_fields) <= 10
    assert all(field.description for field in GatewaySettings.model_fields.values())
