from __future__ import annotations

import falcon.testing
import pytest

from app.wsgi import DEFAULT_LENGTH, MAX_LENGTH, create_app


@pytest.fixture
def client() -> falcon.testing.TestClient:
    return falcon.testing.TestClient(create_app())


@pytest.mark.parametrize("length", [0, 1, 2, 45, 1024, MAX_LENGTH])
def test_the_body_has_exactly_the_length_asked_for(client: falcon.testing.TestClient, length: int) -> None:
    result = client.simulate_get("/", query_string=f"length={length}")
    assert result.status_code == 200
    assert len(result.text) == length
    assert result.headers["content-length"] == str(length)
    assert result.headers["content-type"].startswith("text/plain")


@pytest.mark.parametrize("query", ["", "other=5", "other=5&more=1"])
def test_without_a_length_it_is_1024(client: falcon.testing.TestClient, query: str) -> None:
    assert len(client.simulate_get("/", query_string=query).text) == DEFAULT_LENGTH


def test_the_length_is_found_among_other_parameters(client: falcon.testing.TestClient) -> None:
    assert len(client.simulate_get("/", query_string="a=1&length=77").text) == 77


@pytest.mark.parametrize("length", ["-1", "10241", "1e3", "x", "", "1.5", "9" * 30, "%31", "٣"])
def test_another_length_is_a_clear_problem(client: falcon.testing.TestClient, length: str) -> None:
    result = client.simulate_get("/", query_string=f"length={length}")
    if length == "%31":  # percent-encoded digits are digits, and no fast path may say otherwise
        assert len(result.text) == 1
        return
    assert result.status_code == 400
    assert result.headers["content-type"] == "application/problem+json"
    assert result.json["status"] == 400
    assert "0 to 10240" in result.json["detail"]


def test_health_answers(client: falcon.testing.TestClient) -> None:
    assert client.simulate_get("/health").status_code == 200


def test_an_unknown_path_is_a_404(client: falcon.testing.TestClient) -> None:
    result = client.simulate_get("/nowhere")
    assert (result.status_code, result.json["status"]) == (404, 404)
