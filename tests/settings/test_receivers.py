"""What ``[alerts]`` may say: who is told, and where the secrets are."""

from __future__ import annotations

from typing import Any

import pytest

from greenroom import settings
from greenroom.settings import SettingsInvalid

KEY = "whsec_" + "c2VjcmV0" * 5
ENVIRON = {
    "HOOK": "https://hooks.example/in?token=hidden",
    "KEY": KEY,
    "SLACK": "https://hooks.slack.example/services/T/B/hidden",
    "MAIL": "mailtos://user:hidden@mail.example?to=people@example.org",
    "BAD": "nothing hidden://",
    "ODD": "http://user:hidden@127.0.0.1:bad/",
    "EMPTY": "",
}


def load(name: str = "people", **receiver: Any) -> settings.Settings:
    return settings.load(None, ENVIRON, overrides={"alerts": {"receivers": {name: receiver}}})


@pytest.mark.parametrize(
    "receiver",
    [
        {"type": "alertmanager", "url": "http://127.0.0.1:9093"},
        {"type": "alertmanager", "url": "http://alertmanager:9093/prefix"},
        {"type": "webhook", "url_env": "HOOK", "secret_env": "KEY"},
        {"type": "webhook", "url": "http://10.0.0.7/in", "secret_env": "KEY", "severities": ["critical"]},
        {"type": "slack", "url_env": "SLACK", "kinds": ["slow"], "agents": ["research-*"], "acknowledged": True},
        {"type": "email", "url_env": "MAIL", "repeat_s": 60},
        {"type": "apprise", "url_env": "MAIL"},
    ],
)
def test_a_receiver_is_taken_and_shown_without_its_secrets(receiver: dict[str, Any]) -> None:
    found = load(**receiver)
    assert found.alerts.receivers["people"].type == receiver["type"]
    shown = {row.path: row.value for row in settings.rows(found)}
    assert shown["alerts.receivers.people.type"] == receiver["type"]
    assert "hidden" not in str(shown)
    assert KEY not in str(shown)


@pytest.mark.parametrize(
    ("receiver", "key", "message"),
    [
        ({}, "type", "is missing; expected one of"),
        ({"type": "pager"}, "type", 'got "pager"'),
        ({"type": "slack", "url_env": "SLACK", "severities": ["page"]}, "severities[0]", ', got "page"'),
        ({"type": "slakc", "url_env": "SLACK"}, "type", 'did you mean "slack"?'),
        ({"type": "alertmanager"}, "url", "is missing; give url_env, or url"),
        ({"type": "slack"}, "url", "is missing; give url_env"),
        ({"type": "slack", "url": ENVIRON["SLACK"]}, "url", "is a secret of slack: name the variable"),
        ({"type": "alertmanager", "url": "http://a.example", "url_env": "HOOK"}, "url", "is given beside url_env"),
        ({"type": "alertmanager", "url": "http://u:hidden@a.example"}, "url", "has a user, a query or a fragment"),
        ({"type": "alertmanager", "url": "http://a.example:0"}, "url", "has a user, a query or a fragment"),
        ({"type": "slack", "url_env": "NOT_THERE"}, "url_env", "the variable NOT_THERE is not set"),
        ({"type": "slack", "url_env": "EMPTY"}, "url_env", "the variable EMPTY is not set"),
        ({"type": "slack", "url_env": "ODD"}, "url_env", "the URL in ODD: it is no URL"),
        ({"type": "slack", "url_env": "BAD"}, "url_env", "the URL in BAD: it has characters"),
        ({"type": "slack", "url": "hooks.slack.example/hidden"}, "url", "is a secret of slack: name the variable"),
        ({"type": "slack", "url_env": ENVIRON["SLACK"]}, "url_env", "is no name of an environment variable"),
        ({"type": "email", "url_env": "HOOK"}, "url_env", "does not begin with mailto://"),
        ({"type": "apprise", "url_env": "KEY"}, "url_env", "it is no URL of apprise"),
        ({"type": "webhook", "url_env": "HOOK"}, "secret_env", "is missing: a webhook is signed"),
        ({"type": "webhook", "url_env": "HOOK", "secret_env": "NO"}, "secret_env", "the variable NO is not set"),
        ({"type": "webhook", "url_env": "HOOK", "secret_env": "HOOK"}, "secret_env", "what HOOK holds is not of"),
        ({"type": "slack", "url_env": "SLACK", "secret_env": "KEY"}, "secret_env", "is of webhook only"),
        ({"type": "slack", "url_env": "SLACK", "repeat_s": 1}, "repeat_s", "got 1"),
        ({"type": "slack", "url_env": "SLACK", "to": "x"}, "to", "unknown key"),
    ],
)
def test_a_mistake_is_refused_with_its_path_and_without_the_secret(
    receiver: dict[str, Any], key: str, message: str
) -> None:
    with pytest.raises(SettingsInvalid) as refused:
        load(**receiver)
    assert {problem.path for problem in refused.value.problems} == {f"alerts.receivers.people.{key}"}
    assert message in str(refused.value)
    assert "hidden" not in str(refused.value)


def test_a_receiver_has_a_name_and_alerts_are_a_table() -> None:
    with pytest.raises(SettingsInvalid, match=r"alerts\.receivers\.No"):
        load("No", type="slack", url_env="SLACK")
    for given in ({"alerts": 1}, {"alerts": {"receivers": 1}}):
        with pytest.raises(SettingsInvalid, match="expected a table"):
            settings.load(None, ENVIRON, overrides=given)
    many = {f"r{number}": {"type": "slack", "url_env": "SLACK"} for number in range(51)}
    with pytest.raises(SettingsInvalid, match="expected at most 50, got 51"):
        settings.load(None, ENVIRON, overrides={"alerts": {"receivers": many}})


def test_who_only_deploys_need_not_have_the_nodes_secrets() -> None:
    named = {"type": "webhook", "url_env": "NOT_HERE", "secret_env": "NOR_THIS"}
    overrides = {"alerts": {"receivers": {"people": named}}}
    found = settings.load(None, {}, overrides=overrides, is_for_node=False)
    assert found.alerts.receivers["people"].url_env == "NOT_HERE"


def test_a_variable_says_it_too() -> None:
    environ = ENVIRON | {"GREENROOM_ALERTS__GROUP_WAIT_S": "30"}
    found = settings.load(None, environ)
    assert (found.alerts.group_wait_s, found.alerts.receivers) == (30, {})
