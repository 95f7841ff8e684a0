"""What `laser submit` refuses before it sends anything. No cluster."""

from pathlib import Path

import pytest

from orchestrator import cli
from orchestrator.errors import ConfigError
from orchestrator.jobs.submission import submit


def refusal(*arguments, **options):
    with pytest.raises(ConfigError) as caught:
        submit(*arguments, **options)
    return str(caught.value)


def test_a_password_is_never_sent(here, monkeypatch):
    found = refusal(Path("run.yaml"), ["tracking.uri=http://me:secret@host:5000"])
    assert found.startswith("tracking.uri: http://me:***@host:5000 holds a password")
    assert "MLFLOW_TRACKING_PASSWORD" in found
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "postgresql://me:secret@host/db")
    found = refusal(Path("run.yaml"), [])
    assert found.startswith("MLFLOW_TRACKING_URI: postgresql://me:***@host/db holds a password")
    assert "secret" not in found


def test_what_is_no_mapping_is_refused_by_the_loader(here):
    for text in ("", "- a list", "a: ["):
        (here / "odd.yaml").write_text(text)
        assert refusal(Path("odd.yaml"), []).startswith("odd.yaml: ")
    assert refusal(Path("nowhere.yaml"), []).startswith("nowhere.yaml: cannot be read")


def test_results_need_a_place_that_stays(here):
    for storage in ("runs", "s3://bucket/runs"):
        assert refusal(Path("run.yaml"), [], storage=storage).startswith(
            f"--storage: {storage} is no absolute path"
        )


def test_an_address_without_a_cluster(here):
    assert refusal(Path("run.yaml"), [], "http://127.0.0.1:9").startswith(
        "http://127.0.0.1:9: no Ray cluster answers there"
    )
    assert refusal(Path("run.yaml"), [], "ray://head:10001").startswith(
        "--address: ray://head:10001 is not the address of a dashboard"
    )


def test_settings_may_stand_on_both_sides_of_an_option(here, capsys):
    arguments = ["submit", "run.yaml", "loss.alpha=1", "--address", "http://127.0.0.1:9", "loss.alhpa=2"]
    assert cli.main(arguments) == 2
    assert "loss.alhpa: unknown key" in capsys.readouterr().err
    for wrong in (["jobs", "status", "a", "b=1"], ["submit", "run.yaml", "--adress=x"]):
        with pytest.raises(SystemExit) as caught:
            cli.main(wrong)
        assert caught.value.code == 2
        assert "unrecognized arguments: " in capsys.readouterr().err
