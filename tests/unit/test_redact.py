"""What is printed and saved holds no secrets, and nothing else is changed."""

import pytest

from aloftrag import redact


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("http://user:pass@host:8000/v1 does not answer", "http://***@host:8000/v1 does not answer"),
        ("s3://AKIAX:abc/def@bucket/a", "s3://AKIAX:abc/def@bucket/a"),  # a slash ends the host: no form that any library reads
        ("http://user:p@ss@host/", "http://***@host/"),
        ("s3://AKIAX:abcdef@bucket/a, s3://bucket/b@c", "s3://***@bucket/a, s3://bucket/b@c"),
        ("http://host/v1?api_key=abc&n=3", "http://host/v1?api_key=***&n=3"),
        ("s3://b/x?endpoint_override=localhost:9000&secret_key=s", "s3://b/x?endpoint_override=localhost:9000&secret_key=***"),
        ("https://host/file?X-Amz-Signature=abc&sig=def", "https://host/file?X-Amz-Signature=***&sig=***"),
        ("write to ada@example.org about http://host/a", "write to ada@example.org about http://host/a"),
        ("training.max_tokens=20000", "training.max_tokens=20000"),
    ],
)
def test_credentials_in_addresses(said: str, expected: str) -> None:
    assert redact.text(said) == expected


def test_what_the_environment_keeps_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_planted_secret")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "aws/planted+secret")
    monkeypatch.setenv("SHORT_TOKEN", "a")
    monkeypatch.setenv("HOME_OF_KEYS", "not a secret")
    said = "401 for hf_planted_secret and aws/planted+secret: not a secret, a word"
    assert redact.text(said) == "401 for *** and ***: not a secret, a word"


def test_settings_that_are_named_like_secrets() -> None:
    options = {"hf_token": "abc", "max_tokens": 5, "token": None, "nested": [{"api_key": "x", "model": "http://u:p@h/"}]}
    assert redact.data(options) == {
        "hf_token": "***",
        "max_tokens": 5,
        "token": None,
        "nested": [{"api_key": "***", "model": "http://***@h/"}],
    }
