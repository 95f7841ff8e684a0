"""API keys, and the addresses that need one."""

import hashlib

import pytest

from orchestrator.config.serving import IngressConfig, ServeConfig
from orchestrator.errors import ConfigError
from orchestrator.serving.app import ingress
from orchestrator.serving.keys import Keys
from orchestrator.serving.launch import Service


class TestKeys:
    def test_a_key_of_the_file_or_of_the_environment_opens(self, tmp_path, monkeypatch):
        (tmp_path / "keys").write_text("# comment\n\nsk-1 \nsk-2\n")
        monkeypatch.setenv("LASER_API_KEY", "sk-3")
        keys = Keys.load(tmp_path / "keys")
        assert all(keys.admit(f"Bearer {key}") for key in ("sk-1", "sk-2", "sk-3"))
        assert keys.admit("bearer sk-1"), "the scheme's case does not matter"
        for header in (
            None,
            "",
            "Bearer",
            "Bearer ",
            "Bearer sk-4",
            "Bearer sk-",
            "Basic sk-1",
            "sk-1",
            "Bearer # comment",
        ):
            assert not keys.admit(header), header

    def test_a_known_hash_opens_too(self, monkeypatch):
        monkeypatch.delenv("LASER_API_KEY", raising=False)
        keys = Keys.load(None, [hashlib.sha256(b"sk-1").hexdigest()])
        assert keys.admit("Bearer sk-1")
        assert not keys.admit("Bearer sk-2")
        assert Keys.load(None).admit(None), "no key at all leaves the service open"

    def test_a_file_without_keys_and_an_empty_variable_are_refused(self, tmp_path, monkeypatch):
        (tmp_path / "keys").write_text("# only a comment\n")
        with pytest.raises(ConfigError, match="holds no key"):
            Keys.load(tmp_path / "keys")
        with pytest.raises(ConfigError, match="cannot be read"):
            Keys.load(tmp_path / "none")
        monkeypatch.setenv("LASER_API_KEY", " ")
        with pytest.raises(ConfigError, match="LASER_API_KEY is empty"):
            Keys.load(None)

    @pytest.mark.parametrize(
        ("host", "loopback"),
        [("127.0.0.1", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("a.b", False)],
    )
    def test_an_address_that_others_reach_needs_a_key(self, host, loopback, monkeypatch):
        monkeypatch.delenv("LASER_API_KEY", raising=False)
        config = ServeConfig(models={"m": "/no/such/model"}, host=host)
        with pytest.raises(ConfigError, match="not found" if loopback else "there is no API key"):
            Service(config)

    def test_the_ingress_of_serve_deploy_refuses_to_be_open_by_accident(self, monkeypatch):
        monkeypatch.delenv("LASER_API_KEY", raising=False)
        with pytest.raises(ConfigError, match="would answer anybody"):
            ingress(IngressConfig(models=["m"]))
