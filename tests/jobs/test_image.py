"""What an image lacks of our requirements, and at which versions that is installed."""

from orchestrator.jobs import image
from orchestrator.jobs.probe import unmet, unmet_by_kind


def test_requirements_that_an_image_does_not_meet():
    wanted = ["packaging>=20", "no-such-thing>=1", "packaging<20"]
    for_others = ['never; extra == "dev"', 'never; python_version < "3"']
    assert unmet(wanted + for_others) == ["no-such-thing>=1", "packaging<20"]
    assert unmet(['no-such-thing; extra == "cpu"', "packaging<20"], "cpu") == [
        "no-such-thing",
        "packaging<20",
    ]
    assert unmet(["ray[tune]==2.60.0"]) == [], "the extra's requirements are met too"
    found = unmet_by_kind("laser-orchestrator")
    assert found["all"] == []
    assert not (found["cpu"] and found["gpu"]), "one of vLLM's builds is installed"


def test_what_is_lacking_is_installed_at_the_version_of_the_lock(tmp_path, monkeypatch):
    (tmp_path / "requirements.lock").write_text("math-verify==0.9.0\nPyYAML==6.0.2\n")
    monkeypatch.setattr(image, "REPOSITORY", tmp_path)
    assert [image.pinned(name) for name in ("math_verify>=0.8", "pyyaml>=6", "other>=1")] == [
        "math-verify==0.9.0", "PyYAML==6.0.2", "other>=1",
    ]  # fmt: skip
