"""The verifier `json`: forms, fields and graded rewards."""

import pytest

from orchestrator.errors import ConfigError
from orchestrator.messages.verdicts import Status
from tests.actors.verifiers.made import about, verdict_of

SCHEMA = {
    "type": "object",
    "required": ["name", "age"],
    "properties": {"name": {"type": "string"}, "age": {"type": "integer", "minimum": 0}},
    "additionalProperties": False,
}
GOLD = '{"name": "Ann", "age": 7}'


@pytest.mark.parametrize(
    "response",
    [
        GOLD,
        f"Here:\n```json\n{GOLD}\n```\nDone.",
        f'First {{"name": "Bob"}}, then {GOLD}.',
        rf"\boxed{{{GOLD}}}",
        '{"age": 7.0, "name": "Ann"}',
    ],
)
def test_right_values(response):
    assert verdict_of({"name": "json", "json_schema": SCHEMA}, response, GOLD).status is Status.CORRECT


@pytest.mark.parametrize(
    ("response", "status"),
    [
        ("no json", Status.FORMAT),
        ("{'name': 'Ann'}", Status.FORMAT),
        ('{"name": "Ann"}', Status.FORMAT),
        ('{"name": "Ann", "age": -1}', Status.FORMAT),
        ('{"name": "Ann", "age": NaN}', Status.FORMAT),
        ('{"name": "Ann", "age": true}', Status.FORMAT),
        ('{"name": "Bob", "age": 7}', Status.WRONG),
        ("[" * 100_000, Status.FORMAT),
        ("", Status.FORMAT),
    ],
)
def test_other_values(response, status):
    verdict = verdict_of({"name": "json", "json_schema": SCHEMA}, response, GOLD)
    assert (verdict.status, verdict.reward) == (status, 0)


def test_the_right_form_alone_gives_a_quarter():
    settings = {"name": "json", "fields": {"name": 2, "a.0.b": 1}, "form_reward": 0.25}
    gold = '{"name": "Ann", "a": [{"b": 1}]}'
    assert verdict_of(settings, "nothing", gold).reward == 0
    assert verdict_of(settings, '{"name": "Bob", "a": []}', gold).reward == 0.25
    assert verdict_of(settings, '{"name": "Ann", "a": []}', gold).reward == pytest.approx(0.25 + 0.75 * 2 / 3)
    whole = verdict_of(settings, '{"name": "Ann", "a": [{"b": 1}]}', gold)
    assert (whole.reward, dict(whole.parts)) == (1, {"form": 1.0, "fields": 1.0})


def test_a_schema_of_the_row_and_no_reference():
    settings = {"name": "json", "schema_field": "schema"}
    assert verdict_of(settings, GOLD, about(None, schema=SCHEMA)).status is Status.CORRECT
    assert verdict_of(settings, "{}", about(None, schema=SCHEMA)).status is Status.FORMAT
    assert verdict_of(settings, "{}", about(None, schema='{"type": "objet"}')).status is Status.ERROR
    assert verdict_of(settings, "{}", about(None)).status is Status.ERROR
    assert verdict_of("json", "{}", "{").status is Status.ERROR


def test_a_wrong_schema_is_refused_at_once():
    with pytest.raises(ConfigError, match="json_schema"):
        verdict_of({"name": "json", "json_schema": {"type": "objet"}}, "{}", "{}")
